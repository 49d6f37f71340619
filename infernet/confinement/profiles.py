"""Who is left what: the engine process, and the process of the DHT.

Both are started by the node, load their libraries, and read what strangers have written. What they do not need then is
taken from them by the kernel before the first byte of a stranger arrives. Where a kernel cannot, the process runs
without, and says so: `Protection` is what `infernet doctor` and `infernet engine` show.

The devices and folders of GPU drivers are those that NVIDIA's and AMD's documents for containers name; **nothing of
this has been run on a machine with a GPU.**
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import re
import resource
import site
import socket
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from glob import iglob
from itertools import islice
from pathlib import Path
from typing import Final

from infernet.confinement import landlock, seccomp
from infernet.confinement.contract import MEANINGS, Protection
from infernet.confinement.landlock import Grant
from infernet.confinement.seccomp import AtMost, Condition, Refuse
from infernet.host.files import reason_of

#: How long the name of a socket may be that an engine connects to: its own, in its own folder, by a relative path. The
#: kernel tells a filter the length of a socket's address, and not the address.
SOCKET_NAME_BYTES_MAX: Final = 6
_ADDRESS_FAMILY_BYTES: Final = 2
# Drivers open many; models are opened once.
_FILES_MAX: Final = 4096
# What is written goes into the private folder, or into the cache that CUDA was given.
_FILE_BYTES_MAX: Final = 1 << 30
_PARTS_MAX: Final = 1024
_PART_OF_MODEL: Final = re.compile(r"(.*-)[0-9]{5}(-of-[0-9]{5}\.gguf)")

_SYSTEM: Final = (
    *("/usr", "/lib", "/lib64", "/lib32", "/nix/store", "/gnu/store", "/run/opengl-driver"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/alternatives"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/version", "/proc/filesystems"),
    *("/proc/sys/vm", "/proc/sys/kernel", "/sys"),
)
_GPU_FILES: Final = (
    *(f"/opt{name}" for name in ("/rocm*", "/cuda*", "/nvidia*", "/amdgpu*", "/intel")),
    *("/etc/OpenCL", "/etc/vulkan", "/etc/nvidia*", "/usr/lib/wsl"),
    *("/proc/driver", "/proc/devices", "/proc/modules"),
)
# NVIDIA's cards with MIG, AMD's, all others, those of WSL, and Jetson's.
_GPU_DEVICES: Final = (
    *("/dev/nvidia*", "/dev/kfd", "/dev/dri", "/dev/dxg"),
    *("/dev/nvhost-*", "/dev/nvmap", "/dev/nvgpu"),
)
_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_RESOLVER: Final = (
    *("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/services"),
    *("/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager", "/proc/net"),
)

# include/uapi/linux/sched.h
_CLONE_THREAD: Final = 0x00010000
_CLONE_NEW: Final = 0x7E020080
# include/uapi/asm-generic/ioctls.h: typing into a terminal as if the user did.
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
# Who is signalled when something comes, and with which signal: any of this user's processes, and SIGKILL.
_FIOSETOWN, _SIOCSPGRP = 0x8901, 0x8902
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX = 8, 10, 15
_SOCKET_TYPE: Final = 0xF
_OWN_STREAM: Final = (Condition(0, (socket.AF_UNIX,)), Condition(1, (socket.SOCK_STREAM,), _SOCKET_TYPE))

_ALWAYS_REFUSED: Final = (
    # Other programs: starting them, looking into them, telling them what to do.
    *("execve", "execveat", "fork", "vfork", "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise"),
    *("process_mrelease", "kcmp", "pidfd_open", "pidfd_getfd", "pidfd_send_signal", "tkill", "rt_sigqueueinfo"),
    *("rt_tgsigqueueinfo", "shmget", "shmat", "msgget", "semget", "mq_open"),
    # Ways around this very filter, and parts of the kernel that break-ins go through.
    *("io_uring_setup", "io_uring_enter", "io_uring_register", "bpf", "perf_event_open", "userfaultfd"),
    *("add_key", "request_key", "keyctl", "modify_ldt", "iopl", "ioperm"),
    # Other views of the file system, and what Landlock leaves: modes, owners, times, links; lengths before Linux 6.2.
    *("mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "fsopen", "fsmount", "fspick"),
    *("fsconfig", "mount_setattr", "unshare", "setns", "chdir", "fchdir", "name_to_handle_at", "open_by_handle_at"),
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "lchown", "fchown", "fchownat", "setxattr", "lsetxattr"),
    *("fsetxattr", "setxattrat", "removexattr", "lremovexattr", "fremovexattr", "removexattrat", "utime", "utimes"),
    *("utimensat", "futimesat", "link", "linkat", "symlink", "symlinkat", "mknod", "mknodat"),
    *("fanotify_init", "fanotify_mark", "truncate"),
    # The machine. Most of these need root, and some nodes run as root.
    *("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "swapon", "swapoff"),
    *("acct", "quotactl", "quotactl_fd", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex"),
    *("sethostname", "setdomainname", "syslog", "vhangup"),
)


def available() -> tuple[Protection, ...]:
    """What this machine can keep an engine from; nothing is changed."""
    return (
        Protection("files", landlock.abi() > 0, _without("Landlock, which came with Linux 5.13", landlock.abi() > 0)),
        *(
            Protection(name, seccomp.is_available(), _without("seccomp filters", seccomp.is_available()))
            for name in ("network", "programs")
        ),
        Protection("limits", is_on=True),
    )


def switched_off() -> tuple[Protection, ...]:
    """What a process says of itself that its owner wants unconfined."""
    return tuple(Protection(name, is_on=False, why_not="switched off with --no-confine") for name in MEANINGS)


def _without(what: str, is_there: bool) -> str:
    if is_there:
        return ""
    return f"this kernel lacks {what}" if sys.platform == "linux" else f"{sys.platform} has nothing like {what}"


def confine_engine(model: Path, directory: Path) -> tuple[Protection, ...]:
    """Leave this process what an engine needs to serve this model, with `directory` as its own; says what is on.

    Must run before the process starts threads. Its sockets are then reached by their names alone: `directory` is where
    it is, and stays.
    """
    os.chdir(directory)
    _limit(resource.RLIMIT_NOFILE, _FILES_MAX)
    _limit(resource.RLIMIT_FSIZE, _FILE_BYTES_MAX)
    _forbid_new_privileges()
    rules = (
        Refuse("socket", _OWN_STREAM, errno.EACCES),
        Refuse("connect", (AtMost(2, _ADDRESS_FAMILY_BYTES + SOCKET_NAME_BYTES_MAX + 1),), errno.EACCES),
        *_refused(),
    )
    return _confined([*_of_engine(model, directory)], rules, allow_tcp=False)


def confine_dht() -> tuple[Protection, ...]:
    """Leave this process what the DHT needs: libraries and the network. Must run before the process starts threads."""
    _forbid_new_privileges()
    _limit(resource.RLIMIT_FSIZE, 0)
    families = (socket.AF_INET, socket.AF_INET6, getattr(socket, "AF_NETLINK", socket.AF_INET))
    # Sockets of other programs of this machine, such as the session's bus, start what they are told to.
    rules = (Refuse("socket", (Condition(0, tuple(map(int, families))),), errno.EACCES), *_refused())
    grants = [*_readable((*_SYSTEM, *_RESOLVER)), *_python(), *_usable(_DEVICES)]
    return _confined(grants, rules, allow_tcp=True)


def open_to_engines(path: Path) -> Path | None:
    """The folder of libraries, or of the system, that this lies in: engine processes read all of it, and this, too."""
    place = path.resolve()
    libraries = filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep))
    grants = [*_readable(_SYSTEM), *_readable(_GPU_FILES), *_of_libraries(libraries), *_python()]
    return next((grant.path for grant in grants if place.is_relative_to(grant.path.resolve())), None)


def _confined(grants: Iterable[Grant], rules: Iterable[Refuse], *, allow_tcp: bool) -> tuple[Protection, ...]:
    on: list[Protection] = []
    for possible in available():
        if not possible.is_on or possible.name not in ("files", "network"):
            on.append(possible)
        elif possible.name == "files":
            on.append(_tried("files", lambda: landlock.restrict(grants, allow_tcp=allow_tcp)))
        else:
            on.append(_tried("network", lambda: seccomp.restrict(rules)))
    # One filter does both.
    calls = next(each for each in on if each.name == "network")
    programs = Protection("programs", calls.is_on, calls.why_not)
    return tuple(programs if each.name == "programs" else each for each in on)


def _tried(name: str, restrict: Callable[[], None]) -> Protection:
    try:
        restrict()
    except OSError as error:
        return Protection(name, is_on=False, why_not=f"the kernel refused it: {reason_of(error)}")
    return Protection(name, is_on=True)


def _forbid_new_privileges() -> None:
    # `harden` has done so for processes that run as intended; without it the kernel takes neither means.
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(38, 1, 0, 0, 0)


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def _refused() -> Iterator[Refuse]:
    own = os.getpid()
    yield Refuse("clone", (Condition(0, (_CLONE_THREAD,), _CLONE_THREAD), Condition(0, (0,), _CLONE_NEW)))
    # Its flags lie behind a pointer; without it the C library uses `clone`.
    yield Refuse("clone3", error=errno.ENOSYS)
    yield Refuse("kill", (Condition(0, (own,)),))
    yield Refuse("tgkill", (Condition(0, (own,)),))
    yield Refuse("prlimit64", (Condition(0, (0, own)),))
    yield Refuse("ioctl", (Condition(1, (_TIOCSTI, _TIOCLINUX, _FIOSETOWN, _SIOCSPGRP), negated=True),))
    yield Refuse("fcntl", (Condition(1, (_F_SETOWN, _F_SETSIG, _F_SETOWN_EX), negated=True),))
    # A pair of datagram sockets sends to any name, without `connect`.
    yield Refuse("socketpair", _OWN_STREAM, errno.EACCES)
    yield from map(Refuse, _ALWAYS_REFUSED)


# ---------------------------------------------------------------- files


def _of_engine(model: Path, directory: Path) -> Iterator[Grant]:
    yield from _readable(_SYSTEM)
    yield from _readable(_GPU_FILES)
    yield from _of_libraries(filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)))
    yield from _python()
    yield from _usable(_DEVICES)
    yield from _usable(_GPU_DEVICES)
    if Path("/dev/kfd").exists():
        # ROCm's thunk keeps a table there that its processes share.
        yield Grant(Path("/dev/shm"), landlock.OWN)  # noqa: S108 - the driver's choice
    if cache := os.environ.get("CUDA_CACHE_PATH"):
        yield Grant(Path(cache), landlock.OWN)
    for part in _parts(model):
        yield Grant(part, landlock.READ)
    yield Grant(directory, landlock.OWN)
    # It removes its own folder when the node was killed; of what lies beside it, folders that are empty can go.
    yield Grant(directory.parent, landlock.REMOVE_EMPTY)


def _parts(model: Path) -> Iterator[Path]:
    """The files of a model: it may be split, and may be a link to where it lies."""
    yield model
    if match := _PART_OF_MODEL.fullmatch(model.name):
        pattern = re.compile(f"{re.escape(match[1])}[0-9]{{5}}{re.escape(match[2])}")
        yield from islice((path for path in model.parent.iterdir() if pattern.fullmatch(path.name)), _PARTS_MAX)


def _python() -> Iterator[Grant]:
    """Where modules may still be loaded from. Not all of `sys.path`: that may name a home, or a checkout."""
    folders = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values(), *site.getsitepackages()}
    folders |= {path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")}
    for name in ("infernet", "protocol", "xllamacpp"):
        spec = importlib.util.find_spec(name)
        folders |= set(spec.submodule_search_locations or () if spec is not None else ())
    # A packaged binary brings its modules along, in a folder that it names, or in itself.
    folders |= {sys.executable, getattr(sys, "_MEIPASS", "")}
    yield from _of_libraries(filter(None, folders))


def _of_libraries(folders: Iterable[str]) -> Iterator[Grant]:
    """These folders, but none that somebody's whole home lies in: that is no folder of libraries."""
    try:
        home = Path("~").expanduser().resolve()
    except RuntimeError:
        # A user of a container, whom no table knows: nothing lies in a home that is not.
        home = Path("/")
    yield from (Grant(Path(path), landlock.READ) for path in folders if not home.is_relative_to(Path(path).resolve()))


def _readable(patterns: Iterable[str]) -> Iterator[Grant]:
    for pattern in patterns:
        yield from (Grant(Path(path), landlock.READ) for path in islice(iglob(pattern), _PARTS_MAX))


def _usable(patterns: Iterable[str]) -> Iterator[Grant]:
    for pattern in patterns:
        yield from (Grant(Path(path), landlock.USE) for path in islice(iglob(pattern), _PARTS_MAX))
