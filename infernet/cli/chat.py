"""`infernet chat`: ask a question and stream the answer."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any, Final

from infernet import identity
from infernet.cli.command import Failure, Misuse, innermost
from infernet.cli.conversation import Conversation, NoAnswer, Question
from infernet.cli.running_node import loading
from infernet.config import Config, load, places
from infernet.host.files import reason_of
from infernet.host.lock import running_pid
from infernet.ipc import client as ipc
from infernet.own_addresses import peer_of
from infernet.settings.readers import read_dollars, read_node, read_peer, read_url
from protocol.envelope import SigningKey

MAX_TOKENS_DEFAULT: Final = 512
TEMPERATURE_DEFAULT: Final = 0.7
TIMEOUT_S_DEFAULT: Final = 600.0
QUESTION_CHARACTERS_MAX: Final = 1024 * 1024
# What is said when nobody is there who could answer.
NOBODY_REACHED: Final = frozenset({"no_provider", "peer_lost", "no_route"})
# What is said by a node whose engine has no such model, or does other kinds of jobs with it.
NOT_SERVED: Final = frozenset({"no_model", "unsupported"})

USAGE: Final = "[QUESTION] [--peer MULTIADDR | --remote] [--via MULTIADDR] [OPTIONS]"
DESCRIPTION: Final = """\
Ask a question. The answer streams to standard output as it is made; who served it, and how fast, goes to standard
error. Without QUESTION it is read from standard input. Ctrl-C cancels the job where it runs.

Who is asked:
  by default   the node that runs here: it answers itself, at once and for nothing, where it serves the model; else
               any provider that it knows, peer to peer
  --peer       this one node, peer to peer, also when no node runs here
  --via        the same, but through this aggregator, which passes on what it cannot read
  --remote     the coordinator's public chat, which sees question and answer"""
EXAMPLES: Final = """\
examples:
  infernet chat "Why is the sky blue?"
  infernet chat --peer /ip4/203.0.113.7/tcp/46337/p2p/16Uiu2HA... "Why is the sky blue?"
  infernet chat --pay 0.01 --verbose "Why is the sky blue?"
  git diff | infernet chat --system "Write a commit message for this change."
  infernet chat --json --temperature 0 --seed 1 "Name a colour." | jq -r .text

--json prints one object at the end: text, outcome (stop or length), provider, provider_name, model, job,
prompt_tokens, output_tokens, first_token_s, duration_s, tokens_per_s, route (node, self, peer or
coordinator), via (the key of the aggregator, or null), paid_uusd (what it cost, in millionths of a dollar),
served (provider, attempt, prompt_tokens, output_tokens and paid_uusd of everybody who gave a part of it); or
error and code. Exits with 1 when nobody answered to the end.

--pay is a limit, not a price: the answer costs what its provider publishes for the tokens that came, and is paid
for as they come, from money that the coordinator holds for this node (`infernet wallet`). Without it nothing is
paid, unless `infernet config set --spend-max` says otherwise, and only those are asked who answer for nothing."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The question, whom to ask, and how to answer."""
    parser.add_argument("question", nargs="*", metavar="QUESTION", help="several words are joined by spaces")
    whom = parser.add_mutually_exclusive_group()
    whom.add_argument("--peer", metavar="MULTIADDR", help="ask this node: /ip4/.../tcp/.../p2p/16Uiu2HA...")
    whom.add_argument("--remote", action="store_true", help="ask through the coordinator, which sees the question")
    parser.add_argument("--via", metavar="MULTIADDR", help="ask through this aggregator (a public key, if it is known)")
    parser.add_argument("--url", help="with --remote: this coordinator instead of the configured one")
    parser.add_argument("--model", help="only this model (default: any)")
    parser.add_argument("--system", metavar="TEXT", help="instructions that come before the question")
    parser.add_argument(
        "--temperature",
        type=_number("a temperature", 0, 2),
        default=TEMPERATURE_DEFAULT,
        metavar="T",
        help="0 to 2; 0 always takes the likeliest word (default: %(default)s)",
    )
    parser.add_argument(
        "--max-tokens",
        type=_whole_number("--max-tokens", 1, 32 * 1024),
        default=MAX_TOKENS_DEFAULT,
        metavar="N",
        help="length of the answer at most (default: %(default)s)",
    )
    parser.add_argument(
        "--pay", "--spend-max", type=_dollars, metavar="USD", help="what the answer may cost at most, such as 0.01"
    )
    parser.add_argument("--verbose", action="store_true", help="tell of every lease and voucher that pays for it")
    parser.add_argument(
        "--seed", type=_whole_number("a seed", 0, 2**62), metavar="N", help="the same seed draws the same words"
    )
    parser.add_argument(
        "--timeout",
        type=_number("a timeout", 1, 86_400),
        default=TIMEOUT_S_DEFAULT,
        metavar="S",
        help="give up after this many seconds (default: %(default)s)",
    )


