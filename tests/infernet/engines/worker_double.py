"""A test double of the engine process: it speaks frames, has no model, and goes wrong in the way it is told to.

python worker_double.py MODE
"""

from __future__ import annotations

import os
import signal
import struct
import sys
import threading
import time
from pathlib import Path

from infernet.engines.frames import (
    Device,
    FrameReader,
    Idle,
    Load,
    LoadFailed,
    Look,
    Ping,
    Pong,
    Ready,
    Seen,
    WorkerReport,
    encode,
)
from protocol.effects import CancelEngine, RunEngine
from protocol.events import EngineFinished, EngineProgress, EngineStarted, EngineText, EngineVector
from protocol.ids import RunId
from protocol.records import Outcome

MODE = sys.argv[1]


def say(report: WorkerReport) -> None:
    """Write a frame."""
    os.write(1, encode(report))


def load(command: Load) -> None:
    """Answer to `Load`."""
    match MODE:
        case "says what it was told":
            environ = {name: os.environ[name] for name in sorted(os.environ) if name.endswith("VISIBLE_DEVICES")}
            say(LoadFailed(f"{environ}, on the processor: {command.config.on_processor}"))
        case "says whether it is confined":
            say(LoadFailed(f"confined: {command.config.confine}"))
        case "says its system prompt":
            say(LoadFailed(f"system prompt: {command.config.system_prompt!r}"))
        case "loads when it may":
            model = Path(command.config.path)
            model.with_suffix(".begun").touch()
            pause = threading.Event()
            while not model.with_suffix(".go").exists():
                pause.wait(0.01)
            say(Ready(512))
        case "cannot load":
            sys.stderr.write("E gguf_init_from_reader: failed to read magic\nsomebody's secret prompt\n")
            sys.stderr.flush()
            say(LoadFailed("the model cannot be loaded"))
        case "says no end of things":
            say(LoadFailed("\x1b[31m\n" + "no " * 1_000_000))
        case "dies while loading":
            sys.stderr.write("ggml: unable to allocate buffer for somebody's secret prompt\n")
            sys.stderr.flush()
            os._exit(3)
        case "never loads":
            pass
        case "loads slowly":
            # Four seconds of computing, however many of those of others pass meanwhile.
            while time.process_time() < 4.0:
                pass
            say(Ready(512))
        case "stops while loading":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "starts too early":
            say(EngineStarted(RunId(1), 1))
        case "runs on cards":
            say(Ready(512, on_cards=True))
        case _:
            say(Ready(512))


def look() -> None:
    """Answer to `Look`."""
    match MODE:
        case "cannot load":
            say(LoadFailed("llama.cpp is not installed"))
        case "dies while loading":
            os._exit(3)
        case "is good":
            say(Ready(512))
        case _:
            # `sees CUDA0 Vulkan1`: a GPU of 24 GB each.
            say(Seen(tuple(Device(name, 24 * 10**9) for name in MODE.split()[1:])))


def run(command: RunEngine) -> None:
    """Answer to a run."""
    run = command.run
    match MODE:
        case "is good":
            say(EngineStarted(run, 1))
            say(EngineText(run, "yes", 1))
            say(EngineFinished(run, Outcome.STOP, 1))
            say(Idle(0))
        case "crashes":
            say(EngineStarted(run, 1))
            say(EngineText(run, "ye", 1))
            os.kill(os.getpid(), signal.SIGSEGV)
        case "says more than it counts":
            say(EngineStarted(run, 1))
            for _ in range(100):
                say(EngineText(run, "a" * 1000, 1))
        case "says nothing again and again":
            say(EngineStarted(run, 1))
            say(EngineText(run, "a", 1))
            say(EngineText(run, "", 1))
        case "reads beyond the end":
            say(EngineStarted(run, 1))
            say(EngineProgress(run, 2, 1))
        case "tells a part of a token":
            say(EngineStarted(run, 1))
            say(EngineText(run, "a", 1, b"\0\0\1"))
        case "floods":
            say(EngineStarted(run, 1))
            os.write(1, encode(EngineProgress(run, 1, 1)) * 5000)
            say(EngineFinished(run, Outcome.STOP, 0))
            say(Idle(0))
        case "gives a vector for a chat":
            say(EngineStarted(run, 1))
            say(EngineVector(run, 0, b"\0\0\x80?"))
        case "ends by a signal without a name":
            os.kill(os.getpid(), 40)
        case "sends no text":
            os.write(1, struct.pack(">IB", 9, 17) + b"\x81\xa4text\xa2\xff\xfe")
        case "sends a nest":
            os.write(1, struct.pack(">IB", 100_012, 18) + b"\x82\xa6number\x01\xa1x" + b"\x91" * 100_000 + b"\xc0")
        case "stops answering":
            say(EngineStarted(run, 1))
            os.kill(os.getpid(), signal.SIGSTOP)
        case "makes no progress" | "runs on cards":
            say(EngineStarted(run, 1))
        case "ignores cancels":
            say(EngineStarted(run, 1))
            threading.Thread(target=talk, args=(run, command.output_tokens_max), daemon=True).start()
        case "finishes what never started":
            say(EngineFinished(run, Outcome.STOP, 1))
        case "reports on an unknown run":
            say(EngineStarted(RunId(run + 1), 1))
        case "starts twice":
            say(EngineStarted(run, 1))
            say(EngineStarted(run, 1))
        case "counts down":
            say(EngineStarted(run, 1))
            say(EngineText(run, "a", 3))
            say(EngineText(run, "b", 2))
        case "exceeds the order":
            say(EngineStarted(run, 1))
            say(EngineText(run, "a", command.output_tokens_max + 1))
        case "exceeds the prompt":
            say(EngineStarted(run, command.prompt_tokens_max + 1))
        case "invents an outcome":
            say(EngineStarted(run, 1))
            say(EngineFinished(run, Outcome.UNPAID, 1))
        case "sends garbage":
            os.write(1, b"Segmentation fault (core dumped)\n")
        case "sends half a frame":
            os.write(1, struct.pack(">IB", 2**31, 33))
        case "leaks a slot":
            say(EngineStarted(run, 1))
            say(EngineFinished(run, Outcome.STOP, 0))
            say(Idle(2))


def talk(run: RunId, tokens: int) -> None:
    """Give a token every now and then, whatever happens."""
    pause = threading.Event()
    for token in range(1, tokens):
        say(EngineText(run, "a", token))
        pause.wait(0.05)


reader = FrameReader()
while data := os.read(0, 65536):
    for command in reader.feed(data):
        match command:
            case Load():
                load(command)
            case Look():
                look()
            case Ping():
                say(Pong(command.number))
            case RunEngine():
                run(command)
            case CancelEngine():
                pass
