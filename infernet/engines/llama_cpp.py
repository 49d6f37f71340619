"""llama.cpp inside the engine process: text by continuous batching over the slots of one server, and embeddings.

Requests go in as token ids, because then the count of prompt tokens is exact and known before any work, and stop
strings are found here and not in llama.cpp, because then it is certain which tokens were sampled and which of them
was the end of sequence. Requests are built here, field by field; nothing of an asker's request is passed on.

Slots share no prefix cache: a cached prefix answers faster, which tells a stranger that somebody sent it.
"""

from __future__ import annotations

import base64
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Struct

from infernet.engines.contract import EngineConfig, EngineUnavailable, Report
from infernet.engines.fitting import refuse_too_large
from infernet.engines.frames import DEVICES_MAX, Device
from infernet.engines.llama_library import import_xllamacpp
from infernet.engines.prompts import PrivateServer, Prompt, Prompter, Refused, ServerWords, check_ordered
from infernet.engines.reading import Reading
from infernet.engines.spelling import Spelling
from infernet.engines.stops import StopMatcher
from infernet.engines.turns import Turn, Turns
from infernet.engines.wishes import Wishes
from protocol.effects import RunEngine
from protocol.errors import Refusal
from protocol.events import EngineFailed, EngineFinished, EngineProgress, EngineStarted, EngineText, EngineVector
from protocol.records import Kind, Outcome, Sampling
from protocol.structs import prepare

# A cancel takes effect after the batch under way and the next. On a CPU 16 tokens take a sixth of a second with the
# starter model, and larger ones are read no faster (100 tokens/s from 8 to 128). A GPU is far quicker and wants large
# ones, but a cancelled prompt must not hold it for long either.
_BATCH_TOKENS_CPU: Final = 16
_BATCH_TOKENS_GPU: Final = 128
# An embedding is one batch, which nothing interrupts.
_EMBEDDING_TOKENS_MAX: Final = 512
# Nobody but us connects to the private server, one connection a request.
_HTTP_THREADS: Final = 4
_SETTLE_INTERVAL_S: Final = 0.005
_SETTLE_TIMEOUT_S: Final = 30.0
# llama.cpp takes 32 bits, and the highest value for "any".
_SEEDS: Final = 2**32 - 1
_LOG_ERRORS: Final = 1


def devices() -> tuple[Device, ...]:
    """The GPUs that llama.cpp can run on here. Raises EngineUnavailable."""
    xllamacpp = import_xllamacpp()
    kinds = xllamacpp.ggml_backend_dev_type
    # An integrated one's memory is the machine's, which is counted already.
    own = {kinds.GGML_BACKEND_DEVICE_TYPE_GPU: True, kinds.GGML_BACKEND_DEVICE_TYPE_IGPU: False}
    told = [device for device in xllamacpp.get_device_info() if device["type"] in own][:DEVICES_MAX]
    return tuple(
        Device(str(device["name"])[:64], int(device["memory_total"]) if own[device["type"]] else 0) for device in told
    )


