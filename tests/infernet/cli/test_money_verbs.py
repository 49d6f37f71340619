"""`infernet wallet`, `payments` and `payout`: what is shown, what is asked, and what is refused before it is sent."""

from __future__ import annotations

import json
import re
from contextlib import closing
from typing import Any

import pytest

from infernet.config import save
from infernet.coordinator_client import CoordinatorUnreachable
from infernet.money.store import MoneyStore
from protocol.effects import Equivocation
from protocol.errors import LocalProtocolError
from tests.helpers_cli import Home, Outcome, invoke, invoke_beside, running
from tests.helpers_ipc import FakeNode
from tests.helpers_money_server import BANK, money_server
from tests.helpers_money_store import claimed, lease, paid

pytestmark = pytest.mark.anyio
Capture = pytest.CaptureFixture[str]

# From BIP 173 and EIP-55.
BITCOIN = "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"
EVM = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
SOLANA = "4fYNw3dojWmQ4dXtSGE9epjRGy9pFSx62YypT7avPYvA"  # from Solana's documentation
LEASE = "ab" * 32
WALLET = {
    "available_uusd": 4_949_875,
    "locked_uusd": 49_875,
    "spent_uusd": 250,
    "earned_uusd": 1_250_000,
    "fees_uusd": 0,
    "relayed_uusd": 0,
    "payout_pending_uusd": 0,
    "withdrawn_uusd": 0,
}
INVOICE = {
    "invoiceId": "inv_1",
    "payAddress": EVM,
    "amount": "5.01",
    "coin": "USDC",
    "network": "base",
    "expiresAt": "2026-11-29T12:00:00Z",
    "hostedUrl": "https://pay.example/inv_1",
}


@pytest.fixture
def home(home: Home) -> Home:
    """A home with a coordinator."""
    save(home.config.config_file, {"coordinator_url": "http://127.0.0.1:9", "coordinator_key": BANK.node}, keep=False)
    return home


def node(**answers: Any) -> FakeNode:
    made = FakeNode()
    made.money_answers = answers
    made.state |= {"role": "provider", "uptime_s": 3.0}
    return made


async def run_beside(node: FakeNode, home: Home, capsys: Capture, *words: str) -> Outcome:
    async with running(node, home.config):
        return await invoke_beside(capsys, *words)


def asked(node: FakeNode) -> list[tuple[str, dict[str, Any]]]:
    return [(request.ask, dict(request.fields)) for request in node.money_asked]


# ---------------------------------------------------------------- wallet


async def test_the_wallet_shows_what_there_is_and_what_is_only_held_apart(home: Home, capsys: Capture) -> None:
    n = node(wallet=WALLET)
    n.state["money"] = {"unclaimed_uusd": 90, "unclaimed_elsewhere_uusd": 10, "unclaimed_leases": 1, "trouble": ""}
    outcome = await run_beside(n, home, capsys, "wallet")
    assert outcome.code == 0, outcome.err
    lines = dict(re.split(r"\s{2,}", line.strip()) for line in outcome.out.splitlines()[1:7])
    assert (lines["available"], lines["locked in leases"], lines["earned"]) == ("$4.949875", "$0.049875", "$1.25")
    assert "not redeemed yet: $0.0001 in 1 lease\n" in outcome.out
    shown = await run_beside(n, home, capsys, "wallet", "show", "--json")
    assert shown.json == WALLET | {
        "coordinator_url": "http://127.0.0.1:9",
        "unclaimed_uusd": 100,
        "unclaimed_leases": 1,
    }


async def test_what_the_coordinator_takes_is_shown_where_it_takes_any(home: Home, capsys: Capture) -> None:
    n = node(wallet=WALLET | {"fees_uusd": 12_500, "relayed_uusd": 300})
    lines = (await run_beside(n, home, capsys, "wallet")).out.splitlines()
    shown = dict(re.split(r"\s{2,}", line.strip()) for line in lines[1:-1])
    assert (shown["earned"], shown["fees taken"], shown["for relaying"]) == ("$1.25", "$0.0125", "$0.0003")
    assert "fees" not in (await run_beside(node(wallet=WALLET), home, capsys, "wallet")).out


