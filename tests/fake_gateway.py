"""A fake CoinPayPortal, as a process of its own that speaks real HTTP. A test double: no coin exists.

    python -m tests.fake_gateway --port 0 --callback http://127.0.0.1:8080/api/payments/webhook --verbose

prints its address. Below /api it is the gateway; below /control it is told what happens to it, with JSON in and out:

    POST /control/pay       {"payment_id", "amount": "exact"|"under"|"over"|"0.5", "coin"?}   coins arrive
    POST /control/arrive    {"amount"?}   coins arrive for all that wait for some, and are confirmed
    POST /control/advance   {"payment_id"?, "status"?}   look at the chain once, or say this; then tell
    POST /control/fault     {"on", "kind", "status"?, "times"?, "fields"?}   see helpers_fake_gateway_faults
    POST /control/rates     {"rates": {"create_payout": {"timeout": 0.3}}, "seed"}   faults by chance
    POST /control/payout    {"payout_id", "status", "sent"?}   a payout ends otherwise
    POST /control/set       {"callback"?, "clock_s"?, "per_minute"?, "per_hour"?}
    POST /control/release   deliver held webhooks        POST /control/drain   wait for deliveries, 5 s at most
    GET  /control/history   all that happened            GET  /control/book    what was paid and what was sent
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from tests.helpers_fake_gateway_book import Book, Payment, Refused, payment_json, payout_json
from tests.helpers_fake_gateway_faults import Fault, Faults
from tests.helpers_fake_gateway_webhooks import Webhooks

API_KEY = "cp_live_fake0123456789"
PAYOUT_TOKEN = "jwt.fake.0123456789"  # of nobody: what the fake asks for unless it is told otherwise
SECRET = "whsecret_fake0123456789"
BUSINESS = "biz_fake"
BODY_BYTES_MAX = 64 * 1024
PAGE_DEFAULT, PAGE_MAX = 50, 1000
NO_ANSWER_S = 600.0
DRAIN_S = 5.0
HUGE_BYTES = 64 * 1024 * 1024
CHUNK_BYTES = 64 * 1024

Answer = tuple[int, dict[str, Any]]


class Limits:
    """So many requests a minute for an address, so many an hour for a credential, by the process's own clock."""

    def __init__(self, per_minute: int, per_hour: int) -> None:
        self.per_minute = per_minute
        self.per_hour = per_hour
        self._seen: dict[str, deque[float]] = {}

    def admit(self, address: str, credential: str) -> bool:
        """Count this request, unless it is one too many."""
        now = time.monotonic()
        places = ((f"ip {address}", 60.0, self.per_minute), (f"key {credential}", 3600.0, self.per_hour))
        for name, window_s, most in places:
            seen = self._seen.setdefault(name, deque())
            while seen and seen[0] <= now - window_s:
                seen.popleft()
            if len(seen) >= most:
                return False
        for name, _, _ in places:
            self._seen[name].append(now)
        return True


