"""Claims at a coordinator in a process of its own: from two processes at once, and across kills at any moment."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from coordinator.identity import load_or_create_key
from coordinator.store.db import DATABASE_NAME, open_database
from coordinator.store.journal import read_journal
from coordinator.store.ledger import Ledger
from coordinator.store.ledger_check import check_file
from protocol import codec
from protocol.envelope import AUTH_HEADER, SigningKey, open_record, sign_record, sign_request
from protocol.ids import LeaseId, NodeId
from protocol.ledger import Deposit, available
from protocol.money_records import Credited, LeaseRecord, LeaseRequestRecord
from protocol.records import Signed
from tests.helpers_claims import credited_in
from tests.helpers_coordinator import make_key
from tests.helpers_money import sign_claim, sign_voucher

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 60
CLAIMS = "/api/v1/node/claims"

# Sends one body again and again, each time in another envelope, and says what came back.
SENDER = """
import json, sys, httpx
work = json.load(sys.stdin)
with httpx.Client(timeout=30, verify=False) as client:
    for header in work["headers"]:
        headers = {"X-Infernet-Auth": header, "content-type": "application/msgpack"}
        answer = client.post(work["url"], content=bytes.fromhex(work["body"]), headers=headers)
        print(answer.status_code, answer.content.hex(), flush=True)
