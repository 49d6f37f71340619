"""The fake sealer keeps the contract of the real one, secrecy excepted."""

from __future__ import annotations

import pytest

from protocol.errors import SealError
from protocol.sealing import HpkeSealer, Sealer
from protocol.sim.sealer import SimulatedSealer


@pytest.mark.parametrize("make", [HpkeSealer, lambda: SimulatedSealer(b"a")])
def test_both_sealers_keep_one_contract(make: type[Sealer]) -> None:
    ours, other = make(), SimulatedSealer(b"b") if make is not HpkeSealer else HpkeSealer()
    key = ours.public_key(1)
    other.public_key(1)
    sealed = other.seal(b"prompt", key, b"context")
    assert ours.open(sealed, b"context") == b"prompt"
    assert (len(key), len(sealed)) == (32, len(b"prompt") + 48)
    for wrong in (sealed[:-1], sealed[1:], sealed + b"x", b"", bytes([sealed[0] ^ 1]) + sealed[1:]):
        with pytest.raises(SealError):
            ours.open(wrong, b"context")
    with pytest.raises(SealError):
        ours.open(sealed, b"other context")
    with pytest.raises(SealError):
        other.open(sealed, b"context")


def test_the_fake_repeats_itself_and_hides_nothing() -> None:
    seals = {SimulatedSealer(b"b").seal(b"prompt", SimulatedSealer(b"a").public_key(1), b"c") for _ in range(3)}
    assert len(seals) == 1
    assert b"prompt" in seals.pop()
