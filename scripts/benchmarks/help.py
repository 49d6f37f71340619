"""How long `infernet --help` takes, from the process's start to its end. The aim is below 150 ms."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 20
COMMANDS = (("infernet", "--help"), ("infernet", "version"), ("infernet-coordinator", "--help"))


def run_ms(command: list[str]) -> float:
    """Milliseconds of wall clock for one run."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - started) * 1000


def main() -> None:
    """Print median and fastest of each command, beside the interpreter's own start."""
    folder = Path(sys.executable).parent
    commands = [[str(folder / name), *words] for name, *words in COMMANDS]
    for command in [[sys.executable, "-c", ""], *commands]:
        # The first run fills the caches of the disk and of compiled modules.
        times = [run_ms(command) for _ in range(RUNS + 1)][1:]
        name = " ".join([Path(command[0]).name, *command[1:]])
        print(f"{name:32} median {statistics.median(times):6.1f} ms   fastest {min(times):6.1f} ms")


if __name__ == "__main__":
    main()
