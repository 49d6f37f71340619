"""Every small change of a Python file that a test should notice: the usual operators of mutation testing.

Comparisons, arithmetic, logic, constants, conditions, returned values and left-out statements (DeMillo, Lipton and
Sayward 1978; the choice is that of the tools mutmut and cosmic-ray). Types, docstrings and prose are let alone.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.Pow: ast.Mult,
}
# What a class is made of and not what it does; a frozen struct that is not frozen behaves as before.
_IGNORED_KEYWORDS = {"frozen", "array_like", "slots", "gc", "kw_only", "forbid_unknown_fields", "maxsize"}


@dataclass(frozen=True, slots=True)
class Change:
    """One change: the line it is on, as it stands there, and what is changed. `place` finds it again in the tree."""

    line: int
    text: str
    what: str
    place: tuple[int, int]


def changes_of(source: str) -> list[Change]:
    """All changes of a file, in the order of its tree."""
    lines = source.splitlines()
    return [
        Change(node.lineno, lines[node.lineno - 1].strip(), what, (position, index))
        for position, node in enumerate(_candidates(ast.parse(source)))
        for index, (what, _) in enumerate(_changes(node))
    ]


def changed(source: str, change: Change) -> str:
    """The whole file with one change in it."""
    tree = ast.parse(source)
    position, index = change.place
    target = next(islice(_candidates(tree), position, None))
    _, make = next(islice(_changes(target), index, None))
    make(target)
    return ast.unparse(ast.fix_missing_locations(tree))


class _Located(ast.AST):
    lineno: int


def _candidates(tree: ast.Module) -> Iterator[_Located]:
    """The nodes that may be changed, always in the same order."""

    def walk(node: ast.AST) -> Iterator[_Located]:
        for name, value in ast.iter_fields(node):
            if name in {"annotation", "returns", "type_comment", "type_params"} or _is_prose(node, name):
                continue
            for child in value if isinstance(value, list) else [value]:
                if not isinstance(child, ast.AST) or _is_no_behaviour(child):
                    continue
                if hasattr(child, "lineno"):
                    yield child  # type: ignore[misc]  # it has its line
                yield from walk(child)

    return walk(tree)


def _is_no_behaviour(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True  # a docstring, or the three dots of a declaration
    if isinstance(node, ast.keyword) and node.arg in _IGNORED_KEYWORDS:
        return True
    return isinstance(node, (ast.Import, ast.ImportFrom, ast.JoinedStr))


def _is_prose(node: ast.AST, field: str) -> bool:
    """What an assertion says when it fails."""
    return isinstance(node, ast.Assert) and field == "msg"


def _changes(node: ast.AST) -> Iterator[tuple[str, Callable[[ast.AST], None]]]:
    match node:
        case ast.Compare(ops=ops):
            for index, op in enumerate(ops):
                for other in _COMPARISONS[type(op)]:
                    yield f"{type(op).__name__} -> {other.__name__}", _set_op(index, other)
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in _ARITHMETIC:
            other_op = _ARITHMETIC[type(op)]
            yield f"{type(op).__name__} -> {other_op.__name__}", _set("op", other_op)
        case ast.BoolOp(op=op):
            other_bool = ast.Or if isinstance(op, ast.And) else ast.And
            yield f"{type(op).__name__} -> {other_bool.__name__}", _set("op", other_bool)
        case ast.UnaryOp(op=ast.Not()):
            yield "not left out", _drop_not
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test) if not isinstance(
            test, (ast.Compare, ast.BoolOp)
        ):
            yield "condition negated", _negate
        case ast.Constant(value=value):
            yield from _constants(value)
        case _:
            pass
    yield from _left_out(node)


def _constants(value: object) -> Iterator[tuple[str, Callable[[ast.AST], None]]]:
    if isinstance(value, bool):
        yield f"{value} -> {not value}", _set("value", lambda: not value)
    elif isinstance(value, int):
        yield f"{value} -> {value + 1}", _set("value", lambda: value + 1)
    elif isinstance(value, str) and value and " " not in value:
        yield f"{value!r} changed", _set("value", lambda: f"{value}~")
    elif isinstance(value, bytes):
        yield f"{value!r} changed", _set("value", lambda: value + b"~")


def _left_out(node: ast.AST) -> Iterator[tuple[str, Callable[[ast.AST], None]]]:
    match node:
        case ast.Return(value=value) if value is not None and not (
            isinstance(value, ast.Constant) and value.value is None
        ):
            yield "returns nothing", _set("value", lambda: ast.Constant(None))
        case ast.Raise() | ast.Assert():
            yield f"{type(node).__name__} left out", _leave_out
        case ast.Expr(value=ast.Call() | ast.Yield() | ast.YieldFrom()) | ast.AugAssign():
            yield f"{type(node).__name__} left out", _leave_out
        case _:
            pass


def _set(field: str, make: Callable[[], object]) -> Callable[[ast.AST], None]:
    return lambda node: setattr(node, field, make())


def _set_op(index: int, op: type[ast.cmpop]) -> Callable[[ast.AST], None]:
    def change(node: ast.AST) -> None:
        assert isinstance(node, ast.Compare)
        node.ops[index] = op()

    return change


def _become(node: ast.AST, other: ast.AST) -> None:
    """Turn a node into another one where it stands."""
    node.__class__ = other.__class__
    node.__dict__.clear()
    node.__dict__.update(other.__dict__)


def _drop_not(node: ast.AST) -> None:
    assert isinstance(node, ast.UnaryOp)
    # Twice `not`: the value as a truth.
    node.operand = ast.UnaryOp(ast.Not(), node.operand)


def _negate(node: ast.AST) -> None:
    assert isinstance(node, (ast.If, ast.IfExp, ast.While))
    node.test = ast.UnaryOp(ast.Not(), node.test)


def _leave_out(node: ast.AST) -> None:
    # A generator that yields nothing must stay one.
    is_yield = isinstance(node, ast.Expr) and isinstance(node.value, (ast.Yield, ast.YieldFrom))
    nothing: ast.stmt = ast.Expr(ast.YieldFrom(ast.Tuple([], ast.Load()))) if is_yield else ast.Pass()
    _become(node, nothing)
