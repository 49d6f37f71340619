"""Checking claims in processes: the same answers as without, and nothing is lost when one is gone."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from structlog.testing import capture_logs

from coordinator.core import claim_checks
from coordinator.core.claim_checks import PROCESS_CLAIMS_MIN, CheckProcess, ClaimChecks, check_all, encode_part
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


def test_two_threads_have_a_process_each(
    checks: ClaimChecks, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, check = threading.Barrier(2, timeout=10), CheckProcess.check

    def check_together(process: CheckProcess, claims: Sequence[Signed]) -> list[claim_checks.Checked]:
        together.wait()
        return check(process, claims)

    monkeypatch.setattr(CheckProcess, "check", check_together)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(checks.check, [CLAIMS] * 8))
    assert all(said(each) == said(check_all(CLAIMS)) for each in found)
    assert len(started.processes) == 2, "and they are used again"


def test_when_a_process_is_killed_the_thread_checks_and_no_other_is_started_at_once(
    checks: ClaimChecks, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks.check(CLAIMS)
    os.kill(started.processes[0].pid, signal.SIGKILL)
    started.processes[0].wait()
    with capture_logs() as logs:
        for _ in range(2):
            assert said(checks.check(CLAIMS)) == said(check_all(CLAIMS))
    assert len(started.processes) == 1
    assert [(line["event"], "unpack" in line["reason"]) for line in logs] == [("process_for_checks_failed", False)]
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


class Newer:
    """Test double: what a process of another version of this program sends. Here nothing is known of it."""

    def __reduce__(self) -> Any:
        return getattr, (CheckedClaim, "what_a_later_version_has")


@pytest.mark.parametrize(
    "answer",
    [Newer(), check_all(CLAIMS[:-1]), check_all(CLAIMS)[0], [None] * len(CLAIMS)],
    ids=["of a later version", "of one too few", "of one by itself", "of none"],
)
def test_a_process_that_answers_what_cannot_be_used_is_given_up(
    checks: ClaimChecks, started: Started, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    checks.check(CLAIMS)
    (process,) = checks._all
    told: BinaryIO = io.BytesIO(encode_part(answer))
    pipe = started.processes[0].stdout
    assert pipe is not None
    monkeypatch.setattr(started.processes[0], "stdout", told)
    with closing(pipe):
        assert said(checks.check(CLAIMS)) == said(check_all(CLAIMS))
        assert process not in checks._all
        assert started.processes[0].wait(10) == -signal.SIGKILL
        checks.check(CLAIMS)
        assert len(started.processes) == 1, "no other one at once"


@pytest.mark.parametrize("change", [{"executable": None}, {"executable": ""}, {"frozen": True}], ids=str)
def test_where_there_is_no_interpreter_to_start_the_threads_check(
    checks: ClaimChecks, started: Started, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    for name, value in change.items():
        monkeypatch.setattr(sys, name, value, raising=False)
    assert said(checks.check(CLAIMS)) == said(check_all(CLAIMS))
    assert started.processes == []


def test_where_no_thread_can_watch_a_process_it_is_not_left_behind(
    checks: ClaimChecks, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Timer, "start", refuse)
    assert said(checks.check(CLAIMS)) == said(check_all(CLAIMS))
    assert started.processes[0].wait(10) == -signal.SIGKILL


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


@pytest.mark.parametrize("shown", [1, 0.5], ids=["whose answer nobody takes", "that is cut off"])
def test_a_process_whose_coordinator_is_killed_ends_without_a_word(shown: float) -> None:
    part = encode_part([(claim.body, claim.signature) for claim in CLAIMS * 20])
    words = [sys.executable, "-P", "-m", "coordinator.core.claim_check_process"]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, env=claim_checks._environment()) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write(part[: int(len(part) * shown)])
        process.stdin.close()
        assert process.stderr.read() == b""


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
