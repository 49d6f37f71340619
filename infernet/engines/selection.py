"""Which engine a configuration asks for, with its model found and checked before anything is started."""

from __future__ import annotations

from pathlib import Path

import trio
from msgspec.structs import replace

from infernet.config import Config
from infernet.engines import models
from infernet.engines.contract import Engine, EngineConfig
from infernet.engines.isolated import IsolatedEngine
from protocol import constants as c
from protocol.records import Role


async def open_engine(config: Config) -> Engine | None:
    """The engine that the configuration names, not yet running; None for a node that runs no jobs.

    Hashes the model file in a thread. Raises ModelMissing or ModelCorrupt.
    """
    if config.engine == "none" or config.role is not Role.PROVIDER:
        return None
    return IsolatedEngine(await trio.to_thread.run_sync(_engine_config, config))


def _engine_config(config: Config) -> EngineConfig:
    if config.model == models.STARTER.name:
        path = models.starter_path(config.models_dir)
        models.verify(path, bytes.fromhex(models.STARTER.sha256))
        engine = models.STARTER.engine_config(path, config.slots, config.threads)
    else:
        path = Path(config.model).expanduser()
        name = path.stem[: c.MODEL_NAME_CHARACTERS_MAX].lower()
        engine = EngineConfig(name, str(path), models.fingerprint(path), slots=config.slots, threads=config.threads)
    return replace(
        engine,
        context_tokens=config.context_tokens,
        price_in_uusd=int(config.price_in_usd),
        price_out_uusd=int(config.price_out_usd),
        price_job_uusd=int(config.price_job_usd),
    )
