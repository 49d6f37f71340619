"""The repository looked at as a whole: what every tracked file must or must not hold."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("protocol", "infernet", "coordinator")
LINES_MAX = 600

# Assembled here, so that this file does not hold what it forbids.
REGISTRY_HOSTS = (
    "pypi" + ".org",
    "pythonhosted" + ".org",
    "registry." + "npmjs",
    "debian" + ".org",
    "ghcr" + ".io",
    "docker" + ".io",
    "crates" + ".io",
    "hugging" + "face.co",
)
# Where a release goes is said there; everything that is fetched comes from whatever index a machine has configured.
PUBLISHES = {".github/workflows/release.yml"}
# The one default that the program has of its own, which is pip's: where no machine is told of another index.
DEFAULTS = {"infernet/engines/package_index.py": "https://pypi" + ".org/simple"}
MACHINE_PATH = re.compile(r"(?<![\w.~/:-])/(?:work|root|opt|tmp/env|home/[a-z]\w*)/")

# Protocol modules whose whole behaviour is the types they declare; what uses them is tested.
DECLARATIONS = {
    "protocol/constants.py",
    "protocol/effects.py",
    "protocol/errors.py",
    "protocol/events.py",
    "protocol/money_records.py",
    "protocol/records.py",
    "protocol/sim/scenario.py",
}


@cache
def tracked() -> tuple[Path, ...]:
    """Every tracked file that still exists."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return tuple(path for name in listed.split("\0") if name and (path := ROOT / name).is_file())


def text_of(path: Path) -> str | None:
    """The file as text, or None when it is not text."""
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        return None


def place(path: Path, text: str, position: int) -> str:
    """`file:line` of a position in a file."""
    return f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, position) + 1}"


def python_files(*folders: str) -> list[Path]:
    """The tracked Python files below some folders."""
    return [path for path in tracked() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders]


def test_no_file_names_a_registry_or_a_path_of_somebodys_machine() -> None:
    pattern = re.compile("|".join([MACHINE_PATH.pattern, *map(re.escape, REGISTRY_HOSTS)]))
    found = [
        f"{place(path, text, match.start())}: {match[0]}"
        for path in tracked()
        if (text := text_of(path)) is not None
        for match in pattern.finditer(text)
        if (name := str(path.relative_to(ROOT))) not in PUBLISHES
        if not text.startswith(DEFAULTS.get(name, "\0"), max(0, text.rfind('"', 0, match.start()) + 1))
    ]
    assert not found, "\n".join(found)


def test_the_pattern_for_machine_paths_sees_paths_and_spares_addresses() -> None:
    assert MACHINE_PATH.search("see " + "/wo" + "rk/main")
    assert MACHINE_PATH.search("'" + "/ro" + "ot/.cache/x'")
    assert not MACHINE_PATH.search("http://127.0.0.1/work/1")
    assert not MACHINE_PATH.search("docs/work/plan.md")


def test_no_page_waits_to_be_written() -> None:
    """A word in capitals alone on a line stands where something is still to come."""
    waiting = [
        place(path, text, match.start())
        for path in tracked()
        if path.suffix == ".md" and (text := text_of(path)) is not None
        for match in re.finditer(r"^[A-Z]{4,}$", text, re.MULTILINE)
    ]
    assert not waiting, waiting


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in python_files(*PACKAGES, "scripts", "tests")
        if not (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").strip()
    ]
    assert not silent, f"no module docstring: {silent}"


def test_no_file_is_too_long_to_be_read_in_one_sitting() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines())
        for path in python_files(*PACKAGES, "scripts", "tests")
    }
    long = {name: lines for name, lines in lengths.items() if lines > LINES_MAX}
    assert not long, f"more than {LINES_MAX} lines: {long}"


def test_every_protocol_module_has_its_tests_at_the_same_place() -> None:
    missing = [
        name
        for path in python_files("protocol")
        if path.name != "__init__.py"
        and (name := str(path.relative_to(ROOT))) not in DECLARATIONS
        and not (ROOT / "tests" / path.relative_to(ROOT).with_name(f"test_{path.name}")).is_file()
    ]
    assert not missing, f"no tests/.../test_*.py for: {missing}"


def fixed_sleeps(source: str) -> Iterator[int]:
    """The lines on which a test waits for an amount of time instead of for what it is waiting for.

    Under trio's virtual clock a sleep is exact and costs nothing, so a file that uses that clock may. So may a loop
    that looks again and again whether its condition holds.
    """
    tree = ast.parse(source)
    polling = {node for loop in ast.walk(tree) if isinstance(loop, (ast.While, ast.For)) for node in ast.walk(loop)}
    for node in ast.walk(tree):
        if node in polling:
            continue
        match node:
            case ast.Call(func=ast.Attribute(attr="sleep", value=ast.Name(id=module)), args=[argument, *_]):
                zero = isinstance(argument, ast.Constant) and argument.value == 0
                fixed = module == "time" or isinstance(argument, ast.Constant)
                if fixed and not zero and not (module == "trio" and "MockClock" in source):
                    yield node.lineno
            case _:
                pass


def test_no_test_sleeps() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in python_files("tests")
        for line in fixed_sleeps(path.read_text("utf-8"))
    ]
    assert not found, f"wait for a condition with a deadline instead: {found}"


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("import time\ntime.sleep(delay)", [2]),
        ("await trio.sleep(0.1)", [1]),
        ("await trio.sleep(0)", []),
        ("await asyncio.sleep(1)", [1]),
        ("while not ready():\n    await trio.sleep(0.01)", []),
        ("for _ in range(9):\n    await try_again()\n    await trio.sleep(0.01)", []),
        ("clock = MockClock()\nawait trio.sleep(60)", []),
    ],
)
def test_fixed_sleeps_are_recognised(source: str, lines: list[int]) -> None:
    assert list(fixed_sleeps(source)) == lines


def test_commands_are_executable_and_say_how_they_run() -> None:
    commands = [path for path in tracked() if path.parent == ROOT / "scripts" and not path.suffix]
    assert commands
    for path in [*commands, ROOT / ".ci" / "run"]:
        assert path.stat().st_mode & 0o111, f"{path.name} is not executable"
        assert path.read_text("utf-8").startswith("#!/usr/bin/env "), f"{path.name} has no portable first line"


def test_links_between_documents_lead_somewhere() -> None:
    broken = [
        f"{place(path, text, match.start())}: {match[1]}"
        for path in tracked()
        if path.suffix == ".md" and (text := text_of(path)) is not None
        for match in re.finditer(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
        if "://" not in match[1] and not (path.parent / match[1]).exists()
    ]
    assert not broken, "\n".join(broken)
