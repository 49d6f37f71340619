"""Chat templates that come with a model, rendered as if their author wished us ill.

A template is a program in Jinja, out of a folder that somebody fetched from somewhere. It runs in Jinja's sandbox, and
beyond that: with a clock, because the sandbox lets it loop for ever; with bounds on every text and list, because a
few lines double a text until memory is gone; and with those filters, methods and functions alone that templates of
models are known to use, because among the others are some that make much out of little. What it does wrong
ends in `TemplateFailed`, and the run with it.
"""

from __future__ import annotations

import functools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType
from typing import Any, Final, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

TEMPLATE_CHARACTERS_MAX: Final = 256 * 1024
# A prompt is 1 MiB at most, and a template that shows it several times has no good reason.
OUTPUT_CHARACTERS_MAX: Final = 4 * 1024 * 1024
_ITEMS_MAX: Final = 10_000
_NUMBER_MAX: Final = 2**63
_DEPTH_MAX: Final = 32
_COMPILE_SECONDS: Final = 10.0
_RENDER_SECONDS: Final = 2.0
# All texts and lists that a template makes on its way, in characters and items.
_MADE_MAX: Final = 64 * 1024 * 1024
_DATE_FORMAT_CHARACTERS_MAX: Final = 64

_FILTERS: Final = frozenset({
    "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items", "join", "last",
    "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "safe", "select",
    "selectattr", "sort", "string", "title", "tojson", "trim", "unique", "upper",
})  # fmt: skip
_TEXT_METHODS: Final = frozenset({
    "capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit", "isnumeric", "isspace",
    "lower", "lstrip", "partition", "removeprefix", "removesuffix", "rfind", "rpartition", "rstrip", "startswith",
    "strip", "title", "upper",
})  # fmt: skip
_CONTAINER_METHODS: Final = frozenset({"count", "get", "index", "items", "keys", "values"})


class TemplateFailed(Exception):
    """A template cannot be used, or refuses what it is given. The message may quote a prompt: for tests alone."""


class ChatTemplate:
    """One template, compiled once. May be used by several threads."""

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        """`tokens` are the texts of control tokens by the names that templates use. Raises TemplateFailed."""
        if len(source) > TEMPLATE_CHARACTERS_MAX:
            raise TemplateFailed("it is too large")
        self._tokens = dict(tokens)
        environment = _Environment()
        with _told(), _clocked(_COMPILE_SECONDS):
            tree = _Watchable().visit(environment.parse(source))
            code = environment.compile(tree)
            self._template: Template = environment.template_class.from_code(environment, code, environment.globals)

    def render(self, turns: Iterable[tuple[str, str]]) -> str:
        """A chat, role and content each, up to where the answer begins. Raises TemplateFailed."""
        messages = [{"role": role, "content": content} for role, content in turns]
        given = self._tokens | {"messages": messages, "add_generation_prompt": True, "tools": None, "documents": None}
        with _told(), _clocked(_RENDER_SECONDS):
            return _bounded_join(self._template.generate(given))


@contextmanager
def _told() -> Iterator[None]:
    """Whatever goes wrong inside is the template's doing."""
    try:
        yield
    except TemplateFailed:
        raise
    except (TemplateError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError) as error:
        raise TemplateFailed(str(error)) from None
    except (NameError, OSError, RuntimeError, SyntaxError, TypeError, ValueError) as error:
        raise TemplateFailed(str(error)) from None


class _Made(threading.local):
    """What has been made on this thread since its clock was started."""

    size = 0


_made: Final = _Made()


def _make(value: Any) -> Any:
    """Count a new value towards what a template may make."""
    if isinstance(value, str | list | tuple):
        _made.size += len(value)
        if _made.size > _MADE_MAX or len(value) > OUTPUT_CHARACTERS_MAX:
            raise SecurityError("it makes too much")
    return value


@contextmanager
def _clocked(seconds: float) -> Iterator[None]:
    """End what runs on this thread when its time is over; every line of a compiled template passes the clock."""
    end_s = time.monotonic() + seconds

    def look(_frame: FrameType, _event: str, _argument: object) -> Callable[..., Any]:
        if time.monotonic() > end_s:
            raise TemplateFailed("it takes too long")
        return look

    _made.size = 0
    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)


