"""Our key is a Nostr key: an independent Nostr library agrees on its forms and on its signatures."""

from __future__ import annotations

import random

import pytest
from nostr_sdk import Keys, PublicKey, SecretKey

from protocol.envelope import SigningKey
from protocol.errors import LocalProtocolError
from protocol.ids import bech32_decode, bech32_encode, node_id_from_text, npub

SECRETS = [random.Random(seed).randbytes(32) for seed in range(20)]


def our_key(secret: bytes) -> SigningKey:
    """The key that our node makes of a secret."""
    return SigningKey(secret, random.Random(0).randbytes)


@pytest.mark.parametrize("secret", SECRETS, ids=lambda secret: secret.hex()[:8])
def test_both_derive_the_same_public_key_and_npub(secret: bytes) -> None:
    theirs = Keys(SecretKey.parse(secret.hex())).public_key()
    ours = our_key(secret).node

    assert ours.hex() == theirs.to_hex()
    assert npub(ours) == theirs.to_bech32()
    assert PublicKey.parse(npub(ours)).to_hex() == ours.hex()
    assert node_id_from_text(theirs.to_bech32()) == ours


@pytest.mark.parametrize("secret", SECRETS[:5], ids=lambda secret: secret.hex()[:8])
def test_both_write_the_same_nsec(secret: bytes) -> None:
    nsec = SecretKey.parse(secret.hex()).to_bech32()

    assert bech32_encode("nsec", secret) == nsec
    assert bech32_decode("nsec", nsec) == secret
    # Ours is normalised to even Y; to Nostr, whose keys have no Y, it is the same identity.
    normalised = our_key(secret).secret_bytes()
    assert Keys(SecretKey.parse(normalised.hex())).public_key().to_bech32() == npub(our_key(secret).node)


def test_neither_reads_an_npub_with_a_changed_character() -> None:
    text = npub(our_key(SECRETS[0]).node)
    changed = text[:20] + ("q" if text[20] != "q" else "p") + text[21:]

    with pytest.raises(LocalProtocolError):
        node_id_from_text(changed)
    with pytest.raises(Exception, match=r"(?i)checksum"):
        PublicKey.parse(changed)
