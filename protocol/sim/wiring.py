"""What the simulated network is made of: machines plugged into ports, connections between them, streams inside."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from protocol.events import Event
from protocol.ids import NodeId, StreamId


class Machine(Protocol):
    """What the network knows of a simulated machine."""

    node: NodeId
    #: Where others may dial it; None behind NAT.
    address: str | None
    observed_address: str
    #: Whether others are reached through it.
    relays: bool

    def receive(self, event: Event) -> None: ...

    def next_inbound_stream(self) -> StreamId: ...


class Kind(Enum):
    CONNECTED = 1
    OPEN = 2
    DATA = 3
    FINISH = 4
    RESET = 5
    CLOSE = 6


@dataclass(slots=True, eq=False, repr=False)
class Stream:
    """One stream: its two ends by side (0 opened it), and how far each is."""

    protocol: str
    opener_side: int
    numbers: list[StreamId | None] = field(default_factory=lambda: [None, None])
    finished: list[bool] = field(default_factory=lambda: [False, False])
    heard_finish: list[bool] = field(default_factory=lambda: [False, False])
    queued_bytes: list[int] = field(default_factory=lambda: [0, 0])
    has_overflown: list[bool] = field(default_factory=lambda: [False, False])
    recording: bytearray | None = None


@dataclass(slots=True)
class Segment:
    arrives_s: float
    kind: Kind
    stream: Stream | None
    data: bytes = b""


@dataclass(slots=True, eq=False, repr=False)
class Connection:
    """Two machines by side (0 dialled), the relay between them if there is one, and the line towards each."""

    machines: tuple[Port, Port]
    latency_s: float
    relay: Port | None = None
    is_up: list[bool] = field(default_factory=lambda: [False, False])
    lines: tuple[deque[Segment], deque[Segment]] = field(default_factory=lambda: (deque(), deque()))
    last_arrival_s: list[float] = field(default_factory=lambda: [0.0, 0.0])
    line_free_s: list[float] = field(default_factory=lambda: [0.0, 0.0])
    is_planned: list[bool] = field(default_factory=lambda: [False, False])
    stalls: int = 0
    is_stalled: bool = False
    #: The side that has yet to learn that the handshake is done.
    waiting_side: int | None = None

    def other(self, port: Port) -> int:
        """The side across from this machine."""
        return 1 if self.machines[0] is port else 0


@dataclass(slots=True, eq=False, repr=False)
class Port:
    """A machine as the network sees it. `life` counts its starts."""

    index: int
    machine: Machine
    is_up: bool = False
    is_silent: bool = False
    is_clogged: bool = False
    connections: dict[NodeId, list[Connection]] = field(default_factory=dict)
    streams: dict[StreamId, tuple[Connection, Stream]] = field(default_factory=dict)
    dialling: set[NodeId] = field(default_factory=set)
    life: int = 0
