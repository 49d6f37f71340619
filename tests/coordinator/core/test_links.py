"""The links of nodes over a real WebSocket: who gets one, what it proves, how it ends."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
from collections.abc import Sequence
from typing import Any

import pytest

from coordinator import hypercorn_cures
from coordinator.core import intake, links
from coordinator.store.db import StoreBusy, StoreFailed
from coordinator.store.ledger import LedgerTransaction
from protocol import codec
from protocol import constants as c
from protocol import link as wire
from protocol.effects import OpenStream, Send
from protocol.envelope import AUTH_HEADER, sign_request, sign_request_v1
from protocol.errors import BadSignature, Stale
from protocol.ids import NodeId, StreamId
from protocol.records import Signed
from tests.helpers_claims import credited_in
from tests.helpers_coordinator import (
    Closed,
    NodeClient,
    Refused,
    Script,
    ScriptedNode,
    Served,
    WebSocket,
    ask,
    heartbeat_record,
    linked,
    make_key,
    meet_a_failed_fsync,
    open_link,
    serving,
    stream,
    text_of,
    until,
)
from tests.helpers_money import Market, refused

pytestmark = pytest.mark.anyio


async def registered(served: Served) -> NodeClient:
    client = NodeClient(served)
    assert (await client.register()).status_code == 200
    return client


async def closed_with(socket: WebSocket) -> Closed:
    async with asyncio.timeout(10):
        try:
            while True:
                await socket.receive()
        except Closed as closed:
            await socket.abort()
            return closed


async def test_the_first_message_proves_the_coordinators_key_to_this_node_and_request(served: Served) -> None:
    client = await registered(served)
    socket, header = await open_link(client)
    message = await socket.receive()
    node, coordinator = client.key.node, served.key.node
    assert wire.decode_hello(message, coordinator, node, header).node == node
    with pytest.raises(BadSignature, match="pinned"):
        wire.decode_hello(message, make_key(5).node, node, header)
    with pytest.raises(Stale):
        wire.decode_hello(message, coordinator, node, header + "x")
    await socket.abort()


async def test_an_unregistered_node_is_told_to_register(served: Served) -> None:
    with pytest.raises(Refused) as refused:
        await open_link(NodeClient(served))
    assert refused.value.status == 404
    assert "register first" in json.loads(refused.value.body)["error"]


@pytest.mark.parametrize("fault", ["none", "replay", "version 1", "path", "audience", "old", "method"])
async def test_an_upgrade_that_is_not_rightly_signed_is_refused(served: Served, fault: str) -> None:
    client = await registered(served)
    key, coordinator, path, now_ms = client.key, served.key.node, wire.LINK_PATH, served.clock()
    header = client.header(path, b"", "GET")
    if fault == "replay":
        socket, _ = await open_link(client, header)
        await socket.abort()
    elif fault == "version 1":
        header = sign_request_v1(key, "GET", path, b"", now_ms // 1000, "00ff")
    elif fault == "path":
        header = client.header(path + "?x=1", b"", "GET")
    elif fault == "audience":
        header = sign_request(key, make_key(5).node, "GET", path, b"", now_ms, next(client.counter), 1)
    elif fault == "old":
        header = sign_request(key, coordinator, "GET", path, b"", now_ms - 61_000, next(client.counter), 1)
    elif fault == "method":
        header = client.header(path, b"", "POST")
    headers = [] if fault == "none" else [(AUTH_HEADER, header)]
    with pytest.raises(Refused) as refused:
        await WebSocket.open(served, path, headers)
    assert refused.value.status == 401
    assert "server_time" in json.loads(refused.value.body)


async def test_compression_is_refused(served: Served) -> None:
    client = await registered(served)
    headers = [
        (AUTH_HEADER, client.header(wire.LINK_PATH, b"", "GET")),
        ("Sec-WebSocket-Extensions", "permessage-deflate"),
    ]
    with pytest.raises(Refused) as refused:
        await WebSocket.open(served, wire.LINK_PATH, headers)
    assert refused.value.status == 400


async def test_a_newer_link_replaces_the_older_one_and_its_jobs_begin_again_there(served: Served) -> None:
    first = await ScriptedNode(served, Script()).connect()
    job = (await ask(served)).json()["jobId"]
    await until(lambda: first.runs)
    second = await ScriptedNode(served, Script.at_once("again"), first.client.key).connect()
    events = await stream(served, job)
    assert (events[-1].kind, text_of(events)) == ("done", "again")
    assert len(served.app.core.links) == 1
    assert text_of(await stream(served, (await ask(served)).json()["jobId"])) == "again"
    await until(lambda: first.closed, "the older link was closed")
    assert first.closed is not None
    assert (first.closed.code, "replaces" in first.closed.reason) == (links.CLOSE_POLICY, True)
    await first.close()
    assert second.node in served.app.core.links, "the end of the older link does not touch the newer one"
    await second.close()


@pytest.mark.parametrize(
    "message",
    [b"", b"\xc1", b"\x90", b"\x91\x00", b"\x92\x02\x01", b"\x93\x02\x01\xa1x", wire.encode_frame(wire.Data(9, b"x"))],
)
async def test_nonsense_closes_the_link_and_nothing_else(served: Served, message: bytes) -> None:
    async with linked(served) as honest:
        client = await registered(served)
        socket, _ = await open_link(client)
        await socket.send(message)
        assert (await closed_with(socket)).code == links.CLOSE_PROTOCOL_ERROR
        await until(lambda: client.key.node not in served.app.core.links)
        assert honest.node in served.app.core.links
        assert (await ask(served)).status_code == 200


async def test_text_and_too_large_messages_close_the_link(served: Served) -> None:
    client = await registered(served)
    socket, _ = await open_link(client)
    await socket.send_text("hello")
    assert (await closed_with(socket)).code == links.CLOSE_PROTOCOL_ERROR
    socket, _ = await open_link(client)
    await socket.send(b"\xc4\xff" * 40_000)
    assert (await closed_with(socket)).code == 1009


async def test_an_unknown_optional_frame_is_ignored_and_pings_are_answered(served: Served) -> None:
    client = await registered(served)
    socket, _ = await open_link(client)
    await socket.receive()
    await socket.send(b"\x91\x63")
    await socket.send(wire.encode_frame(wire.Ping(77)))
    assert wire.decode_frame(await socket.receive()) == wire.Pong(77)
    await socket.abort()


async def test_a_link_on_which_nothing_is_heard_is_closed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "LINK_PING_INTERVAL_S", 0.02)
    monkeypatch.setattr(links, "LINK_SILENCE_S_MAX", 0.1)
    client = await registered(served)
    socket, _ = await open_link(client)
    closed = await closed_with(socket)
    assert (closed.code, "nothing was heard" in closed.reason) == (links.CLOSE_POLICY, True)


async def test_a_node_that_answers_pings_keeps_its_link(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "LINK_PING_INTERVAL_S", 0.01)
    monkeypatch.setattr(links, "LINK_SILENCE_S_MAX", 2.0)
    client = await registered(served)
    socket, _ = await open_link(client)
    await socket.receive()
    for _ in range(20):
        ping = wire.decode_frame(await socket.receive())
        assert isinstance(ping, wire.Ping)
        await socket.send(wire.encode_frame(wire.Pong(ping.number)))
    assert client.key.node in served.app.core.links
    await socket.abort()


async def test_a_heartbeat_over_the_link_is_recorded(served: Served) -> None:
    client = await registered(served)
    socket, _ = await open_link(client)
    record = heartbeat_record(client.key, served.clock(), addresses=("/ip4/203.0.113.7/tcp/46337",))
    await socket.send(wire.encode_frame(wire.Announce(record)))
    async with asyncio.timeout(10):
        while not (peers := (await served.http.get("/api/peers")).json()["data"]):
            pass
    assert base64.b64decode(peers[0]["record"])
    # The row is written first; the peer learns the record once it is safe.
    async with asyncio.timeout(10):
        while served.app.core.driver.peer.directory.get(client.key.node) is None:
            await served.http.get("/api/health")
    await socket.abort()


async def test_a_heartbeat_of_another_node_or_time_is_not_recorded_and_the_link_stays(served: Served) -> None:
    client = await registered(served)
    socket, _ = await open_link(client)
    await socket.receive()
    for record in (
        heartbeat_record(make_key(), served.clock(), addresses=("/ip4/203.0.113.9/tcp/1",)),
        heartbeat_record(client.key, served.clock() - 120_000, addresses=("/ip4/203.0.113.9/tcp/1",)),
    ):
        await socket.send(wire.encode_frame(wire.Announce(record)))
    await socket.send(wire.encode_frame(wire.Ping(1)))
    assert wire.decode_frame(await socket.receive()) == wire.Pong(1)
    assert (await served.http.get("/api/peers")).json()["data"] == []
    await socket.abort()


async def test_a_node_that_reads_nothing_loses_its_link_and_leaves_nothing_behind(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hypercorn_cures, "SEND_DEADLINE_S", 0.2)
    monkeypatch.setattr(hypercorn_cures, "CLOSE_DEADLINE_S", 0.2)
    client = await registered(served)
    tasks = len(asyncio.all_tasks())
    socket, _ = await open_link(client, receive_buffer_bytes=4096)
    await until(lambda: client.key.node in served.app.core.links)
    coordinator = served.app.core.links._connections[client.key.node]
    for number in range(1, 40, 2):
        coordinator.link.perform(OpenStream(StreamId(number), client.key.node, c.JOB_PROTOCOL))
        coordinator.link.perform(Send(StreamId(number), bytes(1024 * 1024)))
        coordinator.wake_writer.set()
        await asyncio.sleep(0)
        if coordinator.link.queued_bytes > 3 * 1024 * 1024:
            break
    await until(lambda: client.key.node not in served.app.core.links, "the link was given up")
    await until(lambda: len(asyncio.all_tasks()) <= tasks, "nothing of the connection is left")
    await socket.abort()


async def test_a_node_that_removes_itself_loses_its_link(served: Served) -> None:
    async with linked(served) as node:
        assert (await node.client.post("remove", {"role": "provider"})).json()["data"]["deleted"] is True
        await until(lambda: node.closed, "the link was closed")
        assert node.node not in served.app.core.links
        assert (await ask(served)).status_code == 503


async def test_links_are_bounded(tmp_path: object, served: Served) -> None:
    served.app.core.config = type(served.app.core.config)(links_at_once=1)
    async with linked(served) as node:
        with pytest.raises(Refused) as refused:
            await open_link(await registered(served))
        assert refused.value.status == 503
        again, _ = await open_link(node.client)
        await again.abort()


async def test_shutting_down_closes_links_with_going_away(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with serving(tmp_path_factory.mktemp("home")) as served:
        client = await registered(served)
        socket, _ = await open_link(client)
        await until(lambda: client.key.node in served.app.core.links)
        served.stop.set()
        assert (await closed_with(socket)).code == links.CLOSE_GOING_AWAY


async def test_nothing_is_left_after_many_links_came_and_went(served: Served) -> None:
    core = served.app.core
    for _ in range(5):
        async with linked(served) as node:
            await stream(served, (await ask(served)).json()["jobId"])
            await until(lambda: core.driver.peer.statistics().jobs_asked == 0)
        await until(lambda node=node: node.node not in core.links)  # type: ignore[misc]
    statistics = core.driver.peer.statistics()
    assert (statistics.connections, statistics.streams, statistics.jobs_asked) == (0, 0, 0)
    assert not core.links._by_stream


@pytest.mark.parametrize("error", [StoreBusy(), sqlite3.OperationalError("database or disk is full")])
async def test_a_heartbeat_that_cannot_be_written_ends_no_link(
    served: Served, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    tried: list[object] = []

    async def refuse(closure: object) -> None:
        tried.append(closure)
        raise error

    async with linked(served) as node:
        with monkeypatch.context() as patched:
            patched.setattr(served.app.core.database, "write", refuse)
            for number in (1, 2):
                node.link.announce(heartbeat_record(node.client.key, served.clock()))
                node.wake.set()
                await until(lambda number=number: len(tried) >= number)  # type: ignore[misc]
        assert text_of(await stream(served, (await ask(served)).json()["jobId"])) == "Hello world"
        assert node.node in served.app.core.links


# ---------------------------------------------------------------- claims


async def next_frame(socket: WebSocket) -> wire.AnyFrame | None:
    async with asyncio.timeout(10):
        while isinstance(frame := wire.decode_frame(await socket.receive()), wire.Ping):
            pass
    return frame


async def next_answer(socket: WebSocket) -> wire.ClaimAnswer:
    """The next answer to a claim; the coordinator says other things, too, once it has seen the node for a while."""
    while not isinstance(frame := await next_frame(socket), wire.ClaimAnswer):
        pass
    return frame


def codes(answer: wire.ClaimAnswer) -> list[str]:
    return [refusal.code for refusal in answer.refusals]


async def test_claims_of_a_frame_are_settled_together_and_answered_by_its_number(served: Served) -> None:
    market = await Market.opened(served)
    leases = [await market.lease() for _ in range(3)]
    socket, _ = await open_link(market.provider)
    await socket.receive()
    claims = [market.claim_of(lease, paid) for paid, lease in enumerate(leases, start=10)]
    await socket.send(wire.encode_frame(wire.ClaimFrame(7, (*claims[:2], market.close_of(leases[0]), claims[2]))))
    answer = await next_answer(socket)
    (refusal,) = answer.refusals
    assert (answer.number, refusal.position, refusal.code) == (7, 2, "bad_record")
    assert refusal.text
    assert answer.acknowledgement is not None
    for paid, lease in enumerate(leases, start=10):
        assert credited_in(answer.acknowledgement, lease).claimed_uusd == paid
    await socket.abort()


async def test_frames_of_claims_are_answered_by_their_numbers(served: Served) -> None:
    market = await Market.opened(served)
    leases = [await market.lease() for _ in range(3)]
    socket, _ = await open_link(market.provider)
    await socket.receive()
    for number, lease in enumerate(leases, start=10):
        await socket.send(wire.encode_frame(wire.ClaimFrame(number, (market.claim_of(lease, number),))))
    answers = {answer.number: answer for answer in [await next_answer(socket) for _ in leases]}
    for number, lease in enumerate(leases, start=10):
        acknowledgement = answers[number].acknowledgement
        assert acknowledgement is not None
        assert (credited_in(acknowledgement, lease).claimed_uusd, answers[number].refusals) == (number, ())
    await socket.abort()


async def test_a_link_claims_for_its_own_node_only(served: Served) -> None:
    market = await Market.opened(served)
    lease = await market.lease()
    socket, _ = await open_link(market.client)
    await socket.receive()
    await socket.send(wire.encode_frame(wire.ClaimFrame(1, (market.claim_of(lease, 5),))))
    assert codes(await next_answer(socket)) == ["wrong_sender"]
    await socket.abort()


async def test_more_claims_than_may_wait_are_answered_busy_and_the_link_stays(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "LINK_CLAIMS_MAX", 3)
    market = await Market.opened(served)
    lease = await market.lease()
    socket, _ = await open_link(market.provider)
    await socket.receive()
    gate, claim_many = asyncio.Event(), served.app.core.links._claim_many

    async def slowly(sender: NodeId, claims: Sequence[Signed]) -> Any:
        await gate.wait()
        return await claim_many(sender, claims)

    served.app.core.links._claim_many = slowly
    for number in range(2):
        claims = (market.claim_of(lease, 2 * number + 1), market.claim_of(lease, 2 * number + 2))
        await socket.send(wire.encode_frame(wire.ClaimFrame(number, claims)))
    answer = await next_answer(socket)
    assert (answer.number, answer.acknowledgement, codes(answer)) == (1, None, ["busy", "busy"])
    gate.set()
    answer = await next_answer(socket)
    assert (answer.number, answer.acknowledgement is None, codes(answer)) == (0, False, [])
    await socket.send(wire.encode_frame(wire.ClaimFrame(2, claims)))
    assert codes(await next_answer(socket)) == [], "there is room again"
    await socket.abort()


async def test_a_claim_that_meets_a_fault_of_ours_is_answered_and_the_link_stays(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    market = await Market.opened(served)
    lease, poisoned = await market.lease(), await market.lease()
    command = LedgerTransaction.command

    def broken(self: LedgerTransaction, asked: Any, at_ms: int) -> Any:
        assert asked.lease != poisoned, "a bug of ours"
        return command(self, asked, at_ms)

    monkeypatch.setattr(LedgerTransaction, "command", broken)
    socket, _ = await open_link(market.provider)
    await socket.receive()
    claims = tuple(market.claim_of(each, 5) for each in (poisoned, lease))
    await socket.send(wire.encode_frame(wire.ClaimFrame(1, claims)))
    answer = await next_answer(socket)
    assert [(refusal.position, refusal.code) for refusal in answer.refusals] == [(0, "internal")]
    assert answer.acknowledgement is not None
    assert credited_in(answer.acknowledgement).lease == lease
    assert refused(await market.send(market.claim_of(poisoned, 5))) == (500, "internal")
    await socket.abort()


async def test_where_a_fault_of_ours_meets_all_claims_together_the_links_stay(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    markets = [await Market.opened(served) for _ in range(2)]
    claims = [market.claim_of(await market.lease(), 5) for market in markets]
    sockets = [(await open_link(market.provider))[0] for market in markets]
    with monkeypatch.context() as patch:

        def broken(*_words: Any) -> None:
            raise AssertionError("a bug of ours")

        patch.setattr(intake, "acknowledge", broken)
        for socket, claim in zip(sockets, claims, strict=True):
            await socket.receive()
            await socket.send(wire.encode_frame(wire.ClaimFrame(1, (claim,))))
        assert [codes(await next_answer(socket)) for socket in sockets] == [["internal"], ["internal"]]
    for socket, claim in zip(sockets, claims, strict=True):
        await socket.send(wire.encode_frame(wire.ClaimFrame(2, (claim,))))
        assert codes(await next_answer(socket)) == [], "the same again"
        await socket.abort()


async def test_a_claim_that_meets_a_failed_disk_gets_the_same_answer_over_the_link(served: Served) -> None:
    market = await Market.opened(served)
    lease = await market.lease()
    socket, _ = await open_link(market.provider)
    await socket.receive()
    with pytest.raises(StoreFailed):
        await served.app.core.database.write(meet_a_failed_fsync)
    assert refused(await market.send(market.claim_of(lease, 5))) == (503, "store_unavailable")
    await socket.send(wire.encode_frame(wire.ClaimFrame(1, (market.claim_of(lease, 5),))))
    assert codes(await next_answer(socket)) == ["store_unavailable"]
    await socket.abort()


async def test_a_provider_on_a_link_hears_of_a_wish_to_close(served: Served) -> None:
    market = await Market.opened(served)
    lease = await market.lease()
    socket, _ = await open_link(market.provider)
    await socket.receive()
    wish = market.close_of(lease)
    answer = await market.client.post("leases/close", codec.encode_value(wish), "application/msgpack")
    assert answer.status_code == 200
    assert await next_frame(socket) == wire.Closing(wish)
    await socket.abort()


async def test_a_stopped_ledger_answers_over_the_link_too(served: Served) -> None:
    market = await Market.opened(served)
    lease = await market.lease()
    socket, _ = await open_link(market.provider)
    await socket.receive()
    served.app.core.settlement.stop_because("a test says so")
    await socket.send(wire.encode_frame(wire.ClaimFrame(1, (market.claim_of(lease, 5),))))
    assert codes(await next_answer(socket)) == ["ledger_stopped"]
    await socket.abort()


@pytest.mark.parametrize("frame", [wire.ClaimAnswer(1, None, ()), wire.Closing(Signed(b"x", bytes(64)))])
async def test_a_node_that_speaks_as_a_coordinator_loses_its_link(served: Served, frame: wire.AnyFrame) -> None:
    socket, _ = await open_link(await registered(served))
    await socket.send(wire.encode_frame(frame))
    assert (await closed_with(socket)).code == links.CLOSE_PROTOCOL_ERROR
