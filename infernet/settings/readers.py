"""What a setting accepts. A reader takes what a source holds (text from the environment and the flags, a TOML value
from the file) and gives the value with its type, or raises ValueError: the message then says what is allowed.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

from infernet.settings.hours import WINDOWS_MAX, read_window
from infernet.settings.models import ModelSettings, as_table
from protocol import constants as c
from protocol.errors import LocalProtocolError
from protocol.formats.amounts import BadAmount, format_usd, parse_usd
from protocol.formats.text import clean_name
from protocol.ids import NodeId, node_id_from_text, npub
from protocol.records import Role

FREE_FOR: Final = ("nobody", "known", "all")
ENGINES: Final = ("llama", "exllamav2", "exllamav3", "openai", "cluster", "none")
#: Those that a node may use at once; the others take all of a machine.
TOGETHER: Final = ("llama", "openai")
EXLLAMA: Final = ("exllamav2", "exllamav3")
CACHES: Final = ("fp16", "q8", "q6", "q4")
RELAYS: Final = ("yes", "no", "auto")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMATS: Final = ("auto", "text", "json")
ROLES: Final = ("provider", "aggregator", "client")

CONTEXT_TOKENS_MIN: Final = 128
CONTEXT_TOKENS_MAX: Final = 1024 * 1024
SLOTS_MAX: Final = 256
CARDS_MAX: Final = 64
CARD_GB_MAX: Final = 1024
THREADS_MAX: Final = 1024
PORT_MAX: Final = 65_535
SHARES_MAX: Final = 32

# In an address that somebody else may have written, and that is shown as part of a command: nothing a shell reads.
_URL_HOST: Final = re.compile(r"[\w.:%-]+")
_HOST_NAME: Final = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")

Reader = Callable[[object], Any]


def whole_number(low: int, high: int, unit: str = "") -> Reader:
    def read(value: object) -> int:
        allowed = f"must be a whole number{unit} from {low} to {high}"
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,10}", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(allowed)
        return value

    return read


def one_of(*words: str) -> Reader:
    def read(value: object) -> str:
        if not isinstance(value, str) or value.lower() not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return value.lower()

    return read


def read_engines(value: object) -> str:
    """One engine, or both of those that go together in the order in which they are to be asked, as one text."""
    allowed = f"must be one of {', '.join(ENGINES)}, or llama,openai for both of these"
    if isinstance(value, str):
        value = [word for word in re.split(r"[\s,]+", value.lower()) if word]
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ValueError(allowed)
    words = tuple(dict.fromkeys(word.lower() for word in value))
    if not words or not set(words) <= set(TOGETHER if len(words) > 1 else ENGINES):
        raise ValueError(allowed)
    return ",".join(words)


def read_role(value: object) -> Role:
    word: str = one_of(*ROLES)(value)
    return Role[word.upper()]


class Dollars(int):
    """Micro-USD that people write in dollars, and that TOML and JSON hold as such a text: never as a float."""


NO_MONEY: Final = Dollars(0)


def read_dollars(value: object) -> Dollars:
    """An amount such as "0.10", up to what one lease may hold. Raises ValueError."""
    if isinstance(value, Dollars):
        return value
    if isinstance(value, (int, float)):
        raise ValueError('must be dollars in quotes, such as "0.10": numbers with a point lose digits')  # noqa: TRY004
    try:
        uusd = parse_usd(value if isinstance(value, str) else "")
    except BadAmount as error:
        raise ValueError(f"must be dollars, such as 0.10, with 6 decimals at most ({error})") from None
    if uusd > c.LEASE_CAP_UUSD_MAX:
        raise ValueError(f"must be {format_usd(c.LEASE_CAP_UUSD_MAX)} at most")
    return Dollars(uusd)


def read_yes_or_no(value: object) -> bool:
    if isinstance(value, str):
        word = value.lower()
        if word in ("1", "true", "yes", "on"):
            return True
        if word in ("0", "false", "no", "off"):
            return False
    if not isinstance(value, bool):
        raise ValueError("must be true or false")  # noqa: TRY004 - one kind of error for every bad value
    return value


def text_of(what: str) -> Reader:
    def read(value: object) -> str:
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise ValueError(f"must be {what}")
        return value.strip()

    return read


def read_name(value: object) -> str:
    if not isinstance(value, str) or not value or clean_name(value) != value:
        raise ValueError(f"must be one line of 1 to {c.NAME_CHARACTERS_MAX} printable characters")
    return value


def read_url(value: object) -> str:
    """An HTTP address without path, as `http://host:port`. Raises ValueError."""
    allowed = "must be like https://coordinator.example or http://127.0.0.1:8080"
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(allowed)
    try:
        parts = urlsplit(value.strip())
        port = parts.port
    except ValueError:
        raise ValueError(allowed) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None or port == 0:
        raise ValueError(allowed)
    if not _URL_HOST.fullmatch(parts.hostname):
        raise ValueError(allowed)
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"{allowed}, without a path")
    return f"{parts.scheme}://{parts.netloc}"


def read_engine_url(value: object) -> str:
    """An HTTP address of an engine's server, `/v1` at its end left out. Raises ValueError."""
    allowed = "must be like http://127.0.0.1:11434 or https://gpu.example/v1"
    if not isinstance(value, str) or not value.isascii() or not value.isprintable():
        raise ValueError(allowed)
    try:
        parts = urlsplit(value.strip())
        port = parts.port
    except ValueError:
        raise ValueError(allowed) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or " " in value.strip():
        raise ValueError(allowed)
    if not _URL_HOST.fullmatch(parts.hostname):
        raise ValueError(allowed)
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"{allowed}, without user name, query or fragment")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"


