"""Which server it is, how its models are called in public, and what they can be asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infernet.engines.openai_engine import OpenAiConfig, OpenAiEngine
from infernet.engines.openai_http import ApiKey, Server, ServerBroken, ServerRefused
from infernet.engines.openai_servers import (
    Found,
    chosen,
    identify,
    look_around,
    ollama_elsewhere,
    probe,
    public_name,
    usual_urls,
)
from infernet.engines.openai_shapes import Dialect, ListedModel
from protocol import constants as c
from protocol.errors import Refusal
from protocol.events import EngineFailed
from protocol.records import JobRequest, Kind
from tests.helpers_openai_servers import KEY, OddServer, llama_server, nim, ollama, sglang, talks, vllm
from tests.infernet.engines.conftest import running

pytestmark = pytest.mark.anyio


def lm_studio() -> OddServer:
    """A double of LM Studio with a model that is loaded and one that is not."""
    rows = [
        {
            "id": "granite-4-micro",
            "type": "llm",
            "state": "loaded",
            "loaded_context_length": 8192,
            "quantization": "4bit",
        },
        {"id": "qwen2-vl-7b", "type": "vlm", "state": "not-loaded", "max_context_length": 32768},
    ]
    server = OddServer()
    server.serves("/v1/models", {"data": [{"id": row["id"], "owned_by": "organization_owner"} for row in rows]})
    server.serves("/api/v0/models", {"object": "list", "data": rows})
    server.pages["/v1/chat/completions"] = talks()
    return server


def plain(**models: object) -> OddServer:
    """A server that has nothing but OpenAI's own pages."""
    server = OddServer().serves("/v1/models", {"data": [{"id": "m"} | models]})
    server.pages["/v1/chat/completions"] = talks()
    return server


@pytest.mark.parametrize(
    ("server", "dialect"),
    [
        (ollama(), Dialect.OLLAMA),
        (vllm(), Dialect.VLLM),
        (lm_studio(), Dialect.LM_STUDIO),
        (sglang(), Dialect.SGLANG),
        (plain(owned_by="llamacpp"), Dialect.LLAMA),
        (nim(), Dialect.OTHER),
        (nim().serves("/version", {"version": "0.9"}), Dialect.VLLM),
        (plain().serves("/props", {"default_generation_settings": {"n_ctx": 512}}), Dialect.LLAMA),
        (plain(owned_by=None), Dialect.OTHER),
        (plain(owned_by=["?"]).serves("/api/version", ["?"]), Dialect.OTHER),
    ],
    ids=["ollama", "vllm", "lm-studio", "sglang", "llama", "nim", "nim-of-vllm", "llama-by-its-page", "other", "odd"],
)
async def test_each_is_known_by_its_pages(server: OddServer, dialect: Dialect) -> None:
    async with server.running(), Server(server.url) as client:
        assert (await identify(client)).dialect is dialect


@pytest.mark.parametrize(
    ("server", "context_tokens", "kinds"),
    [(sglang(), 40960, (Kind.CHAT, Kind.COMPLETION)), (nim(), 131072, (Kind.CHAT,))],
    ids=["sglang", "nim"],
)
async def test_sglang_and_nim_say_their_context_and_count_by_being_asked(
    server: OddServer, context_tokens: int, kinds: tuple[Kind, ...]
) -> None:
    async with server.running(), Server(server.url) as client:
        found = await identify(client)
        served = await probe(client, found.dialect, found.models[0])
    assert (served.context_tokens, served.kinds, served.counts_first) == (context_tokens, kinds, False)


async def test_nim_is_waited_for_while_it_loads() -> None:
    async with nim(is_ready=False).running() as server, Server(server.url) as client:
        with pytest.raises(ServerBroken, match=r"still loading its model \(as /v1/health/ready says\): wait for it"):
            await identify(client)
    # It lists what it will have before it has it.
    listed = nim().serves("/v1/health/ready", {"object": "health.response"}, 503)
    async with listed.running() as server, Server(server.url) as client:
        with pytest.raises(ServerBroken, match="still loading"):
            await identify(client)


@pytest.mark.parametrize("status", [404, 500, 401])
async def test_a_server_without_that_page_is_not_waited_for(status: int) -> None:
    server = plain().serves("/v1/health/ready", {}, status)
    async with server.running(), Server(server.url) as client:
        assert (await identify(client)).dialect is Dialect.OTHER
    refuses = OddServer().serves("/v1/models", {}, 503).serves("/v1/health/ready", {}, status)
    async with refuses.running(), Server(refuses.url) as client:
        with pytest.raises(ServerRefused):
            await identify(client)
    assert [asked.path for asked in refuses.asked] == ["/v1/models", "/v1/health/ready"]


async def test_a_model_of_lm_studio_has_the_context_that_it_was_loaded_with() -> None:
    async with lm_studio().running() as server, Server(server.url) as client:
        found = await identify(client)
        served = [await probe(client, found.dialect, model) for model in found.models]
    assert [(one.context_tokens, one.kinds, one.counts_first, one.quantisation) for one in served] == [
        (8192, (Kind.CHAT,), False, "4bit"),
        (None, (Kind.CHAT,), False, ""),
    ]


