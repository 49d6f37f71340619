"""Making the one file `infernet`: a folder packed by PyInstaller, compressed, behind a script that unpacks it.

PyInstaller's own single file would unpack 180 MB at every start, in a second process that systemd would not know. Ours
unpacks once (packaging/binary/unpack.sh), and starts as fast as the folder does.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from _environment import ROOT, SUPPORTED_PYTHONS, Environment, Failure, clean_environ, lock_path, locked_names, step

ENVIRONMENT: Final = Environment(ROOT / ".venv-build", ("base", "llama", "binary"))
PACKAGING: Final = ROOT / "packaging" / "binary"
#: What is packed; PyInstaller itself is not.
PACKED_LOCKS: Final = ("base", "llama")
BUILD_TIMEOUT_S: Final = 1800
OUTPUT_LINES_SHOWN: Final = 25
_SYSTEMS: Final = {"linux": "linux", "darwin": "macos"}
_MACHINES: Final = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass(frozen=True)
class Binary:
    """A finished file, and what a reader wants to know of it."""

    path: Path
    sha256: str
    unpacked_bytes: int


def version() -> str:
    """The version in pyproject.toml."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])


def platform_name() -> str:
    """This platform in the name of a file, such as linux-x86_64. Raises `Failure`."""
    system, machine = _SYSTEMS.get(sys.platform), _MACHINES.get(platform.machine().lower())
    if system is None or machine is None:
        raise Failure(f"binaries are made on Linux and macOS, on x86_64 and arm64, and not on {platform.platform()}")
    return f"{system}-{machine}"


def file_name(of_platform: str) -> str:
    """The name of the file for a platform."""
    return f"infernet-{version()}-{of_platform}"


def needed_library() -> str:
    """What the system must bring: the C library that this one was linked with, or a later one."""
    name, of_libc = platform.libc_ver()
    return f"{platform_name()} with {name} {of_libc} or later" if name else platform_name()


def require_shared_python() -> None:
    """Return under a Python that can be packed; otherwise start this command again under one. Raises `Failure`."""
    if sysconfig.get_config_var("Py_ENABLE_SHARED") or sysconfig.get_config_var("PYTHONFRAMEWORK"):
        return
    for pair in SUPPORTED_PYTHONS:
        path = "/usr/bin/python{}.{}".format(*pair)
        look = "import sysconfig, ensurepip; assert sysconfig.get_config_var('Py_ENABLE_SHARED')"
        if (
            os.access(path, os.X_OK)
            and not subprocess.run([path, "-c", look], check=False, capture_output=True).returncode
        ):
            os.execv(path, [path, *sys.argv])
    raise Failure(
        f"{sys.executable} was built without its shared library, which goes into the file: use the Python of your "
        "distribution (python3.x with python3.x-venv and libpython3.x), or one configured with --enable-shared"
    )


def build(target: Path, epoch_s: int) -> Binary:
    """Write the file for this platform to `target`, whole or not at all. Raises `Failure`."""
    ENVIRONMENT.prepare()
    with tempfile.TemporaryDirectory(prefix="infernet-binary-") as scratch:
        folder = _pack(Path(scratch))
        with step("Compressing"):
            unpacked = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
            payload = packed(folder, epoch_s)
        write_whole(target, assemble(payload, unpacked), 0o755)
    return Binary(target, hashlib.sha256(target.read_bytes()).hexdigest(), unpacked)