def read_proxy(value: object) -> str | None:
    """A SOCKS5 proxy as `socks5h://address:port`, or none. Raises ValueError."""
    allowed = "must be like socks5://127.0.0.1:9050, or none"
    if not isinstance(value, str) or not value.isascii() or not value.isprintable():
        raise ValueError(allowed)
    if value.strip().lower() == "none":
        return None
    try:
        parts = urlsplit(value.strip())
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(allowed) from None
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"{allowed}: user name and password go into a file, see --proxy-login-file")
    if parts.scheme not in ("socks5", "socks5h") or not port or parts.path not in ("", "/"):
        raise ValueError(allowed)
    if parts.query or parts.fragment:
        raise ValueError(allowed)
    try:
        # To look up its name, somebody would have to be asked without it.
        ip = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise ValueError(f"{allowed}: with its IP address, for a name would be looked up around it") from None
    return f"socks5h://[{ip}]:{port}" if ip.version == 6 else f"socks5h://{ip}:{port}"


def split_proxy(proxy: str) -> tuple[str, int]:
    """Address and port of what `read_proxy` gave."""
    parts = urlsplit(proxy)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def read_node(value: object) -> NodeId:
    """A public key in any of its forms. Raises ValueError."""
    try:
        return node_id_from_text(value if isinstance(value, str) else "")
    except LocalProtocolError:
        raise ValueError("must be a public key: npub1..., 64 hex digits, or a PeerId") from None


def read_host(value: object) -> str:
    if isinstance(value, str):
        try:
            return str(ipaddress.ip_address(value.strip("[]")))
        except ValueError:
            # What looks like a number and is no address must not be looked up as a name.
            if _HOST_NAME.fullmatch(value) and not re.fullmatch(r"[0-9.]+", value):
                return value
    raise ValueError("must be an IP address or a host name, without port")


def read_own_host(value: object) -> str:
    try:
        return str(ipaddress.ip_address(value if isinstance(value, str) else ""))
    except ValueError:
        raise ValueError("must be an IP address of this machine, or 0.0.0.0 or :: for all of them") from None


