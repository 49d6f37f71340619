"""Signed requests over real HTTP: the golden envelope, the window, replay across a restart, and who is refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from protocol.envelope import AUTH_HEADER, SigningKey, sign_request, sign_request_v1
from protocol.link import SERVER_TIME_HEADER, decode_server_time
from tests.helpers_coordinator import NodeClient, Served, WallClock, make_key, serving

pytestmark = pytest.mark.anyio

# The vector of the existing system's envelope, version 1: secret key 3, auxiliary randomness 32 zero bytes.
GOLDEN_BODY = b'{"role":"provider","status":"available"}'
GOLDEN_S = 1777400000
GOLDEN: dict[str, Any] = {
    "v": 1,
    "pubkey": "f9308a019258c31049344f85f89d5229b531c845836f99b08601f113bce036f9",
    "created_at": GOLDEN_S,
    "nonce": "000102030405060708090a0b0c0d0e0f",
    "sig": (
        "7e6f6553aa58a78e150bc20cbaa7189b014328cb701e402c43675c9edcf8dd2f"
        "9d46fb9b71196b9dbd469791f67c0f092696d100b6743b535634231ccf58f49c"
    ),
}
HEARTBEAT = "/api/v1/node/heartbeat"


def golden_header(**changes: Any) -> str:
    text = json.dumps({**GOLDEN, **changes}, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def set_clock(clock: WallClock, seconds: int) -> None:
    clock.offset_ms += seconds * 1000 - clock()


async def post(served: Served, target: str, header: str, body: bytes = GOLDEN_BODY) -> httpx.Response:
    headers = {AUTH_HEADER: header, "content-type": "application/json"}
    return await served.http.post(target, content=body, headers=headers)


async def register_golden_key(served: Served, seconds: int = GOLDEN_S) -> None:
    key = SigningKey((3).to_bytes(32, "big"), lambda count: bytes(count))
    body = b'{"role":"provider","node_id":"golden","name":"golden"}'
    header = sign_request_v1(key, "POST", "/api/v1/node/register", body, seconds, "ffff")
    assert (await post(served, "/api/v1/node/register", header, body)).status_code == 200


def test_our_signature_is_the_golden_vector_byte_for_byte() -> None:
    key = SigningKey((3).to_bytes(32, "big"), lambda count: bytes(count))
    assert sign_request_v1(key, "POST", HEARTBEAT, GOLDEN_BODY, GOLDEN_S, GOLDEN["nonce"]) == golden_header()


async def test_the_golden_request_is_accepted_once(served: Served, clock: WallClock) -> None:
    set_clock(clock, GOLDEN_S)
    assert (await post(served, HEARTBEAT, golden_header())).status_code == 404, "authenticated, not registered"
    await register_golden_key(served)
    accepted = await post(served, HEARTBEAT, golden_header())
    assert (accepted.status_code, accepted.json()) == (200, {"data": {"id": GOLDEN["pubkey"]}})
    assert (await post(served, HEARTBEAT, golden_header())).status_code == 401


@pytest.mark.parametrize(("skew_s", "status"), [(60, 200), (-60, 200), (61, 401), (-61, 401)])
async def test_sixty_seconds_are_accepted_and_sixty_one_are_not(
    served: Served, clock: WallClock, skew_s: int, status: int
) -> None:
    set_clock(clock, GOLDEN_S + skew_s)
    await register_golden_key(served, GOLDEN_S + skew_s)
    assert (await post(served, HEARTBEAT, golden_header())).status_code == status


@pytest.mark.parametrize("skew_ms", [59_000, -59_000, 61_000, -61_000])
async def test_version_2_has_the_same_window(served: Served, skew_ms: int) -> None:
    client = NodeClient(served)
    await client.register()
    body = b'{"role":"provider"}'
    target = "/api/v1/node/me"
    now_ms = served.clock() + skew_ms
    header = sign_request(client.key, served.key.node, "POST", target, body, now_ms, next(client.counter), 1)
    assert (await post(served, target, header, body)).status_code == (200 if abs(skew_ms) <= 60_000 else 401)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("change", ["body", "path", "query", "method", "signature"])
async def test_one_changed_byte_is_refused(served: Served, version: int, change: str) -> None:
    client = NodeClient(served, version=version)
    await client.register()
    target, body, method = HEARTBEAT, GOLDEN_BODY, "POST"
    header = client.header(target, body)
    if change == "body":
        body = body.replace(b"available", b"availablf")
    elif change == "path":
        target = "/api/v1/node/me"
    elif change == "query":
        target += "?a=1"
    elif change == "method":
        method = "PUT"
        header = client.header(target, body, "PUT")
    else:
        raw = bytearray(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
        at = -20 if version == 1 else -5
        raw[at] = ord("1") if version == 1 and raw[at] != ord("1") else raw[at] ^ 1 if version == 2 else ord("2")
        header = base64.urlsafe_b64encode(bytes(raw)).rstrip(b"=").decode()
    answer = await served.http.request(
        "POST", target, content=body, headers={AUTH_HEADER: header, "content-type": "application/json"}
    )
    assert answer.status_code == 401, method


async def test_r8_another_coordinators_request_is_refused(served: Served) -> None:
    """R8: what was signed named no coordinator, and was good at every one."""
    client = NodeClient(served)
    await client.register()
    body = b'{"role":"provider"}'
    target, now_ms = "/api/v1/node/me", served.clock()
    other = sign_request(client.key, make_key(9).node, "POST", target, body, now_ms, next(client.counter), 1)
    assert (await post(served, target, other, body)).status_code == 401
    assert (await client.post("me", {"role": "provider"})).status_code == 200


async def test_an_upper_case_key_is_refused(served: Served, clock: WallClock) -> None:
    set_clock(clock, GOLDEN_S)
    await register_golden_key(served)
    assert (await post(served, HEARTBEAT, golden_header(pubkey=GOLDEN["pubkey"].upper()))).status_code == 401


@pytest.mark.parametrize("version", [1, 2])
async def test_r7_a_replay_is_refused_across_a_restart(tmp_path: Path, version: int) -> None:
    """R7: what was used lay in memory, and a restart forgot it."""
    key = make_key()
    async with serving(tmp_path) as served:
        client = NodeClient(served, key, version=version)
        await client.register()
        header = client.header(HEARTBEAT, GOLDEN_BODY)
        assert (await post(served, HEARTBEAT, header)).status_code == 200
    async with serving(tmp_path) as served:
        assert (await post(served, HEARTBEAT, header)).status_code == 401
        again = NodeClient(served, key, version=version)
        assert (await post(served, HEARTBEAT, again.header(HEARTBEAT, GOLDEN_BODY))).status_code == 200


async def test_a_replay_of_an_old_registration_does_not_bring_back_a_node_that_left(served: Served) -> None:
    client = NodeClient(served)
    body = b'{"role":"provider","node_id":"n1"}'
    target = "/api/v1/node/register"
    header = client.header(target, body)
    assert (await post(served, target, header, body)).status_code == 200
    assert (await client.post("remove", {"role": "provider"})).json() == {
        "data": {"deleted": True, "id": client.key.node.hex()}
    }
    assert (await post(served, target, header, body)).status_code == 401


async def test_requests_out_of_order_are_each_accepted_once(served: Served) -> None:
    client = NodeClient(served)
    await client.register()
    headers = [client.header(HEARTBEAT, GOLDEN_BODY) for _ in range(3)]
    for number in (2, 0, 1):
        assert (await post(served, HEARTBEAT, headers[number])).status_code == 200
    for header in headers:
        assert (await post(served, HEARTBEAT, header)).status_code == 401


@pytest.mark.parametrize("version", [1, 2])
async def test_an_unknown_key_leaves_no_trace(served: Served, version: int) -> None:
    client = NodeClient(served, version=version)
    for route in ("heartbeat", "me", "remove"):
        await client.post(route, {"role": "provider"})
    async with served.app.core.database.reader() as reader:
        for table in ("nodes", "nonces", "replay_windows"):
            rows = await reader.execute_fetchall(f"SELECT count(*) FROM {table}")
            assert [tuple(row) for row in rows] == [(0,)], table


async def test_every_refusal_says_the_same_and_tells_the_time(served: Served) -> None:
    client = NodeClient(served)
    await client.register()
    good = client.header(HEARTBEAT, GOLDEN_BODY)
    await post(served, HEARTBEAT, good)
    answers = [
        await post(served, HEARTBEAT, header)
        for header in (good, "", "nonsense", "%%%", "e30", golden_header(), golden_header(v=3), "A" * 3000)
    ]
    answers.append(await served.http.post(HEARTBEAT, content=GOLDEN_BODY))
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.json()["error"] for answer in answers}) == 1
    for answer in answers:
        assert abs(answer.json()["server_time"] - served.clock()) < 5000


async def test_the_server_time_is_signed_and_answers_this_request_only(served: Served) -> None:
    client = NodeClient(served)
    header = sign_request(client.key, served.key.node, "POST", HEARTBEAT, GOLDEN_BODY, 1, 1, 1)
    answer = await post(served, HEARTBEAT, header)
    value = answer.headers[SERVER_TIME_HEADER]
    assert abs(decode_server_time(value, served.key.node, header) - served.clock()) < 5000
    with pytest.raises(Exception, match="another request"):
        decode_server_time(value, served.key.node, header + "x")
    with pytest.raises(Exception, match="another key"):
        decode_server_time(value, make_key(5).node, header)


async def test_two_authentication_headers_are_refused(served: Served) -> None:
    client = NodeClient(served)
    await client.register()
    headers = [
        (AUTH_HEADER, client.header(HEARTBEAT, GOLDEN_BODY)),
        (AUTH_HEADER, client.header(HEARTBEAT, GOLDEN_BODY)),
        ("content-type", "application/json"),
    ]
    assert (await served.http.post(HEARTBEAT, content=GOLDEN_BODY, headers=headers)).status_code == 401