def _pack(scratch: Path) -> Path:
    """Have PyInstaller make the folder."""
    command = [str(ENVIRONMENT.python), "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN"]
    command += ["--distpath", str(scratch / "dist"), "--workpath", str(scratch / "work")]
    environ = clean_environ() | {
        "INFERNET_CHECKOUT": str(ROOT),
        "INFERNET_PACKAGES": " ".join(sorted(_installed(PACKED_LOCKS))),
        "PYINSTALLER_CONFIG_DIR": str(scratch / "cache"),
        # The same names in the same order of every set and folder, so that two builds are alike.
        "PYTHONHASHSEED": "0",
    }
    with step("Packing with PyInstaller (minutes)"):
        try:
            done = subprocess.run(
                [*command, str(PACKAGING / "infernet.spec")],
                cwd=ROOT,
                env=environ,
                check=False,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=BUILD_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise Failure(f"PyInstaller was not ready after {BUILD_TIMEOUT_S // 60} minutes and was ended") from None
    if done.returncode != 0:
        sys.stderr.write("\n".join(done.stdout.splitlines()[-OUTPUT_LINES_SHOWN:]) + "\n")
        raise Failure("PyInstaller could not pack the program; its words stand above")
    return scratch / "dist" / "infernet"


def _installed(locks: tuple[str, ...]) -> set[str]:
    """Those packages of some locks that this platform has."""
    names = {name for lock in locks for name in locked_names(lock_path(lock))}
    look = "from importlib import metadata as m; print(*{d.name.lower().replace('_', '-').replace('.', '-')"
    done = subprocess.run(
        [str(ENVIRONMENT.python), "-c", f"{look} for d in m.distributions()}})"],
        env=clean_environ(),
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise Failure(f"{ENVIRONMENT.directory.name} is damaged: remove it, and run this again")
    return names & set(done.stdout.split())


def packed(folder: Path, epoch_s: int) -> bytes:
    """The folder as a compressed archive that depends on nothing but its files: no owner, no time but that given."""
    raw = io.BytesIO()

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mtime = epoch_s
        # For this user alone: root's tar gives files the modes of the archive.
        entry.mode = 0o700 if entry.isdir() or entry.mode & 0o100 else 0o600
        return entry

    with (
        gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=6, mtime=0, filename="") as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in [folder, *sorted(folder.rglob("*"))]:
            archive.add(path, str(Path("infernet") / path.relative_to(folder)), recursive=False, filter=plain)
    return raw.getvalue()


def assemble(payload: bytes, unpacked_bytes: int, of_platform: str | None = None) -> bytes:
    """The script that unpacks, and behind it what it unpacks."""
    digest = hashlib.sha256(payload).hexdigest()
    values = {
        "VERSION": version(),
        "DIGEST": digest,
        "DIGEST_START": digest[:12],
        "NEEDED_MB": str(unpacked_bytes // 1_000_000 + 1),
        "PLATFORM": of_platform or needed_library(),
    }
    script = filled((PACKAGING / "unpack.sh").read_text("ascii"), values)
    # The number is as wide as its place, so that writing it moves nothing.
    place = "@PAYLOAD_START@"
    start = len(script.encode()) + 1
    return script.replace(place, str(start).ljust(len(place))).encode() + payload


def filled(template: str, values: Mapping[str, str]) -> str:
    """A template with its places filled in."""
    for name, value in values.items():
        template = template.replace(f"@{name}@", value)
    return template


def write_whole(target: Path, data: bytes, mode: int = 0o644) -> None:
    """Put a file in its place, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.part")
    try:
        draft.write_bytes(data)
        draft.chmod(mode)
        draft.replace(target)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise Failure(f"cannot write {target} ({(error.strerror or 'an error').lower()})") from None


def try_out(binary: Path) -> str:
    """Start the file in an empty home and give what it says of itself. Raises `Failure`."""
    with tempfile.TemporaryDirectory(prefix="infernet-try-") as home:
        environ = {"HOME": home, "PATH": os.environ.get("PATH", os.defpath)}
        try:
            done = subprocess.run(
                [str(binary), "version"], env=environ, check=False, capture_output=True, text=True, timeout=120
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Failure(f"{binary.name} does not start ({type(error).__name__})") from None
        if done.returncode != 0 or version() not in done.stdout:
            raise Failure(f"{binary.name} does not say its version: {(done.stderr or done.stdout).strip()[-200:]}")
        return done.stdout.strip()


def epoch_of_commit() -> int:
    """When the commit that is checked out was made; what is built is dated so."""
    told = os.environ.get("SOURCE_DATE_EPOCH", "")
    if told.isascii() and told.isdigit():
        return int(told)
    git = shutil.which("git")
    if git is not None:
        done = subprocess.run([git, "log", "-1", "--format=%ct"], cwd=ROOT, check=False, capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip().isdigit():
            return int(done.stdout)
    raise Failure("this is no git checkout, so nothing says when its source was made: set SOURCE_DATE_EPOCH")
