"""The node API over real HTTP: shapes of the existing system, the signed record, and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from protocol import codec
from protocol.envelope import AUTH_HEADER, open_record
from protocol.records import Availability, Gpu, GpuVendor, Heartbeat, Role, VramTier
from tests.helpers_coordinator import NodeClient, Served, heartbeat_record, make_key, serving, sign_heartbeat

pytestmark = pytest.mark.anyio

RECORD_TYPE = "application/vnd.infernet.heartbeat"

# What a client of the existing system sends, most of it nobody's business.
FOREIGN_SPECS: dict[str, Any] = {
    "cpu": {"vendor": "AMD", "arch": "x64", "cores": 64, "ram_gb": 256},
    "gpu_count": 1,
    "gpus": [{"vendor": "nvidia", "vram_tier": "24-48gb", "model": "RTX 4090", "uuid": "GPU-1234", "driver": "550"}],
    "interconnects": {"nvlink": {"available": True}},
    "served_models": ["qwen2.5:7b"],
    "bench": {"tokens_per_second_avg": 1e9},
    "load": {"active_jobs": 0, "ram": {"free_gb": 200}},
    "hostname": "alices-laptop",
}


@pytest.mark.parametrize("version", [1, 2])
async def test_register_heartbeat_me_remove_in_the_existing_shapes(served: Served, version: int) -> None:
    client = NodeClient(served, version=version)
    key = client.key.node.hex()
    answer = await client.register(node_id="provider-35372324", address="203.0.113.7", port=46337, price=0.1)
    assert answer.json() == {"data": {"id": key, "node_id": "provider-35372324"}}
    beat = {"role": "provider", "status": "available", "specs": FOREIGN_SPECS, "address": "203.0.113.7", "port": 46337}
    assert (await client.post("heartbeat", beat)).json() == {"data": {"id": key}}
    row = (await client.post("me", {"role": "provider"})).json()["data"]["row"]
    assert row["specs"] == {
        "gpus": [{"vendor": "nvidia", "vram_tier": "24-48gb", "model": "RTX 4090"}],
        "gpu_count": 1,
        "served_models": ["qwen2.5:7b"],
    }
    assert (row["id"], row["status"], row["address"], row["port"]) == (key, "available", "203.0.113.7", 46337)
    assert (await client.post("remove", {"role": "provider"})).json() == {"data": {"deleted": True, "id": key}}
    assert (await client.post("remove", {"role": "provider"})).json() == {"data": {"deleted": False}}
    assert (await client.post("me", {"role": "provider"})).json() == {"data": {"row": None}}


def all_below(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("version", [1, 2])
async def test_r9_what_a_node_tells_of_its_host_is_nowhere_on_the_coordinators_disk(
    served: Served, tmp_path: Path, version: int
) -> None:
    """R9: whatever a node sent as its specs was stored as it came."""
    client = NodeClient(served, version=version)
    gpu = {"vendor": "nvidia", "vram_tier": "24-48gb", "model": "a-word-to-keep", "serial": "telltale"}
    told = {"gpus": [gpu], "cpu": {"model": "telltale"}, "hostname": "telltale", "telltale": ["telltale"]}
    fields = {"name": "telltale@telltale:mine", "hostname": "telltale", "specs": told, "telltale": 1}
    assert (await client.register(**fields)).status_code == 200
    beat = {"role": "provider", "status": "available", "load": "telltale", "specs": told}
    assert (await client.post("heartbeat", beat)).status_code == 200
    kept = all_below(tmp_path)
    assert b"a-word-to-keep" in kept
    assert b"telltale" not in kept


async def test_a_heartbeat_without_a_registration_is_told_to_register(served: Served) -> None:
    answer = await NodeClient(served).post("heartbeat", {"role": "provider", "status": "available"})
    assert answer.status_code == 404
    assert "register first" in answer.json()["error"]


async def test_a_heartbeat_in_another_role_is_told_to_register(served: Served) -> None:
    client = NodeClient(served)
    await client.register(role="provider")
    assert (await client.post("heartbeat", {"role": "client", "status": "active"})).status_code == 404


async def test_a_node_id_belongs_to_the_key_that_registered_it(served: Served) -> None:
    first, second = NodeClient(served), NodeClient(served)
    assert (await first.register(node_id="mine")).status_code == 200
    answer = await second.register(node_id="mine")
    assert (answer.status_code, answer.json()) == (403, {"error": "node_id registered to a different pubkey"})
    assert (await first.register(node_id="mine")).status_code == 200


async def test_nobody_can_take_the_id_that_another_key_will_have(served: Served) -> None:
    victim = NodeClient(served)
    squatter = NodeClient(served)
    wanted = f"provider-{victim.key.node.hex()[:16]}"
    assert (await squatter.register(node_id=wanted)).status_code == 403
    assert (await victim.register(node_id=wanted)).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"role": "king"},
        {"role": None},
        {"node_id": ""},
        {"node_id": "a b"},
        {"node_id": "x" * 65},
        {"node_id": 7},
        {"address": "not an address!"},
        {"address": "fe80::1%eth0"},
        {"port": 0},
        {"port": 65536},
        {"port": "46337"},
        {"status": "sleepy"},
    ],
)
async def test_a_wrong_registration_is_a_400_that_says_why(served: Served, fields: dict[str, Any]) -> None:
    answer = await NodeClient(served).register(**fields)
    assert answer.status_code == 400
    assert len(answer.json()["error"]) > 10


async def test_user_and_host_are_cut_from_a_name(served: Served) -> None:
    client = NodeClient(served)
    await client.register(name="alice@alices-laptop:35372324")
    row = (await client.post("me", {"role": "provider"})).json()["data"]["row"]
    assert row["name"] == "35372324"


async def test_registrations_are_limited_but_not_those_of_known_keys(tmp_path: Path) -> None:
    async with serving(tmp_path, limit_loopback=True, registrations_per_hour=2) as served:
        clients = [NodeClient(served) for _ in range(3)]
        statuses = [(await client.register()).status_code for client in clients]
        assert statuses == [200, 200, 429]
        assert (await clients[0].register()).status_code == 200
        refused = await clients[2].register()
        assert int(refused.headers["retry-after"]) > 60


async def test_requests_of_nodes_are_limited_per_network_before_their_signatures_are_checked(tmp_path: Path) -> None:
    async with serving(tmp_path, limit_loopback=True, node_requests_per_hour=3) as served:
        client = NodeClient(served)
        statuses = [(await client.register()).status_code for _ in range(2)]
        statuses += [(await served.http.post("/api/v1/node/me")).status_code for _ in range(2)]
        assert statuses == [200, 200, 401, 429]


async def test_loopback_is_not_limited_by_default_but_what_a_proxy_brings_is(tmp_path: Path) -> None:
    async with serving(tmp_path, registrations_per_hour=1) as served:
        for _ in range(3):
            assert (await NodeClient(served).register()).status_code == 200
        served.http.headers["X-Forwarded-For"] = "127.0.0.1"
        statuses = [(await NodeClient(served).register()).status_code for _ in range(2)]
        assert statuses == [200, 429]


# ---------------------------------------------------------------- our nodes: the record itself


async def send_record(client: NodeClient, route: str, record: Any) -> Any:
    return await client.post(route, codec.encode_value(record), RECORD_TYPE)


async def test_a_node_registers_and_beats_with_its_signed_record(served: Served) -> None:
    client = NodeClient(served)
    gpu = Gpu(GpuVendor.NVIDIA, VramTier.FROM_24, "RTX 4090")
    record = heartbeat_record(client.key, served.clock(), name="garage", gpus=(gpu,))
    answer = await send_record(client, "register", record)
    node_id = f"provider-{client.key.node.hex()[:16]}"
    assert answer.json() == {"data": {"id": client.key.node.hex(), "node_id": node_id}}
    row = (await client.post("me", {"role": "provider"})).json()["data"]["row"]
    assert (row["name"], row["status"]) == ("garage", "available")
    assert row["specs"]["gpus"] == [{"vendor": "nvidia", "vram_tier": "24-48gb", "model": "RTX 4090"}]
    assert row["specs"]["served_models"] == ["test-model:1b"]


async def test_a_request_that_brings_a_record_is_used_once_too(served: Served) -> None:
    client = NodeClient(served)
    body = codec.encode_value(heartbeat_record(client.key, served.clock()))
    for route in ("register", "heartbeat"):
        target = f"/api/v1/node/{route}"
        headers = {AUTH_HEADER: client.header(target, body), "content-type": RECORD_TYPE}
        statuses = [(await served.http.post(target, content=body, headers=headers)).status_code for _ in range(2)]
        assert statuses == [200, 401], route


async def test_the_newest_sequence_wins(served: Served) -> None:
    client = NodeClient(served)
    now_ms = served.clock()
    newer = heartbeat_record(client.key, now_ms, name="newer")
    body = open_record(newer, Heartbeat)
    older = sign_heartbeat(client.key, replace(body, sequence=body.sequence - 1, name="older"))
    assert (await send_record(client, "register", newer)).status_code == 200
    assert (await send_record(client, "heartbeat", older)).status_code == 200, "old news is no error"
    row = (await client.post("me", {"role": "provider"})).json()["data"]["row"]
    assert row["name"] == "newer"


async def test_a_node_that_says_goodbye_is_offline(served: Served) -> None:
    client = NodeClient(served)
    body = open_record(heartbeat_record(client.key, served.clock()), Heartbeat)
    goodbye = replace(body, sequence=body.sequence + 1, availability=Availability.OFFLINE)
    await send_record(client, "register", sign_heartbeat(client.key, body))
    await send_record(client, "heartbeat", sign_heartbeat(client.key, goodbye))
    nodes = (await served.http.get("/api/nodes")).json()["data"]
    assert [node["status"] for node in nodes] == ["offline"]


@pytest.mark.parametrize("fault", ["signature", "other node", "old", "future", "lifetime", "garbage", "empty"])
async def test_a_record_that_does_not_hold_is_a_400(served: Served, fault: str) -> None:
    client = NodeClient(served)
    await client.register()
    record = heartbeat_record(client.key, served.clock())
    body = open_record(record, Heartbeat)
    if fault == "signature":
        record = replace(record, signature=bytes(64))
    elif fault == "other node":
        record = heartbeat_record(make_key(), served.clock())
    elif fault == "old":
        record = heartbeat_record(client.key, served.clock() - 61_000)
    elif fault == "future":
        record = heartbeat_record(client.key, served.clock() + 61_000)
    elif fault == "lifetime":
        record = sign_heartbeat(client.key, replace(body, expires_at_ms=body.issued_at_ms + 31 * 60 * 1000))
    data = {"garbage": b"\xc1" * 40, "empty": b""}.get(fault, codec.encode_value(record))
    assert (await client.post("heartbeat", data, RECORD_TYPE)).status_code == 400


async def test_a_record_without_a_registration_is_told_to_register(served: Served) -> None:
    client = NodeClient(served)
    assert (await send_record(client, "heartbeat", heartbeat_record(client.key, served.clock()))).status_code == 404


async def test_registering_again_in_json_keeps_the_signed_record(served: Served) -> None:
    client = NodeClient(served)
    record = heartbeat_record(client.key, served.clock(), addresses=("/ip4/203.0.113.7/tcp/46337",))
    await send_record(client, "register", record)
    await client.register()
    peers = (await served.http.get("/api/peers")).json()["data"]
    assert peers[0]["record"] is not None


async def test_a_role_changes_with_the_record(served: Served) -> None:
    client = NodeClient(served)
    await send_record(client, "register", heartbeat_record(client.key, served.clock()))
    later = heartbeat_record(client.key, served.clock() + 10, role=Role.AGGREGATOR)
    await send_record(client, "heartbeat", later)
    assert (await client.post("me", {"role": "aggregator"})).json()["data"]["row"]["role"] == "aggregator"