def default_threads() -> int:
    """All cores that we may use but one: llama.cpp's threads spin, and a busy neighbour costs most of the speed."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, cores - 1)


class LlamaCpp:
    """A loaded model. `run` is called on one thread per run."""

    def __init__(self, config: EngineConfig, directory: str) -> None:
        """Load the model; sockets go into `directory`, which is empty for the one where this process is.

        Raises EngineUnavailable.
        """
        self._xllamacpp = import_xllamacpp()
        refuse_too_large(config)
        self._config = config
        self._directory = directory
        self._server, private = self._serve("t", self._text_parameters())
        words = ServerWords(private)
        self._prompter = Prompter(words, words.context_tokens(), config.system_prompt)
        self.context_tokens = self._prompter.context_tokens
        self.on_cards = self._has_gpu()
        self._lock = threading.Lock()
        self._generating = 0
        self._prompt_turns = Turns()
        # Loaded at the first use.
        self._embedder: Any = None
        self._embedding_turns = Turns()

    # ------------------------------------------------------------ loading

    def _serve(self, name: str, parameters: Any) -> tuple[Any, PrivateServer]:
        # A short name: see SOCKET_NAME_BYTES_MAX. llama.cpp wants the ending.
        private = PrivateServer(os.path.join(self._directory, f"{name}.sock"), secrets.token_hex(32))
        parameters.hostnames = [private.socket_path]
        parameters.api_keys = [private.key]
        parameters.n_threads_http = _HTTP_THREADS
        if self._config.on_processor:
            # Also where no variable hides the cards, as under Vulkan.
            parameters.n_gpu_layers = 0
        parameters.ui = parameters.endpoint_slots = False
        parameters.model.path = self._config.path
        parameters.model_alias = {self._config.name}
        parameters.verbosity = _LOG_ERRORS
        parameters.cache_ram_mib = 0
        threads = self._config.threads or default_threads()
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        try:
            return self._xllamacpp.Server(parameters), private
        except RuntimeError as error:
            raise EngineUnavailable(f"llama.cpp cannot load {self._config.path}") from error

    def _text_parameters(self) -> Any:
        parameters = self._xllamacpp.CommonParams()
        parameters.n_parallel = self._config.slots
        parameters.n_ctx = self._config.context_tokens * self._config.slots
        has_gpu = self._has_gpu()
        parameters.n_batch = parameters.n_ubatch = _BATCH_TOKENS_GPU if has_gpu else _BATCH_TOKENS_CPU
        # Finding out how much of a model fits a GPU means loading it twice.
        parameters.fit_params = has_gpu
        parameters.endpoint_metrics = True
        # A chat that ends with the assistant's turn is complete; what is to be continued comes as `continuation`.
        parameters.prefill_assistant = False
        return parameters

    def _embedding_parameters(self) -> Any:
        parameters = self._xllamacpp.CommonParams()
        parameters.n_parallel = 1
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = self.embedding_tokens_max
        parameters.fit_params = self._has_gpu()
        parameters.embedding = True
        parameters.pooling_type = self._xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        return parameters

    def _has_gpu(self) -> bool:
        if self._config.on_processor:
            return False
        kinds = self._xllamacpp.ggml_backend_dev_type
        gpus = (kinds.GGML_BACKEND_DEVICE_TYPE_GPU, kinds.GGML_BACKEND_DEVICE_TYPE_IGPU)
        return any(device["type"] in gpus for device in self._xllamacpp.get_device_info())

    # ------------------------------------------------------------ running

    def run(self, run: RunEngine, report: Report, wishes: Wishes) -> None:
        """Do a run on this thread and report it to its end; when that is reported, its slot is free."""
        try:
            end = (self._embed if run.kind is Kind.EMBEDDING else self._generate)(run, report, wishes)
        except Refused as refused:
            end = EngineFailed(run.run, refused.code, refused.text)
        report(end)

    def slots_busy(self) -> int:
        """How many slots llama.cpp itself says are at work or asked for."""
        return sum(
            int(float(line.split()[1]))
            for line in self._server.handle_metrics().splitlines()
            if line.startswith(("llamacpp:requests_processing ", "llamacpp:requests_deferred "))
        )

    def _generate(self, run: RunEngine, report: Report, wishes: Wishes) -> EngineFinished | EngineFailed:
        cancelled = wishes.cancelled
        prompt = self._prompter.prompt(run.kind, run.request)
        check_ordered(len(prompt.tokens), run.prompt_tokens_max)
        if cancelled.is_set():
            raise Refused(Refusal.CANCELLED, "cancelled before it started")
        report(EngineStarted(run.run, len(prompt.tokens)))
        if not wishes.wait():
            return EngineFinished(run.run, Outcome.CANCELLED, 0)
        if run.output_tokens_max == 0:  # llama.cpp would sample one token
            return EngineFinished(run.run, Outcome.LENGTH, 0)
        reading = Reading(run.run, len(prompt.tokens), report)
        turn = self._prompt_turns.take(cancelled, len(prompt.tokens), reading.ahead)
        if turn is None:
            return EngineFinished(run.run, Outcome.CANCELLED, 0)
        generation = _Generation(run, prompt, reading, report, cancelled, turn, self._prompter.text_tokens)
        with self._lock:
            self._generating += 1
        try:
            self._server.handle_completions(_completion_body(prompt.tokens, run), generation.on_chunk)
        except (RuntimeError, ValueError) as error:
            # The message may quote the request.
            raise Refused(Refusal.ENGINE_FAILED, "the engine did not take the prompt") from error
        finally:
            turn.give_back()
            with self._lock:
                self._generating -= 1
            self._settle()
        return generation.end()

    def _settle(self) -> None:
        """Wait until llama.cpp has freed the slots of all requests that are over: it does so between two batches.

        A slot that stays busy shows in `slots_busy` when no run is left.
        """
        deadline = time.monotonic() + _SETTLE_TIMEOUT_S
        while self.slots_busy() > self._generating and time.monotonic() < deadline:
            time.sleep(_SETTLE_INTERVAL_S)

    # ------------------------------------------------------------ embeddings

    @property
    def embedding_tokens_max(self) -> int:
        """How many tokens one input may have."""
        return min(_EMBEDDING_TOKENS_MAX, self.context_tokens)

    def _embed(self, run: RunEngine, report: Report, wishes: Wishes) -> EngineFinished:
        inputs = [self._prompter.text_tokens(text) for text in run.request.inputs]
        for index, tokens in enumerate(inputs):
            if not tokens:
                raise Refused(Refusal.BAD_REQUEST, f"input {index} is empty")
            if len(tokens) > self.embedding_tokens_max:
                text = f"input {index} has {len(tokens)} tokens, and an embedding takes {self.embedding_tokens_max}"
                raise Refused(Refusal.CONTEXT_EXCEEDED, text)
        total = sum(map(len, inputs))
        check_ordered(total, run.prompt_tokens_max)
        report(EngineStarted(run.run, total))
        if not wishes.wait():
            return EngineFinished(run.run, Outcome.CANCELLED, 0)
        done = 0
        for index, tokens in enumerate(inputs):
            turn = self._embedding_turns.take(wishes.cancelled)
            if turn is None:
                return EngineFinished(run.run, Outcome.CANCELLED, 0)
            try:
                vector = self._vector(tokens)
            finally:
                turn.give_back()
            report(EngineVector(run.run, index, vector))
            done += len(tokens)
            report(EngineProgress(run.run, done, total))
        return EngineFinished(run.run, Outcome.STOP, 0)

    def _vector(self, tokens: list[int]) -> bytes:
        """The normalised mean of the last hidden states, as little-endian float32."""
        if self._embedder is None:
            self._embedder, _ = self._serve("e", self._embedding_parameters())
        body = msgspec.json.encode({"input": tokens, "encoding_format": "base64"})
        answer = msgspec.json.decode(self._embedder.handle_embeddings(body), type=_Embeddings)
        if len(answer.data) != 1:
            raise Refused(Refusal.ENGINE_FAILED, "the engine gave no embedding")
        return base64.b64decode(answer.data[0].embedding)


def _completion_body(prompt: list[int], run: RunEngine) -> bytes:
    """The request to llama.cpp. `timings_per_token` carries the exact count, `return_progress` a chance to cancel, and
    `verbose` the sampled tokens.
    """
    fixed = {
        "prompt": prompt,
        "max_tokens": run.output_tokens_max,
        "stream": True,
        "cache_prompt": False,
        "timings_per_token": True,
        "return_progress": True,
        "verbose": True,
    }
    return msgspec.json.encode(fixed | _sampling_fields(run.sampling))


def _sampling_fields(sampling: Sampling) -> dict[str, float]:
    greedy = sampling.temperature_milli == 0
    return {
        "temperature": sampling.temperature_milli / 1000,
        "top_p": sampling.top_p_milli / 1000,
        "min_p": sampling.min_p_milli / 1000,
        # The best token stays the best among all others: no need to sort the vocabulary for it.
        "top_k": 1 if greedy else sampling.top_k,
        "presence_penalty": sampling.presence_penalty_milli / 1000,
        "frequency_penalty": sampling.frequency_penalty_milli / 1000,
        "repeat_penalty": sampling.repetition_penalty_milli / 1000,
        "seed": sampling.seed % _SEEDS,
    }


class _Choice(Struct, frozen=True):
    text: str = ""
    finish_reason: str | None = None


class _Timings(Struct, frozen=True):
    predicted_n: int = 0


class _PromptProgress(Struct, frozen=True):
    total: int
    processed: int


class _Verbose(Struct, frozen=True):
    tokens: list[int] = []


class _Chunk(Struct, frozen=True):
    """What of llama.cpp's chunks matters."""

    verbose: _Verbose = msgspec.field(default=_Verbose(), name="__verbose")
    choices: list[_Choice] = []
    timings: _Timings = _Timings()
    prompt_progress: _PromptProgress | None = None
    error: object = None


