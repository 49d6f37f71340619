"""The engine process with ExLlamaV2's real generator over a fake model; for tests alone.

python exllama_worker.py
"""

from __future__ import annotations

from pathlib import Path

from infernet.engines import worker
from infernet.engines.contract import EngineConfig
from infernet.engines.exllama import Exllama
from infernet.engines.folders import read_folder
from tests.helpers_exllama import fake_library

# So that nothing is over before a test has looked at it.
_PACE_S = 0.002


def load_model(config: EngineConfig, _directory: str) -> Exllama:
    """In place of the one that wants a GPU."""
    library, _ = fake_library(config, pace_s=_PACE_S)
    return Exllama(config, library, read_folder(Path(config.path)))


worker.load_model = load_model
worker.main()