async def test_the_coordinator_is_the_one_that_the_running_node_was_told_of(home: Home, capsys: Capture) -> None:
    n = node(wallet=WALLET)
    # A client keeps no link to it.
    n.state |= {"coordinator": None, "coordinator_url": "http://127.0.0.1:7"}
    outcome = await run_beside(n, home, capsys, "wallet")
    assert outcome.out.startswith("At http://127.0.0.1:7:\n")


async def test_a_node_that_cannot_write_says_so_in_the_wallet_too(home: Home, capsys: Capture) -> None:
    n = node(wallet=WALLET)
    n.state["money"] = {"trouble": "the disk is full"}
    outcome = await run_beside(n, home, capsys, "wallet")
    assert (outcome.code, "the disk is full" in outcome.err) == (0, True)


async def test_without_a_running_node_the_command_asks_itself_and_reads_the_file(home: Home, capsys: Capture) -> None:
    assert invoke(capsys, "init", "--yes", "--role", "provider").code == 0
    with closing(MoneyStore(home.config.money_file)) as store:
        store.apply([paid(90), claimed(40)])
    async with money_server(answers={"node/wallet": WALLET}, is_registered=False) as server:
        save(home.config.config_file, {"coordinator_url": server.url}, keep=True)
        outcome = await invoke_beside(capsys, "wallet", "--json")
        assert (outcome.code, outcome.json["unclaimed_uusd"]) == (0, 50), outcome.err
        assert [each.target.rpartition("/")[2] for each in server.asked] == ["wallet", "register", "wallet"]
        assert server.asked[1].fields["role"] == "provider"


@pytest.mark.parametrize(
    "nonsense",
    [-5, 2**63, -(2**63), 10**400, 1.5, True, None, "1000000", [1], {"a": 1}],
)
async def test_figures_that_are_none_are_shown_as_none(home: Home, capsys: Capture, nonsense: object) -> None:
    told = dict.fromkeys(WALLET, nonsense) | {"coordinator_url": "http://elsewhere", "unclaimed_uusd": nonsense}
    outcome = await run_beside(node(wallet=told), home, capsys, "wallet")
    assert outcome.code == 0, outcome.err
    shown = "-$0.000005" if nonsense == -5 else "-"
    assert re.findall(r"^  available +(.*)$", outcome.out, re.MULTILINE) == [shown]
    assert "not redeemed yet: $0.00 in 0 leases\n" in outcome.out
    # Not what docs/json.md says, which a coordinator that lies need not keep to.
    as_json = json.loads((await run_beside(node(wallet=told), home, capsys, "wallet", "--json")).out)
    assert (as_json["coordinator_url"], as_json["unclaimed_uusd"]) == ("http://127.0.0.1:9", 0)


PROOF = Equivocation(BANK.node, 7, lease(1), lease(2))


def accuse(home: Home, proof: Equivocation = PROOF) -> None:
    with closing(MoneyStore(home.config.money_file)) as store:
        store.keep_proof(proof)


async def test_a_proof_of_two_ledgers_is_told_and_printed_without_a_running_node_too(
    home: Home, capsys: Capture
) -> None:
    assert invoke(capsys, "init", "--yes", "--role", "client").code == 0
    assert invoke(capsys, "wallet", "proof").out == "No coordinator is known to have signed two different ledgers.\n"
    accuse(home)
    async with money_server(answers={"node/wallet": WALLET}) as server:
        save(home.config.config_file, {"coordinator_url": server.url}, keep=True)
        outcome = await invoke_beside(capsys, "wallet")
        assert (outcome.code, "two different ledgers (entry 7)" in outcome.err) == (0, True)
    (row,) = invoke(capsys, "wallet", "proof", "--json").json["rows"]
    assert (row["coordinator_key"], row["entry"]) == (BANK.node.hex(), 7)
    assert row["first"] == {"body": lease(1).body.hex(), "signature": lease(1).signature.hex()}
    assert row["second"] == {"body": lease(2).body.hex(), "signature": lease(2).signature.hex()}
    shown = invoke(capsys, "wallet", "proof").out
    assert BANK.node.hex() in shown
    assert row["second"]["signature"] in shown


async def test_nothing_is_put_into_a_coordinator_with_two_ledgers(home: Home, capsys: Capture) -> None:
    accuse(home)
    n = node(deposit={"invoice": INVOICE})
    outcome = await run_beside(n, home, capsys, "wallet", "deposit", "5", "USDC", "--network", "base")
    assert (outcome.code, "two different ledgers" in outcome.complaint, asked(n)) == (1, True, [])
    n.state["money"] = {"coordinator_key": "11" * 32}
    outcome = await run_beside(n, home, capsys, "wallet", "deposit", "5", "USDC", "--network", "base")
    assert outcome.code == 0, "the node was told of another one"


