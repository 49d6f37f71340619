"""Which engine a configuration asks for, with its model found and checked before anything is started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import trio
from msgspec.structs import replace

from infernet.cluster.engine import ClusterConfig, ClusterEngine
from infernet.cluster.workers import worker_of
from infernet.config import ENGINE_KEY_VARIABLE, Config
from infernet.engines import models, shelf
from infernet.engines.contract import Engine, EngineConfig, EngineUnavailable
from infernet.engines.isolated import IsolatedEngine
from infernet.engines.openai_engine import OpenAiConfig, OpenAiEngine
from infernet.engines.openai_http import ApiKey
from protocol.records import Role

_KEY_BYTES_MAX: Final = 4096


async def open_engine(config: Config) -> Engine | None:
    """The engine that the configuration names, not yet running; None for a node that runs no jobs.

    Hashes the model file in a thread. Raises EngineUnavailable: ModelMissing or ModelCorrupt above all.
    """
    if config.engine == "none" or config.role is not Role.PROVIDER:
        return None
    if config.engine == "openai":
        return OpenAiEngine(openai_config(config))
    if config.engine == "cluster":
        return ClusterEngine(await trio.to_thread.run_sync(cluster_config, config))
    return IsolatedEngine(await trio.to_thread.run_sync(_engine_config, config))


def openai_config(config: Config, environ: Mapping[str, str] = os.environ) -> OpenAiConfig:
    """Which server, and what of it. Raises EngineUnavailable when its key cannot be had."""
    return OpenAiConfig(
        url=config.engine_url,
        models=config.engine_models,
        key=_api_key(config, environ),
        slots=config.slots,
        context_tokens=config.context_tokens,
        price_in_uusd=int(config.price_in_usd),
        price_out_uusd=int(config.price_out_usd),
        price_job_uusd=int(config.price_job_usd),
    )


def cluster_config(config: Config) -> ClusterConfig:
    """Which model on which machines; checks the file's hash. Raises EngineUnavailable."""
    if not config.cluster_workers:
        raise EngineUnavailable(
            "this cluster has no workers: name them with `infernet cluster serve MODEL --workers KEY,KEY`"
        )
    workers = tuple(dict.fromkeys(map(worker_of, config.cluster_workers)))
    if config.cluster_split and len(config.cluster_split) < len(workers):
        raise EngineUnavailable(
            f"--cluster-split has {len(config.cluster_split)} shares for {len(workers)} workers: give one for each"
        )
    model = _engine_config(config)
    path = Path(model.path).absolute()
    if not path.is_file():
        raise models.ModelMissing(f"there is no model file {path}: `infernet model list` shows what there is")
    return ClusterConfig(
        workers=workers,
        model=model.name,
        path=path,
        llama_server=config.llama_server,
        split=config.cluster_split,
        slots=config.slots,
        context_tokens=config.context_tokens,
        threads=config.threads,
        price_in_uusd=int(config.price_in_usd),
        price_out_uusd=int(config.price_out_usd),
        price_job_uusd=int(config.price_job_usd),
    )


def _api_key(config: Config, environ: Mapping[str, str]) -> ApiKey | None:
    value, where = environ.get(ENGINE_KEY_VARIABLE, ""), ENGINE_KEY_VARIABLE
    if not value and config.engine_key_file is not None:
        path = Path(config.engine_key_file).expanduser()
        value, where = _read_key(path), str(path)
    value = value.strip()
    if not value and where == ENGINE_KEY_VARIABLE:
        return None
    if not value.isascii() or not value.isprintable() or not 0 < len(value) <= _KEY_BYTES_MAX:
        raise EngineUnavailable(f"{where} does not hold an API key: it must be one line of printable ASCII")
    return ApiKey(value)


def _read_key(path: Path) -> str:
    try:
        if not path.is_file():
            raise EngineUnavailable(f"the key file {path} is no file: give the path of one with --engine-key-file")
        if path.stat().st_mode & 0o077:
            raise EngineUnavailable(f"the key file {path} can be read by others: run `chmod 600 {path}`")
        with path.open("rb") as file:
            return file.read(_KEY_BYTES_MAX + 2).decode("ascii", "replace")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise EngineUnavailable(f"the key file {path} cannot be read ({reason}): check its owner and mode") from None


def _engine_config(config: Config) -> EngineConfig:
    path = shelf.path_of(config.models_dir, config.model)
    origin = shelf.origin_of(path)
    if origin is not None:
        models.verify(path, bytes.fromhex(origin.sha256))
    if config.model.lower() == models.STARTER.name:
        engine = models.STARTER.engine_config(path, config.slots, config.threads)
    else:
        name, digest = shelf.name_of(path), models.fingerprint(path)
        engine = EngineConfig(name, str(path), digest, slots=config.slots, threads=config.threads)
    return replace(
        engine,
        context_tokens=config.context_tokens,
        price_in_uusd=int(config.price_in_usd),
        price_out_uusd=int(config.price_out_usd),
        price_job_uusd=int(config.price_job_usd),
    )
