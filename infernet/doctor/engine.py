"""Checks that ask the engine a real question: the running node's over its port, else one that is started for it."""

from __future__ import annotations

import dataclasses
from typing import Final

import trio

from infernet import identity
from infernet.answers import AskOptions
from infernet.cli.running_node import loading
from infernet.config import Config, default_name
from infernet.doctor.contract import (
    Check,
    Finding,
    Part,
    Situation,
    fail,
    ok,
    own_address,
    part_of,
    skip,
    text_of,
    warn,
)
from infernet.engines.contract import EngineConfig
from infernet.engines.frames import Load, LoadFailed, Ready
from infernet.engines.process import WorkerProcess, open_worker, worker_command
from infernet.host.files import reason_of
from infernet.own_addresses import peer_of
from infernet.transport.contract import TransportError
from protocol.effects import JobDone, JobFailed, JobText, RunEngine
from protocol.errors import LocalProtocolError, Refusal
from protocol.events import EngineFailed, EngineFinished, EngineText
from protocol.ids import RunId
from protocol.records import ChatMessage, JobRequest, Kind, Role, Sampling

LOAD_DEADLINE_S: Final = 180.0
ANSWER_DEADLINE_S: Final = 60.0
_TOKENS: Final = 8
_CONTEXT_TOKENS: Final = 512
_MESSAGES: Final = (ChatMessage("user", "What is the capital of France?"),)
_SAMPLING: Final = Sampling(
    temperature_milli=0,
    top_p_milli=1000,
    min_p_milli=0,
    top_k=0,
    presence_penalty_milli=0,
    frequency_penalty_milli=0,
    repetition_penalty_milli=1000,
    seed=0,
)
# The running node may turn a stranger away, and be well.
_POLICY: Final = (
    *(Refusal.BUSY, Refusal.DRAINING, Refusal.NOT_FREE, Refusal.PRICE, Refusal.LEASE),
    *(Refusal.RATE_LIMITED, Refusal.NOT_ALLOWED, Refusal.NO_PROVIDER),
)


async def _loads(situation: Situation) -> Finding:
    if situation.status is not None:
        engine = part_of(situation.status, "engine")
        state, error = text_of(engine, "state"), text_of(engine, "last_error")
        if state == "ready":
            return ok("the running node's engine is ready")
        if words := loading(situation.status):
            return warn(f"the running node loads its model ({words})", "wait: `infernet status` shows how far it is")
        fix = f"see {situation.here.log_file}, then restart the node: `infernet stop`, `infernet start`"
        return fail(f"the running node's engine is {state or 'missing'}" + (f" ({error})" if error else ""), fix)
    if situation.pid is not None:
        return skip("the running node does not say")
    if situation.config.engine == "cluster":
        return skip("a cluster is served by a running node alone: `infernet start`, then `infernet cluster`")
    assert situation.model_file is not None
    config = EngineConfig(
        name="doctor",
        path=str(situation.model_file),
        context_tokens=_CONTEXT_TOKENS,
        slots=1,
        threads=situation.config.threads,
        confine=situation.config.confine,
    )
    try:
        async with open_worker(worker_command()) as worker:
            return await _tried(worker, config, situation)
    except OSError as error:
        return fail(
            f"the engine process cannot be started ({reason_of(error)})",
            "install infernet again: `pip install --force-reinstall 'infernet[llama]'`",
        )


