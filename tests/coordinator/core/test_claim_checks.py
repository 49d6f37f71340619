"""Checking claims in processes: the same answers as without, and nothing is lost when one is gone."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from coordinator.core import claim_checks
from coordinator.core.claim_checks import PROCESS_CLAIMS_MIN, CheckProcess, ClaimChecks, check_all
from protocol.claims import CheckedClaim
from protocol.envelope import SigningKey
from protocol.errors import BadFrame, BadSignature
from protocol.ids import LeaseId
from protocol.records import Signed
from tests.helpers_money import sign_claim, sign_voucher

PROVIDER = SigningKey(b"\x01" * 32, lambda size: bytes(size))
PAYER = SigningKey(b"\x02" * 32, lambda size: bytes(size))
LEASE = LeaseId(b"\x03" * 32)


def claim(paid_uusd: int) -> Signed:
    return sign_claim(PROVIDER, LEASE, sign_voucher(PAYER, LEASE, paid_uusd), 1_000)


CLAIMS = [
    *(claim(paid) for paid in range(1, PROCESS_CLAIMS_MIN)),
    Signed(claim(1).body, bytes(64)),
    Signed(b"\x90", bytes(64)),
]


class Started:
    """Every process that was started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        popen = subprocess.Popen

        def start(*words: Any, **more: Any) -> subprocess.Popen[bytes]:
            self.processes.append(popen(*words, **more))
            return self.processes[-1]

        monkeypatch.setattr(claim_checks.subprocess, "Popen", start)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    return Started(monkeypatch)


@pytest.fixture
def checks() -> Iterator[ClaimChecks]:
    made = ClaimChecks()
    yield made
    made.close()


def said(checked: list[Any]) -> list[Any]:
    return [each if isinstance(each, CheckedClaim) else (type(each), str(each)) for each in checked]


def test_a_process_says_of_each_claim_what_a_thread_says(checks: ClaimChecks, started: Started) -> None:
    found = checks.check(CLAIMS)
    assert said(found) == said(check_all(CLAIMS))
    assert [type(each) for each in found[-2:]] == [BadSignature, BadFrame]
    assert said(checks.check(CLAIMS)) == said(found)
    assert len(started.processes) == 1


def test_few_claims_need_no_process(checks: ClaimChecks, started: Started) -> None:
    checks.check(CLAIMS[: PROCESS_CLAIMS_MIN - 1])
    assert started.processes == []


def test_two_threads_have_a_process_each(checks: ClaimChecks, started: Started) -> None:
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(checks.check, [CLAIMS] * 8))
    assert all(said(each) == said(check_all(CLAIMS)) for each in found)
    assert 1 <= len(started.processes) <= 2


def test_when_a_process_is_killed_the_thread_checks_and_no_other_is_started_at_once(
    checks: ClaimChecks, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks.check(CLAIMS)
    os.kill(started.processes[0].pid, signal.SIGKILL)
    started.processes[0].wait()
    for _ in range(2):
        assert said(checks.check(CLAIMS)) == said(check_all(CLAIMS))
    assert len(started.processes) == 1
    monkeypatch.setattr(checks, "_not_before_s", 0.0)
    assert said(checks.check(CLAIMS)) == said(check_all(CLAIMS))
    assert len(started.processes) == 2


@pytest.mark.parametrize("times", [1, 20], ids=["that it has room for", "that fill its pipe"])
def test_a_process_that_does_not_answer_is_given_up(
    checks: ClaimChecks, started: Started, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    checks.check(CLAIMS)
    monkeypatch.setattr(claim_checks, "ANSWER_S_MAX", 0.05)
    os.kill(started.processes[0].pid, signal.SIGSTOP)
    assert said(checks.check(CLAIMS * times)) == said(check_all(CLAIMS)) * times
    assert started.processes[0].wait(10) == -signal.SIGKILL


def test_where_no_process_can_be_started_the_threads_check(
    checks: ClaimChecks, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def refuse(*_words: Any, **_more: Any) -> None:
        tried.append(1)
        raise OSError("no more processes")

    monkeypatch.setattr(claim_checks.subprocess, "Popen", refuse)
    for _ in range(2):
        assert said(checks.check(CLAIMS)) == said(check_all(CLAIMS))
    assert tried == [1]


def test_closed_its_processes_end_and_threads_check(started: Started) -> None:
    checks = ClaimChecks()
    checks.check(CLAIMS)
    checks.close()
    assert started.processes[0].returncode == -signal.SIGKILL
    assert said(checks.check(CLAIMS)) == said(check_all(CLAIMS))
    assert len(started.processes) == 1


def test_a_process_ends_with_whoever_started_it_however_that_ends() -> None:
    code = (
        "import os, signal\n"
        "from coordinator.core.claim_checks import CheckProcess\n"
        "process = CheckProcess()\n"
        "print(process._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        # Both have its standard error only; this pipe is at its end once the parent is gone.
        child = int(parent.stdout.readline())
    try:
        watch = os.pidfd_open(child)
    except ProcessLookupError:
        return  # it is gone already
    with closing(os.fdopen(watch)):
        assert select.select([watch], [], [], 10)[0], "it still runs"


def test_its_environment_has_no_secrets(checks: ClaimChecks, started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COINPAY_API_KEY", "sk-secret")
    checks.check(CLAIMS)
    environment = Path(f"/proc/{started.processes[0].pid}/environ").read_bytes()
    assert b"PATH=" in environment
    assert b"sk-secret" not in environment


def test_ctrl_c_on_the_terminal_is_not_for_it() -> None:
    process = CheckProcess()
    try:
        assert os.getpgid(process._process.pid) != os.getpgid(0)
    finally:
        process.end()
