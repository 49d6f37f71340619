"""`infernet-coordinator payouts` and `deposits`: what waits for the operator, and what he decides about it.

Speaks to the coordinator that runs, signed with the key in --home. So it needs no secret of its own, and the database
keeps its one writer.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any, Final

from coordinator.config import Config, ConfigRefused, load
from coordinator.printing import MISUSED, fail, say

if TYPE_CHECKING:
    from protocol.envelope import SigningKey

TIMEOUT_S: Final = 60.0
COMMANDS: Final = ("payouts", "deposits")

PAYOUTS: Final = """\
Payouts that have not ended, and what stops them.

list        those on their way, what the gateway lists and nobody here has ordered, and why payouts are stopped, if so
decide      what becomes of a payout of which nobody knows whether it was sent. Look into the gateway first:
              sent     it has left: the money is gone
              return   it has not left and never will: the money is its owner's again (also one that is queued)
              resend   it has not left: send it now
unfreeze    everything that `list` has shown was looked at, and fits or is known: payouts go on

examples:
  infernet-coordinator payouts
  infernet-coordinator payouts --all --json | jq '.rows[] | select(.state != "confirmed")'
  infernet-coordinator payouts decide 5f81c7b0706c947b2d3120b84dd6828f return
"""
DEPOSITS: Final = """\
Deposits that wait for somebody to look at them.

list        those that are held (large) or need a review, and why
release     credit one that is held
credit      credit one that is not settled, with so many coins as you have seen on the chain

examples:
  infernet-coordinator deposits
  infernet-coordinator deposits release ac93020d3f5da4b610c0a57cdc89ccce
  infernet-coordinator deposits credit ac93020d3f5da4b610c0a57cdc89ccce 0.05
"""


class AdminFailed(Exception):
    """It did not work; the message is one line: what, why, what to do."""


class AdminMisused(AdminFailed):
    """The words make no sense; nothing was asked."""


def add_commands(commands: Any) -> None:
    """The words of both, and --help."""
    payouts = _parser(commands, "payouts", PAYOUTS)
    payouts.add_argument("action", choices=["list", "decide", "unfreeze"], nargs="?", default="list")
    payouts.add_argument("id", nargs="?", help="with decide: the number of the payout")
    payouts.add_argument("decision", nargs="?", choices=["sent", "return", "resend"])
    payouts.add_argument("--all", action="store_true", help="with list: those that have ended, too")
    deposits = _parser(commands, "deposits", DEPOSITS)
    deposits.add_argument("action", choices=["list", "release", "credit"], nargs="?", default="list")
    deposits.add_argument("id", nargs="?", help="with release and credit: the number of the deposit")
    deposits.add_argument("received", nargs="?", metavar="COINS", help="with credit: such as 0.05")


def _parser(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        description=text,
        help=text.partition("\n")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # No default: it may stand before the command, too.
    parser.add_argument("--home", default=argparse.SUPPRESS, help="directory of the coordinator's key and config.toml")
    parser.add_argument("--url", help="where it listens, if not where its configuration says")
    parser.add_argument("--json", action="store_true", help="print the answer as it is")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Ask, print, and return the exit code."""
    try:
        route, body = _what(arguments)
        config = load({name: getattr(arguments, name) for name in ("home",) if hasattr(arguments, name)})
        answer = ask(config, arguments.url, route, body)
        if arguments.json:
            text = json.dumps(answer) + "\n"
        elif arguments.action == "unfreeze":
            text = "payouts go on\n"
        else:
            text = _read(answer, arguments.url or _url_of(config))
    except AdminMisused as misuse:
        return fail(misuse, MISUSED)
    except (AdminFailed, ConfigRefused) as error:
        return fail(error)
    return say(text)