class FakeGateway:
    """The two sides of it: what the gateway answers, and what the test says."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.book = Book(options.business, options.seed)
        self.faults = Faults(options.seed)
        self.limits = Limits(options.per_minute, options.per_hour)
        self.webhooks = Webhooks(self.book, self.faults, options.webhook_secret, self.now_s, options.webhook_backoff_s)
        self.webhooks.callback = options.callback
        self.offset_s = 0
        self._options = options

    def now_s(self) -> int:
        """The gateway's clock."""
        return int(time.time()) + self.offset_s

    # ---------------------------------------------------------------- the gateway

    def call_of(self, method: str, path: str) -> tuple[str, str]:
        """Which call a request is, and the id in its path. Raises Refused."""
        match (method, path.strip("/").split("/")):
            case ("POST", ["api", "payments", "create"]):
                return "create_payment", ""
            case ("GET", ["api", "payments", identity]):
                return "get_payment", identity
            case ("POST", ["api", "businesses", business, "payouts"]):
                return "create_payout", business
            case ("GET", ["api", "businesses", business, "payouts"]):
                return "list_payouts", business
        raise Refused(404, "Not found")

    def authenticate(self, call: str, credential: str) -> None:
        """Raises Refused."""
        wanted = (
            self._options.payout_token if call.endswith("payout") or call == "list_payouts" else self._options.api_key
        )
        if credential != f"Bearer {wanted}":
            raise Refused(401, "Invalid or expired token")

    def perform(
        self, call: str, identity: str, query: dict[str, list[str]], body: dict[str, Any], outcome: str | None
    ) -> Answer:
        """The effect of a call and its answer. Raises Refused."""
        if call in ("create_payout", "list_payouts") and identity != self.book.business_id:
            raise Refused(404, "Business not found or access denied")
        match call:
            case "create_payment":
                return 201, {"success": True, "payment": self._payment(self.book.create_payment(body, self.now_s()))}
            case "get_payment":
                told = {"payment": self._payment(self.book.payment(identity))}
                return 200, {"success": True, **(told if self._is_code else {"data": told})}
            case "create_payout":
                return self._create_payout(body, outcome)
        return 200, self._payouts(query)

    def _create_payout(self, body: dict[str, Any], outcome: str | None) -> Answer:
        payout = self.book.create_payout(body, self.now_s(), outcome)
        told = payout_json(payout, self.book.business_id)
        if payout.status in ("failed", "indeterminate"):
            return 422, {"success": False, "error": f"Payout {payout.status}", "payout": told}
        return 201, {"success": True, "payout": told}

    def _payouts(self, query: dict[str, list[str]]) -> dict[str, Any]:
        limit = min(int(query.get("limit", [str(PAGE_DEFAULT)])[0]), PAGE_MAX)
        offset = int(query.get("offset", ["0"])[0])
        newest = list(reversed(self.book.payouts.values()))[offset : offset + limit]
        rows = [payout_json(payout, self.book.business_id) for payout in newest]
        return {"success": True, "payouts": rows, "total": len(self.book.payouts), "limit": limit, "offset": offset}

    @property
    def _is_code(self) -> bool:
        return bool(self._options.shape == "code")

    def _payment(self, payment: Payment) -> dict[str, Any]:
        return payment_json(payment, public=self._is_code, business_id=self.book.business_id)

    # ---------------------------------------------------------------- the test

    async def control(self, name: str, body: dict[str, Any]) -> Any:
        """Do what the test says. Raises Refused, KeyError, ValueError."""
        match name:
            case "pay":
                self.book.pay(body["payment_id"], str(body.get("amount", "exact")), body.get("coin"))
            case "arrive":
                for payment in [each for each in self.book.payments.values() if not each.is_funded]:
                    self.book.pay(payment.id, str(body.get("amount", "exact")))
                    for _ in range(2):  # seen, and confirmed
                        self._advance(payment.id, None)
            case "advance":
                chosen = [body["payment_id"]] if "payment_id" in body else list(self.book.payments)
                for identity in chosen:
                    self._advance(identity, body.get("status"))
            case "fault":
                self.faults.add(Fault(**body))
            case "rates":
                rates = {on: {kind: float(rate) for kind, rate in kinds.items()} for on, kinds in body["rates"].items()}
                self.faults.set_rates(rates, int(body.get("seed", 0)))
            case "payout":
                payout = self.book.payouts[body["payout_id"]]
                payout.status, payout.sent = body["status"], body.get("sent", payout.sent)
            case "set":
                self.webhooks.callback = body.get("callback", self.webhooks.callback)
                self.offset_s = int(body.get("clock_s", self.offset_s))
                self.limits.per_minute = int(body.get("per_minute", self.limits.per_minute))
                self.limits.per_hour = int(body.get("per_hour", self.limits.per_hour))
            case "release":
                self.webhooks.release()
            case "drain":
                return {"waiting": await self.webhooks.drain(DRAIN_S)}
            case "history":
                return self.book.history
            case "book":
                return self.book.summary()
            case _:
                raise Refused(404, "no such control")
        return {"ok": True}

    def _advance(self, identity: str, status: str | None) -> None:
        before = self.book.payment(identity).status
        payment = self.book.advance(identity, status, self.now_s())
        if payment.status != before or status is not None:
            self.webhooks.tell(payment)


