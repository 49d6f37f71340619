"""protocol/ids.py: one key, three textual forms, checked against the libraries whose formats they are."""

from __future__ import annotations

import coincurve
import nostr_sdk
import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.secp256k1 import Secp256k1PublicKey
from libp2p.peer.id import ID

from protocol.errors import LocalProtocolError
from protocol.ids import (
    NodeId,
    bech32_decode,
    bech32_encode,
    job_id,
    node_id,
    node_id_from_peer_id,
    node_id_from_text,
    npub,
    peer_id,
    short,
)

KEY = NodeId(bytes.fromhex("f9308a019258c31049344f85f89d5229b531c845836f99b08601f113bce036f9"))
NPUB = "npub1lycg5qvjtrp3qjf5f7zl382j9x6nrjz9sdhenvyxq8c3808qxmus6gq266"
PEER_ID = "16Uiu2HAmCCQRbp36trRMKRjqhRv1GAD7i1Epty3q2LiutAYCJ1oN"

scalars = st.integers(1, 2**255).map(lambda number: number.to_bytes(32, "big"))


def x_only(secret: bytes) -> NodeId:
    return NodeId(coincurve.PrivateKey(secret).public_key.format()[1:])


@given(scalars)
def test_npub_is_what_a_nostr_library_writes(secret: bytes) -> None:
    node = x_only(secret)
    assert npub(node) == nostr_sdk.PublicKey.parse(node.hex()).to_bech32()


@given(scalars)
def test_peer_id_is_what_libp2p_computes_for_the_point_with_even_y(secret: bytes) -> None:
    node = x_only(secret)
    assert peer_id(node) == ID.from_pubkey(Secp256k1PublicKey.from_bytes(b"\x02" + node)).to_base58()


@given(st.binary(min_size=32, max_size=32).map(NodeId))
def test_every_textual_form_leads_back_to_the_key(node: NodeId) -> None:
    for text in (npub(node), peer_id(node), node.hex(), f"  {node.hex().upper()}\n"):
        assert node_id_from_text(text) == node


def test_known_key() -> None:
    assert (npub(KEY), peer_id(KEY), short(KEY)) == (NPUB, PEER_ID, "f9308a01")


def test_a_secret_is_read_by_the_same_bech32() -> None:
    secret = bytes(31) + b"\x03"
    text = nostr_sdk.SecretKey.parse(secret.hex()).to_bech32()
    assert bech32_encode("nsec", secret) == text
    assert bech32_decode("nsec", text) == secret


def test_lengths_are_checked() -> None:
    assert node_id(bytes(32)) == bytes(32)
    assert job_id(bytes(16)) == bytes(16)
    with pytest.raises(LocalProtocolError, match="32 bytes, not 31"):
        node_id(bytes(31))
    with pytest.raises(LocalProtocolError, match="16 bytes, not 17"):
        job_id(bytes(17))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "32 bytes, not 0"),
        ("zz" * 32, "no public key"),
        ("ab" * 31, "32 bytes, not 31"),
        ("12D3KooWGRUaJ8S3k1y2Kf6zJgR5cV8qkq6vZb2iY2Zb5Yp7bQ9S", "no public key"),
        (PEER_ID[:-1], "not the PeerId of an Infernet node"),
        ("16Uiu2HA0OIl", "not base58"),
        ("16Uiu2HAé", "not base58"),
        (NPUB[:-1], "checksum"),
        (NPUB[:-1] + "7", "checksum"),
        (NPUB[:10] + NPUB[10].upper() + NPUB[11:], "mixes upper and lower case"),
        (NPUB.replace("6", "b"), "bech32 does not have"),
    ],
)
def test_what_is_no_key_is_refused_with_a_reason(text: str, complaint: str) -> None:
    with pytest.raises(LocalProtocolError, match=complaint):
        node_id_from_text(text)


def test_a_peer_id_whose_point_has_odd_y_is_no_node() -> None:
    odd = ID.from_pubkey(Secp256k1PublicKey.from_bytes(b"\x03" + KEY)).to_base58()
    with pytest.raises(LocalProtocolError, match="even Y"):
        node_id_from_peer_id(odd)


@given(st.integers(0, len(NPUB) - 1), st.characters(codec="ascii"))
def test_one_mistyped_character_never_gives_another_key(at: int, character: str) -> None:
    typed = NPUB[:at] + character + NPUB[at + 1 :]
    if typed in (NPUB, NPUB.upper()):
        return
    with pytest.raises(LocalProtocolError):
        bech32_decode("npub", typed)


def test_another_prefix_and_stray_bits_are_refused() -> None:
    with pytest.raises(LocalProtocolError, match="starts with nsec1"):
        bech32_decode("nsec", NPUB)
    # 32 bytes are 256 bits in 52 words of 5: the last word has four bits to spare, and they must be zero. With 33
    # words more the checksum is right and the padding is not.
    stray = bech32_with_stray_bits(bytes(32))
    with pytest.raises(LocalProtocolError, match="stray bits"):
        bech32_decode("npub", stray)


def bech32_with_stray_bits(data: bytes) -> str:
    """An encoding with a right checksum whose padding is not zero, found by trying: the checksum is linear."""
    alphabet = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
    text = bech32_encode("npub", data)
    body, checksum = text[:-6], text[-6:]
    # The difference that a change of the last word makes to the checksum does not depend on the data.
    zeros, one = bech32_encode("npub", b"\0" * 5), bech32_encode("npub", b"\0\0\0\0\x01")
    difference = [alphabet.index(a) ^ alphabet.index(b) for a, b in zip(zeros[-6:], one[-6:], strict=True)]
    changed = "".join(alphabet[alphabet.index(c) ^ d] for c, d in zip(checksum, difference, strict=True))
    return body[:-1] + alphabet[alphabet.index(body[-1]) ^ 1] + changed


@pytest.mark.parametrize("text", ["nsec1" + "q" * 58, "npub1secret"])
def test_no_error_repeats_what_may_be_a_secret(text: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        bech32_decode("nsec", text)
    assert text[5:] not in str(caught.value)
