"""This program as one packaged file: whether it is, where that file lies, and what packing left in the environment.

The file is a small shell script with the whole program behind it, which it unpacks once into a folder of this user's
and then becomes (packaging/binary/unpack.sh). What runs is in that folder; what people keep, name and replace is the
file, and the script hands its path on in a variable.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Final

#: Set by the script: the path of the file that was started.
FILE_VARIABLE: Final = "INFERNET_PACKAGED_FILE"
#: After the name of a library that people install beside the Python package.
NOT_INSIDE: Final = "is not in this binary, into which nothing can be installed: use the Python package"
_LIBRARY_PATHS: Final = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LIBPATH")
_LOADER_PREFIX: Final = "_PYI_"


def is_packaged() -> bool:
    """Whether this process runs the packaged program."""
    return bool(getattr(sys, "frozen", False))


def program_file(environ: Mapping[str, str] = os.environ) -> Path:
    """The file to start, to name and to replace: the one that was packaged where it still is there."""
    told = Path(environ.get(FILE_VARIABLE, ""))
    if told.is_absolute() and told.is_file() and os.access(told, os.X_OK):
        return told
    return Path(sys.executable)


def unpacked_beside() -> Path:
    """The folder in which this version and others are unpacked: a newer one has to be able to write there."""
    return Path(sys.executable).parent.parent


def unpacked_programs(ending: int | None = None) -> list[Path]:
    """The folders of this version and of older ones, but for those that another process runs from.

    A process that is about to end, and what it has started, are none of those.
    """
    return [folder for folder, pids in programs_in_use(ending).items() if not pids]


def programs_in_use(ending: int | None = None) -> dict[Path, list[int]]:
    """The folders of this version and of older ones, and which other processes run from each; see above."""
    if not is_packaged():
        return {}
    import psutil

    passed_over = {os.getpid()}
    if ending is not None:
        with contextlib.suppress(psutil.Error):
            passed_over |= {ending, *(child.pid for child in psutil.Process(ending).children(recursive=True))}
    elsewhere = {
        process.info["pid"]: Path(process.info["exe"])
        for process in psutil.process_iter(["pid", "exe", "status"])
        if process.info["exe"] and process.info["pid"] not in passed_over
        if process.info["status"] != psutil.STATUS_ZOMBIE
    }
    folders = [folder for folder in sorted(unpacked_beside().glob("program-*")) if folder.is_dir()]
    return {
        folder: sorted(pid for pid, program in elsewhere.items() if program.is_relative_to(folder))
        for folder in folders
        if not folder.is_symlink()
    }


def forget_unpacked(folders: Iterable[Path]) -> None:
    """Remove them, and what they lie in if nothing else does. This process may not load anything afterwards."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


def undo_loader(environ: MutableMapping[str, str]) -> None:
    """Give programs that this one starts the environment that it was started with, and not our libraries.

    What starts a packaged program points the system's linker at the libraries inside; `nvidia-smi`, `systemctl` or pip
    would then load them in place of their own. This process has looked at those variables already.
    """
    for name in _LIBRARY_PATHS:
        original = environ.pop(f"{name}_ORIG", None)
        if original is not None:
            environ[name] = original
        else:
            environ.pop(name, None)
    for name in [name for name in environ if name.startswith(_LOADER_PREFIX)]:
        del environ[name]