def read_listen_host(value: object) -> str:
    try:
        return str(ipaddress.ip_address(value if isinstance(value, str) else ""))
    except ValueError:
        raise ValueError("must be IP addresses of this machine, or 0.0.0.0 and :: for all of them") from None


def read_peer(value: object) -> str:
    """A multiaddr that says who answers there. Raises ValueError."""
    # Only those who have peers to read pay for the transport's import.
    from infernet.transport.addresses import parse

    allowed = "must be like /ip4/203.0.113.7/tcp/46337/p2p/16Uiu2HA..."
    if not isinstance(value, str):
        raise ValueError(allowed)  # noqa: TRY004 - one kind of error for every bad value
    try:
        address = parse(value)
    except ValueError as error:
        raise ValueError(f"{allowed} ({error})") from None
    if address.peer is None:
        raise ValueError(f"{allowed}: the /p2p/ part says who must answer there")
    return value


def read_worker(value: object) -> str:
    """A worker of a cluster: a multiaddr that says who answers there, or a public key. Raises ValueError."""
    if isinstance(value, str) and value.startswith("/"):
        return read_peer(value)
    return npub(read_node(value))


def read_shares(value: object) -> tuple[int, ...]:
    """Shares such as 3,1. Raises ValueError."""
    items = value
    if isinstance(value, str):
        items = [int(word) if re.fullmatch(r"[0-9]{1,6}", word) else -1 for word in re.split(r"[\s,]+", value) if word]
    if not isinstance(items, (list, tuple)) or len(items) > SHARES_MAX:
        raise ValueError(f"must be at most {SHARES_MAX} whole numbers, as 3,1")
    if any(isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < 10**6 for item in items):
        raise ValueError("must be whole numbers, as 3,1")
    if items and not any(items):
        raise ValueError("must have a share above 0")
    return tuple(items)


def list_of(read_item: Reader) -> Reader:
    def read(value: object) -> tuple[Any, ...]:
        if isinstance(value, str):
            value = [item for item in re.split(r"[\s,]+", value) if item]
        if not isinstance(value, (list, tuple)):
            raise ValueError("must be a list")  # noqa: TRY004 - one kind of error for every bad value
        return tuple(dict.fromkeys(read_item(item) for item in value))

    return read


def read_hours(value: object) -> tuple[str, ...]:
    """Windows of time, each in its one form; in one text they are separated by semicolons. Raises ValueError."""
    if isinstance(value, str):
        value = [item for item in value.split(";") if item.strip()]
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise ValueError("must be a list of hours, each in quotes")
    if len(value) > WINDOWS_MAX:
        raise ValueError(f"must be {WINDOWS_MAX} at most")
    return tuple(dict.fromkeys(str(read_window(item)) for item in value))


def _gigabytes(value: object) -> float:
    allowed = f"must be auto, or GB for each card, such as 20,24, up to {CARD_GB_MAX} each"
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else -1.0
    except (ValueError, OverflowError):
        number = -1.0
    if not 0 <= number <= CARD_GB_MAX:
        raise ValueError(allowed)
    return number


def read_gpu_split(value: object) -> tuple[float, ...]:
    """GB for each card, two of which may have the same; nothing for `auto`. Raises ValueError."""
    if isinstance(value, str):
        value = [] if value.strip().lower() == "auto" else [item for item in re.split(r"[\s,]+", value) if item] or [""]
    if not isinstance(value, (list, tuple)) or len(value) > CARDS_MAX:
        raise ValueError("must be auto, or GB for each card, such as 20,24")
    split = tuple(map(_gigabytes, value))
    if split and not any(split):
        raise ValueError("must give one card something")
    return split


def as_plain(value: object) -> Any:
    """A setting's value as TOML and JSON hold it."""
    if isinstance(value, Role):
        return value.name.lower()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Dollars):
        return format_usd(int(value)).removeprefix("$")
    if isinstance(value, tuple):
        if value and isinstance(value[0], ModelSettings):
            return as_table(value, as_plain)
        return [as_plain(item) for item in value]
    return value
