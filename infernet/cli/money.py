"""What the verbs about money share: reading amounts, coins and addresses, and asking the coordinator as this node.

While a node runs here it is the one that asks, because the coordinator takes the numbers of its requests in order;
otherwise the command signs with the node's key itself. No verb of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, Final

from infernet.cli.command import Failure, Misuse, warn
from infernet.config import Config, load, pinned
from infernet.coordinators import Coordinator, former, remember
from infernet.host.files import FilesError
from infernet.host.lock import running_pid
from infernet.ipc import client as ipc
from protocol import constants as c
from protocol.formats.amounts import BadAmount, format_usd, parse_usd
from protocol.formats.coins import Pair, UnknownPair, find_pair
from protocol.ids import NodeId

# The node itself waits for the coordinator up to 15 s, and may sign, and register, once more.
ASK_TIMEOUT_S: Final = 60.0
ID_HEX_DIGITS: Final = 64
CENT_UUSD: Final = 10_000
# How the running node calls it, too: what was asked for may have been done or not.
UNREACHABLE: Final = "unreachable"

NO_COORDINATOR: Final = (
    "no coordinator is configured, so this node has no money anywhere: run `infernet init --url ...`, or "
    "`infernet config set --url URL --coordinator-key KEY`"
)


def no_coordinator(config: Config) -> str:
    """Why nobody can be asked, and who was asked before. Raises FilesError."""
    urls = [one.url for one in former(config.config_dir)]
    if not urls:
        return NO_COORDINATOR
    return (
        f"no coordinator is configured now, and this key may have money at {', '.join(urls)}: "
        f"`infernet login --url {urls[-1]}` uses it again"
    )


def tell_former(config_file: Path, before: tuple[str, NodeId] | None) -> None:
    """Say that a coordinator which was replaced, and has answered this key, is not forgotten. Raises FilesError."""
    if before is None or before == pinned(config_file):
        return
    url = before[0]
    if any((one.url, one.node) == before for one in former(config_file.parent)):
        warn(
            f"this key may have money at {url}: `infernet login --url {url}` and `infernet wallet` show it, and "
            "`infernet remove` asks there, too"
        )


def ask_coordinator(name: str, **fields: str | int | bool) -> Any:
    """What the coordinator answers to one of `money.client.TARGETS`. Raises Failure, IpcError or CoordinatorError."""
    config = load().config
    if running_pid(config.pid_file) is None:
        if config.coordinator_url is None:
            raise Failure(no_coordinator(config))
        return _ask_alone(config, name, fields)
    # It may have been told of a coordinator when it was started, and knows by itself when it was not.
    payload = {"ask": name, "fields": fields}
    try:
        return ipc.call(config.socket_path, "money", payload, timeout_s=ASK_TIMEOUT_S)
    except ipc.Refused as refused:
        raise _failure(refused) from None


def ask_as_it_is(coordinator: Coordinator | None, name: str, **fields: str | int | bool) -> Any:
    """What this coordinator answers, or the one that is set, without entering a key there that it does not know.

    Raises Failure, with the code `not_registered` for such a key, IpcError or CoordinatorError.
    """
    config = load().config
    if coordinator is None:
        if running_pid(config.pid_file) is not None:
            return ask_coordinator(name, **fields)
        return _ask_alone(config, name, fields, enters=False)
    at = dataclasses.replace(config, coordinator_url=coordinator.url, coordinator_key=coordinator.node)
    return _ask_alone(at, name, fields, enters=False)


def ask_node(command: str, payload: object = None) -> Any:
    """What the running node answers. Raises Failure or IpcError."""
    try:
        return ipc.call(load().config.socket_path, command, payload, timeout_s=ASK_TIMEOUT_S)
    except ipc.Refused as refused:
        raise _failure(refused) from None


def _failure(refused: ipc.Refused) -> Failure:
    if refused.code in ("bad-payload", "internal-error") or refused.code.startswith("unknown-cmd"):
        return Failure(f"the node here cannot do that ({refused.cause or refused.code}): is it of another version?")
    return Failure(refused.code, code=refused.cause)


def _ask_alone(config: Config, name: str, fields: dict[str, str | int | bool], *, enters: bool = True) -> Any:
    """Sign with the node's own key, which nobody else uses now; `enters` that key where it is not known."""
    import trio

    from infernet import identity
    from infernet.cli.command import innermost
    from infernet.coordinator_client import CoordinatorError, CoordinatorRefused, RequestSigner
    from infernet.driver import wall_ms
    from infernet.money.client import MoneyClient
    from infernet.node import registration
    from infernet.proxy import proxy_for

    key = identity.load(config.key_file)
    config = config.named_after(key.node)
    assert config.coordinator_url is not None
    assert config.coordinator_key is not None
    signer = RequestSigner(key, config.coordinator_key, wall_ms)
    proxy = proxy_for(config, config.coordinator_url)
    entry = partial(registration, config, key.node, ()) if enters else None
    client = MoneyClient(config.coordinator_url, signer, entry, proxy)

    async def ask() -> Any:
        try:
            return await client.ask(name, fields)
        finally:
            await client.aclose()

    try:
        answer = trio.run(ask)
    except BaseException as error:
        if isinstance(leaf := innermost(error), CoordinatorRefused):
            raise Failure(str(leaf), code=leaf.code or None) from None
        if isinstance(leaf, CoordinatorError):
            raise Failure(str(leaf), code=UNREACHABLE) from None
        raise
    if enters:
        # Where the settings cannot be written, nothing is to be forgotten with them.
        with contextlib.suppress(FilesError):
            remember(config.config_dir, config.coordinator_url, config.coordinator_key)
    return answer