async def _tried(worker: WorkerProcess, config: EngineConfig, situation: Situation) -> Finding:
    """Load the model in a process of its own, and have it say something. Nothing of it is kept."""
    worker.post(Load(config, worker.directory))
    loaded = await worker.receive()
    if not isinstance(loaded, Ready):
        why = loaded.text if isinstance(loaded, LoadFailed) else await worker.why_gone()
        return fail(f"the model does not load: {why}", "serve another one (`infernet config set --model FILE`)")
    request = JobRequest(messages=_MESSAGES)
    worker.post(RunEngine(RunId(1), Kind.CHAT, config.name, request, _SAMPLING, _CONTEXT_TOKENS, _TOKENS))
    situation.answer = fail("the engine gave no answer", "run `infernet doctor` again with nothing else running")
    text = ""
    with trio.move_on_after(ANSWER_DEADLINE_S):
        while (report := await worker.receive()) is not None:
            if isinstance(report, EngineText):
                text += report.text
            if isinstance(report, EngineFinished):
                situation.answer = _judged(report.output_tokens, text)
                break
            if isinstance(report, EngineFailed):
                situation.answer = fail(f"the engine refused the question: {report.text}", _RESTART)
                break
    return ok("the model loads")


_RESTART: Final = "see the log, and serve another model if it goes on (`infernet config set --model FILE`)"


def _judged(output_tokens: int, text: str) -> Finding:
    if output_tokens < 1 or not text.strip():
        return fail("the engine answered a question with nothing", _RESTART)
    return ok(f"the engine answered a question with {output_tokens} tokens")


async def _answers(situation: Situation) -> Finding:
    if situation.status is None:
        return situation.answer or skip("no engine was started")
    if loading(situation.status) and not situation.status.get("models"):
        return skip("not looked at: the running node loads its model")
    address = own_address(situation.status)
    if address is None:
        return skip("the running node listens on no port; `infernet stop`, then ask the doctor again")
    if not situation.listens:
        return skip("not looked at: port.listen comes first")
    try:
        return await _asked(situation.config, address)
    except (TransportError, LocalProtocolError) as error:
        return fail(f"the running node cannot be asked: {error}", "restart it: `infernet stop`, then `infernet start`")


async def _asked(config: Config, address: str) -> Finding:
    """Ask the running node as a stranger of this machine does, with a key that is used once."""
    # Loaded here, because it brings the whole node along.
    from infernet.assembly import client_node

    key = identity.generate()
    config = dataclasses.replace(
        config,
        name=default_name(Role.CLIENT, key.node),
        coordinator_url=None,
        coordinator_key=None,
        dht=False,
        mdns=False,
    )
    options = AskOptions(messages=_MESSAGES, provider=peer_of(address), max_tokens=_TOKENS, temperature=0.0)
    async with client_node(config, key, peers=[address]) as node, node.ask(options) as events:
        text = ""
        async for event in events:
            if isinstance(event, JobText):
                text += event.text
            if isinstance(event, JobDone):
                return _judged(sum(part.output_tokens for part in event.served), text)
            if isinstance(event, JobFailed):
                return _refused(event)
    return fail("the running node gave no answer", _RESTART)


def _refused(event: JobFailed) -> Finding:
    if event.code in _POLICY:
        return skip(f"the running node has its reasons not to answer this question: {event.text}")
    return fail(f"the running node refused a question: {event.text}", _RESTART)


CHECKS: Final = (
    Check(
        id="engine.loads",
        title="Model loads",
        looks="Loads the model in a process of its own, with a small context; where a node runs, asks that one "
        "whether its engine is ready.",
        remedy="The line says what the engine said. Serve another model, or see the log.",
        examine=_loads,
        needs=("model.verified", "libs.engine", "ipc.answers"),
        deadline_s=LOAD_DEADLINE_S,
        part=Part.ENGINE,
    ),
    Check(
        id="engine.answers",
        title="Engine answers a question",
        looks=f"Asks a real question and wants up to {_TOKENS} tokens. A running node is asked over its own port by a "
        "key that is used once, and notes that in its log like any other question; if it answers for money only, this "
        "is skipped.",
        remedy="See the log, and serve another model if it goes on.",
        examine=_answers,
        needs=("engine.loads",),
        after=("port.listen",),
        deadline_s=ANSWER_DEADLINE_S,
        part=Part.ENGINE,
    ),
)
