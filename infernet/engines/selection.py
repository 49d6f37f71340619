"""Which engines a configuration asks for, with their models found before anything is started.

No file is read whole here: that takes minutes for a large one, and is the engine's, which loads while the node runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import trio
from msgspec.structs import replace

from infernet.cluster.engine import ClusterConfig, ClusterEngine
from infernet.cluster.workers import worker_of
from infernet.config import Config
from infernet.engines import folders, gguf, models, shelf
from infernet.engines.contract import Engine, EngineConfig, EngineUnavailable, ExllamaOptions
from infernet.engines.dividing import Division, divide
from infernet.engines.isolated import IsolatedEngine
from infernet.engines.llama_cpp import default_threads
from infernet.engines.openai_engine import OpenAiConfig, OpenAiEngine, Terms
from infernet.engines.openai_http import ApiKey
from infernet.engines.placement import NoPlace
from infernet.engines.process import ANYWHERE
from infernet.engines.several import Part, SeveralEngines, Waits
from infernet.host.files import FilesError, read_secret
from infernet.proxy import proxy_for
from infernet.settings.environment import ENGINE_KEY_VARIABLE
from infernet.settings.models import ModelSettings, settings_of
from infernet.settings.readers import EXLLAMA
from protocol.records import Kind, Role

_KEY_BYTES_MAX: Final = 4096
_CACHE_BITS: Final = {"fp16": 16, "q8": 8, "q6": 6, "q4": 4}


async def open_engine(config: Config, waits: Waits | None = None) -> Engine | None:
    """The engine that the configuration names, not yet running; None for a node that runs no jobs.

    Finds the model files, which engines read and check when they run, and divides the cards where there are several
    models. Raises EngineUnavailable: ModelMissing above all.
    """
    if not config.engines or config.role is not Role.PROVIDER:
        return None
    configs = await trio.to_thread.run_sync(engine_configs, config)
    division = await divide(configs) if len(configs) > 1 else None
    parts: list[Part] = []
    for word in config.engines:
        if word == "openai":
            parts.append(Part(word, OpenAiEngine(openai_config(config))))
        elif word == "cluster":
            parts.append(Part(word, ClusterEngine(await trio.to_thread.run_sync(cluster_config, config))))
        elif word in EXLLAMA:
            one = await trio.to_thread.run_sync(exllama_config, config)
            parts.append(Part(word, IsolatedEngine(one), (one.name,)))
        elif word == "llama":
            parts += [_part(one, division) for one in configs]
    return parts[0].engine if len(parts) == 1 else SeveralEngines(parts, division, waits or Waits())


def _part(config: EngineConfig, division: Division | None) -> Part:
    place = division.place(config.name) if division is not None else ANYWHERE
    if isinstance(place, NoPlace):
        return Part("llama", IsolatedEngine(config), (config.name,), refusal=place.reason)
    return Part("llama", IsolatedEngine(config, place=place), (config.name,))


def openai_config(config: Config, environ: Mapping[str, str] = os.environ) -> OpenAiConfig:
    """Which server, and what of it. Raises EngineUnavailable when its key cannot be had."""
    proxy = proxy_for(config, config.engine_url) if config.engine_url is not None else None
    return OpenAiConfig(
        url=config.engine_url,
        models=config.engine_models,
        key=_api_key(config, environ),
        slots=config.slots,
        context_tokens=config.context_tokens,
        price_in_uusd=int(config.price_in_usd),
        price_out_uusd=int(config.price_out_usd),
        price_job_uusd=int(config.price_job_usd),
        terms={own.name.lower(): _terms(config, own) for own in config.model_settings},
        proxy=proxy.for_httpx() if proxy is not None else None,
    )


def _terms(config: Config, own: ModelSettings) -> Terms:
    return Terms(_or(own.slots, config.slots), *prices(config, own))


def prices(config: Config, own: ModelSettings) -> tuple[int, int, int]:
    """What is asked for a model, in micro-USD: for a million tokens in, a million out, and each job."""
    return (
        int(_or(own.price_in_usd, config.price_in_usd)),
        int(_or(own.price_out_usd, config.price_out_usd)),
        int(_or(own.price_job_usd, config.price_job_usd)),
    )


def _or(own: int | None, for_all: int) -> int:
    return for_all if own is None else own


def cluster_config(config: Config) -> ClusterConfig:
    """Which model on which machines. Raises EngineUnavailable."""
    if not config.cluster_workers:
        raise EngineUnavailable(
            "this cluster has no workers: name them with `infernet cluster serve MODEL --workers KEY,KEY`"
        )
    workers = tuple(dict.fromkeys(map(worker_of, config.cluster_workers)))
    if config.cluster_split and len(config.cluster_split) < len(workers):
        raise EngineUnavailable(
            f"--cluster-split has {len(config.cluster_split)} shares for {len(workers)} workers: give one for each"
        )
    model = _engine_config(config, config.model)
    path = Path(model.path).absolute()
    if not path.is_file():
        raise models.ModelMissing(f"there is no model file {path}: `infernet model list` shows what there is")
    return ClusterConfig(
        workers=workers,
        model=model.name,
        path=path,
        fingerprint=model.fingerprint,
        llama_server=config.llama_server,
        split=config.cluster_split,
        slots=model.slots,
        context_tokens=model.context_tokens,
        threads=model.threads,
        price_in_uusd=model.price_in_uusd,
        price_out_uusd=model.price_out_uusd,
        price_job_uusd=model.price_job_uusd,
        quantisation=model.quantisation,
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
        return read_secret(path, "key file", "--engine-key-file", _KEY_BYTES_MAX).decode("ascii", "replace")
    except FilesError as error:
        raise EngineUnavailable(str(error)) from None


def exllama_config(config: Config) -> EngineConfig:
    """Which folder ExLlama is to load, and how. Reads what is beside its weights. Raises ModelError."""
    path = folders.folder_of(config.models_dir, config.model)
    folder = folders.read_folder(path)
    own = settings_of(config.model_settings, folders.name_of(path))
    price_in_uusd, price_out_uusd, price_job_uusd = prices(config, own)
    return EngineConfig(
        name=folders.name_of(path),
        path=str(path),
        kinds=(Kind.CHAT, Kind.COMPLETION) if folder.template is not None else (Kind.COMPLETION,),
        context_tokens=_or(own.context_tokens, config.context_tokens),
        slots=_or(own.slots, config.slots),
        price_in_uusd=price_in_uusd,
        price_out_uusd=price_out_uusd,
        price_job_uusd=price_job_uusd,
        exllama=ExllamaOptions(
            version=EXLLAMA.index(config.engine) + 2,
            gpu_split_gb=config.gpu_split,
            tensor_parallel=config.tensor_parallel,
            cache_bits=_CACHE_BITS[config.cache],
        ),
        confine=config.confine,
        quantisation=folder.quantisation,
    )


def engine_configs(config: Config) -> list[EngineConfig]:
    """What the embedded engine is to serve, each file there. Raises EngineUnavailable."""
    configs: list[EngineConfig] = []
    for model in config.llama_models:
        one = _engine_config(config, model)
        if any(one.name == other.name for other in configs):
            raise EngineUnavailable(f"two of the models to serve are called {one.name}: rename the file of one")
        configs.append(one)
    return configs


def _engine_config(config: Config, model: str) -> EngineConfig:
    path = shelf.path_of(config.models_dir, model)
    models.require(path)
    origin = shelf.origin_of(path)
    if model.lower() == models.STARTER.name:
        engine = models.STARTER.engine_config(path)
    else:
        digest = bytes.fromhex(origin.sha256) if origin is not None else None
        engine = EngineConfig(shelf.name_of(path), str(path), digest)
    own = settings_of(config.model_settings, engine.name)
    price_in_uusd, price_out_uusd, price_job_uusd = prices(config, own)
    return replace(
        engine,
        quantisation=gguf.quantisation_of(path),
        context_tokens=_or(own.context_tokens, config.context_tokens),
        slots=_or(own.slots, config.slots),
        threads=own.threads or config.threads or _threads(len(config.llama_models)),
        confine=config.confine,
        price_in_uusd=price_in_uusd,
        price_out_uusd=price_out_uusd,
        price_job_uusd=price_job_uusd,
    )


def _threads(models_in_all: int) -> int | None:
    """How many each of several models gets; one alone is left its own default."""
    # Threads of llama.cpp spin: engines that have more of them than there are cores take them from each other.
    return None if models_in_all <= 1 else max(1, default_threads() // models_in_all)
