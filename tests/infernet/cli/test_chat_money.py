"""`infernet chat --pay`: what an answer may cost, and what is said of what it did."""

from __future__ import annotations

import pytest
from msgspec import structs

from infernet.answers import AnswerEvent, Payment
from infernet.cli.conversation import NoAnswer
from protocol.effects import JobFailed, Served
from protocol.errors import Refusal
from protocol.ids import LeaseId, peer_id
from tests.helpers_cli import Home, invoke, invoke_beside, running
from tests.helpers_ipc import ACCEPTED, DONE, JOB, PARIS, FakeNode
from tests.helpers_records import PROVIDER

pytestmark = pytest.mark.anyio
Capture = pytest.CaptureFixture[str]

PAID = structs.replace(DONE, served=(Served(PROVIDER.node, 1, 17, 5, 90),))


def payment(number: int, paid_uusd: int, signed_uusd: int) -> Payment:
    return Payment(JOB, PROVIDER.node, LeaseId(b"\xab" * 32), number, paid_uusd, signed_uusd, 50_000)


def node(*events: AnswerEvent) -> FakeNode:
    made = FakeNode(events)
    made.known = [{"models": ["tiny-135m"], "availability": "available", "ourselves": False}]
    return made


ANSWERED = (ACCEPTED, payment(1, 17, 117), PARIS, payment(3, 90, 190), PAID)


@pytest.mark.parametrize(
    ("words", "spend_uusd"),
    [
        ((), None),
        (("--pay", "0.01"), 10_000),
        (("--spend-max", "$1.50"), 1_500_000),
        (("--pay", "0"), 0),
        (("--pay", "0.000001"), 1),
    ],
)
async def test_what_an_answer_may_cost_reaches_the_node_to_the_unit(
    home: Home, capsys: Capture, words: tuple[str, ...], spend_uusd: int | None
) -> None:
    n = node(*ANSWERED)
    async with running(n, home.config):
        outcome = await invoke_beside(capsys, "chat", *words, "Where?")
    assert outcome.code == 0, outcome.err
    assert [request.spend_uusd_max for request in n.requests] == [spend_uusd]


async def test_the_last_line_says_what_it_cost_and_verbose_says_how_it_was_paid(home: Home, capsys: Capture) -> None:
    async with running(node(*ANSWERED), home.config):
        brief = await invoke_beside(capsys, "chat", "--pay", "0.01", "Where?")
        long = await invoke_beside(capsys, "chat", "--pay", "0.01", "--verbose", "Where?")
    assert "cost $0.00009;" in brief.complaint
    assert len(brief.err.splitlines()) == 1
    assert long.err.splitlines()[:3] == [
        f"[lease abababab: $0.05 is locked for {PROVIDER.node.hex()[:8]}]",
        "[voucher 1: $0.000117 of $0.05]",
        "[voucher 3: $0.00019 of $0.05]",
    ]


async def test_json_has_it_in_whole_millionths(home: Home, capsys: Capture) -> None:
    async with running(node(*ANSWERED), home.config):
        outcome = await invoke_beside(capsys, "chat", "--pay", "0.01", "--json", "--verbose", "Where?")
    assert (outcome.json["paid_uusd"], outcome.json["served"][0]["paid_uusd"]) == (90, 90)
    assert outcome.err == ""


async def test_an_answer_for_nothing_says_nothing_of_money(home: Home, capsys: Capture) -> None:
    async with running(node(ACCEPTED, PARIS, DONE), home.config):
        outcome = await invoke_beside(capsys, "chat", "Where?")
    assert "cost" not in outcome.err


async def test_an_answer_that_breaks_off_says_what_it_has_cost(home: Home, capsys: Capture) -> None:
    failed = JobFailed(JOB, Refusal.PEER_LOST, "the provider went away")
    async with running(node(ACCEPTED, payment(1, 17, 117), PARIS, failed), home.config):
        outcome = await invoke_beside(capsys, "chat", "--pay", "0.01", "Where?")
    assert (outcome.code, "it has cost $0.000017" in outcome.complaint) == (1, True)


@pytest.mark.parametrize("amount", ["-1", "NaN", "1e-3", "0.0000001", "ten", "", "1,5", "1000001"])
async def test_an_amount_that_is_none_is_a_misuse(home: Home, capsys: Capture, amount: str) -> None:
    n = node(*ANSWERED)
    async with running(n, home.config):
        outcome = await invoke_beside(capsys, "chat", f"--pay={amount}", "Where?")
    assert (outcome.code, len(outcome.err.splitlines()), n.requests) == (2, 1, [])


async def test_the_public_chat_takes_no_money(home: Home, capsys: Capture) -> None:
    outcome = invoke(capsys, "chat", "--remote", "--url", "http://127.0.0.1:9", "--pay", "0.01", "Where?")
    assert (outcome.code, "costs nothing" in outcome.complaint) == (2, True)


async def test_without_a_node_that_keeps_account_nothing_is_paid(home: Home, capsys: Capture) -> None:
    peer = f"/ip4/127.0.0.1/tcp/9/p2p/{peer_id(PROVIDER.node)}"
    outcome = invoke(capsys, "chat", "--peer", peer, "--pay", "0.01", "Where?")
    assert (outcome.code, "keep account" in outcome.complaint) == (1, True)


@pytest.mark.parametrize("code", ["lease", "not_free", "price"])
def test_whoever_was_refused_for_money_is_told_what_to_do(code: str) -> None:
    text = str(NoAnswer("no", code))
    assert "cannot do" not in text
    assert ("--pay" in text) or ("ask again" in text)