class Connection:
    """One request on one connection, answered rightly or wrongly."""

    def __init__(
        self,
        gateway: FakeGateway,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        say: Callable[[str], None],
    ) -> None:
        self._gateway = gateway
        self._reader = reader
        self._writer = writer
        self._say = say

    async def serve(self) -> None:
        """Answer and close."""
        try:
            await self._serve()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever asked is gone, or asked for nothing
        finally:
            self._writer.close()

    async def _serve(self) -> None:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        length = int(headers.get("content-length", "0"))
        raw = await self._reader.readexactly(min(length, BODY_BYTES_MAX))
        url = urlsplit(target)
        if url.path.startswith("/control/"):
            await self._control(url.path.rpartition("/")[2], raw)
            return
        await self._call(method, url.path, parse_qs(url.query), headers, raw)

    async def _control(self, name: str, raw: bytes) -> None:
        try:
            status, answer = 200, await self._gateway.control(name, json.loads(raw or b"{}"))
        except (Refused, KeyError, ValueError, TypeError, ArithmeticError) as error:
            status, answer = 400, {"error": f"{type(error).__name__}: {error}"}
        await self._answer(status, msgspec.json.encode(answer))

    async def _call(
        self, method: str, path: str, query: dict[str, list[str]], headers: dict[str, str], raw: bytes
    ) -> None:
        gateway, credential = self._gateway, headers.get("authorization", "")
        fault: Fault | None = None
        try:
            call, identity = gateway.call_of(method, path)
            if not gateway.limits.admit(self._writer.get_extra_info("peername")[0], credential):
                raise Refused(429, "Too many requests")
            gateway.authenticate(call, credential)
            fault = gateway.faults.take(call)
            gateway.book.note("call", call=call, fault=fault.kind if fault else None)
            self._before(fault, credential)
            if fault is not None and fault.kind == "silence":
                await self._hang()
                return
            body = json.loads(raw, parse_float=Decimal) if raw else {}
            outcome = str(fault.status) if fault is not None and fault.kind == "outcome" else None
            status, answer = gateway.perform(call, identity, query, body, outcome)
            if fault is not None and fault.kind in ("forget", "grow"):
                gateway.book.move(fault.times if fault.kind == "grow" else -fault.times, gateway.now_s())
        except Refused as refused:
            status, answer, call = refused.status, {"success": False, "error": refused.text}, "refused"
        self._say(f"{method} {path} {status}{f' ({fault.kind})' if fault else ''}")
        await self._after(fault, status, answer)

    @staticmethod
    def _before(fault: Fault | None, credential: str) -> None:
        """Faults that keep a call from having its effect. Raises Refused."""
        if fault is None:
            return
        match fault.kind:
            case "refuse":
                raise Refused(int(fault.status or 400), "refused by the test")
            case "error_before":
                raise Refused(int(fault.status or 500), "broken by the test")
            case "echo":
                raise Refused(400, f"bad credential {credential}\r\n\x1b[31m")

    async def _after(self, fault: Fault | None, status: int, answer: dict[str, Any]) -> None:
        """Answer, or do not."""
        body = msgspec.json.encode(answer)
        extra = {"Retry-After": str(fault.retry_after_s)} if fault is not None and fault.retry_after_s else {}
        match fault.kind if fault else None:
            case "timeout":
                await self._hang()
            case "close":
                return
            case "error_after":
                assert fault is not None
                await self._answer(int(fault.status or 500), b'{"success":false,"error":"broken by the test"}')
            case "cut":
                self._writer.write(self._head(status, len(body), extra) + body[: len(body) // 2])
                await self._writer.drain()
            case "malformed":
                await self._answer(status, body[: len(body) // 2])
            case "slow":
                await self._dribble(self._head(status, len(body), extra) + body)
            case "huge":
                await self._flood(status)
            case "redirect":
                await self._answer(307, b"{}", {"Location": "http://127.0.0.1:9/elsewhere"})
            case "say":
                assert fault is not None
                await self._answer(status, msgspec.json.encode(_changed(json.loads(body), fault.fields)))
            case _:
                await self._answer(status, body, extra)

    async def _hang(self) -> None:
        """Say nothing until whoever asked goes away."""
        await asyncio.wait_for(self._reader.read(), NO_ANSWER_S)

    async def _dribble(self, data: bytes) -> None:
        for byte in data:
            self._writer.write(bytes([byte]))
            await self._writer.drain()
            await asyncio.sleep(0.02)

    async def _flood(self, status: int) -> None:
        self._writer.write(self._head(status, HUGE_BYTES))
        sent = 0
        try:
            while sent < HUGE_BYTES:
                self._writer.write(b" " * CHUNK_BYTES)
                await self._writer.drain()
                sent += CHUNK_BYTES
        finally:
            self._gateway.book.note("flooded", bytes=sent)

    async def _answer(self, status: int, body: bytes, extra: dict[str, str] | None = None) -> None:
        self._writer.write(self._head(status, len(body), extra) + body)
        await self._writer.drain()

    def _head(self, status: int, length: int, extra: dict[str, str] | None = None) -> bytes:
        limits = self._gateway.limits
        fields = {
            "Content-Type": "application/json",
            "Content-Length": str(length),
            "Connection": "close",
            "X-RateLimit-Limit": str(limits.per_minute),
            **(extra or {}),
        }
        lines = [f"HTTP/1.1 {status} of the fake", *(f"{name}: {value}" for name, value in fields.items())]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _changed(answer: Any, fields: dict[str, Any]) -> Any:
    """The answer with these fields other than they were, wherever in it they are."""
    if isinstance(answer, dict):
        return {name: fields.get(name, _changed(value, fields)) for name, value in answer.items()}
    return [_changed(item, fields) for item in answer] if isinstance(answer, list) else answer


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--callback", help="where webhooks go")
    parser.add_argument("--api-key", default=API_KEY)
    parser.add_argument("--payout-token", default=PAYOUT_TOKEN)
    parser.add_argument("--business", default=BUSINESS)
    parser.add_argument("--webhook-secret", default=SECRET)
    parser.add_argument("--webhook-backoff-s", type=float, default=1.0, help="before the second attempt; then doubled")
    parser.add_argument("--shape", choices=("docs", "code"), default="docs", help="answers as documented, or as coded")
    parser.add_argument("--per-minute", type=int, default=100, help="requests for one address")
    parser.add_argument("--per-hour", type=int, default=1000, help="requests for one credential")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="a line on stderr for each request")
    return parser.parse_args(arguments)


async def run(options: argparse.Namespace) -> None:
    """Serve until the process is ended."""
    gateway = FakeGateway(options)

    def say(line: str) -> None:
        if options.verbose:
            sys.stderr.write(f"{line}\n")

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Connection(gateway, reader, writer, say).serve()

    server = await asyncio.start_server(accept, options.host, options.port)
    port = server.sockets[0].getsockname()[1]
    sys.stdout.write(f"http://{options.host}:{port}\n")
    sys.stdout.flush()
    try:
        await server.serve_forever()
    finally:
        await gateway.webhooks.close()


if __name__ == "__main__":
    try:
        asyncio.run(run(parse()))
    except KeyboardInterrupt:
        sys.exit(130)