"""


@contextmanager
def started(home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "coordinator", "--home", str(home), "--port", "0", "--json", "--log-level", "error"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())["url"]
    finally:
        process.kill()
        process.communicate()


class Sender:
    """One key that signs requests."""

    def __init__(self, coordinator: NodeId, number: int) -> None:
        self.key = make_key(number)
        self._coordinator = coordinator
        self._counter = time.time_ns()

    def header(self, target: str, body: bytes) -> str:
        self._counter += 1
        return sign_request(
            self.key, self._coordinator, "POST", target, body, time.time_ns() // 1_000_000, self._counter, 1
        )

    def post(self, url: str, target: str, body: bytes, kind: str = "application/msgpack") -> httpx.Response:
        headers = {AUTH_HEADER: self.header(target, body), "content-type": kind}
        return httpx.post(url + target, content=body, headers=headers, timeout=10, verify=False)

    def register(self, url: str, role: str) -> None:
        body = json.dumps({"role": role, "node_id": f"node-{self.key.node.hex()[:8]}"}).encode()
        assert self.post(url, "/api/v1/node/register", body, "application/json").status_code == 200


async def _deposit(home: Path, node: NodeId) -> None:
    database = open_database(home)
    await database.write(lambda tx: Ledger().command(tx, Deposit("p", node, "BTC", 1, 1_000_000, 0), 1))
    await database.close()


def open_lease(url: str, client: Sender, provider: NodeId, payer: SigningKey, coordinator: NodeId) -> LeaseId:
    fields: dict[str, Any] = {
        "version": 1,
        "coordinator": coordinator,
        "request": b"r" * 16,
        "client": client.key.node,
        "payer": payer.node,
        "provider": provider,
        "relay": None,
        "relay_bps": 0,
        "cap_uusd": 500_000,
        "model": "m",
        "fingerprint": bytes(32),
        "price_in_uusd": 1,
        "price_out_uusd": 1,
        "price_job_uusd": 0,
        "serve_s": 3600,
        "created_at_ms": time.time_ns() // 1_000_000,
        "extensions": (),
    }
    request = sign_record(LeaseRequestRecord(**fields), client.key)
    answer = client.post(url, "/api/v1/node/leases/open", codec.encode_value(request))
    assert answer.status_code == 200, answer.text
    return open_record(codec.decode_struct(answer.content, Signed, codec.CONTROL_LIMITS), LeaseRecord).lease


@pytest.fixture
def home(tmp_path: Path) -> Path:
    asyncio.run(_deposit(tmp_path, make_key(101).node))
    return tmp_path


def parties(home: Path) -> tuple[Sender, Sender, SigningKey, NodeId]:
    coordinator = load_or_create_key(home).node
    return Sender(coordinator, 101), Sender(coordinator, 102), make_key(103), coordinator


def claim_bytes(provider: Sender, payer: SigningKey, lease: LeaseId, paid_uusd: int) -> bytes:
    voucher = sign_voucher(payer, lease, paid_uusd)
    return codec.encode_value(sign_claim(provider.key, lease, voucher, time.time_ns() // 1_000_000))


def read_ack(content: bytes) -> Credited:
    return credited_in(codec.decode_struct(content, Signed, codec.CONTROL_LIMITS))


def scalar(home: Path, statement: str, *values: object) -> int:
    with closing(sqlite3.connect(home / DATABASE_NAME)) as connection:
        return int(connection.execute(statement, values).fetchone()[0])


def test_r1_one_claim_from_two_processes_a_hundred_times_settles_once(home: Path) -> None:
    client, provider, payer, coordinator = parties(home)
    with started(home) as (_, url):
        client.register(url, "client")
        provider.register(url, "provider")
        body = claim_bytes(provider, payer, open_lease(url, client, provider.key.node, payer, coordinator), 777)
        headers = [provider.header(CLAIMS, body) for _ in range(100)]
        senders = [
            subprocess.Popen(
                [sys.executable, "-c", SENDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
            )
            for _ in range(2)
        ]
        for number, sender in enumerate(senders):
            assert sender.stdin is not None
            json.dump({"url": url + CLAIMS, "body": body.hex(), "headers": headers[number::2]}, sender.stdin)
            sender.stdin.close()
        answers = [line.split() for sender in senders for line in sender.stdout or ()]
        for sender in senders:
            assert sender.wait(TIMEOUT_S) == 0
            assert sender.stdout is not None
            sender.stdout.close()
    assert [status for status, _ in answers] == ["200"] * 100
    assert len({read_ack(bytes.fromhex(content)) for _, content in answers}) == 1
    assert scalar(home, "SELECT count(*) FROM entries WHERE kind = 'claim'") == 1
    assert scalar(home, "SELECT balance FROM accounts WHERE name = ?", available(provider.key.node)) == 777
    check_file(home / DATABASE_NAME)


def test_r1_what_was_acknowledged_survives_kills_and_counts_once(home: Path) -> None:
    client, provider, payer, coordinator = parties(home)
    rng = random.Random(5)
    lease, acknowledged, paid_uusd = None, 0, 0
    for _ in range(4):
        with started(home) as (process, url):
            if lease is None:
                client.register(url, "client")
                provider.register(url, "provider")
                lease = open_lease(url, client, provider.key.node, payer, coordinator)
            for _ in range(rng.randrange(1, 12)):
                paid_uusd += rng.randrange(1, 100)
                answer = provider.post(url, CLAIMS, claim_bytes(provider, payer, lease, paid_uusd))
                acknowledged = read_ack(answer.content).claimed_uusd
                assert acknowledged == paid_uusd
            # One more is on its way when the process dies: it has counted, or it has not.
            paid_uusd += 1
            last = claim_bytes(provider, payer, lease, paid_uusd)
            sender = subprocess.Popen(
                [sys.executable, "-c", SENDER],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            work = {"url": url + CLAIMS, "body": last.hex(), "headers": [provider.header(CLAIMS, last)]}
            assert sender.stdin is not None
            json.dump(work, sender.stdin)
            sender.stdin.close()
            process.send_signal(signal.SIGKILL)
            process.wait(TIMEOUT_S)
            sender.wait(TIMEOUT_S)
        kept = scalar(home, "SELECT balance FROM accounts WHERE name = ?", available(provider.key.node))
        assert kept in (acknowledged, paid_uusd)
        assert kept == scalar(home, "SELECT claimed_uusd FROM leases")
        check_file(home / DATABASE_NAME)
    with started(home) as (_, url):
        assert lease is not None
        again = provider.post(url, CLAIMS, claim_bytes(provider, payer, lease, paid_uusd))
        assert read_ack(again.content).claimed_uusd == paid_uusd
        journal = [head for _, head in read_journal(home / "ledger.journal")]
        with closing(sqlite3.connect(home / DATABASE_NAME)) as connection:
            assert journal == [row[0] for row in connection.execute("SELECT head FROM entries ORDER BY number")]
