"""What can be set: one table that file, environment and flags share.

Every setting has one name. In the file it is a key, in the environment `INFERNET_` and the name in capitals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from infernet.settings.models import MODELS_MAX, read_aliases, table_of
from infernet.settings.readers import (
    CACHES,
    CONTEXT_TOKENS_MAX,
    CONTEXT_TOKENS_MIN,
    FREE_FOR,
    LOG_FORMATS,
    LOG_LEVELS,
    PORT_MAX,
    RELAYS,
    SLOTS_MAX,
    THREADS_MAX,
    Reader,
    list_of,
    one_of,
    read_dollars,
    read_engine_url,
    read_engines,
    read_gpu_split,
    read_host,
    read_hours,
    read_listen_host,
    read_name,
    read_node,
    read_own_host,
    read_peer,
    read_proxy,
    read_role,
    read_shares,
    read_url,
    read_worker,
    read_yes_or_no,
    text_of,
    whole_number,
)
from infernet.settings.time_zone import read_zone


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


_TOKENS: Final = whole_number(CONTEXT_TOKENS_MIN, CONTEXT_TOKENS_MAX, " of tokens")
_SLOTS: Final = whole_number(1, SLOTS_MAX)
_THREADS: Final = whole_number(1, THREADS_MAX)
_MODEL: Final = text_of("the name of a model, or the path of a GGUF file")


def _models(value: object) -> tuple[str, ...]:
    models: tuple[str, ...] = list_of(_MODEL)(value)
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
        "aliases": read_aliases,
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
    "price_out_usd, price_job_usd, and aliases, a list of other names by which others may ask for it"
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
    "address of this machine for --metrics-port (default: 127.0.0.1; another one, which others may reach, needs "
    "--metrics-token-file)"
)
METRICS_BEARER_HELP: Final = (
    "file with one line, the token that whoever asks for metrics must show as `Authorization: Bearer TOKEN` (default: "
    "none is asked for)"
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
LOG_FORMAT_HELP: Final = (
    "how the log of a node that stays in the foreground is written: text, json, or auto, which is text on a terminal "
    "and JSON elsewhere; the log file of `infernet logs` is JSON in any case"
)
MODEL_HELP: Final = "the model that is served: a GGUF file for llama, a folder for exllamav2 and exllamav3"
SETTINGS: Final = (
    Setting("role", "--role", read_role, "what this node does for others: provider, aggregator or client"),
    Setting(
        "name",
        "--name",
        read_name,
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
    Setting("p2p_enabled", "--p2p", read_yes_or_no, "connect to peers over libp2p"),
    Setting(
        "p2p_port",
        "--p2p-port",
        whole_number(0, PORT_MAX),
        "TCP port to listen on (0: any free one)",
        old_variable="INFERNET_PUBLIC_PORT",
    ),
    Setting("bind_port", "--bind-port", whole_number(1, PORT_MAX), BIND_PORT_HELP),
    Setting("listen_hosts", "--listen-hosts", list_of(read_listen_host), "addresses of this machine to listen on"),
    Setting(
        "address",
        "--address",
        read_host,
        "host or IP address under which others reach this node",
        old_variable="INFERNET_PUBLIC_ADDRESS",
    ),
    Setting(
        "advertise",
        "--advertise",
        read_yes_or_no,
        "listen, and publish this node's addresses; once given, kept for all commands",
        is_kept=True,
    ),
    Setting(
        "mdns",
        "--mdns",
        read_yes_or_no,
        "find nodes on the local network, and be found there; once given, kept for all commands",
        is_kept=True,
    ),
    Setting("allow_private", "--allow-private", read_yes_or_no, ALLOW_PRIVATE_HELP, is_kept=True),
    Setting("proxy", "--proxy", read_proxy, PROXY_HELP),
    Setting("proxy_login_file", "--proxy-login-file", text_of("the path of a file"), PROXY_LOGIN_FILE_HELP),
    Setting("relay", "--relay", one_of(*RELAYS), RELAY_HELP),
    Setting("forward", "--forward", read_yes_or_no, FORWARD_HELP),
    Setting("peers", "--peers", list_of(read_peer), "multiaddrs of peers to connect to"),
    Setting("dht", "--dht", read_yes_or_no, "look up, and publish, who serves which model in a distributed hash table"),
    Setting(
        "dht_port", "--dht-port", whole_number(0, PORT_MAX), "TCP port of the DHT (default: the one after --p2p-port)"
    ),
    Setting("dht_peers", "--dht-peers", list_of(read_peer), "multiaddrs of nodes of the DHT to begin with"),
    Setting("free_for", "--free-for", one_of(*FREE_FOR), FREE_FOR_HELP),
    Setting("allow", "--allow", list_of(read_node), "public keys whose free jobs run under `known`"),
    Setting("price_in_usd", "--price-in", read_dollars, "dollars for a million tokens of a prompt (default: 0)"),
    Setting("price_out_usd", "--price-out", read_dollars, "dollars for a million tokens of an answer (default: 0)"),
    Setting("price_job_usd", "--price-job", read_dollars, "dollars for each job, beside its tokens (default: 0)"),
    Setting("spend_usd_max", "--spend-max", read_dollars, SPEND_MAX_HELP),
    Setting("reports", "--reports", read_yes_or_no, REPORTS_HELP),
    Setting("engine", "--engine", read_engines, ENGINE_HELP),
    Setting("engine_url", "--engine-url", read_engine_url, ENGINE_URL_HELP),
    Setting("engine_models", "--engine-models", list_of(text_of("names of models")), ENGINE_MODELS_HELP),
    Setting("engine_key_file", "--engine-key-file", text_of("the path of a file"), ENGINE_KEY_FILE_HELP),
    Setting("gpu_split", "--gpu-split", read_gpu_split, GPU_SPLIT_HELP),
    Setting("tensor_parallel", "--tensor-parallel", read_yes_or_no, TENSOR_PARALLEL_HELP),
    Setting("cache", "--cache", one_of(*CACHES), CACHE_HELP),
    Setting("model", "--model", _MODEL, MODEL_HELP),
    Setting("models", "--models", _models, MODELS_HELP),
    Setting("model_settings", "--model-settings", _MODEL_SETTINGS, MODEL_SETTINGS_HELP),
    Setting("context_tokens", "--context-tokens", _TOKENS, "context of one job"),
    Setting("slots", "--slots", _SLOTS, "jobs that run at once, of each model"),
    Setting("threads", "--threads", _THREADS, "threads of the engine (default: one core spared)"),
    Setting("confine", "--confine", read_yes_or_no, CONFINE_HELP),
    Setting("serve_hours", "--serve-hours", read_hours, SERVE_HOURS_HELP),
    Setting("serve_zone", "--serve-zone", read_zone, "time zone of --serve-hours (default: this machine's)"),
    Setting("metrics_port", "--metrics-port", whole_number(0, PORT_MAX), METRICS_PORT_HELP),
    Setting("metrics_host", "--metrics-host", read_own_host, METRICS_HOST_HELP),
    Setting("metrics_token_file", "--metrics-token-file", text_of("the path of a file"), METRICS_BEARER_HELP),
    Setting("cluster_head", "--cluster-head", read_node, CLUSTER_HEAD_HELP),
    Setting("cluster_workers", "--cluster-workers", list_of(read_worker), CLUSTER_WORKERS_HELP),
    Setting("cluster_split", "--cluster-split", read_shares, CLUSTER_SPLIT_HELP),
    Setting("llama_server", "--llama-server", text_of("the path of a program"), LLAMA_SERVER_HELP),
    Setting("log_level", "--log-level", one_of(*LOG_LEVELS), "debug, info, warning or error"),
    Setting("log_format", "--log-format", one_of(*LOG_FORMATS), LOG_FORMAT_HELP),
)
BY_NAME: Final = {setting.name: setting for setting in SETTINGS}
