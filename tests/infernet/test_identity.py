"""infernet/identity.py: a key is created whole, kept private, never overwritten and never shown."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from infernet import identity
from infernet.identity import IdentityError, NoIdentity
from protocol.ids import bech32_encode, npub, peer_id

SECRET = "67dea2ed018072d675f5415ecfaed7d2597555e202d85b3d65ea4e58d2d92ffa"  # of the examples of NIP-19
NSEC = "nsec1vl029mgpspedva04g90vltkh6fvh240zqtv9k0t9af8935ke9laqsnlfe5"
NPUB = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg"
NODE = "7e7e9c42a91bfef19fa929e5fda1b72e0ebc1a4c1141673e2794234d86addf4e"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config" / "identity.key"


@pytest.mark.parametrize("text", [SECRET, SECRET.upper(), NSEC, NSEC.upper(), f"  {NSEC}\n"])
def test_a_nostr_key_is_imported_in_either_form(text: str) -> None:
    key = identity.import_secret(text)
    assert npub(key.node) == NPUB
    assert key.node.hex() == NODE
    assert peer_id(key.node).startswith("16Uiu2HA")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "nsec1... or 64 hex digits"),
        (SECRET[:-1], "nsec1... or 64 hex digits"),
        (SECRET[:-1] + "g", "nsec1... or 64 hex digits"),
        (NPUB, "public key"),
        (NSEC[:-1] + "q", "checksum"),
        (bech32_encode("nsec", b"\x01" * 31), "32 bytes"),
        ("00" * 32, "not a scalar"),
        ("ff" * 32, "not a scalar"),
    ],
)
def test_what_is_no_secret_key_is_refused_and_not_repeated(text: str, complaint: str) -> None:
    with pytest.raises(IdentityError) as refused:
        identity.import_secret(text)
    assert complaint in str(refused.value)
    assert len(text) < 8 or text not in str(refused.value)


def test_a_key_survives_the_file_and_the_file_is_private(path: Path) -> None:
    key = identity.generate()
    identity.create(path, key)
    assert identity.load(path).secret_bytes() == key.secret_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == [path.name]


def test_a_key_is_private_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        identity.create(path, identity.generate())
    finally:
        os.umask(before)
    identity.load(path)


def test_a_key_that_is_there_is_never_overwritten(path: Path) -> None:
    first = identity.generate()
    identity.create(path, first)
    with pytest.raises(IdentityError, match="never overwritten"):
        identity.create(path, identity.generate())
    assert identity.load(path).node == first.node
    assert os.listdir(path.parent) == [path.name]


def test_an_old_key_can_be_set_aside(path: Path) -> None:
    old, new = identity.generate(), identity.generate()
    identity.create(path, old)
    aside = identity.set_aside(path, old)
    identity.create(path, new)
    assert (identity.load(path).node, identity.load(aside).node) == (new.node, old.node)


def test_no_key_is_told_apart(path: Path) -> None:
    with pytest.raises(NoIdentity, match="run `infernet init`"):
        identity.load(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_file_that_others_may_read_is_refused_with_the_way_out(path: Path, mode: int) -> None:
    identity.create(path, identity.generate())
    path.chmod(mode)
    with pytest.raises(IdentityError, match=rf"mode {mode:04o}.*run `chmod 600 {path}`"):
        identity.load(path)
    path.chmod(0o600)
    identity.load(path)


def test_a_folder_that_others_may_enter_is_refused(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.parent.chmod(0o755)
    with pytest.raises(IdentityError, match=f"run `chmod 700 {path.parent}`"):
        identity.create(path, identity.generate())
    assert os.listdir(path.parent) == []
    path.parent.chmod(0o700)
    identity.create(path, identity.generate())
    path.parent.chmod(0o750)
    with pytest.raises(IdentityError, match="mode 0750"):
        identity.load(path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(path: Path) -> None:
    identity.create(path, identity.generate())
    os.chown(path, 12345, 12345)
    with pytest.raises(IdentityError, match=r"belongs to another user.*chown"):
        identity.load(path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"hello\n", SECRET[:-2].encode(), b"0" * 64, b"x" * 5000])
def test_garbage_is_refused_without_showing_it(path: Path, content: bytes) -> None:
    identity.create(path, identity.generate())
    path.write_bytes(content)
    with pytest.raises(IdentityError) as refused:
        identity.load(path)
    message = str(refused.value)
    assert "is damaged" in message
    assert "backup" in message
    assert "\n" not in message
    assert SECRET[:32] not in message
    assert path.read_bytes() == content


def test_a_folder_or_a_pipe_in_its_place_is_refused_at_once(path: Path) -> None:
    path.mkdir(parents=True)
    path.parent.chmod(0o700)
    with pytest.raises(IdentityError, match="not a file"):
        identity.load(path)
    path.rmdir()
    os.mkfifo(path, 0o600)
    with pytest.raises(IdentityError, match="not a file"):
        identity.load(path)


def test_a_place_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(IdentityError, match=r"cannot store the key .*INFERNET_HOME"):
        identity.create(tmp_path / "file" / "identity.key", identity.generate())


def test_the_secret_is_in_no_representation() -> None:
    key = identity.import_secret(NSEC)
    for text in (repr(key), str(key), f"{key}", repr([key]), repr({"key": key})):
        assert SECRET not in text
        assert NSEC not in text


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is of Linux")
def test_a_process_can_forbid_core_dumps() -> None:
    program = "import ctypes; from infernet.identity import forbid_core_dumps as f; f();"
    program += "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "0"