async def test_a_damaged_money_file_is_told_in_one_line(home: Home, capsys: Capture) -> None:
    invoke(capsys, "init", "--yes", "--role", "provider")
    MoneyStore(home.config.money_file).close()
    home.config.money_file.write_bytes(b"not a database at all" * 500)
    outcome = invoke(capsys, "wallet")
    assert (outcome.code, "is damaged" in outcome.complaint) == (1, True)


def test_a_node_does_not_start_over_a_damaged_money_file_and_leaves_it_as_it_is(home: Home, capsys: Capture) -> None:
    invoke(capsys, "init", "--yes", "--role", "client", "--no-mdns")
    home.config.state_dir.mkdir(parents=True, exist_ok=True)
    home.config.money_file.write_bytes(b"not a database at all" * 500)
    outcome = invoke(capsys, "start", "--foreground", "--no-p2p")
    assert (outcome.code, "is damaged" in outcome.complaint) == (1, True)
    assert home.config.money_file.read_bytes() == b"not a database at all" * 500


async def test_leases_are_shown_by_what_they_do(home: Home, capsys: Capture) -> None:
    row = {
        "lease": LEASE,
        "provider": "12" * 32,
        "payer": "34" * 32,
        "state": "open",
        "cap_uusd": 50_000,
        "claimed_uusd": 125,
        "claim_by_ms": 1_795_000_000_000,
    }
    n = node(leases=[row])
    outcome = await run_beside(n, home, capsys, "wallet", "leases")
    assert (outcome.code, outcome.out.count(LEASE), outcome.out.count("$0.000125")) == (0, 2, 2)
    assert [fields["role"] for _, fields in asked(n)] == ["client", "provider"]
    assert (await run_beside(n, home, capsys, "wallet", "leases", "--json")).json == {"held": [row], "given": [row]}
    assert "No open leases" in (await run_beside(node(leases=[]), home, capsys, "wallet", "leases")).out


async def test_history_shows_what_came_and_went_with_its_sign(home: Home, capsys: Capture) -> None:
    rows = [
        {"entry": 9, "at_ms": 1_795_000_000_000, "kind": "open-lease", "amount_uusd": -50_000, "lease": LEASE},
        {"entry": 1, "at_ms": 1_794_000_000_000, "kind": "deposit", "amount_uusd": 5_000_000, "payment": "p1"},
    ]
    n = node(history=rows)
    outcome = await run_beside(n, home, capsys, "wallet", "history", "--limit", "7")
    assert (outcome.code, "-$0.05" in outcome.out, "$5.00" in outcome.out) == (0, True, True)
    assert asked(n) == [("history", {"limit": 7})]
    assert (await run_beside(n, home, capsys, "wallet", "history", "--json")).json == {"rows": rows}


async def test_a_deposit_says_where_and_how_much_to_pay(home: Home, capsys: Capture) -> None:
    n = node(deposit=INVOICE)
    outcome = await run_beside(n, home, capsys, "wallet", "deposit", "5", "USDC", "--network", "base")
    assert outcome.code == 0, outcome.err
    for words in (EVM, "5.01 USDC", "USD Coin on Base", "inv_1", "2026-11-29 12:00:00 UTC\n", "$5.00 of credit"):
        assert words in outcome.out
    assert asked(n) == [("deposit", {"amount_usd": "5.00", "coin": "USDC", "network": "base"})]
    as_json = await run_beside(n, home, capsys, "wallet", "deposit", "5.00", "usdc_base", "--json")
    assert as_json.json == {"invoice": INVOICE}


@pytest.mark.parametrize(
    "change",
    [{"coin": "USDT"}, {"network": "ethereum"}, {"payAddress": None}, {"payAddress": "0x\x1b[31m"}]
    + [{"payAddress": "0" * 201}]
    + [{"amount": amount} for amount in (None, 5, "", "0", "-5", "1e9", "5.01 or more", "9" * 400, "5,01")],
)
async def test_an_invoice_for_something_else_is_not_shown(home: Home, capsys: Capture, change: dict[str, Any]) -> None:
    n = node(deposit=INVOICE | change)
    outcome = await run_beside(n, home, capsys, "wallet", "deposit", "5", "USDC", "--network", "base")
    assert (outcome.code, "pay nothing on it" in outcome.complaint, outcome.out) == (1, True, "")


