"""The engine over somebody else's server: what it offers, what it counts, and what a bad server can and cannot do.

All servers here are doubles; test_contract.py has the suite over llama.cpp's real one.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from infernet.engines.contract import DescribesModels, Description, EngineState, EngineUnavailable
from infernet.engines.openai_engine import ApiKey, OpenAiConfig, OpenAiEngine, Patience
from protocol.errors import Refusal
from protocol.events import EngineFailed, EngineFinished, EngineStarted
from protocol.ids import RunId
from protocol.records import ChatMessage, EngineKind, JobRequest, Kind, Outcome
from tests.helpers_engine import chat
from tests.helpers_openai_servers import (
    ANSWER,
    KEY,
    PROMPT_TOKENS,
    Asked,
    OddServer,
    Reply,
    answer_once,
    chunk,
    is_probe,
    nim,
    ollama,
    piece,
    sglang,
    usage,
    vllm,
)
from tests.infernet.engines.conftest import Bench, running

pytestmark = pytest.mark.anyio

QUICK = Patience(look_interval_s=0.02, doubt_s=5.0, again_first_s=0.01)
IMPATIENT = replace(QUICK, first_s=0.4, next_s=0.4, counts_s=0.2)
GONE = "the engine broke down during the answer"


@asynccontextmanager
async def engine_on(server: OddServer, patience: Patience = QUICK, **config: Any) -> AsyncIterator[Bench]:
    """An engine over a server that runs."""
    async with server.running(), running(OpenAiEngine(OpenAiConfig(server.url, **config), patience)) as bench:
        yield bench


async def failure(bench: Bench) -> EngineFailed:
    """Do a run that must fail."""
    end = await bench.recorder.end_of(bench.start(Kind.CHAT, chat("hello")))
    assert isinstance(end, EngineFailed), end
    return end


# ---------------------------------------------------------------- what is offered


async def test_an_ollama_is_offered_with_the_context_of_its_loaded_model() -> None:
    async with engine_on(ollama(), slots=3, price_out_uusd=7) as bench:
        (offer,) = bench.engine.models()
    assert (offer.name, offer.context_tokens, offer.concurrency) == ("qwen2.5:7b", 4096, 3)
    assert (offer.kinds, offer.price_out_uusd, offer.fingerprint) == ((Kind.CHAT,), 7, bytes(32))


async def test_what_an_ollama_tells_of_its_weights_is_told_as_long_as_it_answers() -> None:
    async with engine_on(ollama()) as bench:
        engine = bench.engine
        assert isinstance(engine, DescribesModels)
        assert engine.described() == {"qwen2.5:7b": Description("Q4_K_M", EngineKind.OLLAMA)}
    assert engine.described() == {}


async def test_an_older_ollama_is_offered_with_the_context_of_its_model_file() -> None:
    async with engine_on(ollama(context_length=None)) as bench:
        assert bench.engine.models()[0].context_tokens == 8192


async def test_a_vllm_is_offered_for_chats_and_completions_with_its_own_context() -> None:
    async with engine_on(vllm()) as bench:
        (offer,) = bench.engine.models()
        text, end = await bench.do(Kind.COMPLETION, JobRequest(prompt="Once upon a time"))
    assert (offer.name, offer.context_tokens) == ("Qwen/Qwen2.5-7B-Instruct", 32768)
    assert offer.kinds == (Kind.CHAT, Kind.COMPLETION)
    assert (text, end.outcome, end.output_tokens) == ("there was", Outcome.LENGTH, 2)


@pytest.mark.parametrize("server", [sglang(), nim()], ids=["sglang", "nim"])
async def test_sglang_and_nim_answer_and_are_counted_at_the_end(server: OddServer) -> None:
    async with engine_on(server) as bench:
        text, end = await bench.do(Kind.CHAT, chat("hello"))
    assert (text, end.outcome, end.output_tokens) == ("".join(ANSWER), Outcome.STOP, 6)


async def test_a_path_of_this_machine_is_never_published() -> None:
    server = ollama().serves("/v1/models", {"data": [{"id": "/srv/private/Qwen2-7B.Q4.gguf"}]})
    async with engine_on(server) as bench:
        assert bench.model == "qwen2-7b.q4"
        await bench.do(Kind.CHAT, chat("hello"))
    assert server.asked_for("/v1/chat/completions")[-1].body["model"] == "/srv/private/Qwen2-7B.Q4.gguf"


async def test_of_several_models_those_that_are_named_and_answer_are_offered() -> None:
    server = ollama().serves("/v1/models", {"data": [{"id": "a:1"}, {"id": "b:2"}, {"id": "c:3"}]})

    async def page(asked: Asked, reply: Reply) -> None:
        if asked.body["model"] == "b:2":
            await reply.json({"error": {"message": "model requires more system memory"}}, 500)
        else:
            await answer_once(asked, reply)

    server.pages["/v1/chat/completions"] = page
    async with engine_on(server, models=("a:1", "b:2")) as bench:
        assert [offer.name for offer in bench.engine.models()] == ["a:1"]


@pytest.mark.parametrize(
    ("pages", "models", "told"),
    [
        ({}, (), "status 404"),
        ({"/v1/models": {"data": []}}, (), "lists no model"),
        ({"/v1/models": {"data": [{"id": "a"}, {"id": "b"}]}}, (), "lists 2 models: name those to serve"),
        ({"/v1/models": {"data": [{"id": "a"}]}}, ("b\x1b[2J",), "has no model b"),
        ({"/v1/models": {"data": [{"id": "a"}]}}, (), "/v1/chat/completions with status 404"),
        ({"/v1/models": {"data": "no"}}, (), "not the JSON"),
        ({"/v1/models": ["no"]}, (), "not the JSON"),
        ({"/v1/models": {"data": [{"id": "a"}]}, "/v1/chat/completions": {"choices": []}}, (), "how many tokens"),
        (
            {"/v1/models": {"data": [{"id": "a"}]}, "/v1/chat/completions": {"usage": usage(9, 1)}},
            (),
            "ended an answer before its end",
        ),
    ],
)
async def test_nothing_is_offered_that_does_not_answer(
    pages: dict[str, object], models: tuple[str, ...], told: str
) -> None:
    server = OddServer()
    for path, value in pages.items():
        server.serves(path, value)
    error = await why_not(server, models=models)
    assert told in error
    assert "\x1b" not in error
    assert "\n" not in error


async def why_not(server: OddServer, **config: Any) -> str:
    """What an engine says that does not start."""
    async with server.running():
        engine = OpenAiEngine(OpenAiConfig(server.url, **config), QUICK)
        try:
            await engine.run(lambda _event: None)
        except EngineUnavailable as error:
            assert engine.models() == ()
            return str(error)
    raise AssertionError("it ended without an error")


async def test_nobody_there_is_told_with_what_to_do() -> None:
    with pytest.raises(EngineUnavailable, match=r"nobody answers at http://127\.0\.0\.1:9: start it, or name"):
        await OpenAiEngine(OpenAiConfig("http://127.0.0.1:9"), QUICK).run(lambda _event: None)


async def test_a_wrong_key_is_told_and_the_key_is_shown_to_nobody(caplog: pytest.LogCaptureFixture) -> None:
    server = OddServer().serves("/v1/models", {"error": {"message": f"Invalid API Key {KEY}"}}, 401)
    key = ApiKey(KEY)
    with caplog.at_level(logging.DEBUG):
        error = await why_not(server, key=key)
    assert "--engine-key-file" in error
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in caplog.text + error + repr(key) + repr(OpenAiConfig(key=key))


async def test_a_server_that_was_only_found_is_not_shown_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ollama().running() as server:
        monkeypatch.setattr("infernet.engines.openai_engine.usual_urls", lambda: (server.url,))
        async with running(OpenAiEngine(OpenAiConfig(key=ApiKey(KEY)), QUICK)) as bench:
            await bench.do(Kind.CHAT, chat("hello"))
    assert not any("authorization" in asked.headers for asked in server.asked)


async def test_a_redirect_takes_the_key_nowhere() -> None:
    async def page(_asked: Asked, reply: Reply) -> None:
        await reply.begin(307, location=f"{elsewhere.url}/v1/models")
        await reply.end()

    elsewhere = ollama()
    async with elsewhere.running():
        assert "status 307" in await why_not(OddServer({"/v1/models": page}), key=ApiKey(KEY))
    assert elsewhere.asked == []


# ---------------------------------------------------------------- what is asked and counted


async def test_ollamas_pieces_are_counted_and_its_final_count_holds() -> None:
    async with engine_on(ollama()) as bench:
        text, end = await bench.do(Kind.CHAT, chat("hello"))
        events = bench.recorder.of(end.run)
    assert text == "".join(ANSWER)
    assert events[0] == EngineStarted(RunId(1), PROMPT_TOKENS)
    assert [event.output_tokens for event in bench.recorder.texts(1)] == [1, 2, 3, 4, 5, 6]
    # Seven with the token that ended it.
    assert end == EngineFinished(RunId(1), Outcome.STOP, 6)


async def test_vllms_counts_are_taken_as_they_come() -> None:
    said = (
        piece("Hel", usage=usage(PROMPT_TOKENS, 2)),
        piece("lo", usage=usage(PROMPT_TOKENS, 5)),
        piece("", "length", usage=usage(PROMPT_TOKENS, 8)),
        "[DONE]",
    )
    async with engine_on(vllm(*said)) as bench:
        _, end = await bench.do(Kind.CHAT, chat("hello"), tokens=8)
    assert [event.output_tokens for event in bench.recorder.texts(1)] == [2, 5]
    assert (end.outcome, end.output_tokens) == (Outcome.LENGTH, 8)


async def test_where_no_count_comes_the_pieces_are_what_is_counted() -> None:
    async with engine_on(ollama(*map(piece, ANSWER), piece("", "stop"), "[DONE]")) as bench:
        _, end = await bench.do(Kind.CHAT, chat("hello"))
    assert end.output_tokens == len(ANSWER)


@pytest.mark.parametrize("count", [-1, 10**30, "many", None])
async def test_nonsense_in_the_place_of_the_final_count_is_none(count: Any) -> None:
    last = chunk(usage={"prompt_tokens": 9, "completion_tokens": count})
    async with engine_on(ollama(*map(piece, ANSWER), piece("", "stop"), last, "[DONE]")) as bench:
        _, end = await bench.do(Kind.CHAT, chat("hello"))
    assert end.output_tokens == len(ANSWER)


async def test_a_vllm_counts_the_prompt_before_it_reads_it() -> None:
    server = vllm()
    async with engine_on(server) as bench:
        before = len(server.asked_for("/v1/chat/completions"))
        assert (await bench.refusal(Kind.CHAT, chat("hello"), prompt_tokens_max=20)).code is Refusal.TOO_LARGE
        assert len(server.asked_for("/v1/chat/completions")) == before
        await bench.do(Kind.CHAT, chat("hello"))
    assert server.asked_for("/tokenize")[-1].body == {
        "model": "Qwen/Qwen2.5-7B-Instruct",
        "messages": [{"role": "user", "content": "hello"}],
        "add_generation_prompt": True,
    }
    body = server.asked_for("/v1/chat/completions")[-1].body
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert (body["max_tokens"], body["top_k"], body["temperature"]) == (16, -1, 0)
    assert "stop" not in body
    assert body["cache_salt"]


async def test_a_count_that_does_not_match_is_not_believed() -> None:
    server = vllm().serves("/tokenize", {"count": PROMPT_TOKENS - 3})
    async with engine_on(server) as bench:
        before = len(server.asked_for("/v1/chat/completions"))
        _, end = await bench.do(Kind.CHAT, chat("hello"))
    assert bench.recorder.of(end.run)[0] == EngineStarted(end.run, PROMPT_TOKENS)
    assert [asked.body["stream"] for asked in server.asked_for("/v1/chat/completions")[before:]] == [False, True]


async def test_an_answer_ends_where_the_context_does() -> None:
    async with engine_on(server := ollama(context_length=PROMPT_TOKENS + 50)) as bench:
        run = bench.start(Kind.CHAT, chat("hello"), tokens=1000)
        await bench.recorder.end_of(run)
    assert server.asked_for("/v1/chat/completions")[-1].body["max_tokens"] == 50


async def test_thoughts_are_shown_where_they_were_thought() -> None:
    def thought(text: str) -> dict[str, Any]:
        return chunk(choices=[{"index": 0, "delta": {"role": "assistant", "content": "", "reasoning": text}}])

    said = (thought("Let me "), thought("see."), piece("Yes."), piece("", "stop"), chunk(usage=usage(9, 4)), "[DONE]")
    async with engine_on(ollama(*said)) as bench:
        text, end = await bench.do(Kind.CHAT, chat("hello"))
    assert (text, end.output_tokens) == ("<think>Let me see.</think>Yes.", 3)


async def test_a_stop_string_is_found_here_and_the_server_is_left() -> None:
    hung_up = trio.Event()

    async def page(asked: Asked, reply: Reply) -> None:
        if is_probe(asked):
            await answer_once(asked, reply)
            return
        await reply.begin()
        for text in ("one, tw", "o, thr", "ee"):
            await reply.event(piece(text))
        await reply.until_hung_up()
        hung_up.set()

    server = ollama()
    server.pages["/v1/chat/completions"] = page
    async with engine_on(server) as bench:
        text, end = await bench.do(Kind.CHAT, chat("count", stop=("two",)))
        with trio.fail_after(5):
            await hung_up.wait()
    assert (text, end.outcome, end.output_tokens) == ("one, ", Outcome.STOP, 2)


async def test_a_cancel_hangs_up_and_counts_what_came() -> None:
    hung_up = trio.Event()

    async def page(asked: Asked, reply: Reply) -> None:
        if is_probe(asked):
            await answer_once(asked, reply)
            return
        await reply.begin()
        await reply.event(piece("one"))
        await reply.event(piece("two"))
        await reply.until_hung_up()
        hung_up.set()

    server = ollama()
    server.pages["/v1/chat/completions"] = page
    async with engine_on(server, Patience()) as bench:
        run = bench.start(Kind.CHAT, chat("hello"))
        await bench.recorder.until(lambda: len(bench.recorder.texts(run)) == 2)
        bench.engine.cancel(RunId(run))
        assert await bench.recorder.end_of(run) == EngineFinished(RunId(run), Outcome.CANCELLED, 2)
        with trio.fail_after(5):
            await hung_up.wait()
        assert bench.engine.statistics().runs_active == 0


async def test_a_run_that_holds_is_read_when_it_may_and_not_before() -> None:
    server = vllm()
    async with engine_on(server) as bench:
        order = bench.order(Kind.CHAT, chat("hello"), holds=True)
        bench.engine.start(order)
        await bench.recorder.until(lambda: bool(bench.recorder.of(order.run)))
        await trio.testing.wait_all_tasks_blocked()
        assert all(map(is_probe, server.asked_for("/v1/chat/completions")))
        bench.engine.proceed(order.run)
        end = await bench.recorder.end_of(order.run)
    assert isinstance(end, EngineFinished)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (JobRequest(messages=(ChatMessage("user", "x"),), continuation="so far"), Refusal.UNSUPPORTED),
        (JobRequest(messages=(ChatMessage("user", "\ud800"),)), Refusal.BAD_REQUEST),
        (JobRequest(messages=(ChatMessage("tool", "x"),)), Refusal.BAD_REQUEST),
        (JobRequest(), Refusal.BAD_REQUEST),
        (chat("x" * 9000), Refusal.CONTEXT_EXCEEDED),
    ],
)
async def test_what_would_be_done_otherwise_than_asked_is_refused(request_: JobRequest, code: Refusal) -> None:
    server = ollama()
    async with engine_on(server) as bench:
        before = len(server.asked)
        assert (await bench.refusal(Kind.CHAT, request_)).code is code
        assert len(server.asked) == before


async def test_each_model_has_its_own_slots() -> None:
    server = ollama().serves("/v1/models", {"data": [{"id": "a"}, {"id": "b"}]})

    async def page(asked: Asked, reply: Reply) -> None:
        if not is_probe(asked):
            await reply.begin()
            await reply.event(piece("one"))
            await reply.until_hung_up()
        else:
            await answer_once(asked, reply)

    server.pages["/v1/chat/completions"] = page
    async with engine_on(server, Patience(), models=("a", "b"), slots=1) as bench:
        run = bench.start(Kind.CHAT, chat("hello"), model="a")
        await bench.recorder.until(lambda: bool(bench.recorder.texts(run)))
        assert (await bench.refusal(Kind.CHAT, chat("hello"), model="a")).code is Refusal.BUSY
        other = bench.start(Kind.CHAT, chat("hello"), model="b")
        await bench.recorder.until(lambda: bool(bench.recorder.texts(other)))


# ---------------------------------------------------------------- servers that do it wrong


def after_it_was_probed(page: Any) -> OddServer:
    """An Ollama whose streams do what a test says."""

    async def both(asked: Asked, reply: Reply) -> None:
        await (answer_once if is_probe(asked) else page)(asked, reply)

    server = ollama()
    server.pages["/v1/chat/completions"] = both
    return server


SECRET = "the prompt, quoted"
WRONG = {
    "usage above the order": [piece("a"), piece("", "stop"), chunk(usage=usage(9, 5000)), "[DONE]"],
    "usage below the pieces": [piece("a"), piece("b"), piece("c"), piece("", "stop"), chunk(usage=usage(9, 1))],
    "usage a little above the order": [piece("a" * 300), piece("", "stop"), chunk(usage=usage(9, 18)), "[DONE]"],
    "more pieces than ordered": [*(piece("a") for _ in range(17)), piece("", "stop"), "[DONE]"],
    "not JSON": [piece("a"), SECRET],
    "not an object": [piece("a"), [1]],
    "a type that is wrong": [{"choices": [{"delta": {"content": 7}}]}],
    "a lone surrogate": ['{"choices":[{"delta":{"content":"\\ud800"}}]}'],
    "deep": ["[" * 100_000],
    "an error in the middle": [piece("a"), {"error": {"message": SECRET}}, piece("", "stop"), "[DONE]"],
    "an end before the end": [piece("a")],
    "only the mark of the end": ["[DONE]"],
    "an unknown end": [piece("a"), piece("", "content_filter"), "[DONE]"],
    "aborted": [piece("a"), piece("", "abort")],
}


@pytest.mark.parametrize("said", WRONG.values(), ids=WRONG)
async def test_a_server_that_answers_nonsense_costs_the_run_and_no_more(said: list[object]) -> None:
    async with engine_on(ollama(*said)) as bench:
        end = await failure(bench)
        assert (end.code, end.text) == (Refusal.ENGINE_FAILED, GONE)
        # It still says a token when it is asked for one, so it is still offered.
        assert await failure(bench) == EngineFailed(RunId(2), end.code, end.text)
        assert bench.engine.statistics().runs_active == 0


async def test_more_tokens_than_the_text_can_have_taken_cost_the_run() -> None:
    async with engine_on(ollama(piece("a"), piece("", "stop"), chunk(usage=usage(9, 259)), "[DONE]")) as bench:
        end = await bench.recorder.end_of(bench.start(Kind.CHAT, chat("hello"), tokens=1000))
    assert isinstance(end, EngineFailed)


async def test_a_line_without_end_is_cut_off() -> None:
    sent = 0

    async def page(_asked: Asked, reply: Reply) -> None:
        nonlocal sent
        await reply.begin()
        await reply.send(b"data: ")
        while True:
            await reply.send(b"x" * 65536)
            sent += 65536

    async with engine_on(after_it_was_probed(page), Patience()) as bench:
        assert (await failure(bench)).code is Refusal.ENGINE_FAILED
    assert sent < 16 * 1024 * 1024


@pytest.mark.parametrize("noise", [b": ping\n\n", b'data: {"choices":[]}\n\n', b"\n"])
async def test_noise_is_no_progress(noise: bytes) -> None:
    async def page(_asked: Asked, reply: Reply) -> None:
        await reply.begin()
        while True:
            await reply.send(noise)
            await trio.sleep(0.01)

    async with engine_on(after_it_was_probed(page), IMPATIENT) as bench:
        assert (await failure(bench)).code is Refusal.ENGINE_FAILED


@pytest.mark.parametrize("after", [[], [piece("a")]], ids=["at once", "in the middle"])
async def test_a_server_that_hangs_is_left(after: list[object]) -> None:
    async def page(_asked: Asked, reply: Reply) -> None:
        if after:
            await reply.begin()
        for event in after:
            await reply.event(event)
        await reply.until_hung_up()

    async with engine_on(after_it_was_probed(page), IMPATIENT) as bench:
        assert (await failure(bench)).code is Refusal.ENGINE_FAILED


async def test_an_answer_whose_counts_never_come_is_whole_all_the_same() -> None:
    async def page(_asked: Asked, reply: Reply) -> None:
        await reply.begin()
        await reply.event(piece("all of it"))
        await reply.event(piece("", "stop"))
        await reply.until_hung_up()

    async with engine_on(after_it_was_probed(page), IMPATIENT) as bench:
        text, end = await bench.do(Kind.CHAT, chat("hello"))
    assert (text, end.outcome, end.output_tokens) == ("all of it", Outcome.STOP, 1)


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (500, {"message": SECRET}, Refusal.ENGINE_FAILED),
        (502, None, Refusal.ENGINE_FAILED),
        (404, {"message": f'model "{SECRET}" not found'}, Refusal.ENGINE_FAILED),
    ],
)
async def test_an_error_instead_of_an_answer_is_not_quoted(status: int, error: object, code: Refusal) -> None:
    async def page(_asked: Asked, reply: Reply) -> None:
        await reply.json({"error": error}, status)

    async with engine_on(after_it_was_probed(page)) as bench:
        end = await failure(bench)
    assert (end.code, end.text) == (code, GONE)


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (400, {"type": "exceed_context_size_error", "message": SECRET}, Refusal.CONTEXT_EXCEEDED),
        (400, {"message": "This model's maximum context length is 32768 tokens"}, Refusal.CONTEXT_EXCEEDED),
        (400, {"message": SECRET}, Refusal.BAD_REQUEST),
        (429, {"message": SECRET}, Refusal.BUSY),
        (503, SECRET, Refusal.BUSY),
    ],
)
async def test_a_refusal_before_the_start_is_told_as_what_it_is(status: int, error: object, code: Refusal) -> None:
    server = ollama()
    async with engine_on(server) as bench:
        server.serves("/v1/chat/completions", {"error": error}, status)
        end = await bench.refusal(Kind.CHAT, chat("hello"))
        assert end.code is code
        assert SECRET not in end.text


# ---------------------------------------------------------------- going away and coming back


async def test_a_server_that_goes_is_not_offered_and_is_again_when_it_is_back() -> None:
    server = ollama()
    async with server.running():
        engine = OpenAiEngine(OpenAiConfig(server.url), QUICK)
        async with running(engine) as bench:
            server.pages["/v1/models"] = _broken
            await bench.until_state(EngineState.WAITING)
            assert engine.models() == ()
            assert (
                await bench.refusal(Kind.CHAT, chat("hello"), model="qwen2.5:7b")
            ).code is Refusal.ENGINE_UNAVAILABLE
            server.pages |= ollama().pages
            await bench.until_state(EngineState.READY)
            assert bench.model == "qwen2.5:7b"
            await bench.do(Kind.CHAT, chat("hello"))
    assert bench.changes == [1, 0, 1, 0]
    assert engine.statistics().restarts >= 1


async def _broken(_asked: Asked, reply: Reply) -> None:
    await reply.json({"error": "starting"}, 503)


async def test_a_server_that_lists_models_and_answers_no_more_is_found_out_by_the_run_that_failed() -> None:
    server = ollama()
    async with engine_on(server) as bench:
        server.serves("/v1/chat/completions", {"error": "out of memory"}, 500)
        assert (await failure(bench)).code is Refusal.ENGINE_FAILED
        await bench.until_state(EngineState.WAITING)
        assert bench.engine.models() == ()
        assert "status 500" in bench.engine.statistics().last_error


async def test_a_server_that_is_busy_answering_is_not_called_gone() -> None:
    go_on = trio.Event()

    async def page(_asked: Asked, reply: Reply) -> None:
        await reply.begin()
        while not go_on.is_set():
            await reply.event(piece("word "))
            await trio.sleep(0.005)
        await reply.event(piece("", "stop"))
        await reply.end()

    server = after_it_was_probed(page)
    async with engine_on(server) as bench:
        run = bench.start(Kind.CHAT, chat("hello"), tokens=100_000)
        await bench.recorder.until(lambda: len(bench.recorder.texts(run)) > 2)
        server.pages["/v1/models"] = _broken
        await bench.recorder.until(lambda: len(bench.recorder.texts(run)) > 40)
        assert bench.engine.statistics().state is EngineState.READY
        go_on.set()
        assert isinstance(await bench.recorder.end_of(run), EngineFinished)


async def test_the_usual_ports_are_tried_when_no_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ollama()
    async with server.running():
        urls = ("http://127.0.0.1:9", server.url)
        monkeypatch.setattr("infernet.engines.openai_engine.usual_urls", lambda: urls)
        async with running(OpenAiEngine(OpenAiConfig(), QUICK)) as bench:
            assert bench.model == "qwen2.5:7b"
        monkeypatch.setattr("infernet.engines.openai_engine.usual_urls", lambda: urls[:1])
        with pytest.raises(EngineUnavailable, match="no OpenAI-compatible server answers on the usual ports"):
            await OpenAiEngine(OpenAiConfig(), QUICK).run(lambda _event: None)
        monkeypatch.setattr("infernet.engines.openai_engine.usual_urls", lambda: urls)
        with pytest.raises(EngineUnavailable, match=r"has all models of --engine-models"):
            await OpenAiEngine(OpenAiConfig(models=("other",)), QUICK).run(lambda _event: None)
