"""A request is accepted exactly as it was signed, once; every other one is refused with an error of ours."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from protocol.envelope import (
    REPLAY_WINDOW,
    ReplayWindow,
    sign_request,
    sign_request_v1,
    verify_request,
)
from protocol.errors import RemoteProtocolError, Stale
from tests.helpers_records import NOW_MS, signing_key

NODE = signing_key("node")
COORDINATOR = signing_key("coordinator").node
BODY = b'{"role":"provider","status":"available"}'
TARGET = "/api/v1/node/me?x=1"
HEADERS = {
    1: sign_request_v1(NODE, "POST", TARGET, BODY, NOW_MS // 1000, "0123456789abcdef" * 2),
    2: sign_request(NODE, COORDINATOR, "POST", TARGET, BODY, NOW_MS, 5, 1),
}


def accepted(header: str, *, target: str = TARGET, body: bytes = BODY, now_ms: int = NOW_MS) -> bool:
    try:
        verify_request(header, COORDINATOR, "POST", target, body, now_ms)
    except RemoteProtocolError:
        return False
    return True


def raw(header: str) -> bytes:
    return base64.urlsafe_b64decode(header + "==")


@pytest.mark.parametrize("version", [1, 2])
def test_one_changed_byte_is_refused_wherever_it_is(version: int) -> None:
    """Every byte of what the header carries is changed in turn, by one bit and to another letter."""
    data = raw(HEADERS[version])
    assert accepted(base64.urlsafe_b64encode(data).decode())
    for at in range(len(data)):
        for changed in {data[at] ^ 1, data[at] ^ 32, data[at] ^ 128, 0x30} - {data[at]}:
            header = base64.urlsafe_b64encode(data[:at] + bytes([changed]) + data[at + 1 :]).decode()
            if accepted(header):
                # JSON has more than one way to write what is signed: it must mean the same, to the letter.
                assert version == 1
                assert json.loads(raw(header.rstrip("="))) == json.loads(data)


@pytest.mark.parametrize("version", [1, 2])
def test_a_header_cut_anywhere_is_refused(version: int) -> None:
    header = HEADERS[version]
    assert not any(accepted(header[:length]) for length in range(len(header)))


@pytest.mark.parametrize("version", [1, 2])
def test_one_changed_byte_of_the_body_or_the_target_is_refused(version: int) -> None:
    for at in range(len(BODY)):
        assert not accepted(HEADERS[version], body=BODY[:at] + bytes([BODY[at] ^ 1]) + BODY[at + 1 :])
    for at in range(len(TARGET)):
        assert not accepted(HEADERS[version], target=TARGET[:at] + chr(ord(TARGET[at]) ^ 1) + TARGET[at + 1 :])


@given(st.integers(-200_000, 200_000), st.sampled_from([1, 2]))
def test_the_clock_may_be_off_by_a_minute_and_no_more(skew_ms: int, version: int) -> None:
    now_ms = NOW_MS + skew_ms
    allowed = abs(skew_ms) <= 60_000 if version == 2 else abs(now_ms // 1000 - NOW_MS // 1000) <= 60
    assert accepted(HEADERS[version], now_ms=now_ms) == allowed


@given(st.integers(0, 2**63 - 1))
def test_no_clock_makes_verifying_fail_in_another_way(now_ms: int) -> None:
    for header in HEADERS.values():
        if abs(now_ms - NOW_MS) > 61_000:
            with pytest.raises(Stale):
                verify_request(header, COORDINATOR, "POST", TARGET, BODY, now_ms)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["v", "pubkey", "created_at", "nonce", "sig", "x"]), json_values))
def test_any_json_is_refused_in_our_own_way(fields: dict[str, object]) -> None:
    assert not accepted(base64.urlsafe_b64encode(json.dumps(fields).encode()).decode())


@given(st.dictionaries(st.sampled_from(["v", "pubkey", "created_at", "nonce", "sig"]), json_values, min_size=1))
def test_a_good_header_with_other_values_is_refused(changes: dict[str, object]) -> None:
    good = json.loads(raw(HEADERS[1]))
    changed = {**good, **changes}
    if json.dumps(changed) != json.dumps(good):
        assert not accepted(base64.urlsafe_b64encode(json.dumps(changed).encode()).decode())


@given(st.text(max_size=300))
def test_any_text_is_refused_in_our_own_way(header: str) -> None:
    assert not accepted(header)


@given(st.binary(max_size=300))
def test_any_bytes_in_base64_are_refused_in_our_own_way(data: bytes) -> None:
    assert not accepted(base64.urlsafe_b64encode(data).decode())
    assert not accepted(base64.urlsafe_b64encode(b"{" + data).decode())


class ReplayModel(RuleBasedStateMachine):
    """The window against a set that forgets nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.window = ReplayWindow()
        self.used: set[int] = set()

    def offer(self, counter: int) -> None:
        highest = max(self.used, default=0)
        fresh = counter not in self.used and counter > highest - REPLAY_WINDOW
        assert self.window.accept(counter) == fresh
        if fresh:
            self.used.add(counter)

    @rule(counter=st.integers(0, 5000))
    def anywhere(self, counter: int) -> None:
        self.offer(counter)

    @rule(below=st.integers(0, REPLAY_WINDOW + 3))
    def near_the_highest(self, below: int) -> None:
        self.offer(max(0, self.window.highest - below))

    @rule(step=st.sampled_from([1, 2, 63, 64, REPLAY_WINDOW - 1, REPLAY_WINDOW, REPLAY_WINDOW + 1, 10**12]))
    def ahead(self, step: int) -> None:
        self.offer(self.window.highest + step)

    @rule()
    def restart(self) -> None:
        self.window = ReplayWindow(self.window.highest, self.window.bitmap)

    @invariant()
    def bounded(self) -> None:
        assert self.window.bitmap.bit_length() <= REPLAY_WINDOW


TestReplayWindow = ReplayModel.TestCase