async def test_close_asks_for_one_lease_or_all(home: Home, capsys: Capture) -> None:
    n = node()
    n.close_rows = [{"lease": LEASE, "state": "open"}]
    outcome = await run_beside(n, home, capsys, "wallet", "close", LEASE.upper())
    assert (outcome.code, "the rest of 1 lease;" in outcome.out) == (0, True)
    await run_beside(n, home, capsys, "wallet", "close")
    assert [request.lease for request in n.closed] == [bytes.fromhex(LEASE), None]


async def test_claim_redeems_at_the_running_node_alone(home: Home, capsys: Capture) -> None:
    outcome = await run_beside(node(), home, capsys, "wallet", "claim")
    assert (outcome.code, "$0.00009 is being redeemed" in outcome.out) == (0, True)
    alone = invoke(capsys, "wallet", "claim")
    assert (alone.code, "infernet start" in alone.complaint) == (1, True)


# ---------------------------------------------------------------- payments


async def test_payments_are_shown_in_the_columns_that_are_known(home: Home, capsys: Capture) -> None:
    row = {
        "created_at": "2026-11-29T10:00:00Z",
        "direction": "inbound",
        "coin": "USDC",
        "network": "base",
        "amount": "5.01",
        "amount_usd": "5.00",
        "status": "confirmed",
        "tx_hash": "0xfeed",
        "invoice_id": "inv_1",
    }
    n = node(payments={"rows": [row]})
    outcome = await run_beside(n, home, capsys, "payments")
    assert outcome.code == 0
    assert re.split(r"\s{2,}", outcome.out.splitlines()[1]) == [
        *("2026-11-29 10:00:00", "inbound", "USDC", "base", "5.01", "5.00", "confirmed", "0xfeed")
    ]
    assert asked(n) == [("payments", {"role": "provider", "limit": 20})]
    assert (await run_beside(n, home, capsys, "payments", "list", "--limit", "3", "--json")).json == {"rows": [row]}
    assert "No payments yet" in (await run_beside(node(payments=[]), home, capsys, "payments")).out


# ---------------------------------------------------------------- payouts


async def test_an_address_is_set_in_its_normal_form_for_one_coin_and_network(home: Home, capsys: Capture) -> None:
    n = node(**{"payout-set": {"row": {"coin": "USDC", "active_at": 1_795_000_000_000}}})
    outcome = await run_beside(n, home, capsys, "payout", "set", "usdc", EVM.lower(), "--network", "BASE")
    assert outcome.code == 0, outcome.err
    assert asked(n) == [("payout-set", {"coin": "USDC", "network": "base", "address": EVM})]
    assert "holds from 2026-11-18 11:06:40 UTC on, and then money goes there" in outcome.out
    await run_beside(n, home, capsys, "payout", "set", "BTC", BITCOIN.upper())
    assert asked(n)[-1] == ("payout-set", {"coin": "BTC", "network": "bitcoin", "address": BITCOIN})


async def test_an_address_that_holds_already_is_the_default_at_once(home: Home, capsys: Capture) -> None:
    row = {"coin": "BTC", "active_at": "2026-11-28T06:11:40.708Z", "default_at": "2026-11-29T07:00:00.000Z"}
    outcome = await run_beside(node(**{"payout-set": {"row": row}}), home, capsys, "payout", "set", "BTC", BITCOIN)
    words = "from 2026-11-28 06:11:40 UTC on, and from 2026-11-29 07:00:00 UTC on money goes there by default.\n"
    assert words in outcome.out


@pytest.mark.parametrize("at", ["\x1b[31mnow", "2026-13-01T00:00:00Z", "", 10**30, -1, True, None, 1.5, []])
async def test_a_time_that_is_none_is_a_dash(home: Home, capsys: Capture, at: object) -> None:
    outcome = await run_beside(node(history=[{"entry": 9, "at_ms": at}]), home, capsys, "wallet", "history")
    assert (outcome.code, outcome.out.splitlines()[1].split()) == (0, ["9", "-", "-", "-", "-"])


