"""`infernet-coordinator payouts` and `deposits`, beside a coordinator that runs: what they show, what they decide."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from coordinator.__main__ import main
from coordinator.identity import load_or_create_key
from tests.helpers_coordinator import NodeClient, WallClock
from tests.helpers_fake_gateway import FakeGatewayProcess, fake_gateway
from tests.helpers_payments_served import HOUR_MS, Paid, paid_serving

pytestmark = pytest.mark.anyio

MINUTE_MS = 60_000


@pytest.fixture
def fake() -> Iterator[FakeGatewayProcess]:
    with fake_gateway() as running:
        yield running


class Admin:
    """Runs the command as its operator does."""

    def __init__(self, paid: Paid, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.paid = paid
        self.home = home
        self.capsys = capsys

    async def run(self, *words: str) -> tuple[int, str]:
        """Exit code, and what was printed to either stream, logs left out."""
        arguments = [*words, "--home", str(self.home), "--url", self.paid.served.url]
        self.capsys.readouterr()
        code = await asyncio.to_thread(main, arguments)
        out, error = self.capsys.readouterr()
        return code, "\n".join(line for line in (out + error).splitlines() if "[info" not in line)

    async def json(self, *words: str) -> Any:
        _, text = await self.run(*words, "--json")
        return json.loads(next(line for line in text.splitlines() if line.startswith("{")))


@pytest.fixture
async def admin(tmp_path: Path, fake: FakeGatewayProcess, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Admin]:
    # The command signs by the system's clock, so this coordinator's stands where that does.
    async with paid_serving(
        tmp_path, fake, WallClock(), payout_resend_uusd_max=0, deposit_review_uusd=4_000_000
    ) as paid:
        yield Admin(paid, tmp_path, capsys)


async def test_what_nobody_knows_is_shown_and_decided(admin: Admin) -> None:
    paid = admin.paid
    await paid.with_address(10_000_000)
    paid.fake.fault("create_payout", "error_before")
    payout = await paid.payout()
    for _ in range(5):
        await paid.work(11 * MINUTE_MS)
    paid.served.clock.offset_ms = 0
    code, text = await admin.run("payouts")
    assert code == 0
    assert payout["id"] in text
    assert "* " in text
    listed = await admin.json("payouts", "list")
    assert [row["needs_person"] for row in listed["rows"]] == [True]
    code, text = await admin.run("payouts", "decide", payout["id"], "return")
    assert (code, "failed" in text) == (0, True)
    assert await paid.available() == 10_000_000
    code, text = await admin.run("payouts", "decide", payout["id"], "resend")
    assert (code, "refused" in text) == (1, True)
    code, text = await admin.run("payouts")
    assert (code, text.strip()) == (0, "nothing waits")


async def test_why_payouts_are_stopped_is_shown_and_they_go_on(admin: Admin) -> None:
    paid = admin.paid
    await paid.work()
    paid.fake.fault("list_payouts", "grow", times=1)
    await paid.work(HOUR_MS)
    await paid.work(HOUR_MS)
    paid.served.clock.offset_ms = 0
    _, text = await admin.run("payouts")
    assert "PAYOUTS ARE STOPPED" in text
    assert "nobody here has ordered" in text
    code, text = await admin.run("payouts", "unfreeze", "all")
    assert (code, text) == (2, "infernet-coordinator: too many words: payouts unfreeze")
    assert "PAYOUTS ARE STOPPED" in (await admin.run("payouts"))[1]
    code, text = await admin.run("payouts", "unfreeze")
    assert (code, text.splitlines()[-1]) == (0, "payouts go on")
    assert (await admin.run("payouts"))[1].strip() == "nothing waits"


async def test_deposits_are_shown_released_and_credited(admin: Admin) -> None:
    paid = admin.paid
    held = await paid.paid_in("5.00")
    other = await paid.invoice("2.00")
    await paid.poll()
    paid.served.clock.offset_ms = 0
    _, text = await admin.run("deposits")
    assert held["invoiceId"] in text
    assert (await admin.run("deposits", "release", held["invoiceId"]))[0] == 0
    assert await paid.available() == 5_000_000
    code, text = await admin.run("deposits", "credit", other["invoiceId"], "1.5")
    assert (code, "1.50 USD" in text) == (0, True)
    assert await paid.available() == 6_500_000
    assert (await admin.run("deposits", "credit", other["invoiceId"], "1.5"))[0] == 1
    assert (await admin.run("deposits", "release", "0" * 32))[0] == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("payouts", "decide"), 2),
        (("payouts", "decide", "0" * 32), 2),
        (("payouts", "decide", "x", "sent"), 1),
        (("payouts", "list", "0" * 32), 2),
        (("payouts", "unfreeze", "--all"), 2),
        (("deposits", "credit", "0" * 32), 2),
        (("deposits", "credit", "0" * 32, "1.5"), 1),
        (("deposits", "release"), 2),
        (("deposits", "release", "0" * 32, "1.5"), 2),
    ],
)
async def test_what_is_missing_or_unknown_is_one_line(admin: Admin, words: tuple[str, ...], expected: int) -> None:
    code, text = await admin.run(*words)
    assert code == expected
    assert len([line for line in text.splitlines() if line.startswith("infernet-coordinator: ")]) == 1
    assert "Traceback" not in text


async def test_nobody_else_may_ask(admin: Admin) -> None:
    for route in ("payouts/list", "payouts/unfreeze", "deposits/list", "deposits/release"):
        target, body = f"/api/v1/admin/{route}", b"{}"
        stranger: NodeClient = admin.paid.client
        headers = {"x-infernet-auth": stranger.header(target, body), "content-type": "application/json"}
        answer = await admin.paid.served.http.post(target, content=body, headers=headers)
        assert answer.status_code == 401


def test_without_a_coordinator_or_a_key_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["payouts", "--home", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "coordinator.key" in told
    assert "another --home" in told


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """Something that listens there and is no coordinator; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_words: object) -> None:
            """Not into what is tested."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"7",
        b"null",
        b'"text"',
        b"{}",
        b'{"data": []}',
        b'{"data": null}',
        b'{"data": {"rows": 7}}',
        b'{"data": {"rows": [7]}}',
        b'{"data": {"rows": [{}]}}',
        b'{"data": {"row": []}}',
        b'{"data": {"frozen": true}}',
        b'{"data": {"strays": [{}]}}',
        b"[" * 100_000,
        b"<html>",
        b"\xff",
    ],
    ids=lambda body: str(body[:24]) if isinstance(body, bytes) else None,
)
def test_what_answers_and_is_no_coordinator_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int, body: bytes
) -> None:
    load_or_create_key(tmp_path)
    with answering(status, body) as url:
        assert main(["payouts", "--home", str(tmp_path), "--url", url]) == 1
    out, error = capsys.readouterr()
    assert (out, len(error.splitlines())) == ("", 1)
    assert error.startswith("infernet-coordinator: ")