def rows_of(answer: Any) -> list[dict[str, Any]]:
    """The rows of an answer, whether they are the answer or stand under `rows`. Raises Failure."""
    rows = answer.get("rows") if isinstance(answer, dict) else answer
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Failure("the coordinator answers with something else than rows: is it of another version?")
    return rows


def fields_of(answer: Any) -> dict[str, Any]:
    """The fields of an answer. Raises Failure."""
    if not isinstance(answer, dict):
        raise Failure("the coordinator answers with something else than fields: is it of another version?")
    return answer


# ---------------------------------------------------------------- reading


def read_amount(word: str) -> int:
    """Dollars, more than none, in whole cents, as micro-USD. Raises Misuse."""
    try:
        uusd = parse_usd(word)
    except BadAmount as error:
        raise Misuse(f"the amount is no number of dollars: {error}") from None
    if not 0 < uusd <= c.LEASE_CAP_UUSD_MAX:
        raise Misuse(f"the amount lies above $0 and is {format_usd(c.LEASE_CAP_UUSD_MAX)} at most")
    # The payment gateway knows nothing smaller, so the coordinator would refuse it.
    if uusd % CENT_UUSD:
        raise Misuse("the amount is in whole cents, such as 5.25")
    return uusd


def as_usd_text(uusd: int) -> str:
    """The same as digits with a point, for programs."""
    return format_usd(uusd).removeprefix("$")


def read_pair(coin: str, network: str | None) -> Pair:
    """The coin and network that are meant. Raises Misuse."""
    try:
        return find_pair(coin, network)
    except UnknownPair as error:
        raise Misuse(str(error)) from None


def read_id(what: str, word: str) -> str:
    """An id of 32 bytes, as hex digits. Raises Misuse."""
    if len(word) != ID_HEX_DIGITS or not set(word.lower()) <= set("0123456789abcdef"):
        raise Misuse(f"{what} is {ID_HEX_DIGITS} hex digits: copy all of it")
    return word.lower()


def no_more(words: list[str], usage: str) -> None:
    """Raises Misuse when words are left over."""
    if words:
        raise Misuse(f"too many words: {usage}")


# ---------------------------------------------------------------- showing


def usd(value: object) -> str:
    """Micro-USD that somebody else says, for people; negative amounts have a sign."""
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63:
        return "-"
    return f"-{format_usd(-value)}" if value < 0 else format_usd(value)


def when(value: object) -> str:
    """A wall-clock instant in UTC for people, out of milliseconds or of ISO 8601; a dash for what is neither."""
    from datetime import UTC, datetime

    try:
        if isinstance(value, str):
            read = datetime.fromisoformat(value)
            moment = read.astimezone(UTC) if read.tzinfo is not None else read
        elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 4_000_000_000_000:
            moment = datetime.fromtimestamp(value / 1000, UTC)
        else:
            return "-"
    except (ValueError, OverflowError):
        return "-"
    return moment.strftime("%Y-%m-%d %H:%M:%S")