def _number(what: str, low: float, high: float) -> Callable[[str], float]:
    def read(word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{what} is a number from {low} to {high}")
        return value

    return read


def _whole_number(what: str, low: int, high: int) -> Callable[[str], int]:
    def read(word: str) -> int:
        # Python itself refuses to read thousands of digits.
        if not word.isascii() or not word.isdigit() or len(word) > 20 or not low <= int(word) <= high:
            raise argparse.ArgumentTypeError(f"{what} is a whole number from {low} to {high}")
        return int(word)

    return read


def _dollars(word: str) -> int:
    try:
        return int(read_dollars(word))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(arguments: argparse.Namespace) -> int:
    """Ask, in the way that was chosen."""
    if arguments.pay and arguments.remote:
        raise Misuse("--pay goes with peers: the coordinator's public chat costs nothing")
    if arguments.url is not None and not arguments.remote:
        raise Misuse("--url goes with --remote")
    if arguments.via is not None and arguments.remote:
        raise Misuse("--via goes with peers: the coordinator is asked directly")
    question = Question.of(arguments, _read_question(arguments))
    ask, route = _choose_route(arguments)
    conversation = Conversation(route, as_json=arguments.json, shows_money=arguments.verbose)
    try:
        ask(question, conversation)
    except BaseException as error:
        conversation.end_line()
        failed = innermost(error)
        if isinstance(failed, NoAnswer):
            raise failed.told(
                asked_one=arguments.peer is not None,
                has_begun=conversation.tokens > 0,
                paid_uusd=conversation.paid_uusd,
            ) from None
        raise
    return conversation.finish()


def _read_question(arguments: argparse.Namespace) -> str:
    text = " ".join(arguments.question)
    if not text:
        if sys.stdin is None or sys.stdin.closed:
            raise Misuse('there is no question: infernet chat "..."')
        if sys.stdin.isatty():
            print("Type your question, then press Enter and Ctrl-D.", file=sys.stderr)
        try:
            text = sys.stdin.read(QUESTION_CHARACTERS_MAX + 1)
        except UnicodeDecodeError:
            raise Misuse("the question is not UTF-8 text") from None
        except OSError as error:
            raise Misuse(f"standard input cannot be read ({reason_of(error)})") from None
    if not text.strip():
        raise Misuse('the question is empty: infernet chat "...", or give it on standard input')
    if len(text) > QUESTION_CHARACTERS_MAX:
        raise Misuse(f"the question is too long: at most {QUESTION_CHARACTERS_MAX} characters")
    try:
        f"{text}{arguments.system or ''}".encode()
    except UnicodeEncodeError:
        # Where Python takes any bytes for text, those that are none become half characters.
        raise Misuse("the question is not UTF-8 text") from None
    return text


# ---------------------------------------------------------------- whom to ask

Ask = Callable[[Question, Conversation], None]


def _choose_route(arguments: argparse.Namespace) -> tuple[Ask, str]:
    """How to ask, and what that is called. Raises Failure when nobody can be asked."""
    if arguments.remote:
        return _through_coordinator(arguments.url), "coordinator"
    here = places()
    is_running = running_pid(here.pid_file) is not None
    peer = _read_peer("--peer", arguments.peer)
    via = _read_via(arguments.via, is_running=is_running)
    if peer is not None and peer_of(peer) == _own_key(here).node:
        raise Misuse(
            "--peer is this node's own address, and no node asks itself that way: without --peer the node here answers "
            "by itself what it can"
        )
    if peer is not None or via is not None:
        route = "peer" if peer is not None or not is_running else "node"
        if arguments.pay and not is_running:
            raise Failure(
                "no node is running here that could pay and keep account: run `infernet start`, or ask without --pay"
            )
        # A second node under the same key would pass for the first, so the first one asks.
        return (_through_node(here, peer, via) if is_running else _directly(peer, via, _own_key(here))), route
    if not is_running:
        raise Failure(_nobody_to_ask(), code="daemon-unreachable")
    return _own_node(here, arguments.model), "node"


def _read_peer(flag: str, word: str | None) -> str | None:
    try:
        return read_peer(word) if word is not None else None
    except ValueError as error:
        raise Misuse(f"{flag} {error}") from None


def _read_via(word: str | None, *, is_running: bool) -> str | None:
    """An aggregator: its address, or, for a node that runs here and may know that, its key."""
    if word is None or word.startswith("/"):
        return _read_peer("--via", word)
    try:
        read_node(word)
    except ValueError as error:
        raise Misuse(f"--via {error}, or a multiaddr") from None
    if not is_running:
        raise Failure("no node is running here that could know an address of that aggregator: give --via its multiaddr")
    return word


def _own_node(here: Config, model: str | None) -> Ask:
    """The node here itself, where it serves the model; else whoever it chooses."""
    asked_by_node = _through_node(here, None, None)

    def ask(question: Question, conversation: Conversation) -> None:
        status = ipc.call(here.socket_path, "status")
        # A node of an older version, which says no aliases, does not ask itself.
        if "aliases" in status and _serves(status, model):
            conversation.route = "self"
            try:
                _through_node(here, None, None, str(status["node_id"]))(question, conversation)
            except NoAnswer as failed:
                if failed.details["code"] not in NOT_SERVED:
                    raise
            else:
                return
            conversation.route = "node"
        try:
            asked_by_node(question, conversation)
        except NoAnswer as failed:
            nobody = not conversation.tokens and failed.details["code"] in NOBODY_REACHED
            if nobody and (words := loading(status, model)):
                advice = f"this node's own engine is not there yet ({words}): ask again when `infernet status` shows it"
                raise failed.because(advice) from None
            raise

    return ask


def _serves(status: dict[str, Any], model: str | None) -> bool:
    """Whether it is offered here, by its own name or another one."""
    models = status.get("models") or []
    if model is None or model in models:
        return bool(models)
    aliases = status.get("aliases") or {}
    return any(model in aliases[name] for name in models if name in aliases)


def _own_key(here: Config) -> SigningKey:
    try:
        return identity.load(here.key_file)
    except identity.NoIdentity:
        # Enough to ask with; a provider that serves only keys that it knows will not know this one.
        return identity.generate()


def _nobody_to_ask() -> str:
    url = load().config.coordinator_url
    remote = f"`infernet chat --remote` (asks through {url}, which then sees the question)" if url else None
    ways = ["`infernet start`", *([remote] if remote else []), "`infernet chat --peer MULTIADDR`"]
    return f"no node is running here: run {', or '.join(ways)}"


def _through_node(here: Config, peer: str | None, via: str | None, provider: str | None = None) -> Ask:
    def ask(question: Question, conversation: Conversation) -> None:
        payload = question.payload() | {"peer": peer, "via": via, "provider": provider}
        events = ipc.stream(here.socket_path, "chat", payload, silence_s=question.timeout_s + 30)
        try:
            with closing(events):
                for event, data in events:
                    conversation.take(event, data)
        except ipc.Refused as refused:
            if refused.code in ("bad-payload", "internal-error"):
                raise Failure(f"the node here cannot do that ({refused.cause or refused.code})") from None
            raise NoAnswer(refused.code, refused.cause, int(refused.data.get("retry_after_ms", 0))) from None

    return ask


def _directly(peer: str | None, via: str | None, key: SigningKey) -> Ask:
    import trio

    from infernet import log
    from infernet.cli import direct

    # The user sees how it ends; what happens on the way is for whoever looks for a fault.
    log.configure("debug" if os.environ.get("INFERNET_DEBUG") else "error")

    def ask(question: Question, conversation: Conversation) -> None:
        trio.run(direct.ask, load().config, key, direct.Whom(peer, via), question, conversation)

    return ask


def _through_coordinator(url: str | None) -> Ask:
    from infernet.cli import remote
    from infernet.proxy import proxy_for

    config = load().config
    try:
        chosen = read_url(url) if url is not None else config.coordinator_url
    except ValueError as error:
        raise Misuse(f"--url {error}") from None
    if chosen is None:
        raise Failure("no coordinator is configured: give --url, or run `infernet init --url ...`")

    proxy = proxy_for(config, chosen)

    def ask(question: Question, conversation: Conversation) -> None:
        remote.ask(chosen, question, conversation, proxy.for_httpx() if proxy is not None else None)

    return ask
