"""The binding of llama.cpp: whether it is installed and runs on this processor. Nothing here loads a model."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from infernet.engines.contract import EngineUnavailable


def missing_cpu_features(machine: str, cpuinfo: str) -> list[str]:
    """What the prebuilt llama.cpp needs and this CPU lacks; without a check it would die of an illegal instruction."""
    if machine not in ("x86_64", "AMD64") or "flags" not in cpuinfo:
        return []
    flags = set(cpuinfo.partition("flags")[2].partition("\n")[0].split())
    return [name for name in ("avx2", "fma", "f16c", "bmi2") if name not in flags]


def explain_import_error(error: ImportError) -> str:
    """One line for somebody whose llama.cpp does not load."""
    if "libgomp" in str(error):
        return "llama.cpp needs the library libgomp.so.1: install it with `apt-get install libgomp1`"
    if isinstance(error, ModuleNotFoundError):
        return "llama.cpp is not installed: run `pip install infernet[llama]`"
    return (
        "the installed llama.cpp does not fit this system: reinstall it with `pip install --force-reinstall xllamacpp`"
    )


def import_xllamacpp() -> Any:
    """The binding, or EngineUnavailable with what to do about it."""
    cpuinfo = Path("/proc/cpuinfo")
    missing = missing_cpu_features(platform.machine(), cpuinfo.read_text("utf-8") if cpuinfo.exists() else "")
    if missing:
        raise EngineUnavailable(f"this CPU lacks {', '.join(missing)}, which llama.cpp needs: use another machine")
    try:
        import xllamacpp
    except ImportError as error:
        raise EngineUnavailable(explain_import_error(error)) from error
    return xllamacpp
