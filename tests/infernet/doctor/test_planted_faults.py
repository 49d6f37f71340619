"""Every check against a fault that was really planted: it alone fails, and what it says to do helps."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from infernet.config import FILE_NAME, save
from infernet.confinement import landlock, seccomp
from infernet.doctor import engine
from infernet.doctor.stores import COPY_BYTES_MAX
from infernet.host.lock import hold_lock
from infernet.log import FILE_BYTES_MAX
from infernet.money.store import MoneyStore
from infernet.store import Store
from protocol.effects import Equivocation
from protocol.ids import NodeId
from protocol.records import Signed
from tests.helpers_cli import Home
from tests.helpers_doctor import QUICK, examine, examine_under, link, make_well, put, read
from tests.helpers_doctor import fake_coordinator as served_coordinator
from tests.helpers_processes import free_port
from tests.helpers_socks import socks_double

Mend = Callable[[], object]
Plant = Callable[[Home], Mend]
WORKER_DOUBLE = Path(__file__).parents[1] / "engines" / "worker_double.py"


def change_mode(path: Path, bad: int, good: int) -> Mend:
    path.chmod(bad)
    return lambda: path.chmod(good)


def spoil(path: Path, data: bytes) -> Mend:
    """Put other bytes into a file; mended, it is as it was."""
    before = path.read_bytes() if path.exists() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return lambda: path.write_bytes(before) if before is not None else path.unlink()


def config_file(home: Home) -> Path:
    return home.path / "config" / FILE_NAME


def append(home: Home, line: str) -> Mend:
    return spoil(config_file(home), config_file(home).read_bytes() + line.encode())


def setting(home: Home, name: str, bad: object, good: object) -> Mend:
    put(home, **{name: bad})
    return lambda: put(home, **{name: good})


def put_aside(home: Home, path: Path) -> Mend:
    aside = path.rename(home.path / "aside")
    return lambda: aside.rename(path)


def corrupt_model(home: Home) -> Mend:
    """One bit is other, and neither size nor time say so."""
    model = home.path / "model.gguf"
    status = model.stat()
    data = bytearray(model.read_bytes())
    data[1000] ^= 1
    mend = spoil(model, bytes(data))

    def keep_time() -> None:
        os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))

    keep_time()
    return lambda: (mend(), keep_time())


def starter_that_is_none(home: Home) -> Mend:
    put(home, model="smollm2-135m-instruct")
    path = home.config.models_dir / "smollm2-135m-instruct-q4_1.gguf"
    spoil(path, b"GGUF" + b"\0" * 5000)
    return lambda: (path.unlink(), put(home, model=str(home.path / "model.gguf")))


def clear_text(home: Home) -> Mend:
    put(home, coordinator_url="http://1.1.1.1:8080", coordinator_key="ab" * 32)
    return lambda: put(home, coordinator_url=None, coordinator_key=None)


def state_is_a_file(home: Home) -> Mend:
    state = home.config.state_dir
    shutil.rmtree(state, ignore_errors=True)
    return spoil(state, b"in the way")


def open_state(home: Home) -> Mend:
    home.config.state_dir.mkdir(exist_ok=True)
    return change_mode(home.config.state_dir, 0o777, 0o700)


def large_log(home: Home) -> Mend:
    mend = spoil(home.config.log_file, b"")
    os.truncate(home.config.log_file, 3 * FILE_BYTES_MAX)
    return mend


def killed_node(home: Home) -> Mend:
    def mend() -> None:
        with hold_lock(home.config.pid_file):
            pass

    spoil(home.config.pid_file, b"4194000\n")
    return mend


def damaged(store: type[Store | MoneyStore], path: Path) -> Mend:
    store(path).close()
    data = bytearray(path.read_bytes())
    data[: len(data) // 2] = b"\xff" * (len(data) // 2)
    return spoil(path, bytes(data))


def newer(store: type[Store | MoneyStore], path: Path) -> Mend:
    store(path).close()
    before = path.read_bytes()
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 999")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return lambda: path.write_bytes(before)


# name: id, status, what its line must say, and how to plant it
FAULTS: dict[str, tuple[str, str, str, Plant]] = {
    "not toml": ("config.readable", "fail", "infernet init --force", lambda h: append(h, "\n=")),
    "bad value": ("config.readable", "fail", "dht_port", lambda h: append(h, "\ndht_port = 'many'\n")),
    "key missing": (
        "config.readable",
        "fail",
        "coordinator_key",
        lambda h: append(h, "\ncoordinator_url = 'http://127.0.0.1:9'\n"),
    ),
    "huge": ("config.readable", "fail", "no configuration", lambda h: append(h, "#" * 2_000_000)),
    "deep": ("config.readable", "fail", "nested", lambda h: append(h, "\na = " + "[" * 50_000)),
    "prices alone": (
        *("config.known", "warn", "`infernet login --url URL`"),
        lambda h: append(h, '\nprice_out_usd = "0.40"\n'),
    ),
    "misspelt": ("config.known", "warn", "infernet config show", lambda h: append(h, "\nslotz = 3\n")),
    "config for all": ("config.mode", "fail", "chmod 600", lambda h: change_mode(config_file(h), 0o666, 0o600)),
    "key gone": ("key.present", "fail", "run `infernet init`", lambda h: put_aside(h, h.config.key_file)),
    "key for all": ("key.mode", "fail", "chmod 600", lambda h: change_mode(h.config.key_file, 0o644, 0o600)),
    "folder for all": ("key.mode", "fail", "chmod 700", lambda h: change_mode(h.config.config_dir, 0o755, 0o700)),
    "key cut": ("key.whole", "fail", "restore", lambda h: spoil(h.config.key_file, b"abc")),
    "state is a file": ("home.writable", "fail", "mv ", state_is_a_file),
    "state for all": ("home.private", "fail", "chmod 700", open_state),
    "large log": ("log.size", "warn", "mv ", large_log),
    "crash": (
        "log.crash",
        "warn",
        "KeyError at wallet.py:7 run",
        lambda h: spoil(h.config.state_dir / "crash.log", b"KeyError at wallet.py:7 run\n"),
    ),
    "killed": ("lock.stale", "warn", "infernet start", killed_node),
    "store damaged": ("store.whole", "warn", "infernet start", lambda h: damaged(Store, h.config.store_file)),
    "store newer": ("store.whole", "fail", "upgrade infernet", lambda h: newer(Store, h.config.store_file)),
    "money damaged": ("money.store", "fail", ".recover", lambda h: damaged(MoneyStore, h.config.money_file)),
    "money newer": ("money.store", "fail", "do not move", lambda h: newer(MoneyStore, h.config.money_file)),
    "no such address": (
        "port.hosts",
        "fail",
        "--listen-hosts 0.0.0.0,::",
        lambda h: setting(h, "listen_hosts", ["192.0.2.1"], ["0.0.0.0", "::"]),
    ),
    "model gone": ("model.present", "fail", "--model FILE", lambda h: put_aside(h, h.path / "model.gguf")),
    "model corrupt": ("model.verified", "fail", "fetch the file again", corrupt_model),
    "no model": ("model.verified", "fail", "no GGUF", lambda h: spoil(h.path / "model.gguf", b"<html>not found")),
    "starter corrupt": ("model.verified", "fail", "infernet model pull", starter_that_is_none),
    "in the clear": ("coordinator.encrypted", "warn", "https://1.1.1.1:8080", clear_text),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_is_one_failure_and_mended_it_is_gone(
    well: Home, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    name, status, words, plant = FAULTS[fault]
    mend = plant(well)
    report = examine(capsys)
    assert report.faults == {name: status}
    told = report.told(name)
    assert words in told
    assert "\n" not in told
    assert report.checks[name]["fix"]
    assert report.outcome.code == (1 if status == "fail" else 0)
    mend()
    assert examine(capsys).faults == {}


def test_all_is_well_before_anything_is_planted(well: Home, capsys: pytest.CaptureFixture[str]) -> None:
    report = examine(capsys)
    assert report.faults == {}
    assert report.outcome.code == 0
    assert report.checks["node.running"]["status"] == "warn"


def test_an_empty_home_variable(
    well: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERNET_HOME", " ")
    report = examine(capsys)
    assert report.faults == {"config.home": "fail"}
    assert "INFERNET_HOME" in report.told("config.home")


# ---------------------------------------------------------------- ports


def test_a_port_that_another_program_has(well: Home, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        put(well, p2p_port=port)
        report = examine(capsys)
        assert report.faults == {"port.taken": "fail"}
        assert f"port {port} is taken" in report.told("port.taken")
        # The command that is named is the one that helps.
        words = report.told("port.taken").rpartition("`infernet ")[2].strip("`").split()
    assert words[:3] == ["config", "set", "--p2p-port"]
    put(well, p2p_port=free_port())
    assert examine(capsys).faults == {}


def test_a_port_that_nobody_dials(well: Home, capsys: pytest.CaptureFixture[str]) -> None:
    put(well, p2p_port=807)
    report = examine(capsys)
    # Root may listen there, and others are told that they may not.
    assert report.faults == {"port.privileged": "warn" if os.geteuid() == 0 else "fail"}
    assert "--p2p-port 46337" in report.told("port.privileged")


# ---------------------------------------------------------------- the machine


def test_a_python_that_is_too_new(
    well: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infernet.doctor.machine.PYTHON_END", (3, 11))
    report = examine(capsys)
    assert report.faults == {"python.version": "fail"}
    assert "venv" in report.told("python.version")


@pytest.mark.parametrize(
    ("missing", "name", "words"),
    [
        ("msgpack", "libs.present", "pip install"),
        ("xllamacpp", "libs.engine", "pip install 'infernet[llama]'"),
    ],
)
def test_a_library_that_is_missing(
    well: Home,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
    name: str,
    words: str,
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda each: None if each == missing else real(each))
    report = examine(capsys)
    assert report.faults == {name: "fail"}
    assert missing in report.told(name)
    assert words in report.told(name)


def test_another_libp2p(well: Home, tmp_path: Path) -> None:
    package = tmp_path / "libp2p"
    package.mkdir()
    (package / "__init__.py").write_text("")
    path = os.pathsep.join([str(tmp_path), well.environment()["PYTHONPATH"]])
    report = read(well.run("doctor", "--json", *QUICK, PYTHONPATH=path))
    assert report.faults == {"libs.libp2p": "fail"}
    assert "install libp2p==" in report.told("libs.libp2p")


@pytest.mark.parametrize(("limit", "status"), [(200, "fail"), (512, "warn")])
def test_few_open_files(well: Home, limit: int, status: str) -> None:
    report = examine_under(well, "sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh")
    assert report.faults == {"limits.files": status}
    assert "ulimit -n 1024" in report.told("limits.files")


def test_an_engine_that_its_owner_left_unconfined(well: Home, capsys: pytest.CaptureFixture[str]) -> None:
    save(well.config.config_file, {"confine": False}, keep=True)
    report = examine(capsys)
    assert report.faults == {"engine.confined": "warn"}
    assert "switched off with --no-confine" in report.told("engine.confined")


@pytest.mark.skipif(landlock.abi() == 0 or not seccomp.is_available(), reason="needs Landlock and seccomp filters")
def test_a_key_among_the_libraries(
    well: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(well.config.key_file.parent.parent))
    report = examine(capsys)
    assert report.faults == {"engine.confined": "warn"}
    assert "INFERNET_HOME" in report.told("engine.confined")


@pytest.mark.skipif(not seccomp.is_available(), reason="needs a kernel with seccomp filters")
def test_a_kernel_without_landlock(well: Home) -> None:
    """Its first call is refused as an older kernel would."""
    older = (
        "import ctypes, errno, os, sys\n"
        "from infernet.confinement import seccomp, syscalls\n"
        "syscalls.NUMBERS['landlock_create_ruleset'] = (444, 444)\n"
        "ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)\n"
        "seccomp.restrict([seccomp.Refuse('landlock_create_ruleset', error=errno.ENOSYS)])\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    report = examine_under(well, sys.executable, "-c", older)
    assert report.faults == {"engine.confined": "warn"}
    assert "is not kept from files (this kernel lacks Landlock" in report.told("engine.confined")


@pytest.mark.namespaces
@pytest.mark.parametrize(
    ("options", "name", "words"),
    [("size=8m", "disk.free", "make room"), ("size=2g,nr_inodes=40", "disk.inodes", "df -i")],
)
def test_a_disk_that_is_full(well: Home, options: str, name: str, words: str) -> None:
    """A small disk is mounted over the state folder, in a mount namespace of its own."""
    state = well.config.state_dir
    state.mkdir(exist_ok=True)
    script = f'mount -t tmpfs -o mode=700,{options} tmpfs {state} && exec "$@"'
    report = examine_under(well, "unshare", "--mount", "sh", "-c", script, "sh")
    assert report.faults == {name: "fail"}
    assert words in report.told(name)


@pytest.mark.namespaces
def test_a_disk_that_can_only_be_read(well: Home) -> None:
    state = well.config.state_dir
    state.mkdir(exist_ok=True)
    script = f'mount -t tmpfs -o ro,mode=700 tmpfs {state} && exec "$@"'
    report = examine_under(well, "unshare", "--mount", "sh", "-c", script, "sh")
    assert report.faults == {"home.writable": "fail"}
    assert "mount it for writing" in report.told("home.writable")


# ---------------------------------------------------------------- the network


def test_a_machine_without_a_network(
    well: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = psutil.net_if_addrs()
    loopback = {name: found for name, found in everything.items() if name == "lo"}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: loopback)
    report = examine(capsys, "--skip-engine")
    assert report.faults == {"network.up": "warn"}


def test_a_coordinator_whose_name_nobody_knows(well: Home, capsys: pytest.CaptureFixture[str]) -> None:
    put(well, coordinator_url="https://coordinator.invalid", coordinator_key="ab" * 32)
    report = examine(capsys, "--skip-engine")
    assert report.faults == {"dns": "fail"}
    assert "coordinator.invalid" in report.told("dns")
    assert "--url" in report.told("dns")


def test_a_proxy_in_the_way(well: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with served_coordinator() as coordinator:
        link(well, coordinator)
        monkeypatch.setenv("HTTP_PROXY", "http://somebody:hunter22@192.0.2.1:3128")
        report = examine(capsys, "--skip-engine")
        assert report.faults == {"proxy": "fail"}
        assert "hunter22" not in report.outcome.out
        assert "192.0.2.1" not in report.outcome.out
        assert "export NO_PROXY=127.0.0.1" in report.told("proxy")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert examine(capsys, "--skip-engine").faults == {}


def test_a_socks_proxy_that_is_down(well: Home, capsys: pytest.CaptureFixture[str]) -> None:
    with socks_double() as proxy:
        put(well, proxy=proxy.url)
        assert examine(capsys, "--skip-engine").faults == {}
    report = examine(capsys, "--skip-engine")
    assert report.faults == {"proxy.socks": "fail"}
    assert "nothing leaves this machine" in report.told("proxy.socks")
    assert str(proxy.port) not in report.outcome.out, "where it is stays out of what is shown to others"
    with socks_double(says=b"HTTP/1.1 400 Bad Request\r\n\r\n") as proxy:
        put(well, proxy=proxy.url)
        assert "is no SOCKS5 proxy" in examine(capsys, "--skip-engine").told("proxy.socks")


def test_a_socks_proxy_that_wants_a_login(well: Home, capsys: pytest.CaptureFixture[str]) -> None:
    path = login_file(well, b"somebody:hunter22")
    with socks_double(login=(b"somebody", b"hunter22")) as proxy:
        put(well, proxy=proxy.url)
        report = examine(capsys, "--skip-engine")
        assert report.faults == {"proxy.socks": "fail"}
        assert "wants a user name and a password" in report.told("proxy.socks")
        put(well, proxy_login_file=str(path))
        report = examine(capsys, "--skip-engine")
        assert report.faults == {}
        assert "hunter22" not in report.outcome.out
        path.chmod(0o644)
        assert "chmod 600" in examine(capsys, "--skip-engine").told("proxy.socks")


def login_file(home: Home, content: bytes) -> Path:
    path = home.path / "login"
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def test_a_proxy_that_is_none(well: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "hunter22://x")
    report = examine(capsys, "--skip-engine")
    assert report.faults == {"proxy": "fail"}
    assert "unset" in report.told("proxy")
    assert "hunter22" not in report.outcome.out


# ---------------------------------------------------------------- money and engine


def test_a_coordinator_that_keeps_two_ledgers(well: Home, capsys: pytest.CaptureFixture[str]) -> None:
    put(well, coordinator_url="http://127.0.0.1:9", coordinator_key="ab" * 32)
    with closing(MoneyStore(well.config.money_file)) as store:
        signed = [Signed(b"body %d" % number, b"s" * 64) for number in (1, 2)]
        store.keep_proof(Equivocation(NodeId(bytes.fromhex("ab" * 32)), 7, *signed))
    report = examine(capsys)
    assert report.faults == {"money.store": "fail"}
    assert "infernet wallet proof" in report.told("money.store")


@pytest.mark.slow
def test_a_model_that_does_not_load(well: Home, capsys: pytest.CaptureFixture[str]) -> None:
    report = examine(capsys, "--skip-network")
    assert report.faults == {"engine.loads": "fail"}
    assert "--model FILE" in report.told("engine.loads")


@pytest.mark.parametrize(
    ("mode", "name", "words"),
    [
        ("dies while loading", "engine.loads", "not enough memory"),
        ("crashes", "engine.answers", "no answer"),
        ("finishes what never started", "engine.answers", "with nothing"),
        ("is good", "", ""),
    ],
)
def test_an_engine_that_goes_wrong(
    well: Home,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    name: str,
    words: str,
) -> None:
    monkeypatch.setattr(engine, "worker_command", lambda: [sys.executable, "-P", str(WORKER_DOUBLE), mode])
    report = examine(capsys, "--skip-network")
    assert report.faults == ({name: "fail"} if name else {})
    if name:
        assert words in report.told(name)


def test_the_engine_is_tried_as_it_would_run(
    well: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [sys.executable, "-P", str(WORKER_DOUBLE), "says whether it is confined"]
    monkeypatch.setattr(engine, "worker_command", lambda: words)
    assert "confined: True" in examine(capsys, "--skip-network").told("engine.loads")
    save(well.config.config_file, {"confine": False}, keep=True)
    assert "confined: False" in examine(capsys, "--skip-network").told("engine.loads")


@pytest.mark.model
@pytest.mark.slow
def test_a_real_model_answers(home: Home, capsys: pytest.CaptureFixture[str], starter_model_path: Path) -> None:
    make_well(home, capsys)
    home.config.models_dir.mkdir(parents=True)
    (home.config.models_dir / starter_model_path.name).symlink_to(starter_model_path)
    put(home, model="smollm2-135m-instruct")
    report = examine(capsys, "--skip-network")
    assert report.faults == {}
    assert "8 tokens" in report.told("engine.answers")
    assert list(home.config.models_dir.iterdir()) == [home.config.models_dir / starter_model_path.name]


@pytest.mark.parametrize("name", ["store.whole", "money.store"])
def test_a_database_that_is_too_large_to_copy(well: Home, capsys: pytest.CaptureFixture[str], name: str) -> None:
    path = well.config.store_file if name == "store.whole" else well.config.money_file
    path.parent.mkdir(exist_ok=True)
    path.touch()
    os.truncate(path, COPY_BYTES_MAX + 1)
    report = examine(capsys)
    assert report.faults == {}
    assert report.checks[name]["status"] == "skip"


# ---------------------------------------------------------------- owners, and a user who is not root

SOMEBODY = 12_345


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize(
    ("place", "name"), [("config_file", "config.mode"), ("key_file", "key.mode"), ("config_dir", "key.mode")]
)
def test_a_file_of_another_user(well: Home, capsys: pytest.CaptureFixture[str], place: str, name: str) -> None:
    path: Path = getattr(well.config, place)
    os.chown(path, SOMEBODY, SOMEBODY)
    report = examine(capsys)
    assert report.faults == {name: "fail"}
    assert "belongs to another user" in report.told(name)
    assert f"chown 0 {path}" in report.told(name)
    os.chown(path, 0, 0)
    assert examine(capsys).faults == {}


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root becomes somebody else")
@pytest.mark.parametrize(
    ("place", "mode", "name", "words"),
    [
        ("config_file", 0o000, "config.readable", "check its owner and mode"),
        ("key_file", 0o000, "key.mode", "chmod 600"),
        ("state_dir", 0o500, "home.writable", "let yourself in: `chmod u+rwx"),
        ("state_dir", 0o000, "home.writable", "let yourself in: `chmod u+rwx"),
    ],
)
def test_what_a_user_may_not_read_or_write(well: Home, place: str, mode: int, name: str, words: str) -> None:
    well.config.state_dir.mkdir(exist_ok=True)
    for path in [well.path, *well.path.rglob("*")]:
        os.chown(path, SOMEBODY, SOMEBODY)
    as_somebody = ("setpriv", f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--clear-groups")
    path = getattr(well.config, place)
    before = path.stat().st_mode
    path.chmod(mode)
    report = examine_under(well, *as_somebody)
    path.chmod(before)
    assert report.faults == {name: "fail"}
    assert words in report.told(name)
    assert examine_under(well, *as_somebody).faults == {}
