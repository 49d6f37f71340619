"""Whether a model fits: sums, and a machine that is smaller than it looks."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from infernet.engines import fitting
from infernet.engines.contract import EngineConfig, EngineUnavailable
from infernet.engines.fitting import WORKING_BYTES, Fit, Memory, fit, machine_memory, needed_bytes, refuse_too_large
from infernet.engines.gguf import read_header
from tests.helpers_gguf import model

GB = 10**9


def test_what_is_needed_is_the_file_and_all_contexts_and_room_to_work(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(model())
    header = read_header(path)
    assert needed_bytes(5000, header, 1024, 3) == 5000 + 256 * 1024 * 3 + WORKING_BYTES
    assert needed_bytes(5000, None, 1024, 3) == 5000 + WORKING_BYTES


@pytest.mark.parametrize(
    ("needed", "memory", "verdict"),
    [
        (4 * GB, Memory(8 * GB, 4 * GB), Fit.FITS),
        (4 * GB + 1, Memory(8 * GB, 4 * GB), Fit.TIGHT),
        (8 * GB + 1, Memory(8 * GB, 4 * GB), Fit.TOO_LARGE),
        (20 * GB, Memory(8 * GB, 4 * GB, 24 * GB, 16 * GB), Fit.FITS),
        (33 * GB, Memory(8 * GB, 4 * GB, 24 * GB, 24 * GB), Fit.TOO_LARGE),
    ],
)
def test_it_fits_where_there_is_as_much(needed: int, memory: Memory, verdict: Fit) -> None:
    assert fit(needed, memory) is verdict


def test_a_container_has_what_it_may_use_and_not_what_the_machine_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, used = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(fitting, "_LIMIT_FILES", (str(tmp_path / "none"), str(limit)))
    monkeypatch.setattr(fitting, "_USE_FILES", (str(used),))
    limit.write_text("1000000\n")
    used.write_text("400000\n")
    assert machine_memory() == Memory(1_000_000, 600_000)
    for nothing in ("max\n", "9" * 40, "\xff", ""):
        limit.write_text(nothing, "latin-1")
        assert machine_memory().total_bytes == psutil.virtual_memory().total


def test_what_is_too_large_is_refused_before_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(model())
    config = EngineConfig("tiny", str(path), context_tokens=1024, slots=2)
    monkeypatch.setattr(fitting, "machine_memory", lambda: Memory(GB, GB))
    refuse_too_large(config)
    monkeypatch.setattr(fitting, "machine_memory", lambda: Memory(GB // 10, GB // 10))
    with pytest.raises(
        EngineUnavailable, match=r"tiny with 2 contexts of 1024 tokens needs 0\.3 GB .* set fewer --slots"
    ):
        refuse_too_large(config)
    path.write_bytes(b"nonsense")
    refuse_too_large(config)
