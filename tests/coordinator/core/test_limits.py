"""Who counts as one client, and how often it may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from quart import Quart, request

from coordinator.config import Config
from coordinator.core import limits
from coordinator.core.http import ApiError
from coordinator.core.limits import Client, RateLimiter, client_of

pytestmark = pytest.mark.anyio


async def client(remote: str, forwarded: str | None = None, **settings: Any) -> Client:
    headers = {"X-Forwarded-For": forwarded} if forwarded is not None else {}
    config = Config(home=str(Path()), **settings)
    headers["Remote-Addr"] = "127.0.0.1"
    async with Quart(__name__).test_request_context("/", headers=headers, scope_base={"client": (remote, 1)}):
        return client_of(request, config)


@pytest.mark.parametrize(
    ("remote", "forwarded", "trusted", "prefix"),
    [
        ("198.51.100.9", None, (), "198.51.100.0/24"),
        ("198.51.100.9", "203.0.113.1", (), "198.51.100.0/24"),
        ("10.0.0.1", "203.0.113.1", ("10.0.0.0/8",), "203.0.113.0/24"),
        ("10.0.0.1", "1.2.3.4, 203.0.113.1", ("10.0.0.0/8",), "203.0.113.0/24"),
        ("10.0.0.1", "203.0.113.1, 10.0.0.2", ("10.0.0.0/8",), "203.0.113.0/24"),
        ("10.0.0.1", "nonsense", ("10.0.0.0/8",), "10.0.0.0/24"),
        ("10.0.0.1", "203.0.113.1, nonsense", ("10.0.0.0/8",), "10.0.0.0/24"),
        ("10.0.0.1", "", ("10.0.0.0/8",), "10.0.0.0/24"),
        ("2001:db8:1:2ff::7", None, (), "2001:db8:1:200::/56"),
        ("::ffff:198.51.100.9", None, (), "198.51.100.0/24"),
        ("<local>", None, (), "unknown"),
    ],
)
async def test_r10_the_client_is_whom_trusted_proxies_name_counted_from_the_right(
    remote: str, forwarded: str | None, trusted: tuple[str, ...], prefix: str
) -> None:
    """R10: whoever wrote another address into `X-Forwarded-For` was another client to the limits."""
    assert (await client(remote, forwarded, trusted_proxies=trusted)).prefix == prefix


async def test_only_who_comes_straight_from_this_machine_is_local() -> None:
    assert (await client("127.0.0.1")).is_local
    assert (await client("::1")).is_local
    assert not (await client("127.0.0.1", limit_loopback=True)).is_local
    assert not (await client("127.0.0.1", "127.0.0.1")).is_local, "an unnamed proxy must not lift the limits"
    assert not (await client("127.0.0.1", "127.0.0.1", trusted_proxies=("127.0.0.1",))).is_local
    assert not (await client("198.51.100.9")).is_local


class Monotonic:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_bucket_holds_an_hours_worth_and_refills_evenly() -> None:
    clock = Monotonic()
    limiter = RateLimiter(4, "things", clock)
    one = Client("198.51.100.0/24", False)
    for _ in range(4):
        limiter.take(one)
    with pytest.raises(ApiError) as refused:
        limiter.take(one)
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "900")
    limiter.take(Client("203.0.113.0/24", False))
    clock.now_s += 900
    limiter.take(one)
    with pytest.raises(ApiError):
        limiter.take(one)


def test_local_clients_and_a_rate_of_zero_have_no_limit() -> None:
    limiter, off = RateLimiter(1, "things", Monotonic()), RateLimiter(0, "things", Monotonic())
    for _ in range(10):
        limiter.take(Client("127.0.0.0/24", True))
        off.take(Client("198.51.100.0/24", False))


def test_the_table_of_prefixes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PREFIXES_MAX", 5)
    limiter = RateLimiter(1, "things", Monotonic())
    for number in range(20):
        limiter.take(Client(str(number), False))
    assert len(limiter._full_at_s) == 5