async def test_only_an_address_that_is_set_is_warned_of(home: Home, capsys: Capture) -> None:
    n = node(**{"payout-set": {}, "payout-remove": {}})
    warned = [
        "mistyped" in (await run_beside(n, home, capsys, "payout", verb, "SOL", SOLANA)).err
        for verb in ("set", "remove")
    ]
    assert warned == [True, False]


async def test_addresses_are_listed_removed_and_paid_to(home: Home, capsys: Capture) -> None:
    row = {"coin": "BTC", "network": "bitcoin", "address": BITCOIN, "is_default": True, "active_at": None}
    n = node(
        **{"payout-list": {"rows": [row]}, "payout-remove": {}, "payout-request": {"id": "p1", "status": "queued"}}
    )
    listed = await run_beside(n, home, capsys, "payout", "list")
    assert (listed.code, BITCOIN in listed.out) == (0, True)
    assert (await run_beside(n, home, capsys, "payout", "list", "--json")).json == {"rows": [row]}
    assert (await run_beside(n, home, capsys, "payout", "remove", "BTC", BITCOIN)).code == 0
    wanted = await run_beside(n, home, capsys, "payout", "request", "$25.50", "--json")
    assert wanted.json == {"payout": {"id": "p1", "status": "queued"}}
    name, fields = asked(n)[-1]
    assert (name, fields["amount_usd"]) == ("payout-request", "25.50")
    assert re.fullmatch("[0-9a-f]{32}", fields["request_id"]), "asked for twice, it is sent once"


@pytest.mark.parametrize("is_running", [True, False])
async def test_a_payout_of_which_nothing_was_heard_is_not_ordered_lightly_again(
    home: Home, capsys: Capture, *, is_running: bool
) -> None:
    invoke(capsys, "init", "--yes", "--role", "provider")
    save(home.config.config_file, {"coordinator_url": "http://127.0.0.1:9"}, keep=True)
    words = ("payout", "request", "5", "--json")
    n = node(**{"payout-request": CoordinatorUnreachable("the coordinator cannot be reached")})
    outcome = await run_beside(n, home, capsys, *words) if is_running else await invoke_beside(capsys, *words)
    assert (outcome.code, outcome.json["code"]) == (1, "unreachable")
    assert "cannot be reached" in outcome.complaint
    assert "look at `infernet payments` before you ask again" in outcome.complaint


def test_a_coordinator_out_of_reach_is_named_with_what_to_do(home: Home, capsys: Capture) -> None:
    invoke(capsys, "init", "--yes", "--role", "provider")
    save(home.config.config_file, {"coordinator_url": "http://127.0.0.1:9"}, keep=True)
    outcome = invoke(capsys, "wallet")
    assert outcome.code == 1
    assert "the coordinator at http://127.0.0.1:9 cannot be reached (" in outcome.complaint
    assert outcome.complaint.endswith("it may be down, or the URL or the network wrong")


# ---------------------------------------------------------------- what is refused

