"""The engine process: loads one model, does runs on threads, and says everything in frames on its standard output.

It is started by `process.py`, as `python -m infernet.engines.worker` or, in a packaged binary, by the hidden verb
`engine-worker`. It knows no key and no peer. It ends when its standard input closes, which is how it learns that
the node is gone. Prompts and answers are in its frames only, never in a log.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, NoReturn, Protocol

from infernet.confinement.contract import Protection
from infernet.confinement.profiles import confine_engine, switched_off
from infernet.engines.contract import EngineBroken, EngineConfig, EngineUnavailable, Report
from infernet.engines.frames import (
    FrameReader,
    Idle,
    Load,
    LoadFailed,
    Look,
    Ping,
    Pong,
    Probe,
    Probed,
    Ready,
    Seen,
    WorkerReport,
    encode,
)
from infernet.engines.wishes import Wishes
from infernet.host.hardening import harden
from protocol.effects import CancelEngine, ContinueEngine, RunEngine
from protocol.errors import Refusal
from protocol.events import EngineFailed
from protocol.ids import RunId

_READ_BYTES: Final = 64 * 1024
_BROKEN_STATUS: Final = 70


def main() -> NoReturn:
    """Serve the node on standard input and output until it is gone, then end this process."""
    sys.excepthook = _name_only
    threading.excepthook = lambda args: _name_only(args.exc_type, args.exc_value, args.exc_traceback)
    # Native code prints where it likes; only frames may go to the node.
    frames = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    harden()
    worker = Worker(frames)
    reader = FrameReader()
    try:
        while data := os.read(0, _READ_BYTES):
            for command in reader.feed(data):
                worker.handle(command)
    finally:
        worker.clean_up()
        # Threads may be deep inside native code, and there is nothing to save.
        os._exit(0)


def _name_only(kind: type[BaseException], _error: BaseException | None, _trace: TracebackType | None) -> None:
    """Say what went wrong without its message, which may quote a prompt."""
    sys.stderr.write(f"engine process: {kind.__name__}\n")


class LoadedModel(Protocol):
    """What an engine is to its process."""

    context_tokens: int
    on_cards: bool

    def run(self, run: RunEngine, report: Report, wishes: Wishes) -> None:
        """Do a run on this thread and report it to its end. Raises EngineBroken when the process is past use."""

    def slots_busy(self) -> int:
        """How many slots the engine itself says are at work."""


def load_model(config: EngineConfig, directory: str) -> LoadedModel:
    """Load what is configured, in the engine that is. Raises EngineUnavailable."""
    # Each engine brings a lot of code along, and only one is wanted.
    if config.exllama is not None:
        from infernet.engines import exllama

        return exllama.load(config)
    from infernet.engines.llama_cpp import LlamaCpp

    return LlamaCpp(config, directory)


def probe(engine: str) -> Probed:
    """Whether the library of an engine can be loaded here. That may end this process, and nothing else."""
    from importlib import metadata

    from infernet.engines.exllama_v2 import import_exllamav2
    from infernet.engines.exllama_v3 import import_exllamav3

    libraries = {"exllamav2": import_exllamav2, "exllamav3": import_exllamav3}
    try:
        libraries[engine]()
        return Probed("", metadata.version(engine))
    except EngineUnavailable as error:
        return Probed(str(error), "")
    except metadata.PackageNotFoundError:
        return Probed("", "of an unknown version")


class Worker:
    """Hands commands to threads and their reports to the node."""

    def __init__(self, frames: BinaryIO) -> None:
        self._frames = frames
        self._writing = threading.Lock()
        self._directory: str | None = None
        self._protections: tuple[Protection, ...] = ()
        self._engine: LoadedModel | None = None
        self._lock = threading.Lock()
        self._runs: dict[RunId, Wishes] = {}

    def handle(self, command: object) -> None:
        """Take a command of the node; never waits for the engine."""
        match command:
            case Ping():
                self.send(Pong(command.number))
            case Load():
                self._directory = command.directory
                # From here on: native code, and what strangers write. No thread has been started before.
                model, directory = Path(command.config.path), Path(command.directory)
                self._protections = confine_engine(model, directory) if command.config.confine else switched_off()
                threading.Thread(target=self._load, args=(command,), daemon=True).start()
            case Look():
                threading.Thread(target=self._look, daemon=True).start()
            case Probe():
                threading.Thread(target=lambda: self.send(probe(command.engine)), daemon=True).start()
            case RunEngine():
                with self._lock:
                    wishes = self._runs[command.run] = Wishes(holds=command.holds)
                threading.Thread(target=self._run, args=(command, wishes), daemon=True).start()
            case CancelEngine() | ContinueEngine():
                with self._lock:
                    wanted = self._runs.get(command.run)
                if wanted is not None:
                    (wanted.cancel if isinstance(command, CancelEngine) else wanted.proceed)()
            case _:
                raise AssertionError("the node sent a report")

    def send(self, report: WorkerReport) -> None:
        """Write a frame; waits while the node does not read."""
        frame = encode(report)
        with self._writing:
            while frame:
                frame = frame[os.write(self._frames.fileno(), frame) :]

    def clean_up(self) -> None:
        """Remove the private folder, which a node that was killed could not do."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _load(self, load: Load) -> None:
        try:
            self._engine = load_model(load.config, "")
        except EngineUnavailable as error:
            self.send(LoadFailed(str(error)))
        else:
            self.send(Ready(self._engine.context_tokens, self._engine.on_cards, self._protections))

    def _look(self) -> None:
        from infernet.engines.llama_cpp import devices

        try:
            self.send(Seen(devices()))
        except EngineUnavailable as error:
            self.send(LoadFailed(str(error)))

    def _run(self, run: RunEngine, wishes: Wishes) -> None:
        assert self._engine is not None, "the node sends runs only after Ready"
        try:
            self._engine.run(run, self.send, wishes)
        except EngineBroken as error:
            self.send(EngineFailed(run.run, Refusal.ENGINE_FAILED, f"the engine broke ({error})"))
            self._end(str(error))
        except Exception as error:
            self.send(EngineFailed(run.run, Refusal.ENGINE_FAILED, f"the engine broke ({type(error).__name__})"))
            raise
        finally:
            with self._lock:
                del self._runs[run.run]
            self._check_idle(self._engine)

    def _end(self, kind: str) -> NoReturn:
        """End this process, in which nothing can be run any more; the node ends the other runs and starts another."""
        sys.stderr.write(f"engine process: {kind}\n")
        sys.stderr.flush()
        self.clean_up()
        os._exit(_BROKEN_STATUS)

    def _check_idle(self, engine: LoadedModel) -> None:
        """With no run left no slot may be busy; say how many are."""
        if self._runs:
            return
        busy = engine.slots_busy()
        with self._lock:
            if not self._runs:
                self.send(Idle(busy))


if __name__ == "__main__":
    main()
