"""scripts/_binary.py and packaging/binary/unpack.sh: one file that unpacks itself once, checked.

The program inside is a double, a shell script. tests/packaging has the real one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

import _binary
from _environment import Failure

DEADLINE_S = 60.0
PROGRAM = """\
#!/bin/sh
[ "${1:-}" = version ] || echo "file=$INFERNET_PACKAGED_FILE words=$*"
[ "${1:-}" != fail ] || exit 7
"""


def make_folder(where: Path, program: str = PROGRAM) -> Path:
    """What PyInstaller would have made."""
    folder = where / "folder"
    (folder / "_internal").mkdir(parents=True)
    (folder / "_internal" / "library").write_bytes(os.urandom(4096))
    (folder / "_internal" / "link").symlink_to("library")
    (folder / "infernet").write_text(program)
    (folder / "infernet").chmod(0o700)
    return folder


def make_binary(where: Path, program: str = PROGRAM) -> Path:
    """A finished file."""
    file = where / "some where" / "infernet"
    folder = make_folder(where, program)
    _binary.write_whole(file, _binary.assemble(_binary.packed(folder, 1_700_000_000), 5_000_000), 0o755)
    return file


def start(file: Path | str, *words: str, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Start it as somebody with an empty home does."""
    environ: Mapping[str, str] = {"PATH": os.environ["PATH"], "HOME": str(home)} | more
    return subprocess.run(
        [str(file), *words], env=environ, cwd=home, check=False, capture_output=True, text=True, timeout=DEADLINE_S
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def unpacked(home: Path) -> list[Path]:
    """What lies in the folder that it unpacks in."""
    return sorted((home / ".cache" / "infernet").glob("*")) + sorted((home / ".cache" / "infernet").glob(".*"))


def test_it_becomes_the_program_with_its_words_and_its_exit_code(tmp_path: Path, home: Path) -> None:
    file = make_binary(tmp_path)
    done = start(file, "a", "b c", home=home)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"file={file} words=a b c\n", "")
    assert start(file, "fail", home=home).returncode == 7
    [program] = unpacked(home)
    assert program.name.startswith(f"program-{_binary.version()}-")
    assert program.stat().st_mode & 0o077 == 0
    assert program.parent.stat().st_mode & 0o077 == 0
    assert (program / "_internal" / "link").is_symlink()


def test_it_unpacks_once(tmp_path: Path, home: Path) -> None:
    file = make_binary(tmp_path)
    start(file, home=home)
    [program] = unpacked(home)
    (program / "infernet").write_text("#!/bin/sh\necho again\n")
    assert start(file, home=home).stdout == "again\n"


def test_it_finds_its_file_by_path_and_by_name(tmp_path: Path, home: Path) -> None:
    file = make_binary(tmp_path)
    assert f"file={file} " in start("infernet", home=home, PATH=f"{file.parent}:{os.environ['PATH']}").stdout
    (home / "infernet").symlink_to(file)
    assert f"file={home}/./infernet " in start("./infernet", home=home).stdout


@pytest.mark.parametrize(("name", "below"), [("INFERNET_HOME", "cache"), ("XDG_CACHE_HOME", "infernet")])
def test_the_folder_is_where_the_node_keeps_its_files(tmp_path: Path, home: Path, name: str, below: str) -> None:
    done = start(make_binary(tmp_path), home=home, **{name: str(tmp_path / "mine")})
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "mine" / below).glob("program-*"))) == 1
    assert unpacked(home) == []


def test_a_damaged_file_is_refused_and_leaves_nothing(tmp_path: Path, home: Path) -> None:
    file = make_binary(tmp_path)
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    done = start(file, home=home)
    assert done.returncode == 1
    assert done.stderr == f"infernet: {file} is damaged (its sha256 differs): download it again\n"
    assert unpacked(home) == []


def test_a_file_cut_short_is_refused_where_nothing_computes_hashes(tmp_path: Path, home: Path) -> None:
    file = make_binary(tmp_path)
    file.write_bytes(file.read_bytes()[:-2000])
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("sh", "tail", "gzip", "tar", "mkdir", "mktemp", "rm", "mv"):
        (programs / name).symlink_to(shutil.which(name) or name)
    done = start(file, home=home, PATH=str(programs))
    assert done.returncode == 1
    assert "infernet: cannot unpack into " in done.stderr
    assert unpacked(home) == []


def test_a_program_that_does_not_run_here_is_not_kept(tmp_path: Path, home: Path) -> None:
    done = start(make_binary(tmp_path, "#!/nonexistent/interpreter\n"), home=home)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"infernet: the program does not run here: it is made for {_binary.platform_name()}")
    assert unpacked(home) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, home: Path) -> None:
    (home / ".cache").write_text("no folder")
    done = start(make_binary(tmp_path), home=home)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"infernet: cannot write to {home}/.cache/infernet: make it yours")


def test_without_a_home_it_says_what_to_set(tmp_path: Path, home: Path) -> None:
    done = start(make_binary(tmp_path), home=home, HOME="")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("set HOME, or INFERNET_HOME to a folder of your own\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
def test_a_program_that_another_user_put_there_is_not_started(tmp_path: Path, home: Path) -> None:
    file = make_binary(tmp_path)
    start(file, home=home)
    [program] = unpacked(home)
    os.chown(program, 12345, 12345)
    done = start(file, "a", home=home)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{program} belongs to another user" in done.stderr


def test_many_first_starts_at_once_all_get_the_program(tmp_path: Path, home: Path) -> None:
    file = make_binary(tmp_path)
    environ = {"PATH": os.environ["PATH"], "HOME": str(home)}
    many = [subprocess.Popen([file, "x"], env=environ, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    outputs = [each.communicate(timeout=DEADLINE_S)[0] for each in many]
    assert outputs == [f"file={file} words=x\n"] * 6
    assert len(unpacked(home)) == 1


def test_the_same_folder_gives_the_same_file(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    once = _binary.packed(folder, 1_700_000_000)
    os.utime(folder / "infernet", (1, 1))
    assert _binary.packed(folder, 1_700_000_000) == once
    assert _binary.packed(folder, 1_700_000_001) != once


def test_a_file_that_cannot_be_written_whole_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(Failure, match="cannot write"):
        _binary.write_whole(tmp_path / "there", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_what_does_not_say_its_version_does_not_pass(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="does not say its version"):
        _binary.try_out(make_binary(tmp_path))


def test_what_is_built_is_dated_as_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert _binary.epoch_of_commit() == 1_700_000_000
