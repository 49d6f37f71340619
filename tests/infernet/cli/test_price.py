"""infernet/cli/price.py: what is asked for work, in the file and in words."""

from __future__ import annotations

import json

import pytest

from infernet import identity
from infernet.cli.price import Prices, sample
from infernet.config import load, save
from infernet.host.lock import hold_lock
from infernet.host.turns import one_at_a_time
from infernet.settings.models import ModelSettings
from protocol.formats.amounts import parse_usd
from tests.helpers_cli import Home, invoke
from tests.helpers_money_server import BANK

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def home(home: Home) -> Home:
    """A home with a coordinator."""
    save(home.config.config_file, {"coordinator_url": "http://127.0.0.1:9", "coordinator_key": BANK.node}, keep=False)
    return home


def test_a_price_is_set_shown_and_taken_back(home: Home, capsys: Capture) -> None:
    assert "asks nothing" in invoke(capsys, "price").out
    outcome = invoke(capsys, "price", "set", "--in", "0.10", "--out", "0.40")
    assert (outcome.code, outcome.err) == (0, "")
    assert "$0.10 for a million tokens" in outcome.out
    assert "$0.00025 for 500 tokens in and 500 out" in outcome.out
    assert (load().config.price_in_usd, load().config.price_out_usd) == (100_000, 400_000)
    assert invoke(capsys, "price", "set", "--job", "0.001").code == 0
    shown = invoke(capsys, "price", "--json").json
    assert (shown["in_usd"], shown["out_usd"], shown["job_usd"]) == ("0.10", "0.40", "0.001")
    assert (shown["free"], shown["sample_uusd"], shown["coordinator_url"]) == (False, 1250, "http://127.0.0.1:9")
    assert shown["model"] == "smollm2-135m-instruct"
    outcome = invoke(capsys, "price", "free")
    assert (outcome.code, outcome.err) == (0, "")
    assert "asks nothing. Its jobs are for: known" in outcome.out
    assert not any((load().config.price_in_usd, load().config.price_out_usd, load().config.price_job_usd))


def test_making_it_free_takes_the_prices_that_another_command_has_set_meanwhile(
    home: Home, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = one_at_a_time(home.config.config_file.parent)
    turn.__enter__()

    def the_other_writes(_seconds: float) -> None:
        text = home.config.config_file.read_text() + '[model_settings.tiny]\nprice_in_usd = "0.1"\nslots = 3\n'
        home.config.config_file.write_text(text)
        turn.__exit__(None, None, None)

    monkeypatch.setattr("infernet.host.turns.time.sleep", the_other_writes)
    assert invoke(capsys, "price", "free").code == 0
    assert load().config.model_settings == (ModelSettings(name="tiny", slots=3),)


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"engine": "openai"}, None),
        ({"engine": "openai", "engine_models": ("qwen2.5:7b", "tiny")}, "qwen2.5:7b, tiny"),
        ({"engine": "llama,openai", "engine_models": ("tiny",)}, "smollm2-135m-instruct, tiny"),
        ({"engine": "exllamav3", "model": "Tiny-exl3"}, "Tiny-exl3"),
        ({"engine": "none"}, None),
    ],
)
def test_the_models_are_those_that_the_engine_serves(
    home: Home, capsys: Capture, settings: dict[str, object], shown: str | None
) -> None:
    save(home.config.config_file, settings, keep=True)
    assert invoke(capsys, "price", "--json").json["model"] == shown


def test_what_is_asked_for_one_model_alone_is_shown_and_is_taken_back_with_the_rest(
    home: Home, capsys: Capture
) -> None:
    table = {"tiny": {"price_out_usd": "0.40", "slots": 2}, "large": {"price_job_usd": "0"}}
    assert invoke(capsys, "config", "set", "--model-settings", json.dumps(table)).code == 0
    invoke(capsys, "price", "set", "--in", "0.10")
    shown = invoke(capsys, "price", "--json").json
    assert shown["models"] == {
        "tiny": {"in_usd": "0.10", "out_usd": "0.40", "job_usd": "0.00"},
        "large": {"in_usd": "0.10", "out_usd": "0.00", "job_usd": "0.00"},
    }
    assert "$0.10 in, $0.40 out, $0.00 each job" in invoke(capsys, "price").out
    freed = invoke(capsys, "price", "free")
    assert "asks nothing" in freed.out
    assert invoke(capsys, "price", "--json").json["free"]
    assert load().config.model_settings == (ModelSettings(name="tiny", slots=2),)


def test_what_else_is_in_the_file_stays(home: Home, capsys: Capture) -> None:
    file = home.config.config_file
    file.write_text(file.read_text() + "# my own words\nslots = 2\n")
    assert invoke(capsys, "price", "set", "--out", "1").code == 0
    assert "# my own words" in file.read_text()
    assert load().config.slots == 2


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["set"], "nothing to set"),
        (["--in", "1"], "price set"),
        (["free", "--in", "1"], "price set"),
        (["set", "--in", "-1"], "--in must be dollars"),
        (["set", "--out", "0.0000001"], "--out must be dollars"),
        (["set", "--job", "1e9"], "--job must be"),
        (["set", "--in", "999999999999"], "--in must be"),
    ],
)
def test_what_is_no_price_is_refused_and_nothing_is_written(
    home: Home, capsys: Capture, words: list[str], complaint: str
) -> None:
    before = home.config.config_file.read_bytes()
    outcome = invoke(capsys, "price", *words)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert complaint in outcome.err
    assert home.config.config_file.read_bytes() == before


def test_a_running_node_and_the_environment_are_told_of(
    home: Home, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERNET_PRICE_OUT_USD", "3")
    with hold_lock(home.config.pid_file):
        outcome = invoke(capsys, "price", "set", "--out", "2")
    assert outcome.code == 0
    assert "the node is running" in outcome.err
    assert "INFERNET_PRICE_OUT_USD is set" in outcome.err


def test_a_price_that_nobody_can_pay_is_told_of(home: Home, capsys: Capture) -> None:
    save(home.config.config_file, {}, keep=False)
    set_to = invoke(capsys, "price", "set", "--out", "2")
    assert set_to.err.count("nobody can pay it") == 1
    # The verbs after it have something else to say.
    for words in (("price",), ("model", "list"), ("config", "show"), ("cluster",)):
        assert "pay" not in invoke(capsys, *words).err
    identity.create(home.config.key_file, identity.generate())
    with hold_lock(home.config.pid_file):
        assert "nobody can pay it" not in invoke(capsys, "start").err, "it does not start"


def test_the_example_is_rounded_as_the_protocol_rounds() -> None:
    assert sample(Prices(0, 1, 0)) == 1
    assert sample(Prices(parse_usd("0.1"), parse_usd("0.4"), 7)) == 257
