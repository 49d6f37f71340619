"""The virtual environments that the commands in this folder run in: made once, from hashed locks, without a compiler.

Standard library only, and written so that any Python 3 from 3.8 can read it: it runs before anything is installed,
perhaps under an interpreter that is too old or too new, to find the one that fits.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"

# Newest first. The same range as `requires-python`; a test compares them.
SUPPORTED_PYTHONS = ((3, 13), (3, 12), (3, 11))

# What the embedded engine loads from the system, and where Debian and its relatives keep it.
SYSTEM_LIBRARIES = (("libstdc++.so.6", "libstdc++6"), ("libgomp.so.1", "libgomp1"))

MISLEADING_VARIABLES = frozenset(
    ["PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_REQUIRE_VIRTUALENV"]
)

STAMP = "infernet-environment.json"
OUTPUT_LINES_SHOWN = 25


class Failure(Exception):
    """Something the reader can put right; the text is one line that says what happened and what to do."""


def run_main(main: Callable[[], int], name: str = "") -> int:
    """Run a command's main; a `Failure` becomes its one line under the command's name, Ctrl-C the usual 130."""
    try:
        return main()
    except Failure as failure:
        print(f"{name or Path(sys.argv[0]).name}: {failure}", file=sys.stderr)
        return 1
    except PermissionError as error:
        # `sudo` on one day leaves files that the same person may not change the next day.
        print(
            f"{name or Path(sys.argv[0]).name}: cannot use {error.filename} (permission denied): another user has made "
            "it, perhaps sudo: make it yours (chown), or run this as that user",
            file=sys.stderr,
        )
        return 1
    except BrokenPipeError:
        # Whoever read has seen enough; what is still in the buffer must not complain when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130


def require_python() -> None:
    """Return under a Python that we support; otherwise start this command again under one that is installed."""
    if sys.version_info[:2] in SUPPORTED_PYTHONS:
        return
    for version in SUPPORTED_PYTHONS:
        name = "python{}.{}".format(*version)
        path = shutil.which(name)
        # A version manager's shim exists for versions that are not there, so ask it.
        if path and subprocess.run([path, "-c", ""], check=False, capture_output=True).returncode == 0:
            os.execv(path, [path, *sys.argv])
    running = "{}.{}".format(*sys.version_info)
    raise Failure(
        f"Python 3.11, 3.12 or 3.13 is needed and only {running} was found: "
        "apt-get install python3.11 python3.11-venv (or 3.12, 3.13, whichever your system has)"
    )


def require_system_libraries() -> None:
    """Raise `Failure` for a system library that the embedded engine needs and this machine lacks."""
    if not sys.platform.startswith("linux"):
        return
    for library, package in SYSTEM_LIBRARIES:
        try:
            ctypes.CDLL(library)
        except OSError:
            raise Failure(f"the engine needs {library}, which is not installed: apt-get install {package}") from None


def locked_names(lock: Path) -> set[str]:
    """The names of the packages that a lock file pins."""
    return set(re.findall(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==", lock.read_text("utf-8"), re.MULTILINE))


@dataclass(frozen=True)
class Environment:
    """A virtual environment in the checkout that holds the packages of some locks, and this project itself.

    The project is installed in place: a change to its source needs no new installation.
    """

    directory: Path
    locks: tuple[str, ...]

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    def prepare(self) -> None:
        """Make the environment what it should be; instant when it is already. Raises `Failure`."""
        with one_at_a_time():
            stamp = self._read_stamp()
            locks, project = self._locks_digest(), digest([ROOT / "pyproject.toml"])
            if stamp is None or stamp.get("locks") != locks or not self.python.exists():
                self._create()
                self._install_locks()
                self._write_stamp(locks=locks)
                stamp = {}
            if stamp.get("project") != project:
                self._install_project()
                self._write_stamp(locks=locks, project=project)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run the environment's Python with these arguments in the checkout; output goes to the terminal."""
        return subprocess.run([str(self.python), *arguments], cwd=ROOT, env=clean_environ(), check=False)

    def exec(self, *arguments: str) -> NoReturn:
        """Become the environment's Python."""
        sys.stdout.flush()
        os.execve(self.python, [str(self.python), *arguments], clean_environ())

    def _locks_digest(self) -> str:
        # The interpreter and the place belong to it: an environment can be neither moved nor upgraded.
        where = f"{sys.version_info[:2]} {ROOT}"
        return digest([REQUIREMENTS / f"{name}.txt" for name in ("build", *self.locks)], where)

    def _read_stamp(self) -> dict[str, str] | None:
        if not self.directory.exists():
            return None
        try:
            stamp = json.loads((self.directory / STAMP).read_text("utf-8"))
        except FileNotFoundError:
            name = self.directory.name
            raise Failure(f"{name} exists and was not made by this command: move it away (mv {name} ~)") from None
        except ValueError:
            return None
        return stamp if isinstance(stamp, dict) else None

    def _write_stamp(self, **stamp: str) -> None:
        (self.directory / STAMP).write_text(json.dumps(stamp), "utf-8")

    def _create(self) -> None:
        if importlib.util.find_spec("ensurepip") is None:
            package = "python{}.{}-venv".format(*sys.version_info)
            raise Failure(f"Python's venv module is not installed: apt-get install {package}")
        if self.directory.exists():
            shutil.rmtree(self.directory)
        with step(f"Making {self.directory.name} with Python {sys.version.split()[0]}"):
            # First the stamp, so that an interrupted run recognises its own leavings.
            self.directory.mkdir()
            self._write_stamp()
            try:
                venv.EnvBuilder(symlinks=True, with_pip=True).create(self.directory)
            except (OSError, subprocess.CalledProcessError) as error:
                raise Failure(f"Python could not make a virtual environment in {self.directory}: {error}") from None

    def _install_locks(self) -> None:
        # Some dependencies exist only as (pure Python) source; what builds them is pinned too and comes first.
        self._pip("Installing build tools", requirement_options("build"), len(locked_names(lock_path("build"))))
        count = sum(len(locked_names(lock_path(name))) for name in self.locks)
        self._pip(f"Installing {count} packages", requirement_options(*self.locks), count)

    def _install_project(self) -> None:
        self._pip("Installing infernet from this checkout", ["--no-index", "--editable", str(ROOT)], 1)

    def _pip(self, title: str, arguments: list[str], packages: int) -> None:
        command = [str(self.python), "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
        command += ["--no-deps", "--no-build-isolation", "--use-pep517", *arguments]
        with step(title) as show:
            run_quietly(command, lambda seen, name: show(f"{min(seen, packages)}/{packages} {name}"))


# What the tests and the checks of this repository run in.
TEST_ENVIRONMENT = Environment(ROOT / ".venv-test", ("base", "llama", "test", "lint"))


def enter_test_environment() -> None:
    """Return under a Python that has the project's packages; otherwise start this command again under one that has."""
    if importlib.util.find_spec("msgspec") is not None:
        return
    require_python()
    TEST_ENVIRONMENT.prepare()
    TEST_ENVIRONMENT.exec(*sys.argv)


def run_quietly(pip: list[str], show: Callable[[int, str], None]) -> None:
    """Run pip and show only how far it is; raise `Failure` behind its last words when it fails."""
    output: list[str] = []
    seen = 0
    with subprocess.Popen(
        pip, cwd=ROOT, env=clean_environ(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            output.append(line)
            if line.startswith("Collecting "):
                seen += 1
                show(seen, line.split()[1].split("==")[0])
    if process.returncode != 0:
        sys.stderr.write("\n" + "".join(output[-OUTPUT_LINES_SHOWN:]))
        raise Failure("pip could not install (its words stand above): check the network and `pip config list`")


def lock_path(name: str) -> Path:
    """Where the lock of this name lies."""
    return REQUIREMENTS / f"{name}.txt"


def requirement_options(*locks: str) -> list[str]:
    """The pip options that install exactly what these locks say."""
    return ["--require-hashes", *(option for name in locks for option in ("--requirement", str(lock_path(name))))]


def digest(paths: list[Path], *extra: str) -> str:
    """SHA-256 over the contents of files and some further words."""
    hasher = hashlib.sha256()
    for part in [*(path.read_bytes() for path in paths), *(word.encode() for word in extra)]:
        hasher.update(len(part).to_bytes(8, "big") + part)
    return hasher.hexdigest()


def clean_environ() -> dict[str, str]:
    """This process's environment variables, less those that would point Python or pip at somewhere else."""
    return {name: value for name, value in os.environ.items() if name not in MISLEADING_VARIABLES}


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold off another command that would make an environment in this checkout at the same moment."""
    descriptor = os.open(REQUIREMENTS, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for another command that is installing in this checkout ...", file=sys.stderr)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def step(title: str) -> Iterator[Callable[[str], None]]:
    """Say what is being done and how long it took; on a terminal the function given shows progress in place.

    All of it goes to standard error, so that a command's own output can be piped.
    """
    started = time.monotonic()
    terminal = sys.stderr.isatty()

    def show(detail: str) -> None:
        if terminal:
            line = f"{title} ... {detail}"[: shutil.get_terminal_size().columns - 1]
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)

    show("")
    try:
        yield show
    except BaseException:
        if terminal:
            print(file=sys.stderr)
        raise
    clear = "\r\033[K" if terminal else ""
    print(f"{clear}{title} ({time.monotonic() - started:.1f} s)", file=sys.stderr, flush=True)
