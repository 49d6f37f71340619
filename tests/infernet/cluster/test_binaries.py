"""infernet/cluster/binaries.py: which llama.cpp it is, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from infernet.cluster.binaries import (
    LISTENING,
    RPC_DEVICE,
    RPC_VERSION,
    BinaryMissing,
    devices_of,
    find,
    parse_version,
    read_build,
)
from protocol.clusters import Build, Device
from tests.helpers_rpc_cluster import programs

# What b11434 printed, built as docs/engines.md says; the second is what packages before it print.
NEW = "version: 0.0.0 (build 11434, commit unknown)\nbuilt with GNU 12.2.0 for Linux x86_64\n"
OLD = "ggml_cuda_init: found 1 CUDA devices:\nversion: 6795 (ee09828cb)\nbuilt with cc (Debian) for x86_64-linux-gnu\n"
BANNER = """\
Starting RPC server v7.0.0
  endpoint       : 127.0.0.1:50052
  local cache    : n/a
Devices:
  CUDA0: NVIDIA H200 (143771 MiB, 142000 MiB free)
  CPU: AMD EPYC (with brackets) (31750 MiB, 99999 MiB free)
  transport      : TCP
"""


@pytest.mark.parametrize(
    ("text", "build"),
    [
        (NEW, Build(11434, "unknown")),
        (OLD, Build(6795, "ee09828cb")),
        ("version: 1234567890 (x)", None),
        ("no version\n", None),
        ("", None),
    ],
)
def test_a_build_is_read_in_both_forms(text: str, build: Build | None) -> None:
    assert parse_version(text) == build


def test_the_first_words_of_an_rpc_server_are_read() -> None:
    lines = BANNER.splitlines()
    assert [match[1] for line in lines if (match := RPC_VERSION.search(line))] == ["7.0.0"]
    devices = devices_of([match for line in lines if (match := RPC_DEVICE.search(line))])
    # Free is never more than there is.
    assert devices == (
        Device("CUDA0: NVIDIA H200", 143771, 142000),
        Device("CPU: AMD EPYC (with brackets)", 31750, 31750),
    )


@pytest.mark.parametrize(
    ("line", "port"),
    [
        ("srv  llama_server: listening on http://127.0.0.1:40123", "40123"),
        ("main: server is listening on http://127.0.0.1:8080 - starting the main loop", "8080"),
        ("listening on http://0.0.0.0:8080", None),
        ("listening on unix:///tmp/x.sock", None),
    ],
)
def test_where_it_listens_is_read(line: str, port: str | None) -> None:
    match = LISTENING.search(line)
    assert (match[1] if match is not None else None) == port


def test_the_rpc_server_lies_beside_the_other_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = programs(tmp_path / "build")
    found = find(server)
    assert (str(found.server), found.rpc) == (server, tmp_path / "build" / "ggml-rpc-server")
    assert read_build(found.server) == Build(11434, "unknown")
    # On PATH, and behind a link.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "llama-server").symlink_to(server)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert find(None).rpc == tmp_path / "build" / "ggml-rpc-server"
    # Its name before 2026.
    (tmp_path / "build" / "ggml-rpc-server").rename(tmp_path / "build" / "rpc-server")
    assert find(None).rpc == tmp_path / "build" / "rpc-server"
    (tmp_path / "build" / "rpc-server").unlink()
    assert find(None).rpc_server is None
    with pytest.raises(BinaryMissing, match="there is no ggml-rpc-server beside"):
        assert find(None).rpc


def test_what_is_missing_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for named in (None, str(tmp_path), str(tmp_path / "nothing")):
        with pytest.raises(BinaryMissing, match=r"build llama\.cpp with -DGGML_RPC=ON"):
            find(named)


@pytest.mark.parametrize(
    ("script", "told"), [("echo hello", "does not say which build"), ("yes version", "says more than")]
)
def test_a_program_that_is_another_one_is_no_build(tmp_path: Path, script: str, told: str) -> None:
    path = tmp_path / "llama-server"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    with pytest.raises(BinaryMissing, match=told):
        read_build(path)
