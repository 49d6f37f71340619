"""specs/vectors of page 03: invites."""

from __future__ import annotations

import pytest

from protocol import codec
from protocol.errors import LocalProtocolError
from protocol.formats.invites import decode_invite, encode_invite
from tests.helpers_vectors import Vector, each, plain


@each("invites")
def test_invite(vector: Vector) -> None:
    if not vector["valid"]:
        with pytest.raises(LocalProtocolError):
            decode_invite(vector["line"])
        return
    invite = decode_invite(vector["line"])
    assert plain(invite) == vector["invite"]
    assert codec.encode_value(invite) == bytes.fromhex(vector["payload"])
    assert encode_invite(invite) == "".join(vector["line"].split()).lower()
