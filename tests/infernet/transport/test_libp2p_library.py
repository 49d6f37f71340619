"""The library below us: that it is the one we are built on, and what we say when it is not."""

from __future__ import annotations

import importlib.util
import logging
import re
from importlib.metadata import version

import libp2p.security.noise.io
import pytest
from libp2p.security.noise.transport import Transport as NoiseTransport

from infernet.transport import libp2p_library
from infernet.transport.contract import TransportError
from infernet.transport.libp2p_library import LIBP2P_PINNED, Identity, check_library
from protocol.ids import peer_id
from tests.helpers_transport import RecordingHandler, identity, libp2p_transport, secret

pytestmark = pytest.mark.anyio

SAYS_WHAT_TO_DO = re.escape(f"libp2p {version('libp2p')} is not the library that this program is built on") + (
    ".*" + re.escape(f"install libp2p=={LIBP2P_PINNED}")
)


def test_the_installed_library_is_the_pinned_one() -> None:
    assert version("libp2p") == LIBP2P_PINNED


def test_node_id_and_peer_id_are_one_key() -> None:
    from libp2p.crypto.secp256k1 import create_new_key_pair
    from libp2p.peer.id import ID

    for seed in range(1, 40):
        assert Identity(secret(seed)).node_id == identity(seed)
        assert str(ID.from_pubkey(create_new_key_pair(secret(seed)).public_key)) == peer_id(identity(seed))


async def test_the_library_passes_the_check() -> None:
    await check_library()


@pytest.mark.parametrize("missing", ["secure_inbound", "secure_outbound"])
async def test_a_library_that_differs_is_named_before_we_listen(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(NoiseTransport, missing)
    with pytest.raises(TransportError, match=SAYS_WHAT_TO_DO):
        await libp2p_transport(1).run(RecordingHandler())


def test_a_library_that_lacks_a_name_is_named_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(libp2p.security.noise.io, "NoiseTransportReadWriter")
    spec = importlib.util.spec_from_file_location("sabotaged", libp2p_library.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=SAYS_WHAT_TO_DO):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_the_library_does_not_touch_the_root_logger(capfd: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("libp2p.security").error("a stranger did something")
    assert capfd.readouterr().err == ""