def _what(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    command, action = arguments.command, arguments.action
    if action in ("decide", "release", "credit") and arguments.id is None:
        raise AdminMisused(f"{command} {action} needs the number of which: see {command} list")
    # Whoever gives more words means something by them, and an order that is half understood is none.
    if (action in ("list", "unfreeze") and arguments.id is not None) or (
        action == "release" and arguments.received is not None
    ):
        raise AdminMisused(f"too many words: {command} {action}{' ID' if action == 'release' else ''}")
    if action != "list" and getattr(arguments, "all", False):
        raise AdminMisused("--all goes with list")
    match command, action:
        case "payouts", "list":
            return "payouts/list", {"all": arguments.all}
        case "payouts", "decide":
            if arguments.decision is None:
                raise AdminMisused("what has become of it: payouts decide ID sent, return or resend")
            return "payouts/decide", {"intent": arguments.id, "decision": arguments.decision}
        case "deposits", "credit":
            if arguments.received is None:
                raise AdminMisused(
                    "how many have come: deposits credit ID COINS, so many as you have seen on the chain"
                )
            return "deposits/credit", {"deposit": arguments.id, "received": arguments.received}
        case "deposits", "release":
            return "deposits/release", {"deposit": arguments.id}
    return f"{command}/{action}", {}


def ask(config: Config, url: str | None, route: str, body: dict[str, Any]) -> dict[str, Any]:
    """The `data` of the running coordinator's answer. Raises AdminFailed."""
    # These take a second to load; --help need not wait for them.
    import httpx

    from coordinator.identity import KeyRefused, load_key
    from protocol.envelope import AUTH_HEADER

    base = (url or _url_of(config)).rstrip("/")
    try:
        key = load_key(config.home_path)
    except KeyRefused as error:
        raise AdminFailed(str(error)) from None
    target, content = f"/api/v1/admin/{route}", json.dumps(body).encode()
    try:
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as http:
            headers = {AUTH_HEADER: _sign(key, target, content), "content-type": "application/json"}
            response = http.post(base + target, content=content, headers=headers)
            answer = response.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, RecursionError) as error:
        raise AdminFailed(
            f"no coordinator answers at {base} ({type(error).__name__}); start it, or use --url"
        ) from None
    said = answer if isinstance(answer, dict) else {}
    if response.status_code != 200:
        raise AdminFailed(f"refused: {said.get('error', response.status_code)}")
    data = said.get("data")
    if not isinstance(data, dict):
        raise _no_coordinator(base)
    return data


def _no_coordinator(base: str) -> AdminFailed:
    return AdminFailed(f"what answers at {base} is no coordinator of this version; use --url")


def _sign(key: SigningKey, target: str, content: bytes) -> str:
    import secrets
    import time

    from protocol.envelope import sign_request

    now_ms = time.time_ns() // 1_000_000
    return sign_request(key, key.node, "POST", target, content, now_ms, now_ms, secrets.randbits(32) | 1)


def _url_of(config: Config) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(config.host, config.host)  # noqa: S104 - compared with, not bound to
    return f"http://{host}:{config.port}"


def _read(answer: dict[str, Any], base: str) -> str:
    try:
        return _text(answer)
    except (AttributeError, LookupError, TypeError):
        raise _no_coordinator(base) from None


def _text(answer: dict[str, Any]) -> str:
    lines = []
    if frozen := answer.get("frozen"):
        lines.append(f"PAYOUTS ARE STOPPED since {frozen['since']}: {frozen['reason']}")
    lines += [f"at the gateway: {stray['gateway_id']}: {stray['reason']}" for stray in answer.get("strays", [])]
    rows = answer.get("rows", [answer["row"]] if "row" in answer else [])
    for row in rows:
        mark = "* " if row.get("needs_person") or row["status"] == "review" else "  "
        why = f"  ({row['reason']})" if row.get("reason") else ""
        lines.append(
            f"{mark}{row['id']}  {row['created_at']}  {row['amount_usd']} USD in {row['coin']} on {row['network']}  "
            f"{row['state']}{why}"
        )
    return "\n".join(lines or ["nothing waits"]) + "\n"