class _Watchable(NodeTransformer):
    """Makes `a ~ b` a sum of texts, and `a[b:c]` a filter: those can be watched, and Jinja's own ways cannot."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:  # noqa: N802 - Jinja finds it by this name
        """A sum of texts."""
        self.generic_visit(node)
        parts = [nodes.Filter(part, "string", [], [], None, None, lineno=node.lineno) for part in node.nodes]
        total: nodes.Expr = parts[0]
        for part in parts[1:]:
            total = nodes.Add(total, part, lineno=node.lineno)
        return total

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:  # noqa: N802 - Jinja finds it by this name
        """A filter, where it is a slice."""
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        ends = [end or nodes.Const(None) for end in (node.arg.start, node.arg.stop, node.arg.step)]
        return nodes.Filter(node.node, _SLICE, ends, [], None, None, lineno=node.lineno)


# No template can name it.
_SLICE: Final = "[:]"


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], optimized=False, finalize=_finalize
        )
        ours = {"join": _join, "list": _list, "replace": _replace, "string": _string, "tojson": _to_json}
        theirs = {name: filter_ for name, filter_ in self.filters.items() if name in _FILTERS}
        self.filters = {name: _counted(filter_) for name, filter_ in (theirs | ours | {_SLICE: _slice}).items()}
        self.globals = {
            "namespace": self.globals["namespace"],
            "range": self.globals["range"],
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        # What compiled templates join the pieces of `{% set %}` blocks and macros with.
        self.concat = _bounded_join  # type: ignore[method-assign] # a function that takes the same

    def is_safe_attribute(self, obj: object, attr: str, value: object) -> bool:
        if isinstance(obj, str):
            return attr in _TEXT_METHODS
        if isinstance(obj, Mapping | list | tuple):
            return attr in _CONTAINER_METHODS
        if isinstance(obj, int | float | bytes | type) or obj is None:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def getattr(self, obj: object, attribute: str) -> Any:
        return _bounded_method(obj, attribute) or super().getattr(obj, attribute)

    def getitem(self, obj: object, argument: Any) -> Any:
        return _bounded_method(obj, argument) or super().getitem(obj, argument)

    def wrap_str_format(self, _value: object) -> Callable[..., str] | None:
        return None  # `format` is no method that we let through

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        return _make(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and not isinstance(left, int | float):
            return _sum(left, right)
        if not (isinstance(left, int | float) and isinstance(right, int | float)):
            raise SecurityError(f"{operator} is for numbers")
        if operator == "**" and (abs(left) > 2**16 or abs(right) > 63):
            raise SecurityError("a number would become too large")
        return _number(super().call_binop(context, operator, _number(left), _number(right)))


def _counted(filter_: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(filter_)  # Jinja notes on the function what it wants to be given
    def counted(*arguments: Any, **named: Any) -> Any:
        return _make(filter_(*arguments, **named))

    return counted


def _bounded_method(obj: object, name: object) -> Callable[..., Any] | None:
    """Methods of texts that make much out of little, with bounds."""
    if not isinstance(obj, str) or not isinstance(name, str):
        return None
    methods: dict[str, Callable[..., Any]] = {"replace": _replace, "split": _split, "rsplit": _rsplit}
    method = methods.get(name)
    return functools.partial(method, str(obj)) if method is not None else None


def _number(value: Any) -> Any:
    if isinstance(value, complex) or abs(value) > _NUMBER_MAX:
        raise SecurityError("a number became too large")
    return value


def _sum(left: Any, right: Any) -> Any:
    if not any(isinstance(left, kind) and isinstance(right, kind) for kind in (str, list)):
        raise SecurityError("only texts, lists and numbers can be added, each to its like")
    if len(left) + len(right) > (OUTPUT_CHARACTERS_MAX if isinstance(left, str) else _ITEMS_MAX):
        raise SecurityError("it makes too much")
    return _make(left + right)


def _slice(value: Any, start: Any = None, stop: Any = None, step: Any = None) -> Any:
    return value[start:stop:step]


def _split(text: str, sep: str | None = None, maxsplit: int = -1) -> list[str]:
    return _pieces(text.split(sep, min(maxsplit, _ITEMS_MAX) if maxsplit >= 0 else _ITEMS_MAX))


def _rsplit(text: str, sep: str | None = None, maxsplit: int = -1) -> list[str]:
    return _pieces(text.rsplit(sep, min(maxsplit, _ITEMS_MAX) if maxsplit >= 0 else _ITEMS_MAX))


def _pieces(pieces: list[str]) -> list[str]:
    if len(pieces) > _ITEMS_MAX:
        raise SecurityError("a list became too long")
    _made.size += sum(map(len, pieces))
    return pieces


def _bounded_join(pieces: Iterable[str]) -> str:
    kept: list[str] = []
    length = 0
    for piece in pieces:
        length += len(piece)
        # A piece of nothing takes room, too.
        if length > OUTPUT_CHARACTERS_MAX or len(kept) > OUTPUT_CHARACTERS_MAX:
            raise TemplateFailed("it writes too much")
        kept.append(piece)
    text: str = _make("".join(kept))
    return text


def _finalize(value: Any) -> Any:
    """What `{{ value }}` shows: of lists and dictionaries, only small ones."""
    return _string(value) if isinstance(value, Mapping | list | tuple | set | frozenset) else value


def _string(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        _bounded_join(_encoded(value))
    return str(value)


def _to_json(value: Any, indent: int | None = None, **_others: object) -> str:
    return _bounded_join(_encoded(value, min(indent, 8) if isinstance(indent, int) else None))


def _encoded(value: Any, indent: int | None = None) -> Iterator[str]:
    _check_depth(value, _DEPTH_MAX)
    return json.JSONEncoder(ensure_ascii=False, default=str, skipkeys=True, indent=indent).iterencode(value)


def _check_depth(value: object, left: int) -> None:
    if left == 0:
        raise SecurityError("it is nested too deeply")
    children = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for child in children:
        _check_depth(child, left - 1)


def _list(value: Iterable[Any]) -> list[Any]:
    items: list[Any] = []
    for item in value:
        if len(items) == _ITEMS_MAX:
            raise SecurityError("a list became too long")
        items.append(item)
    return items


def _join(value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    items = _list(value)
    if attribute is not None:
        items = [item.get(attribute, "") if isinstance(item, Mapping) else "" for item in items]
    pieces: list[str] = []
    for item in items:
        pieces += [str(d), _string(item)] if pieces else [_string(item)]
    return _bounded_join(pieces)


def _replace(text: str, old: str, new: str, count: int | None = None) -> str:
    text, old, new = str(text), str(old), str(new)
    times = text.count(old) if count is None or count < 0 else min(count, text.count(old))
    if len(text) + times * len(new) > OUTPUT_CHARACTERS_MAX:
        raise SecurityError("a text became too long")
    return text.replace(old, new, times)


def _raise_exception(message: object = "") -> NoReturn:
    raise TemplateFailed(str(message)[:256])


def _strftime_now(pattern: str) -> str:
    if not isinstance(pattern, str) or len(pattern) > _DATE_FORMAT_CHARACTERS_MAX:
        raise SecurityError("that is no format of a date")
    return datetime.now(UTC).strftime(pattern)
