"""What anyone may read: shapes of the existing system, and numbers that were measured."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from protocol import codec
from protocol.envelope import open_record
from protocol.ids import npub, peer_id
from protocol.records import Gpu, GpuVendor, Heartbeat, Role, Signed, VramTier
from tests.helpers_coordinator import NodeClient, Served, WallClock, heartbeat_record, linked, model_offer

pytestmark = pytest.mark.anyio

RECORD_TYPE = "application/vnd.infernet.heartbeat"


async def join(served: Served, **offer: Any) -> NodeClient:
    client = NodeClient(served)
    record = heartbeat_record(client.key, served.clock(), **offer)
    assert (await client.post("register", codec.encode_value(record), RECORD_TYPE)).status_code == 200
    return client


async def data(served: Served, path: str) -> list[dict[str, object]]:
    answer = await served.http.get(path)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, object]] = answer.json()["data"]
    return found


async def test_the_coordinator_tells_its_key_for_pinning(served: Served) -> None:
    fields = (await served.http.get("/api/v1/coordinator")).json()
    assert (fields["key"], fields["npub"]) == (served.key.node.hex(), npub(served.key.node))
    assert fields["envelope_versions"] == [1, 2]
    assert abs(fields["time_ms"] - served.clock()) < 5000


async def test_health(served: Served) -> None:
    answer = (await served.http.get("/api/health")).json()
    assert answer["ok"] is True
    assert set(answer) >= {"ok", "uptime_s", "node_env", "commit"}


async def test_overview_counts_what_was_heard_in_the_last_minute(served: Served, clock: WallClock) -> None:
    await join(served)
    await join(served, models=(model_offer("other"),))
    cards = (await served.http.get("/api/overview")).json()["cards"]
    assert [set(card) for card in cards] == [{"label", "value", "note"}] * 4
    assert [card["value"] for card in cards[:3]] == [2, 2, 0]
    clock.offset_ms += 61_000
    cards = (await served.http.get("/api/overview")).json()["cards"]
    assert [card["value"] for card in cards[:2]] == [0, 0]
    assert cards[3]["value"] in ("61 s ago", "62 s ago")


async def test_a_node_is_live_for_sixty_seconds(served: Served, clock: WallClock) -> None:
    client = await join(served, addresses=("/ip4/203.0.113.7/tcp/46337",))
    clock.offset_ms += 55_000
    assert [node["status"] for node in await data(served, "/api/nodes")] == ["available"]
    assert await data(served, "/api/models")
    clock.offset_ms += 6_000
    assert [node["status"] for node in await data(served, "/api/nodes")] == ["offline"]
    assert await data(served, "/api/models") == await data(served, "/api/peers") == []
    await client.post("heartbeat", codec.encode_value(heartbeat_record(client.key, clock())), RECORD_TYPE)
    assert [node["status"] for node in await data(served, "/api/nodes")] == ["available"]


async def test_nodes_by_role_and_status(served: Served) -> None:
    gpu = Gpu(GpuVendor.NVIDIA, VramTier.FROM_24, "RTX 4090")
    provider = await join(served, gpus=(gpu, gpu), name="garage")
    await join(served, role=Role.AGGREGATOR, models=())
    await join(served, role=Role.CLIENT, models=())
    assert len(await data(served, "/api/nodes")) == 3
    assert len(await data(served, "/api/nodes?limit=1")) == 1
    assert await data(served, "/api/nodes?status=offline") == []
    assert [n["role"] for n in await data(served, "/api/aggregators")] == ["aggregator"]
    assert [n["role"] for n in await data(served, "/api/clients")] == ["client"]
    (row,) = await data(served, "/api/providers")
    assert (
        row.items()
        >= {
            "id": provider.key.node.hex(),
            "name": "garage",
            "status": "available",
            "gpu_summary": "2 × RTX 4090 (24-48gb)",
            "cpu_summary": None,
            "fabric": None,
            "price_display": "free",
            "reputation": None,
        }.items()
    )


async def test_a_price_is_shown_in_whole_cents(served: Served) -> None:
    await join(served, models=(model_offer(price_out_uusd=1_250_000), model_offer("dear", price_out_uusd=90_000_000)))
    (row,) = await data(served, "/api/providers")
    assert row["price_display"] == "$1.25 per 1M tokens"


async def test_models_say_how_many_serve_them_and_whether_the_chat_can_use_them(served: Served) -> None:
    await join(served, models=(model_offer("a:7b", context_tokens=8192), model_offer("b")))
    async with linked(served, models=(model_offer("a:7b"),)):
        models = {model["name"]: model for model in await data(served, "/api/models")}
    assert models["a:7b"] == {
        "id": "a:7b", "name": "a:7b", "family": "a", "context_length": 8192, "visibility": "public",
        "providers": 2, "chat": True,
    }  # fmt: skip
    assert (models["b"]["providers"], models["b"]["chat"]) == (1, False)


async def test_peers_can_be_dialled_and_their_records_verified_by_anyone(served: Served) -> None:
    client = await join(served, addresses=("/ip4/203.0.113.7/tcp/46337", "/ip6/2001:db8::1/tcp/46337"))
    (peer,) = await data(served, "/api/peers")
    suffix = f"/p2p/{peer_id(client.key.node)}"
    assert peer["multiaddr"] == "/ip4/203.0.113.7/tcp/46337" + suffix
    assert peer["multiaddrs"] == [peer["multiaddr"], "/ip6/2001:db8::1/tcp/46337" + suffix]
    assert (peer["pubkey"], peer["cpu"], peer["interconnects"]) == (client.key.node.hex(), None, None)
    record = codec.decode_struct(base64.b64decode(str(peer["record"])), Signed, codec.CONTROL_LIMITS)
    assert open_record(record, Heartbeat).node == client.key.node


async def test_a_node_that_does_not_advertise_has_no_address_anywhere(served: Served) -> None:
    await join(served, addresses=())
    foreign = NodeClient(served)
    await foreign.register(port=46337)
    assert await data(served, "/api/peers") == []
    everything = "".join([(await served.http.get(f"/api/{p}")).text for p in ("nodes", "providers", "models", "peers")])
    assert "127.0.0.1" not in everything


async def test_a_foreign_node_stops_advertising_with_the_heartbeat_that_leaves_the_address_out(served: Served) -> None:
    foreign = NodeClient(served, version=1)
    await foreign.register(address="203.0.113.7", port=46337)
    (peer,) = await data(served, "/api/peers")
    assert peer["multiaddr"] == f"/ip4/203.0.113.7/tcp/46337/p2p/{peer_id(foreign.key.node)}"
    await foreign.post("heartbeat", {"role": "provider", "status": "available"})
    assert await data(served, "/api/peers") == []


@pytest.mark.parametrize("query", ["limit=x", "limit=-1", "limit=1.5", "limit=", "limit=99999999999", "limit=%ff"])
async def test_a_wrong_limit_is_a_400(served: Served, query: str) -> None:
    for path in ("nodes", "models", "peers"):
        assert (await served.http.get(f"/api/{path}?{query}")).status_code == 400
