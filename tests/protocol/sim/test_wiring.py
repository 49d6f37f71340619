"""The pieces of the simulated network: sides are told apart by machine, and every stream has its own two ends."""

from __future__ import annotations

from protocol.events import Event
from protocol.ids import NodeId, StreamId
from protocol.sim.wiring import Connection, Port, Stream


class Machine:
    node = NodeId(bytes(32))
    address: str | None = None
    observed_address = ""
    relays = False

    def receive(self, event: Event) -> None:
        raise AssertionError("nothing happens here")

    def next_inbound_stream(self) -> StreamId:
        return StreamId(2)


def test_the_other_side_of_a_connection_is_found_by_machine_not_by_equality() -> None:
    # Two ports that look alike, as two machines of one scenario may.
    dialler, dialled = Port(0, Machine()), Port(0, Machine())
    connection = Connection((dialler, dialled), latency_s=0.1)
    assert connection.other(dialler) == 1
    assert connection.other(dialled) == 0


def test_streams_and_connections_share_no_state() -> None:
    first, second = Stream("/a", 0), Stream("/a", 0)
    first.finished[0] = True
    first.numbers[1] = StreamId(4)
    assert second.finished == [False, False]
    assert second.numbers == [None, None]
    assert first != second, "streams are compared by identity"
    ports = Port(0, Machine()), Port(1, Machine())
    one, other = Connection(ports, 0.1), Connection(ports, 0.1)
    one.is_up[0] = True
    assert other.is_up == [False, False]