@pytest.mark.parametrize(
    "details", [None, "Q4_K_M", ["Q4"], {}, {"quantization_level": 4}, {"quantization_level": None}]
)
async def test_an_ollama_that_does_not_say_how_its_weights_are_quantised_is_served(details: object) -> None:
    odd = ollama().serves("/api/ps", {"models": [{"name": "qwen2.5:7b", "context_length": 64, "details": details}]})
    async with odd.running() as server, Server(server.url) as client:
        found = await identify(client)
        served = await probe(client, found.dialect, found.models[0])
    assert (served.context_tokens, served.quantisation) == (64, "")


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("qwen2.5:7b", "qwen2.5:7b"),
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("/srv/private/Llama-3.Q4_K_M.gguf", "llama-3.q4_k_m"),
        ("C:\\Users\\alice\\m.gguf", "m"),
        ("~/models/thing", "thing"),
        ("../x/y", "y"),
        (" /srv/private/m.gguf", "m"),
        ("\u200b/srv/private/m", "m"),
        ("/srv/private/m.gguf\n", "m"),
        ("models/a.gguf", "a"),
        ("\x1b[31mred\n", "red"),
        ("\x00", ""),
        ("/", ""),
    ],
)
def test_a_name_is_public_and_a_path_is_not(name: str, public: str) -> None:
    assert public_name(name) == public


@given(st.text(max_size=300))
def test_any_name_becomes_one_short_line(name: str) -> None:
    public = public_name(name)
    assert len(public) <= c.MODEL_NAME_CHARACTERS_MAX
    assert public.isprintable() or not public.isascii()
    assert not public.startswith("/")


def test_only_this_machine_is_searched() -> None:
    assert all(url.startswith("http://127.0.0.1:") for url in usual_urls({}))
    for text in (
        "gpu.example",
        "https://gpu.example/",
        "10.0.0.7:11434",
        "http://me:secret@gpu.example:1",
        "nonsense://x",
    ):
        assert usual_urls({"OLLAMA_HOST": text}) == usual_urls({})


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        (":1234", "http://127.0.0.1:1234"),
        ("127.0.0.1:4000", "http://127.0.0.1:4000"),
        ("http://localhost", "http://localhost:80"),
        ("[::]:5000", "http://[::1]:5000"),
        ("::1", "http://[::1]:11434"),
        ("  '127.0.0.1' ", "http://127.0.0.1:11434"),
        ("", "http://127.0.0.1:11434"),
        ("x:99999", "http://127.0.0.1:11434"),
        ("\x1b[2J", "http://127.0.0.1:11434"),
    ],
)
def test_ollama_is_looked_for_where_its_own_programs_look(text: str, url: str) -> None:
    assert usual_urls({"OLLAMA_HOST": text})[0] == url
    assert ollama_elsewhere({"OLLAMA_HOST": text}) is None


def test_ollama_on_another_machine_is_named_without_its_login() -> None:
    assert ollama_elsewhere({"OLLAMA_HOST": "http://me:secret@gpu.example:1"}) == "http://gpu.example:1"
    assert ollama_elsewhere({"OLLAMA_HOST": "https://gpu.example"}) == "https://gpu.example:443"
    assert ollama_elsewhere({}) is None


async def test_all_that_answer_are_found_and_those_that_do_not_say_why() -> None:
    async with ollama().running() as one, OddServer().running() as empty:
        found, nobody, other = await look_around([one.url, "http://127.0.0.1:9", empty.url])
    assert isinstance(found, Found)
    assert found.models[0].id == "qwen2.5:7b"
    assert isinstance(nobody, tuple)
    assert nobody[0] == "http://127.0.0.1:9"
    assert isinstance(other, tuple)
    assert isinstance(other[1], ServerRefused)


def test_models_are_chosen_by_either_name_and_once() -> None:
    models = (ListedModel("/m/A.gguf"), ListedModel("b"))
    found = Found("http://127.0.0.1:9", Dialect.OTHER, models)
    assert chosen(found, ["b", "a", "/m/A.gguf"]) == [models[1], models[0]]
    with pytest.raises(ServerBroken, match="has no model c"):
        chosen(found, ["a", "c"])


def test_no_more_models_are_chosen_than_a_heartbeat_holds() -> None:
    models = tuple(ListedModel(f"m{number}") for number in range(c.HEARTBEAT_MODELS_MAX + 1))
    with pytest.raises(ServerBroken, match="name fewer with --engine-models"):
        chosen(Found("http://127.0.0.1:9", Dialect.OTHER, models), [model.id for model in models])


# ---------------------------------------------------------------- the real thing


@pytest.mark.model
@pytest.mark.slow
async def test_llamas_own_server_is_known_counts_first_and_dies_in_the_middle(starter_model_path: Path) -> None:
    with llama_server(starter_model_path, 256, 2) as (url, process):
        async with Server(url, ApiKey(KEY)) as client:
            found = await identify(client)
            served = await probe(client, found.dialect, found.models[0])
        assert (found.dialect, served.name, served.context_tokens) == (Dialect.LLAMA, "smol-on-a-server", 256)
        assert served.counts_first
        async with Server(url, ApiKey("wrong")) as client:
            with pytest.raises(ServerRefused):
                await identify(client)
        async with running(OpenAiEngine(OpenAiConfig(url, key=ApiKey(KEY)))) as bench:
            run = bench.start(Kind.COMPLETION, JobRequest(prompt="Once upon a time"), tokens=200)
            await bench.recorder.until(lambda: len(bench.recorder.texts(run)) > 2)
            process.kill()
            end = await bench.recorder.end_of(run)
            assert isinstance(end, EngineFailed)
            assert end.code is Refusal.ENGINE_FAILED
            while bench.engine.models():
                await bench.changed.wait()
            assert url in bench.engine.statistics().last_error