BAD = [
    ("payout set BTC mainnet " + BITCOIN, "the network has a flag of its own"),
    ("payout set BTC mainnet", "'mainnet' stands where the address belongs"),
    ("payout set USDC base " + EVM, "--network base"),
    ("payout set USDC base", "'base' stands where the address belongs"),
    ("payout set BTC", "a coin and an address"),
    ("payout set", "a coin and an address"),
    (f"payout set BTC {BITCOIN[:-1]}q", ""),
    (f"payout set BTC {EVM}", ""),
    (f"payout set USDC {EVM[:-1]}D --network base", ""),
    (f"payout set USDC {EVM} --network bitcoin", "not offered"),
    (f"payout set USDC {EVM} --network nowhere", "no such network"),
    (f"payout set LTC {EVM}", "no such coin"),
    (f"payout set BTC tb1{BITCOIN[3:]}", ""),
    (f"payout set BTC {BITCOIN} a b", "too many words"),
    (f"payout remove BTC {BITCOIN[:-2]}", ""),
    ("payout remove BTC mainnet", "infernet payout remove COIN ADDRESS"),
    ("payout remove BTC mainnet " + BITCOIN, "infernet payout remove BTC ADDRESS --network mainnet"),
    ("payout list BTC", "too many words"),
    ("payout list --network base", "--network goes with"),
    ("payout request", "how much"),
    ("payout request 5 6", "how much"),
    ("payout request=5", "there is no action 'request=5'; did you mean request?"),
    ("payments --limit 0", "1 to 100"),
    ("payments --limit 101", "1 to 100"),
    ("payments --limit 1e1", "1 to 100"),
    ("payments --limit ٣", "1 to 100"),
    ("wallet history --limit NaN", "1 to 100"),
    ("wallet history --limit=", "1 to 100"),
    ("wallet show more", "too many words"),
    ("wallet deposit 5", "how much, and in what"),
    ("wallet deposit USDC 5", "no number of dollars"),
    ("wallet deposit 5 GBP", "no such coin"),
    ("wallet deposit 5 BTC --network base", "not offered"),
    ("wallet close abc", "64 hex digits"),
    ("wallet close " + "g" * 64, "64 hex digits"),
    ("wallet claim all", "too many words"),
    ("wallet leases --network base", "--network goes with"),
    ("wallet --limit 5", "--limit goes with"),
    ("wallet deposit 5.001 USDC", "whole cents"),
    ("payout request 0.009999", "whole cents"),
    ("payout", "say what to do: set, list, remove or request"),
    *(
        (f"{verb} {amount}{coin}", "")
        for verb, coin in (("wallet deposit", " USDC"), ("payout request", ""))
        for amount in (
            "0", "0.00", "1e3", "NaN", "nan", "inf", "Infinity", "1,5", "0x10", "٣", "1_000", "+5", ".5", "5.",
            "0.0000001", "9" * 19, "1000001", "9" * 400, "$", "$$5", "5$", "1/2",
        )
    ),
    ("payout request -- -5", ""),
    ("wallet deposit -- -5 USDC", ""),
]  # fmt: skip


@pytest.mark.parametrize(("line", "words"), BAD, ids=[f"{number} {line[:40]}" for number, (line, _) in enumerate(BAD)])
async def test_bad_input_is_one_line_and_nothing_is_sent(home: Home, capsys: Capture, line: str, words: str) -> None:
    n = node()
    outcome = await run_beside(n, home, capsys, *line.split(" "))
    assert outcome.code == 2, (outcome.out, outcome.err)
    assert words in outcome.complaint
    assert len([each for each in outcome.err.splitlines() if "warning" not in each]) == 1
    assert (outcome.out, n.money_asked, n.closed) == ("", [], [])


async def test_a_secret_key_is_not_repeated(home: Home, capsys: Capture) -> None:
    secret = "5KJvsngHeMpm884wtkJNzQGaCErckhHJBGFsvd3VyK5qMZXj3hS"  # from the Bitcoin wiki's page on WIF
    outcome = await run_beside(node(), home, capsys, "payout", "set", "BTC", secret)
    assert (outcome.code, secret in outcome.err) == (2, False)


async def test_without_a_coordinator_there_is_no_money(home: Home, capsys: Capture) -> None:
    save(home.config.config_file, {"coordinator_url": None, "coordinator_key": None}, keep=True)
    outcome = invoke(capsys, "wallet")
    assert (outcome.code, "no coordinator is configured" in outcome.complaint) == (1, True)


@pytest.mark.parametrize("answer", [5, "text", None, [5], {"rows": 5}, {"rows": [None]}])
@pytest.mark.parametrize("verb", ["payments", "wallet history", "wallet leases", "payout list", "wallet"])
async def test_an_answer_of_another_shape_is_a_line_and_no_crash(
    home: Home, capsys: Capture, verb: str, answer: object
) -> None:
    n = node(**dict.fromkeys(("payments", "history", "leases", "payout-list", "wallet"), answer))
    outcome = await run_beside(n, home, capsys, *verb.split())
    assert (outcome.code, "unexpected went wrong" in outcome.err) in ((1, False), (0, False))


async def test_what_the_coordinator_refuses_is_said_with_its_code(home: Home, capsys: Capture) -> None:
    n = node(wallet=LocalProtocolError("the coordinator refused: not today"))
    outcome = await run_beside(n, home, capsys, "wallet", "--json")
    assert (outcome.code, outcome.json["error"]) == (1, "the coordinator refused: not today")


def test_every_verb_teaches(capsys: Capture) -> None:
    for verb in ("wallet", "payments", "payout"):
        outcome = invoke(capsys, verb, "--help")
        assert outcome.code == 0
        assert "examples:" in outcome.out
        assert "--json prints" in outcome.out or "--json, all amounts" in outcome.out
