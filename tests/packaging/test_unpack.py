"""packaging/binary/unpack.sh: what somebody reads whose machine has no place for the program."""

from __future__ import annotations

import subprocess
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "packaging" / "binary" / "unpack.sh"


def start(tmp_path: Path, **environ: str) -> str:
    """Start the script with nothing packed behind it, which must fail; what it says."""
    program = tmp_path / "infernet"
    text = SCRIPT.read_text("utf-8").replace("@PAYLOAD_START@", "100000").replace("@NEEDED_MB@", "180")
    # Of nothing.
    text = text.replace("@DIGEST@", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    program.write_text(text, "utf-8")
    program.chmod(0o755)
    environ = {"PATH": "/usr/bin:/bin"} | environ
    done = subprocess.run([program, "version"], check=False, capture_output=True, text=True, env=environ, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def test_without_a_home_it_says_what_there_is_no_folder_for(tmp_path: Path) -> None:
    told = start(tmp_path)
    assert told == (
        "infernet: there is no folder to unpack the program in: set HOME, or INFERNET_HOME to a folder of your own\n"
    )


def test_a_folder_that_cannot_be_made_is_told_in_its_own_words_alone(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    told = start(tmp_path, INFERNET_HOME=str(tmp_path / "home")).splitlines()
    assert told[0] == (
        f"infernet: cannot write to {tmp_path}/home/cache: make it yours, or choose another folder with INFERNET_HOME"
    )
    assert not any("mkdir" in line or "mktemp" in line for line in told)


def test_what_cannot_be_unpacked_is_told_without_the_words_of_tools(tmp_path: Path) -> None:
    told = start(tmp_path, INFERNET_HOME=str(tmp_path / "home"))
    assert "it needs gzip, tar and 180 MB of disk" in told
    assert not any(f"{name}: " in told for name in ("gzip", "tar"))
