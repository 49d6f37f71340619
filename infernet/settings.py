"""What can be set, and what each setting accepts: one table that file, environment and flags share.

Every setting has one name. In the file it is a key, in the environment `INFERNET_` and the name in capitals. A reader
takes what a source holds (text from the environment and the flags, a TOML value from the file) and gives the value
with its type, or raises ValueError: the message then says what is allowed.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from infernet.hours import WINDOWS_MAX, read_window
from infernet.model_settings import MODELS_MAX, ModelSettings, as_table, table_of
from infernet.time_zone import read_zone
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


@dataclass(frozen=True)
class Setting:
    """One setting: its name, its flag, how it is read, and what it is for."""

    name: str
    flag: str
    read: Reader
    help: str
    #: Whether `infernet start` writes it into the file when its flag is given: what somebody hides stays hidden.
    is_kept: bool = False
    #: Another name that it had in the environment, and that counts where the one of today is not set.
    old_variable: str | None = None

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return "INFERNET_" + self.name.upper()

    @property
    def variables(self) -> tuple[str, ...]:
        """All its names in the environment; the first that is set counts."""
        return (self.variable, self.old_variable) if self.old_variable is not None else (self.variable,)


def _whole_number(low: int, high: int, unit: str = "") -> Reader:
    def read(value: object) -> int:
        allowed = f"must be a whole number{unit} from {low} to {high}"
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,10}", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(allowed)
        return value

    return read


def _one_of(*words: str) -> Reader:
    def read(value: object) -> str:
        if not isinstance(value, str) or value.lower() not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return value.lower()

    return read


def _engines(value: object) -> str:
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


def _role(value: object) -> Role:
    word: str = _one_of(*ROLES)(value)
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


def _yes_or_no(value: object) -> bool:
    if isinstance(value, str):
        word = value.lower()
        if word in ("1", "true", "yes", "on"):
            return True
        if word in ("0", "false", "no", "off"):
            return False
    if not isinstance(value, bool):
        raise ValueError("must be true or false")  # noqa: TRY004 - one kind of error for every bad value
    return value


def _text(what: str) -> Reader:
    def read(value: object) -> str:
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise ValueError(f"must be {what}")
        return value.strip()

    return read


def _name(value: object) -> str:
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


def _host(value: object) -> str:
    if isinstance(value, str):
        try:
            return str(ipaddress.ip_address(value.strip("[]")))
        except ValueError:
            # What looks like a number and is no address must not be looked up as a name.
            if _HOST_NAME.fullmatch(value) and not re.fullmatch(r"[0-9.]+", value):
                return value
    raise ValueError("must be an IP address or a host name, without port")


def _own_host(value: object) -> str:
    try:
        return str(ipaddress.ip_address(value if isinstance(value, str) else ""))
    except ValueError:
        raise ValueError("must be an IP address of this machine, or 0.0.0.0 or :: for all of them") from None


def _listen_host(value: object) -> str:
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


def _list_of(read_item: Reader) -> Reader:
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


_TOKENS: Final = _whole_number(CONTEXT_TOKENS_MIN, CONTEXT_TOKENS_MAX, " of tokens")
_SLOTS: Final = _whole_number(1, SLOTS_MAX)
_THREADS: Final = _whole_number(1, THREADS_MAX)
_MODEL: Final = _text("the name of a model, or the path of a GGUF file")


def _models(value: object) -> tuple[str, ...]:
    models: tuple[str, ...] = _list_of(_MODEL)(value)
    if len(models) > MODELS_MAX:
        raise ValueError(f"must be {MODELS_MAX} models at most")
    return models


_MODEL_SETTINGS: Final = table_of(
    {
        "context_tokens": _TOKENS,
        "slots": _SLOTS,
        "threads": _THREADS,
        "price_in_usd": read_dollars,
        "price_out_usd": read_dollars,
        "price_job_usd": read_dollars,
    }
)

FREE_FOR_HELP: Final = (
    "whose jobs run without payment: nobody, known (the coordinator, --allow, and programs of this machine: behind a "
    "forwarder such as Tor, ssh -R or a container's proxy everybody looks like one of those, so choose nobody) or all"
)
ALLOW_PRIVATE_HELP: Final = (
    "dial private addresses that strangers tell, and let programs of this machine have any number of connections; once "
    "given, kept for all commands (default: if the coordinator is on a private network; without one, if all peers are; "
    "without any, if the listen hosts are)"
)
REPORTS_HELP: Final = (
    "tell providers and other askers, in public, which providers this node chose, for which models, how many jobs "
    "went well and how fast: never what was asked"
)
BIND_PORT_HELP: Final = (
    "TCP port to listen on, where a router or container leads --p2p-port to another one (default: --p2p-port itself)"
)
RELAY_HELP: Final = (
    "whether nodes that cannot be dialled are reached through this one, which reads nothing of it: yes, no, or auto, "
    "once others have proven that this node can be dialled"
)
FORWARD_HELP: Final = (
    "pass on jobs between others that cannot reach each other, sealed as they are (default: what an aggregator does)"
)
SPEND_MAX_HELP: Final = (
    "dollars that one answer may cost at most, where `infernet chat` is not told otherwise (default: 0, so that only "
    "providers are asked that answer for nothing)"
)
SERVE_HOURS_HELP: Final = (
    'when to run jobs for others, as on a clock: "22:00-07:00; sat,sun 00:00-24:00" (default: at any time); '
    "`infernet schedule` shows and sets them"
)
ENGINE_HELP: Final = (
    "what runs models: llama (the embedded llama.cpp), exllamav2 or exllamav3 (on NVIDIA cards), openai (a server that "
    "is running: Ollama, vLLM, llama-server, SGLang, LM Studio, NIM, TabbyAPI), both of llama,openai at once, cluster "
    "(a model on several machines of yours: `infernet cluster`) or none"
)
ENGINE_URL_HELP: Final = (
    "address of the server of --engine openai; whoever answers there reads all prompts (default: the first on the "
    "usual ports of this machine)"
)
ENGINE_MODELS_HELP: Final = "which of that server's models to serve, at most 32 (default: its only one)"
MODELS_HELP: Final = (
    "the models llama serves, several at once, each in a process of its own: names or paths, with commas between them "
    "(default: the one of --model)"
)
MODEL_SETTINGS_HELP: Final = (
    "what is set for one model alone, as JSON by its name: context_tokens, slots, threads, price_in_usd, "
    "price_out_usd, price_job_usd"
)
ENGINE_KEY_FILE_HELP: Final = (
    "file with the API key that the server of --engine-url wants, or set INFERNET_ENGINE_KEY to the key"
)
PROXY_HELP: Final = (
    "SOCKS5 proxy, as socks5://127.0.0.1:9050 for Tor, by way of which everything leaves this machine or does not; "
    "names are looked up by the proxy; none for none (default: none)"
)
PROXY_LOGIN_FILE_HELP: Final = "file with one line, USER:PASSWORD, for a proxy that wants it"
METRICS_PORT_HELP: Final = (
    "TCP port on which Prometheus may ask this node for its metrics (default: 0, none; `infernet stats --prometheus` "
    "shows them without)"
)
METRICS_HOST_HELP: Final = (
    "address of this machine for --metrics-port (default: 127.0.0.1; whoever reaches another one reads the metrics)"
)
CLUSTER_HEAD_HELP: Final = (
    "public key of the one node that may use this machine for its cluster; it must be yours, for it can do here what "
    "it likes (default: nobody)"
)
CLUSTER_WORKERS_HELP: Final = "the workers of --engine cluster: public keys, or multiaddrs that end in /p2p/..."
CLUSTER_SPLIT_HELP: Final = (
    "how much of the model each worker gets, in their order, as 3,1; further numbers are for this machine's own GPUs "
    "(default: by free memory)"
)
LLAMA_SERVER_HELP: Final = (
    "the llama-server of a cluster, built with RPC; ggml-rpc-server lies beside it (default: the first on PATH)"
)
GPU_SPLIT_HELP: Final = (
    "of exllamav2 and exllamav3: GB of each card for the weights, such as 20,24; with auto one card after the other is "
    "filled (default: auto)"
)
TENSOR_PARALLEL_HELP: Final = (
    "of exllamav2 and exllamav3: all cards work on each token together, instead of one after the other"
)
CACHE_HELP: Final = (
    "of exllamav2 and exllamav3: how exactly contexts are kept, fp16, q8, q6 or q4; less takes less memory of the cards"
)
CONFINE_HELP: Final = (
    "have the kernel keep engine processes from files, the network and other programs; turn it off only where a GPU's "
    "driver cannot do with what is left (docs/confinement.md)"
)
MODEL_HELP: Final = "the model that is served: a GGUF file for llama, a folder for exllamav2 and exllamav3"
SETTINGS: Final = (
    Setting("role", "--role", _role, "what this node does for others: provider, aggregator or client"),
    Setting(
        "name",
        "--name",
        _name,
        "what others see it called (default: its role and the start of its key)",
        old_variable="INFERNET_NODE_NAME",
    ),
    Setting(
        "coordinator_url",
        "--url",
        read_url,
        "the coordinator to link to (default: none)",
        old_variable="INFERNET_CONTROL_PLANE_URL",
    ),
    Setting("coordinator_key", "--coordinator-key", read_node, "its public key; another one is refused"),
    Setting("p2p_enabled", "--p2p", _yes_or_no, "connect to peers over libp2p"),
    Setting(
        "p2p_port",
        "--p2p-port",
        _whole_number(0, PORT_MAX),
        "TCP port to listen on (0: any free one)",
        old_variable="INFERNET_PUBLIC_PORT",
    ),
    Setting("bind_port", "--bind-port", _whole_number(1, PORT_MAX), BIND_PORT_HELP),
    Setting("listen_hosts", "--listen-hosts", _list_of(_listen_host), "addresses of this machine to listen on"),
    Setting(
        "address",
        "--address",
        _host,
        "host or IP address under which others reach this node",
        old_variable="INFERNET_PUBLIC_ADDRESS",
    ),
    Setting(
        "advertise",
        "--advertise",
        _yes_or_no,
        "listen, and publish this node's addresses; once given, kept for all commands",
        is_kept=True,
    ),
    Setting(
        "mdns",
        "--mdns",
        _yes_or_no,
        "find nodes on the local network, and be found there; once given, kept for all commands",
        is_kept=True,
    ),
    Setting("allow_private", "--allow-private", _yes_or_no, ALLOW_PRIVATE_HELP, is_kept=True),
    Setting("proxy", "--proxy", read_proxy, PROXY_HELP),
    Setting("proxy_login_file", "--proxy-login-file", _text("the path of a file"), PROXY_LOGIN_FILE_HELP),
    Setting("relay", "--relay", _one_of(*RELAYS), RELAY_HELP),
    Setting("forward", "--forward", _yes_or_no, FORWARD_HELP),
    Setting("peers", "--peers", _list_of(read_peer), "multiaddrs of peers to connect to"),
    Setting("dht", "--dht", _yes_or_no, "look up, and publish, who serves which model in a distributed hash table"),
    Setting(
        "dht_port", "--dht-port", _whole_number(0, PORT_MAX), "TCP port of the DHT (default: the one after --p2p-port)"
    ),
    Setting("dht_peers", "--dht-peers", _list_of(read_peer), "multiaddrs of nodes of the DHT to begin with"),
    Setting("free_for", "--free-for", _one_of(*FREE_FOR), FREE_FOR_HELP),
    Setting("allow", "--allow", _list_of(read_node), "public keys whose free jobs run under `known`"),
    Setting("price_in_usd", "--price-in", read_dollars, "dollars for a million tokens of a prompt (default: 0)"),
    Setting("price_out_usd", "--price-out", read_dollars, "dollars for a million tokens of an answer (default: 0)"),
    Setting("price_job_usd", "--price-job", read_dollars, "dollars for each job, beside its tokens (default: 0)"),
    Setting("spend_usd_max", "--spend-max", read_dollars, SPEND_MAX_HELP),
    Setting("reports", "--reports", _yes_or_no, REPORTS_HELP),
    Setting("engine", "--engine", _engines, ENGINE_HELP),
    Setting("engine_url", "--engine-url", read_engine_url, ENGINE_URL_HELP),
    Setting("engine_models", "--engine-models", _list_of(_text("names of models")), ENGINE_MODELS_HELP),
    Setting("engine_key_file", "--engine-key-file", _text("the path of a file"), ENGINE_KEY_FILE_HELP),
    Setting("gpu_split", "--gpu-split", read_gpu_split, GPU_SPLIT_HELP),
    Setting("tensor_parallel", "--tensor-parallel", _yes_or_no, TENSOR_PARALLEL_HELP),
    Setting("cache", "--cache", _one_of(*CACHES), CACHE_HELP),
    Setting("model", "--model", _MODEL, MODEL_HELP),
    Setting("models", "--models", _models, MODELS_HELP),
    Setting("model_settings", "--model-settings", _MODEL_SETTINGS, MODEL_SETTINGS_HELP),
    Setting("context_tokens", "--context-tokens", _TOKENS, "context of one job"),
    Setting("slots", "--slots", _SLOTS, "jobs that run at once, of each model"),
    Setting("threads", "--threads", _THREADS, "threads of the engine (default: one core spared)"),
    Setting("confine", "--confine", _yes_or_no, CONFINE_HELP),
    Setting("serve_hours", "--serve-hours", read_hours, SERVE_HOURS_HELP),
    Setting("serve_zone", "--serve-zone", read_zone, "time zone of --serve-hours (default: this machine's)"),
    Setting("metrics_port", "--metrics-port", _whole_number(0, PORT_MAX), METRICS_PORT_HELP),
    Setting("metrics_host", "--metrics-host", _own_host, METRICS_HOST_HELP),
    Setting("cluster_head", "--cluster-head", read_node, CLUSTER_HEAD_HELP),
    Setting("cluster_workers", "--cluster-workers", _list_of(read_worker), CLUSTER_WORKERS_HELP),
    Setting("cluster_split", "--cluster-split", read_shares, CLUSTER_SPLIT_HELP),
    Setting("llama_server", "--llama-server", _text("the path of a program"), LLAMA_SERVER_HELP),
    Setting("log_level", "--log-level", _one_of(*LOG_LEVELS), "debug, info, warning or error"),
)
BY_NAME: Final = {setting.name: setting for setting in SETTINGS}


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
