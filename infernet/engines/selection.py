"""Which engine a configuration asks for, with its model found and checked before anything is started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import trio
from msgspec.structs import replace

from infernet.config import ENGINE_KEY_VARIABLE, Config
from infernet.engines import folders, models, shelf
from infernet.engines.contract import Engine, EngineConfig, EngineUnavailable, ExllamaOptions
from infernet.engines.isolated import IsolatedEngine
from infernet.engines.openai_engine import OpenAiConfig, OpenAiEngine
from infernet.engines.openai_http import ApiKey
from infernet.settings import EXLLAMA
from protocol.records import Kind, Role

_KEY_BYTES_MAX: Final = 4096
_CACHE_BITS: Final = {"fp16": 16, "q8": 8, "q6": 6, "q4": 4}


async def open_engine(config: Config) -> Engine | None:
    """The engine that the configuration names, not yet running; None for a node that runs no jobs.

    Hashes the model file in a thread. Raises EngineUnavailable: ModelMissing or ModelCorrupt above all.
    """
    if config.engine == "none" or config.role is not Role.PROVIDER:
        return None
    if config.engine == "openai":
        return OpenAiEngine(openai_config(config))
    make = exllama_config if config.engine in EXLLAMA else _engine_config
    return IsolatedEngine(await trio.to_thread.run_sync(make, config))


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


def exllama_config(config: Config) -> EngineConfig:
    """Which folder ExLlama is to load, and how. Reads what is beside its weights. Raises ModelError."""
    path = folders.folder_of(config.models_dir, config.model)
    has_template = folders.read_folder(path).template is not None
    return EngineConfig(
        name=folders.name_of(path),
        path=str(path),
        kinds=(Kind.CHAT, Kind.COMPLETION) if has_template else (Kind.COMPLETION,),
        context_tokens=config.context_tokens,
        slots=config.slots,
        price_in_uusd=int(config.price_in_usd),
        price_out_uusd=int(config.price_out_usd),
        price_job_uusd=int(config.price_job_usd),
        exllama=ExllamaOptions(
            version=EXLLAMA.index(config.engine) + 2,
            gpu_split_gb=config.gpu_split,
            tensor_parallel=config.tensor_parallel,
            cache_bits=_CACHE_BITS[config.cache],
        ),
    )


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
