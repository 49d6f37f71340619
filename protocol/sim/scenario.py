"""What a simulation is told: who takes part, how they are wired, what goes wrong and what they are asked to do.

Everything is a frozen dataclass of plain values, so that a scenario can be written down, compared and run again.
Times are virtual seconds since the start; peers are named by their index.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from protocol import constants as c
from protocol.views import CHOSEN_MIN


class Topology(Enum):
    """Whom each peer knows at the start and keeps a connection to; more connections come with the jobs."""

    LINE = "line"  # each its predecessor: the longest way news can have
    RING = "ring"
    STAR = "star"  # all the first: one well-known node and its newcomers
    RANDOM = "random"  # each `degree` earlier ones at random: connected, and few hops wide

    def __repr__(self) -> str:  # so that the repr of a scenario can be pasted and run again
        return f"Topology.{self.name}"


@dataclass(frozen=True, slots=True)
class Faults:
    """What is wrong with every link, all the time. The transport is TCP: bytes come late, never wrong or not at all.

    `latency_s_min` and `latency_s_mean` are one way, drawn once per pair (the minimum plus an exponential);
    `jitter_s` is added anew to every segment. `loss` is the share of segments that must be sent again: such a segment
    and all behind it on the connection wait `retransmission_s`, twice that when it is lost again, and so on.
    `split` is the share of writes that are cut in two at a random byte, and the halves again; stalled segments
    arrive merged. `bandwidth_bytes_per_s` is per connection and direction. `replay` is the share of job streams that
    somebody in the middle (a relay, an aggregator) sends to the provider a second time. `clock_skew_ms_max` bounds
    how far wall clocks are off, either way. After `silence_s` without a sign of life a connection is given up;
    a dial into the void after `dial_timeout_s`.
    """

    latency_s_min: float = 0.005
    latency_s_mean: float = 0.030
    jitter_s: float = 0.002
    loss: float = 0.0
    retransmission_s: float = 0.2
    split: float = 0.1
    bandwidth_bytes_per_s: float | None = None
    replay: float = 0.0
    clock_skew_ms_max: int = 0
    silence_s: float = 20.0
    dial_timeout_s: float = c.REACH_DEADLINE_S
    outbox_bytes_max: int = c.SEALED_BYTES_MAX + 256 * 1024


@dataclass(frozen=True, slots=True)
class Crash:
    """A peer's process dies and loses all state but its key. `is_silent`: the whole machine, so nothing is reset."""

    at_s: float
    peer: int
    restarts_after_s: float | None = None
    is_silent: bool = False


@dataclass(frozen=True, slots=True)
class Partition:
    """These peers and all others cannot hear each other for a while; one peer alone is isolated."""

    at_s: float
    lasts_s: float
    peers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Clog:
    """A peer reads nothing from the network for a while; it still runs and sends."""

    at_s: float
    lasts_s: float
    peer: int


@dataclass(frozen=True, slots=True)
class Outage:
    """The coordinator is away for a while: who asks it hears nothing."""

    at_s: float
    lasts_s: float


Happening = Crash | Partition | Clog | Outage


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """How the engine of a provider behaves. Rates are per run; a run fails or hangs with the given probability."""

    slots: int = 4
    context_tokens: int = 4096
    start_s: float = 0.020
    prompt_tokens_per_s: float = 2000.0
    tokens_per_s: float = 40.0
    output_tokens_mean: float = 48.0
    cancel_s: float = 0.050
    failure_rate: float = 0.0
    hang_rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a provider is with one stream, in tokens per second, as `infernet benchmark` measures it.

    It says of itself `boast` times as much: 1 is the truth.
    """

    prompt_tokens_per_s: float
    tokens_per_s: float
    boast: float = 1.0


@dataclass(frozen=True, slots=True)
class Workload:
    """Jobs, asked by random peers at random times from `start_s` on.

    `cancel_share` of them are cancelled by their user after `cancel_s_mean` on average; `embedding_share` ask for
    embeddings of a few inputs; `any_model_share` name no model; `via_share` go through an aggregator because their user
    says so.
    """

    jobs: int = 0
    start_s: float = 2.0
    jobs_per_s: float = 2.0
    prompt_characters_mean: float = 400.0
    output_tokens_max: int = 128
    timeout_s: float = 120.0
    cancel_share: float = 0.0
    cancel_s_mean: float = 1.0
    embedding_share: float = 0.0
    any_model_share: float = 0.25
    via_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Money:
    """What providers ask, in micro-USD per million tokens, and what askers have and give.

    Everybody deposits `deposit_uusd` at the start; a job may cost `spend_uusd_max`, for `paid_share` of them. From
    `cheating_askers` of the askers no voucher comes for more than the prompt; `cheating_providers` of the providers
    take the price of the prompt and then send nothing.
    """

    price_in_uusd: int = 500_000
    price_out_uusd: int = 1_500_000
    deposit_uusd: int = 1_000_000
    spend_uusd_max: int = 20_000
    paid_share: float = 1.0
    cheating_askers: float = 0.0
    cheating_providers: float = 0.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """A whole simulation. The first `providers` peers have an engine, and the next `aggregators` forward jobs; all
    others are the ones who ask. The last `hidden_providers` of the providers publish no address and accept no
    connection, but keep one to every aggregator.

    With `relays`, as many of those who ask relay connections, everybody finds out how it is reached, and hidden
    providers are reached through them.

    `models` names are dealt to the providers in turn. With fewer `publish_share` than 1, the other peers publish no
    address and accept no connection, as behind NAT. With 0 for `neighbours_min` the wiring stays as the topology says,
    but for jobs; otherwise the topology only says whom each peer has heard of, and all look for neighbours themselves.
    Peers start one after another within `start_s`; so many `peers_per_network` share a /16. A directory holds
    `records_max`.

    `speeds` are dealt to the providers in turn, who say in their heartbeats how fast they are; without any, all are as
    `engine` says, and say nothing. Those of a real machine stand in the `benchmark.json` that `infernet benchmark`
    keeps: whoever makes the scenario reads it.
    """

    seed: int = 0
    peers: int = 20
    providers: int = 4
    aggregators: int = 0
    hidden_providers: int = 0
    relays: int = 0
    models: int = 1
    publish_share: float = 1.0
    topology: Topology = Topology.RANDOM
    degree: int = 3
    neighbours_min: int = CHOSEN_MIN
    start_s: float = 1.0
    peers_per_network: int = 1
    records_max: int = c.DIRECTORY_RECORDS_MAX
    engine: EngineProfile = field(default_factory=EngineProfile)
    speeds: tuple[Speed, ...] = ()
    faults: Faults = field(default_factory=Faults)
    happenings: tuple[Happening, ...] = ()
    workload: Workload = field(default_factory=Workload)
    #: None: everything is free, and there is no coordinator.
    money: Money | None = None
