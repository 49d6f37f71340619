"""A test double of an engine process that has been broken into: it tries what an intruder would, and tells the outcome.

python confined_double.py PROFILE MODEL DIRECTORY FORBIDDEN PORT, with PROFILE engine, dht, engine-without-landlock,
engine-without-seccomp or none. Prints one JSON object: attempt -> "done" or the name of the error; and the protections.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from infernet.confinement import landlock, profiles, seccomp

PROFILE, MODEL, DIRECTORY, FORBIDDEN, PORT = sys.argv[1], *map(Path, sys.argv[2:5]), int(sys.argv[5])
LIBC = ctypes.CDLL(None, use_errno=True)
PTRACE_ATTACH, PTRACE_DETACH = 16, 17
IO_URING_SETUP = 425


def call(result: int) -> None:
    """Raise what a call of the C library reports."""
    if result < 0:
        raise OSError(ctypes.get_errno(), "")


def look_into(pid: int) -> None:
    """Stop another process, and let it go on."""
    call(LIBC.ptrace(PTRACE_ATTACH, pid, None, None))
    os.waitpid(pid, 0)
    call(LIBC.ptrace(PTRACE_DETACH, pid, None, None))


def fork() -> None:
    """Become two."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def connect(path: Path | str) -> None:
    """Reach somebody's socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def serve_oneself() -> None:
    """What llama.cpp and the worker do: a socket in the private folder, and a connection to it."""
    os.chdir(DIRECTORY) if PROFILE == "none" else None
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("t.sock")
        server.listen()
        connect("t.sock")


def start_thread() -> None:
    """Work on more than one core."""
    thread = threading.Thread(target=Path(MODEL).read_bytes)
    thread.start()
    thread.join()


def send_past_connect(path: Path) -> None:
    """Reach somebody's datagram socket without ever connecting."""
    ours, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, others:
        ours.sendto(b"x", str(path))


def own(pid: int) -> None:
    """Have the kernel signal another process when something comes; F_SETSIG says with which signal."""
    ours, others = socket.socketpair()
    with ours, others:
        fcntl.fcntl(ours, fcntl.F_SETOWN, pid)


def choose_signal() -> None:
    """The other half of `own`."""
    with Path("/dev/urandom").open("rb") as device:
        fcntl.fcntl(device, fcntl.F_SETSIG, signal.SIGTERM)


def use_ring() -> None:
    """The way around a filter of system calls."""
    parameters = ctypes.create_string_buffer(120)
    os.close(check(LIBC.syscall(IO_URING_SETUP, 1, parameters)))


def check(result: int) -> int:
    """A descriptor, or the error."""
    call(result)
    return result


def draw_bytes() -> None:
    """What every library does at some time."""
    with Path("/dev/urandom").open("rb") as device:
        device.read(8)


def write_within() -> None:
    """Use the private folder as such a process may."""
    (DIRECTORY / "folder").mkdir()
    (DIRECTORY / "folder" / "file").write_bytes(b"x")
    (DIRECTORY / "folder" / "file").unlink()
    (DIRECTORY / "folder").rmdir()


ATTEMPTS: dict[str, Callable[[], object]] = {
    "read the model": MODEL.read_bytes,
    "write within": write_within,
    "serve oneself": serve_oneself,
    "start a thread": start_thread,
    "draw random bytes": draw_bytes,
    "load a module": lambda: __import__("xml.dom.minidom"),
    "read what lies beside": (FORBIDDEN / "secret").read_bytes,
    "read the key": (FORBIDDEN / "identity.key").read_bytes,
    "list a folder": lambda: os.listdir(FORBIDDEN),
    "write beside": lambda: (FORBIDDEN / "new").write_bytes(b"x"),
    "change what lies beside": lambda: (FORBIDDEN / "secret").write_bytes(b"x"),
    "change a mode": lambda: (FORBIDDEN / "secret").chmod(0o644),
    "change the model": lambda: MODEL.open("r+b").close(),
    "remove what lies beside": lambda: (FORBIDDEN / "spare").unlink(),
    "make a link": lambda: os.symlink(FORBIDDEN / "socket", DIRECTORY / "s"),
    "leave the folder": lambda: os.chdir(FORBIDDEN),
    "read another's command line": lambda: Path(f"/proc/{os.getppid()}/cmdline").read_bytes(),
    "connect to a port": lambda: socket.create_connection(("127.0.0.1", PORT), 5).close(),
    "send a datagram": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
    "send to a socket": lambda: send_past_connect(FORBIDDEN / "datagrams"),
    "connect to a socket": lambda: connect(FORBIDDEN / "socket"),
    "start a program": lambda: subprocess.run(["/bin/true"], check=True),
    "become a program": lambda: LIBC.execve(b"/nonexistent", None, None) and call(-1),
    "fork": fork,
    "look into the node": lambda: look_into(int(os.environ["WATCHED"])),
    "signal the node": lambda: os.kill(os.getppid(), 0),
    "have the node signalled": lambda: own(int(os.environ["WATCHED"])),
    "choose a signal": choose_signal,
    "empty what lies beside": lambda: os.truncate(FORBIDDEN / "secret", 0),
    "limit the node": lambda: __import__("resource").prlimit(os.getppid(), 0),
    "use a ring": use_ring,
}


def outcome(attempt: Callable[[], object]) -> str:
    """How it went."""
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "?")
    return "done"


def main() -> None:
    """Give up what the profile says, and try everything."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if PROFILE == "engine-without-landlock":
        landlock.abi = lambda: 0
    if PROFILE == "engine-without-seccomp":
        seccomp.is_available = lambda: False
    told: tuple[object, ...] = ()
    if PROFILE.startswith("engine"):
        told = profiles.confine_engine(MODEL, DIRECTORY)
    elif PROFILE == "dht":
        told = profiles.confine_dht()
    answers = {name: outcome(attempt) for name, attempt in ATTEMPTS.items()}
    protections = {each.name: each.why_not or "on" for each in told}  # type: ignore[attr-defined]
    sys.stdout.write(json.dumps({"attempts": answers, "protections": protections}))


main()
