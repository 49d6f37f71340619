"""protocol/formats/invites.py: what goes in comes out, and every way to spoil an invite is told in one line."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import bech32, codec
from protocol.errors import LocalProtocolError
from protocol.formats.invites import CHARACTERS_MAX, PREFIX, Invite, InvitedNode, decode_invite, encode_invite
from protocol.ids import NodeId
from tests.helpers_records import PROVIDER, signing_key

COORDINATOR = signing_key("coordinator")

ADDRESS = "/ip4/203.0.113.7/tcp/46337"
URL = "https://coordinator.example"
NODE = InvitedNode(PROVIDER.node, (ADDRESS, "/ip6/2001:db8::7/tcp/46337"))
FULL = Invite(1, (NODE,), URL, COORDINATOR.node)


def line_of(*fields: Any) -> str:
    """An invite with a right checksum around any value."""
    return f"{PREFIX}:{bech32.encode(PREFIX, codec.encode_value(list(fields)), bech32.BECH32M)}"


def plain(node: InvitedNode = NODE) -> list[object]:
    return [node.node, list(node.addresses)]


def test_it_is_one_short_line_of_letters_and_digits() -> None:
    line = encode_invite(FULL)
    assert line.startswith("infernet:")
    assert line.removeprefix("infernet:").isalnum()
    assert len(line) < 300


@pytest.mark.parametrize(
    "invite",
    [FULL, Invite(1, (NODE,), None, None), Invite(1, (), URL, COORDINATOR.node)],
    ids=["all", "nodes", "coordinator"],
)
def test_what_goes_in_comes_out(invite: Invite) -> None:
    assert decode_invite(encode_invite(invite)) == invite


def test_a_message_program_may_wrap_it_and_a_picture_may_write_it_in_capitals() -> None:
    line = encode_invite(FULL)
    wrapped = "\n".join(line[at : at + 40] for at in range(0, len(line), 40))
    assert decode_invite(f"  {wrapped}\r\n") == FULL
    assert decode_invite(line.upper()) == FULL


@given(st.data())
def test_a_mistyped_character_is_never_another_invite(draw: st.DataObject) -> None:
    line = encode_invite(FULL)
    at = draw.draw(st.integers(len("infernet:"), len(line) - 1))
    typed = line[:at] + draw.draw(st.sampled_from("qpzry9x8gf2tvdw0s3jn54khce6mua7l")) + line[at + 1 :]
    if typed != line:
        with pytest.raises(LocalProtocolError, match="the checksum of this invite is wrong: a character is missing"):
            decode_invite(typed)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "begins with infernet:"),
        ("hello", "begins with infernet:"),
        ("infernet:", "begins with infernet:"),
        ("bitcoin:" + encode_invite(FULL).removeprefix("infernet:"), "begins with infernet:"),
        (encode_invite(FULL).replace("infernet", "Infernet"), "mixes upper and lower case"),
        (encode_invite(FULL) + "!", "a character that bech32 does not have"),
        (encode_invite(FULL)[:-1], "checksum"),
        ("infernet:" + "q" * 1024 * 1024, "at most 2048 characters"),
        (line_of(2, "anything"), "upgrade"),
        (line_of(1, [], None, None), "is empty"),
        (line_of(1, [plain()], URL, None), "without its key"),
        (line_of(1, [plain()], None, COORDINATOR.node), "without its coordinator"),
        (line_of(1, [plain(), plain()], None, None), "names a node twice"),
        (line_of(1, [[PROVIDER.node, []]], None, None), "none may hold"),
        (line_of(1, [[PROVIDER.node, ["203.0.113.7:46337"]]], None, None), "holds an address that is none"),
        (line_of(1, [[PROVIDER.node, ["/ip4/\x1b[2J"]]], None, None), "holds an address that is none"),
        (line_of(1, [plain()], "http://c\n", COORDINATOR.node), "coordinator's address"),
        (line_of(1, [[PROVIDER.node[:31], [ADDRESS]]], None, None), "none may hold"),
        (line_of(1, [plain()], None, None, 5), "none may hold"),
        (line_of(True, [plain()], None, None), "none may hold"),
        (line_of("1"), "none may hold"),
        (line_of(), "none may hold"),
    ],
)
def test_what_is_no_invite_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(LocalProtocolError, match=reason) as caught:
        decode_invite(text)
    assert "\n" not in str(caught.value)


def test_only_the_shortest_form_is_valid() -> None:
    data = codec.encode_value(FULL)
    longer = data[:1] + b"\xcc\x01" + data[2:]
    assert data[1] == 1
    with pytest.raises(LocalProtocolError, match="not in canonical form"):
        decode_invite(f"infernet:{bech32.encode(PREFIX, longer, bech32.BECH32M)}")


def test_what_nobody_could_read_is_not_written() -> None:
    with pytest.raises(LocalProtocolError, match="names a node twice"):
        encode_invite(Invite(1, (NODE, NODE), None, None))
    addresses = tuple(f"/dns/{'x' * 200}{number}" for number in range(8))
    many = tuple(InvitedNode(NodeId(bytes([number]) * 32), addresses) for number in range(8))
    with pytest.raises(LocalProtocolError, match="too long"):
        encode_invite(Invite(1, many, None, None))


def test_the_longest_one_can_be_read() -> None:
    best = max((line for size in range(80) if len(line := _sized(size)) <= CHARACTERS_MAX), key=len)
    assert len(best) > CHARACTERS_MAX - 30
    assert len(decode_invite(best).nodes) == 8


def _sized(size: int) -> str:
    nodes = tuple(InvitedNode(NodeId(bytes([n]) * 32), (f"/dns/{'x' * (60 + size)}/tcp/46337",)) for n in range(8))
    try:
        return encode_invite(Invite(1, nodes, URL, COORDINATOR.node))
    except LocalProtocolError:
        return "x" * (CHARACTERS_MAX + 1)


@given(st.binary(max_size=300))
def test_any_bytes_behind_a_right_checksum_are_an_invite_or_a_reason(data: bytes) -> None:
    line = f"infernet:{bech32.encode(PREFIX, data, bech32.BECH32M)}"
    try:
        invite = decode_invite(line)
    except LocalProtocolError:
        return
    assert encode_invite(invite) == line
