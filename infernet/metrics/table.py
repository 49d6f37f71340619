"""Every metric of a node: its name, kind, labels and meaning, and where its value is read.

All values come from what a node says of itself (`infernet/ipc/inspection.py`), so `infernet status` and Prometheus
never disagree. Labels have few values, all of which stand in our code: nothing that strangers say, and nobody's name
or key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from infernet.engines.contract import EngineState
from infernet.hardware.contract import Card
from protocol import constants as c
from protocol.records import Role

COUNTER: Final = "counter"
GAUGE: Final = "gauge"


@dataclass(frozen=True)
class Process:
    """What this node takes of its machine. `children_rss_bytes` is of the processes that it has started: engines."""

    cpu_s: float
    rss_bytes: int
    children_rss_bytes: int


@dataclass(frozen=True)
class Facts:
    """What metrics are read from. `cards` is empty where nobody looks at any."""

    status: Mapping[str, Any]
    process: Process
    cards: tuple[Card, ...]
    output_tokens_per_s: float


Sample = tuple[tuple[str, ...], float]
Read = Callable[[Facts], Iterable[Sample]]


@dataclass(frozen=True)
class Metric:
    """One row. A counter's name has no `_total`: the library adds it."""

    name: str
    kind: str
    help: str
    read: Read
    labels: tuple[str, ...] = ()

    @property
    def shown_name(self) -> str:
        """Its name as Prometheus knows it."""
        return f"{self.name}_total" if self.kind == COUNTER else self.name


# ---------------------------------------------------------------- reading


def _look_up(facts: Facts, path: str) -> Any:
    value: Any = facts.status
    for word in path.split("."):
        value = value.get(word) if isinstance(value, Mapping) else None
    return value


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _at(path: str) -> Read:
    """The number there; no sample where there is none."""

    def read(facts: Facts) -> Iterable[Sample]:
        value = _number(_look_up(facts, path))
        return [] if value is None else [((), value)]

    return read


def _each(path: str, *names: str, **renamed: str) -> Read:
    """One sample for each of these fields, its name being the label, or the name that a field is given here."""
    wanted = {**{name: name for name in names}, **{field: label for label, field in renamed.items()}}

    def read(facts: Facts) -> Iterable[Sample]:
        fields = _look_up(facts, path)
        if not isinstance(fields, Mapping):
            return []
        found = ((label, _number(fields.get(field))) for field, label in wanted.items())
        return [((label,), value) for label, value in found if value is not None]

    return read


def _engine_state(facts: Facts) -> Iterable[Sample]:
    state = _look_up(facts, "engine.state")
    return [((each.value,), float(each.value == state)) for each in EngineState] if state is not None else []


def _link(facts: Facts) -> Iterable[Sample]:
    state = _look_up(facts, "coordinator.state")
    return [((), float(state == "connected"))] if state is not None else []


def _running(facts: Facts) -> Iterable[Sample]:
    running, waiting = (_number(facts.status.get(name)) or 0.0 for name in ("jobs_running", "jobs_waiting"))
    return [((), max(0.0, running - waiting))]


def _traffic(direction: str) -> Read:
    def read(facts: Facts) -> Iterable[Sample]:
        fields = _look_up(facts, f"traffic.{direction}")
        if not isinstance(fields, Mapping):
            return []
        return [((_short(protocol),), float(fields.get(protocol, 0))) for protocol in c.PROTOCOLS]

    return read


def _short(protocol: str) -> str:
    # /infernet/gossip/1
    return protocol.split("/")[2]


def _card(value: Callable[[Card], float | None]) -> Read:
    def read(facts: Facts) -> Iterable[Sample]:
        # By their place: several makers count from 0, and the parts of one card share its number.
        for place, card in enumerate(facts.cards):
            if (shown := value(card)) is not None:
                yield (str(place), card.vendor.name.lower()), float(shown)

    return read


def _build(facts: Facts) -> Iterable[Sample]:
    return [((str(facts.status.get("version", "")), str(facts.status.get("role", ""))), 1.0)]


_ROLES: Final = tuple(role.name.lower() for role in Role)
_ENDS: Final = ("completed", "cancelled", "failed", "unpaid")
_GPU: Final = ("gpu", "vendor")

