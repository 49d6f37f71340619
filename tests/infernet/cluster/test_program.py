"""infernet/cluster/program.py and keeper.py: a program lives as long as whoever started it, however that ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from infernet.cluster import program as program_module
from infernet.cluster.keeper import main
from infernet.cluster.program import Program, ProgramGone, describe_exit, keeper_command, open_program
from infernet.engines.process import reason_in
from tests.helpers_processes import is_running, wait_until
from tests.helpers_rpc_cluster import children_of
from tests.helpers_transport import eventually

pytestmark = pytest.mark.anyio

LISTENS_FOR = {"number": re.compile(r"^number (\d+)$")}
SLEEPS = "exec sleep 600"
ROOT = Path(__file__).resolve().parents[3]


def shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


async def gone(program: Program) -> str:
    with trio.fail_after(30):
        await program.gone.wait()
    return program.why_gone()


async def test_one_that_says_very_much_leaves_others_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = most = 0

    def counted(line: str) -> str | None:
        nonlocal looked_at
        looked_at += 1
        return reason_in(line)

    async def take_turns() -> None:
        nonlocal most
        while True:
            before = looked_at
            await trio.lowlevel.checkpoint()
            most = max(most, looked_at - before)

    monkeypatch.setattr(program_module, "reason_in", counted)
    words = [sys.executable, "-c", "import os; os.write(1, b'\\n' * 30_000 + b'number 3\\n')"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        async with open_program(words, str(tmp_path), LISTENS_FOR) as program:
            await gone(program)
            assert [match[1] for match in program.all_heard("number")] == ["3"]
        nursery.cancel_scope.cancel()
    assert looked_at > 30_000
    # Between two turns of one task another may have two.
    assert most <= 256


async def test_what_it_says_is_heard_and_nothing_else_is_kept(tmp_path: Path) -> None:
    script = "echo number 1; echo a prompt of somebody >&2; echo number 2; echo cudaMalloc failed >&2; exit 7"
    async with open_program(shell(script), str(tmp_path), LISTENS_FOR) as program:
        assert (await program.hear("number", 30))[1] == "1"
        assert await gone(program) == "sh exited with status 7: not enough memory"
        assert [match[1] for match in program.all_heard("number")] == ["1", "2"]


async def test_who_ends_before_the_word_is_told_with_the_reason(tmp_path: Path) -> None:
    async with open_program(shell("kill -ABRT $$"), str(tmp_path), LISTENS_FOR) as program:
        with pytest.raises(ProgramGone, match="sh was ended by SIGABRT"):
            await program.hear("number", 30)


async def test_who_is_silent_is_not_waited_for(tmp_path: Path) -> None:
    async with open_program(shell(SLEEPS), str(tmp_path), LISTENS_FOR) as program:
        with pytest.raises(ProgramGone, match="was not ready within"):
            await program.hear("number", 0.05)


async def test_lines_without_an_end_and_lines_without_number_cost_little(tmp_path: Path) -> None:
    script = "head -c 3000000 /dev/zero | tr '\\0' x; echo; yes number 5 | head -n 100000; exit 0"
    async with open_program(shell(script), str(tmp_path), LISTENS_FOR) as program:
        assert await gone(program) == "sh exited with status 0"
        assert len(program.all_heard("number")) == 32


async def test_it_is_ended_with_a_verdict(tmp_path: Path) -> None:
    async with open_program(shell(SLEEPS), str(tmp_path), LISTENS_FOR) as program:
        await eventually(lambda: children_of(program.pid))
        (process,) = children_of(program.pid)
        program.end("enough of it")
        program.end("twice is once")
        assert await gone(program) == "enough of it"
        assert not is_running(process)


async def test_leaving_ends_it_even_when_cancelled(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_program(shell(SLEEPS), str(tmp_path), LISTENS_FOR) as program:
            await eventually(lambda: children_of(program.pid))
            (process,) = children_of(program.pid)
            scope.cancel()
            await trio.sleep_forever()
    assert not is_running(process)


async def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    async with open_program([str(tmp_path / "nothing")], str(tmp_path), LISTENS_FOR) as program:
        assert await gone(program) == "nothing cannot be started"


async def test_it_has_no_secrets_of_the_node_and_a_home_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERNET_ENGINE_KEY", "12345")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    script = f'[ "$HOME" = "{tmp_path}" ] && echo "number $INFERNET_ENGINE_KEY$CUDA_VISIBLE_DEVICES"'
    async with open_program(shell(script), str(tmp_path), LISTENS_FOR) as program:
        assert (await program.hear("number", 30))[1] == "7"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_program_does_not_outlive_a_keeper_that_is_killed(number: int) -> None:
    if sys.platform != "linux" and number == signal.SIGKILL:
        pytest.skip("only Linux ends children with their parent")
    with subprocess.Popen(keeper_command(shell(SLEEPS)), stdin=subprocess.PIPE) as keeper:
        wait_until(lambda: children_of(keeper.pid), "the keeper starts the program")
        (process,) = children_of(keeper.pid)
        os.kill(keeper.pid, number)
        wait_until(lambda: not is_running(process), "the program ends")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
@pytest.mark.parametrize(("lives", "said"), [(True, "lives\n"), (False, "")])
def test_a_program_whose_keeper_is_gone_already_does_not_begin(lives: bool, said: str) -> None:
    keeper = "os.getppid()" if lives else "os.getppid() + 1"
    script = f"import ctypes, os; from infernet.cluster.keeper import die_with; die_with({keeper}, ctypes.CDLL(None))"
    words = [sys.executable, "-c", f"{script}; print('lives')"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30, cwd=ROOT)
    assert (done.stdout, done.returncode) == (said, 0 if lives else 1)


def test_the_program_ends_when_nobody_holds_the_leash() -> None:
    with subprocess.Popen(keeper_command(shell(SLEEPS)), stdin=subprocess.PIPE) as keeper:
        wait_until(lambda: children_of(keeper.pid), "the keeper starts the program")
        (process,) = children_of(keeper.pid)
        assert keeper.stdin is not None
        keeper.stdin.close()
        assert keeper.wait(30) == -signal.SIGKILL
        assert not is_running(process)


def test_the_keeper_ends_as_the_program_did() -> None:
    for script, status in (("exit 3", 3), ("kill -ABRT $$", -signal.SIGABRT), ("exit 0", 0)):
        with subprocess.Popen(keeper_command(shell(script)), stdin=subprocess.PIPE) as keeper:
            # `wait` leaves its input open, which `communicate` would not.
            assert keeper.wait(30) == status
    assert main([]) == 2


def test_the_frozen_program_keeps_by_its_hidden_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert keeper_command(["x", "y"]) == [sys.executable, "cluster-keeper", "x", "y"]


def test_ends_have_words() -> None:
    assert describe_exit("p", 126) == "p cannot be started"
    assert (
        describe_exit("p", -signal.SIGKILL) == "p was ended by SIGKILL, perhaps because the machine ran out of memory"
    )