class _Embedding(Struct, frozen=True):
    embedding: str


class _Embeddings(Struct, frozen=True):
    data: list[_Embedding] = []


_DECODE_CHUNK: Final = msgspec.json.Decoder(_Chunk).decode


class _Generation:
    """One answer as it comes out of llama.cpp, chunk by chunk, on the run's thread."""

    def __init__(
        self,
        run: RunEngine,
        prompt: Prompt,
        reading: Reading,
        report: Report,
        cancelled: threading.Event,
        turn: Turn,
        text_tokens: Callable[[str], list[int]],
    ) -> None:
        self._run = run.run
        self._reading = reading
        self._report = report
        self._cancelled = cancelled
        self._turn = turn
        self._text_tokens = text_tokens
        self._stops = StopMatcher(run.request.stop, run.request.continuation)
        self._spelling = Spelling(prompt.unspelt) if prompt.unspelt is not None else None
        self._output_tokens = 0
        self._outcome: Outcome | None = None
        self._broken: Exception | None = None

    def on_chunk(self, raw: bytes) -> bool:
        """Take a chunk; true ends the generation."""
        try:
            return self._take(_DECODE_CHUNK(raw))
        except Exception as error:  # noqa: BLE001 - the binding swallows what is raised here; `end` raises it
            self._broken = error
            return True

    def end(self) -> EngineFinished:
        """How it ended. Raises Refused when llama.cpp gave it up."""
        if self._broken is not None:
            raise self._broken
        if self._outcome is None:
            raise Refused(Refusal.ENGINE_FAILED, "the engine ended without a result")
        return EngineFinished(self._run, self._outcome, self._output_tokens)

    def _take(self, chunk: _Chunk) -> bool:
        if chunk.error is not None:
            raise Refused(Refusal.ENGINE_FAILED, "the engine gave up on this prompt")
        if self._cancelled.is_set():
            self._outcome = Outcome.CANCELLED
            return True
        if chunk.prompt_progress is not None:
            self._progress(chunk.prompt_progress)
        return any(self._choice(choice, chunk) for choice in chunk.choices)

    def _progress(self, progress: _PromptProgress) -> None:
        self._reading.read(progress.processed)
        self._turn.work_left(progress.total - progress.processed)
        if progress.processed >= progress.total:
            self._turn.give_back()

    def _choice(self, choice: _Choice, chunk: _Chunk) -> bool:
        ended_by_model = choice.finish_reason == "stop"
        if choice.text or choice.finish_reason is not None:
            # Stop strings are not llama.cpp's business here, so "stop" means the end-of-sequence token was sampled.
            sampled = chunk.timings.predicted_n - ended_by_model - self._output_tokens
            self._output_tokens += sampled
            self._spell(choice.text, chunk.verbose.tokens, sampled)
        text = self._stops.feed(choice.text)
        if choice.finish_reason is not None and not self._stops.stopped:
            text += self._stops.finish()
            self._outcome = Outcome.STOP if ended_by_model else Outcome.LENGTH
        if text:
            token_ids = self._spelling.given(text) if self._spelling is not None else b""
            self._report(EngineText(self._run, text, self._output_tokens, token_ids))
        if self._stops.stopped:
            self._outcome = Outcome.STOP
        return self._stops.stopped

    def _spell(self, text: str, tokens: list[int], sampled: int) -> None:
        """Note which tokens are this text. Of a character that took several, llama.cpp tells only the last."""
        if self._spelling is not None and text:
            self._spelling.sampled(text, tokens if len(tokens) == sampled else self._text_tokens(text))


prepare(globals())
