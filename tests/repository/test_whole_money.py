"""No line of the program can make a fraction of an amount of money."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
AMOUNT = re.compile(r"_uusd\b|\bunits\b|_units\b|\bcredit\b|amount_raw|received_raw")
# What part of its limit an offer costs, for a score; nobody pays it.
SHARES = {"cost_bound_uusd(offer, prompt_tokens, need.output_tokens) / need.spend_uusd_max"}


def fractions_in(source: str) -> Iterator[str]:
    """What in a program's text divides an amount other than by `//`, makes a float of it, or calls it one."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.BinOp(op=ast.Div()) | ast.AugAssign(op=ast.Div()):
                found = ast.unparse(node)
            case ast.Call(func=ast.Name("float" | "round" | "Decimal")):
                found = ast.unparse(node)
            case ast.AnnAssign(target, annotation) if "float" in ast.unparse(annotation):
                found = ast.unparse(target)
            case ast.arg(name, ast.expr() as annotation) if "float" in ast.unparse(annotation):
                found = name
            case _:
                continue
        if AMOUNT.search(found):
            yield found


def test_r6_no_amount_becomes_a_fraction() -> None:
    """R6: amounts were floats, and dollars stood in the column of coins."""
    files = [path for name in ("protocol", "infernet", "coordinator") for path in (ROOT / name).rglob("*.py")]
    found = {text for path in files for text in fractions_in(path.read_text("utf-8"))}
    assert found == SHARES


def test_fractions_of_money_are_seen() -> None:
    for line in (
        "half = paid_uusd / 2",
        "paid_uusd /= 2",
        "x = float(row.credit_uusd)",
        "x = round(side.cap_uusd * 0.05)",
        "x = Decimal(received_units)",
        "def pay(amount_uusd: float) -> None: ...",
        "paid_uusd: float | None = None",
    ):
        assert list(fractions_in(line)), line
    for line in ("half = paid_uusd // 2", "share: float = paid_tokens / 2", "x = float(round_trip_s)"):
        assert not list(fractions_in(line)), line
