"""infernet/confinement/seccomp.py: the program refuses what it is told to, on either machine, and nothing else."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infernet.confinement.seccomp import AtMost, Condition, Refuse, assemble
from infernet.confinement.syscalls import ARCHITECTURES, NEWEST, NUMBERS

ALLOWED = "allowed"
KILLED = "killed"
WORDS = st.integers(0, 2**32 - 1)


def decide(program: bytes, audit: int, number: int, arguments: tuple[int, ...] = ()) -> str | int:
    """What the kernel does with a call: run the program over its `struct seccomp_data`."""
    data = struct.pack("<IIQ6Q", number, audit, 0, *arguments, *[0] * (6 - len(arguments)))
    steps = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        code, if_true, if_false, value = steps[at]
        at += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x54:
                accumulator &= value
            case 0x15:
                at += if_true if accumulator == value else if_false
            case 0x25:
                at += if_true if accumulator > value else if_false
            case 0x06 if value == 0x7FFF0000:
                return ALLOWED
            case 0x06 if value == 0x80000000:
                return KILLED
            case 0x06:
                assert value >> 16 == 5
                return value & 0xFFFF
            case _:
                raise AssertionError(f"no instruction {code:#x}")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_call_is_refused_by_its_number_on_this_machine_alone(name: str) -> None:
    machine = ARCHITECTURES[name]
    program = assemble(
        [Refuse("execve"), Refuse("fork"), Refuse("clone3", error=errno.ENOSYS)], machine.audit, machine.column
    )
    refused = {NUMBERS["execve"][machine.column], NUMBERS["fork"][machine.column]} - {None}
    for number in range(NEWEST + 1):
        expected = errno.EPERM if number in refused else errno.ENOSYS if number == 435 else ALLOWED
        assert decide(program, machine.audit, number) == expected
    others = [
        other for other in (*(each.audit for each in ARCHITECTURES.values()), 0x40000003) if other != machine.audit
    ]
    assert {decide(program, other, 0) for other in others} == {KILLED}


@given(WORDS.filter(lambda number: number > NEWEST))
def test_calls_that_nobody_has_looked_at_do_not_exist(number: int) -> None:
    assert decide(assemble([], 1, 0), 1, number) == errno.ENOSYS


@given(
    st.lists(st.tuples(st.sets(WORDS, min_size=1, max_size=5), WORDS, st.booleans()), min_size=1, max_size=4),
    st.lists(WORDS, min_size=4, max_size=4),
)
def test_a_call_passes_when_all_its_conditions_hold(
    wanted: list[tuple[set[int], int, bool]], arguments: list[int]
) -> None:
    conditions = [Condition(at, tuple(values), mask, negated) for at, (values, mask, negated) in enumerate(wanted)]
    holds = all(((arguments[each.argument] & each.mask) in each.values) is not each.negated for each in conditions)
    program = assemble([Refuse("execve"), Refuse("socket", tuple(conditions), errno.EACCES), Refuse("ptrace")], 1, 0)
    # The high half of an argument is not what the kernel looks at either.
    given_ = tuple(argument | 0xABCD << 32 for argument in arguments)
    assert decide(program, 1, 41, given_) == (ALLOWED if holds else errno.EACCES)
    assert (decide(program, 1, 59), decide(program, 1, 101), decide(program, 1, 0)) == (1, 1, ALLOWED)


@given(WORDS, WORDS)
def test_a_length_has_an_end(most: int, length: int) -> None:
    program = assemble([Refuse("connect", (AtMost(2, most),))], 1, 0)
    assert decide(program, 1, 42, (0, 0, length)) == (ALLOWED if length <= most else errno.EPERM)


@pytest.mark.parametrize("column", [0, 1])
def test_no_two_calls_have_one_number(column: int) -> None:
    numbers = [pair[column] for pair in NUMBERS.values() if pair[column] is not None]
    assert len(numbers) == len(set(numbers))
    assert max(filter(None, numbers)) <= NEWEST