METRICS: Final = (
    Metric("infernet_build_info", GAUGE, "Always 1; the labels say what runs.", _build, ("version", "role")),
    Metric("infernet_uptime_seconds", GAUGE, "Since this node started.", _at("uptime_s")),
    # Jobs of others.
    Metric("infernet_jobs_taken", COUNTER, "Orders of others that the engine got.", _at("counts.jobs.taken")),
    Metric("infernet_jobs", COUNTER, "Jobs of others that ended, by how.", _each("counts.jobs", *_ENDS), ("end",)),
    Metric("infernet_jobs_refused", COUNTER, "Orders of others that were turned away.", _at("counts.jobs.refused")),
    Metric("infernet_jobs_running", GAUGE, "Jobs of others that run now.", _running),
    Metric("infernet_jobs_waiting", GAUGE, "Jobs of others that wait for a slot: the queue.", _at("jobs_waiting")),
    Metric(
        "infernet_prompt_tokens",
        COUNTER,
        "Tokens of prompts in jobs of others that ended.",
        _at("counts.jobs.prompt_tokens"),
    ),
    Metric(
        "infernet_output_tokens",
        COUNTER,
        "Tokens of answers that were sent in jobs of others that ended.",
        _at("counts.jobs.output_tokens"),
    ),
    Metric(
        "infernet_output_tokens_per_second",
        GAUGE,
        "Growth of infernet_output_tokens_total over the last minute, as far back as somebody looked.",
        lambda facts: [((), facts.output_tokens_per_s)],
    ),
    Metric("infernet_zombie_chunks", COUNTER, "Pieces of answers that came after a cancel.", _at("zombie_chunks")),
    # Our own questions.
    Metric(
        "infernet_asked",
        COUNTER,
        "Questions of this node that ended, by how.",
        _each("counts.asked", "answered", "cancelled", "failed"),
        ("end",),
    ),
    Metric("infernet_asked_running", GAUGE, "Questions of this node that wait for their answer.", _at("jobs_asked")),
    Metric(
        "infernet_asked_output_tokens",
        COUNTER,
        "Tokens of the answers that this node got.",
        _at("counts.asked.output_tokens"),
    ),
    Metric(
        "infernet_asked_paid_micro_usd",
        COUNTER,
        "What this node has signed for answers, in millionths of a dollar.",
        _at("counts.asked.paid_uusd"),
    ),
    # Jobs between others.
    Metric(
        "infernet_forwarded",
        COUNTER,
        "Jobs that were passed on between others and ended, by how.",
        _each("jobs_forwarded", "carried", "failed"),
        ("end",),
    ),
    Metric(
        "infernet_forwarded_bytes", COUNTER, "Bytes that were passed on between others.", _at("jobs_forwarded.bytes")
    ),
    # Money.
    Metric(
        "infernet_earned_micro_usd",
        COUNTER,
        "What the coordinator has acknowledged since this node exists, in millionths of a dollar.",
        _at("money.earned_uusd"),
    ),
    Metric(
        "infernet_unclaimed_micro_usd",
        GAUGE,
        "Vouchers held that were not redeemed yet, in millionths of a dollar.",
        _at("money.unclaimed_uusd"),
    ),
    Metric(
        "infernet_lost_micro_usd",
        COUNTER,
        "Vouchers that can be redeemed no more, in millionths of a dollar.",
        _at("money.lost_uusd"),
    ),
    Metric(
        "infernet_leases",
        GAUGE,
        "Leases that are open: given to this node, or held by it.",
        _each("money", given="leases_given", held="leases_held"),
        ("side",),
    ),
    # The engine and its cards.
    Metric("infernet_engine_state", GAUGE, "1 for the state that the engine is in.", _engine_state, ("state",)),
    Metric(
        "infernet_engine_loading_seconds",
        GAUGE,
        "For how long the engine has been loading; nothing while it does not.",
        _at("engine.loading_s"),
    ),
    Metric("infernet_engine_runs_active", GAUGE, "Runs in the engine now.", _at("engine.runs_active")),
    Metric("infernet_engine_runs", COUNTER, "Runs that the engine was given.", _at("engine.runs_total")),
    Metric(
        "infernet_engine_restarts", COUNTER, "How often the engine broke and started again.", _at("engine.restarts")
    ),
    Metric(
        "infernet_gpu_utilisation_ratio",
        GAUGE,
        "How busy a card is, from 0 to 1, as its driver says.",
        _card(lambda card: None if card.utilisation_percent is None else card.utilisation_percent / 100),
        _GPU,
    ),
    Metric("infernet_gpu_memory_bytes", GAUGE, "Memory of a card.", _card(lambda card: card.vram_bytes), _GPU),
    Metric(
        "infernet_gpu_memory_used_bytes",
        GAUGE,
        "Memory of a card that is in use, by whomever.",
        _card(lambda card: card.vram_used_bytes),
        _GPU,
    ),
    Metric(
        "infernet_gpu_temperature_celsius",
        GAUGE,
        "Temperature of a card.",
        _card(lambda card: card.temperature_c),
        _GPU,
    ),
    Metric("infernet_gpu_power_watts", GAUGE, "Power that a card draws.", _card(lambda card: card.power_w), _GPU),
    Metric(
        "infernet_gpu_usable",
        GAUGE,
        "Whether models can run on a card; `infernet gpu` says why not.",
        _card(lambda card: float(card.is_usable)),
        _GPU,
    ),
    # The network.
    Metric("infernet_peers_connected", GAUGE, "Nodes that this one is connected to.", _at("peers")),
    Metric(
        "infernet_peers_known",
        GAUGE,
        "Other nodes whose heartbeats are held, by what they do.",
        _each("peers_by_role", *_ROLES),
        ("role",),
    ),
    Metric(
        "infernet_discovered",
        COUNTER,
        "Nodes and records that each source of peers has brought.",
        _each("discovered", "saved", "coordinator", "mdns", "dht"),
        ("source",),
    ),
    Metric("infernet_link_up", GAUGE, "Whether the link to the coordinator stands.", _link),
    Metric("infernet_heartbeats_signed", COUNTER, "Heartbeats signed.", _at("counts.heartbeats.signed")),
    Metric(
        "infernet_heartbeats",
        COUNTER,
        "Heartbeats of a node that keeps a link: sent at once, or signed while there was no link.",
        _each("counts.heartbeats", ok="told", failed="missed"),
        ("result",),
    ),
    Metric(
        "infernet_heartbeat_age_seconds",
        GAUGE,
        "Since the last heartbeat was signed.",
        _at("counts.heartbeats.age_s"),
    ),
    Metric(
        "infernet_received_bytes",
        COUNTER,
        "Bytes of messages that came over libp2p, by protocol; gossip is one of them.",
        _traffic("in"),
        ("protocol",),
    ),
    Metric(
        "infernet_sent_bytes",
        COUNTER,
        "Bytes of messages that went over libp2p, by protocol.",
        _traffic("out"),
        ("protocol",),
    ),
    Metric(
        "infernet_transport_bytes",
        COUNTER,
        "Bytes on libp2p connections after their handshakes, encryption included.",
        _each("transport", received="bytes_in", sent="bytes_out"),
        ("direction",),
    ),
    Metric(
        "infernet_transport_held_bytes", GAUGE, "What connections make this node hold.", _at("transport.held_bytes")
    ),
    Metric(
        "infernet_dials_failed", COUNTER, "Dials of which no address led to the peer.", _at("transport.dials_failed")
    ),
    Metric(
        "infernet_handshakes_failed",
        COUNTER,
        "Handshakes in which nobody proved the right key.",
        _at("transport.handshakes_failed"),
    ),
    Metric(
        "infernet_connections_refused",
        COUNTER,
        "Connections that were turned away.",
        _at("transport.connections_refused"),
    ),
    Metric("infernet_bans", GAUGE, "Bans that hold now.", _at("transport.bans")),
    Metric("infernet_bad_frames", COUNTER, "Frames that broke the protocol.", _at("bad_frames")),
    # The process, under the names that all exporters use.
    Metric(
        "process_cpu_seconds",
        COUNTER,
        "Processor time of the node, without its engine.",
        lambda facts: [((), facts.process.cpu_s)],
    ),
    Metric(
        "process_resident_memory_bytes",
        GAUGE,
        "Memory of the node, without its engine.",
        lambda facts: [((), float(facts.process.rss_bytes))],
    ),
    Metric(
        "infernet_children_resident_memory_bytes",
        GAUGE,
        "Memory of the processes that the node has started, its engine above all; shared memory counts in each.",
        lambda facts: [((), float(facts.process.children_rss_bytes))],
    ),
)
