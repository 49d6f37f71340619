"""A coordinator that holds money, and a gateway for it that is a double: coins exist nowhere, everything else is real.

The coordinator is the product's own command. The gateway is the tests' double of CoinPayPortal, a process that speaks
real HTTP and is told over its `/control` when coins arrive.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import trio

from _dev_network_namespaces import end_with_parent
from _dev_network_nodes import NodeProcess
from _environment import ROOT, Failure, clean_environ

HOST: Final = "127.0.0.1"
GATEWAY: Final = "tests.fake_gateway"
STARTING_S: Final = 60.0
STOPPING_S: Final = 10.0
ARRIVING_S: Final = 30.0
LOOK_INTERVAL_S: Final = 0.1
DEPOSIT_USD: Final = "5.00"
# Known to everybody who reads this, and of no use anywhere: no money is behind them.
SECRETS: Final = {"API_KEY": "dev-api-key", "PAYOUT_TOKEN": "dev-payout-token", "WEBHOOK_SECRET": "dev-webhook-secret"}
BUSINESS: Final = "dev-business"
# Dollars per million tokens of a small model, and what a question may cost.
PROVIDER_WORDS: Final = ("--price-in", "0.10", "--price-out", "0.40")
ASKER_WORDS: Final = ("--spend-max", "0.02")
SETTINGS: Final = {
    "GATEWAY_BUSINESS_ID": BUSINESS,
    "GATEWAY_PAYOUT_EMAIL": "operator@example.org",
    **{f"GATEWAY_{name}": f"env:INFERNET_DEV_{name}" for name in SECRETS},
    "PAYOUT_UUSD_MIN": "10000",
    "SPONSOR_BUDGET_UUSD": "1000000",
}


@dataclass(frozen=True)
class Bank:
    """Where the coordinator and the gateway's double are."""

    url: str
    key: str
    gateway: str
    home: Path
    process: subprocess.Popen[bytes]

    def words(self, role: str) -> tuple[str, ...]:
        """What a node of this role is started with."""
        money = PROVIDER_WORDS if role == "provider" else ASKER_WORDS
        return ("--url", self.url, "--coordinator-key", self.key, *money)


@contextmanager
def bank(home: Path) -> Iterator[Bank]:
    """A coordinator and its gateway for as long as the block lasts. Raises Failure."""
    port = _free_port()
    home.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        gateway_words = ("--port", "0", "--callback", f"http://{HOST}:{port}/api/payments/webhook")
        credentials = (
            *("--api-key", SECRETS["API_KEY"], "--payout-token", SECRETS["PAYOUT_TOKEN"]),
            *("--webhook-secret", SECRETS["WEBHOOK_SECRET"], "--business", BUSINESS),
        )
        gateway = stack.enter_context(_child(home, "gateway", GATEWAY, *gateway_words, *credentials))
        gateway_url = _first_line(gateway, home / "gateway.log").split()[-1]
        settings = {f"INFERNET_COORDINATOR_{name}": value for name, value in SETTINGS.items()}
        settings |= {f"INFERNET_DEV_{name}": value for name, value in SECRETS.items()}
        settings["INFERNET_COORDINATOR_GATEWAY_URL"] = f"{gateway_url}/api"
        words = ("--host", HOST, "--port", str(port), "--home", str(home / "coordinator"), "--json")
        process = stack.enter_context(_child(home, "coordinator", "coordinator", *words, settings=settings))
        ready = json.loads(_first_line(process, home / "coordinator.log"))
        yield Bank(ready["url"], ready["key"], gateway_url, home / "coordinator", process)


async def give_money(bank: Bank, askers: Sequence[NodeProcess]) -> None:
    """Let each of them make a deposit, as `infernet wallet deposit` does, and let its coins arrive. Raises Failure."""

    async def ask(asker: NodeProcess, name: str, **fields: str) -> Any:
        return await asker.call("money", {"ask": name, "fields": fields})

    try:
        for asker in askers:
            await ask(asker, "deposit", amount_usd=DEPOSIT_USD, coin="USDC", network="base")
        async with httpx.AsyncClient(trust_env=False) as http:
            (await http.post(f"{bank.gateway}/control/arrive", json={})).raise_for_status()
        with trio.fail_after(ARRIVING_S):
            poor = list(askers)
            while True:
                poor = [asker for asker in poor if not (await ask(asker, "wallet"))["available_uusd"]]
                if not poor:
                    break
                await trio.sleep(LOOK_INTERVAL_S)
    except (OSError, httpx.HTTPError, trio.TooSlowError) as error:
        raise Failure(f"the askers got no money: {error or 'it did not arrive in time'}: run it again") from None


@contextmanager
def _child(
    home: Path, name: str, module: str, *words: str, settings: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    environ = {key: value for key, value in clean_environ().items() if not key.startswith("INFERNET_")}
    with (home / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *words],
            env={**environ, "PYTHONPATH": str(ROOT), **(settings or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOPPING_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _first_line(process: subprocess.Popen[bytes], log: Path) -> str:
    """What it prints when it is ready. Raises Failure with its last words when it is not."""
    assert process.stdout is not None
    deadline = time.monotonic() + STARTING_S
    line = b""
    while not line.endswith(b"\n"):
        readable, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        data = os.read(process.stdout.fileno(), 4096) if readable else b""
        if not data:
            said = log.read_text("utf-8", "replace").strip().splitlines()
            raise Failure(f"{log.stem} did not start: {said[-1] if said else 'it said nothing'} (log: {log})")
        line += data
    return line.decode().splitlines()[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
