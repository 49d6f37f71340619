"""What all verbs share: parsing, and the one place where an error becomes one line and an exit code.

Exit codes: 0 what was asked for is so now, also where it was so before; 1 it is not, or what was asked about is not
there; 2 misused (a flag, or an answer that did not come); 130 ended by Ctrl-C before it was done.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NoReturn

FAILED: Final = 1
MISUSED: Final = 2
INTERRUPTED: Final = 130

# Exceptions whose text is one line for people. A class of a module that was never loaded cannot have been raised.
_FOR_PEOPLE: Final = (
    ("infernet.host.files", "FilesError"),
    ("infernet.identity", "IdentityError"),
    ("infernet.host.lock", "AlreadyRunning"),
    ("infernet.ipc.client", "IpcError"),
    ("infernet.store", "StoreError"),
    ("infernet.coordinator_client", "CoordinatorError"),
    ("infernet.engines.contract", "EngineUnavailable"),
    ("infernet.transport.contract", "TransportError"),
    ("protocol.errors", "ProtocolError"),
)
# The user's disk or rights are at fault, not our code.
_ENVIRONMENT_ERRORS: Final = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EMFILE),
    # Something else lies where a file or folder belongs.
    *(errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG),
)
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class Failure(Exception):
    """The verb could not do what it should; one line for people. `details` goes into the JSON answer."""

    exit_code = FAILED

    def __init__(self, text: str, **details: Any) -> None:
        super().__init__(text)
        self.details = details


class Misuse(Failure):
    """The command line, or the input, is not what the verb can work with."""

    exit_code = MISUSED


class Parser(argparse.ArgumentParser):
    """An argument parser that complains in one line, and as an object to whoever asked for one."""

    as_json = False
    #: What is being parsed.
    words: Sequence[str] = ()

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            from infernet.cli.misuse import no_such_choice

            flags = action.option_strings
            flag = next((word for word in self.words if word in flags), flags[0] if flags else "")
            raise argparse.ArgumentError(None, no_such_choice(action, str(value), flag))

    def error(self, message: str) -> NoReturn:
        from infernet.cli.misuse import worded
        from protocol.formats.text import clean_line

        # A line that was copied from somewhere may have anything in it, and be long.
        text = f"{clean_line(worded(message, self._actions, self.words), 1000)} (see {self.prog} --help)"
        if self.as_json:
            _print_error(text)
        self.exit(MISUSED, f"{self.prog}: {text}\n")

    def print_help(self, file: Any = None) -> None:
        # What argparse itself prints with is silent about an output that takes nothing.
        print(self.format_help(), end="", file=file, flush=True)


class _WholeWords(argparse.RawDescriptionHelpFormatter):
    """What argparse makes of help, but for breaking flags at their dashes and addresses anywhere."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        from infernet.cli.layout import wrapped

        return wrapped(" ".join(text.split()), width)


def make_parser(verb: str, module: ModuleType) -> Parser:
    """The parser of a verb, from its module's USAGE, DESCRIPTION, EXAMPLES and `add_arguments`."""
    from infernet.cli.layout import fitted, usage_fitted

    width = help_width()
    parser = Parser(
        prog=f"infernet {verb}",
        usage=usage_fitted(f"infernet {verb}", module.USAGE, width),
        description=fitted(module.DESCRIPTION, width),
        epilog=fitted(module.EXAMPLES, width),
        formatter_class=_WholeWords,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result, or the error, as one JSON object")
    return parser


def help_width() -> int:
    """How wide help may be: as wide as the terminal, or as it was written where there is none."""
    from infernet.cli.layout import WRITTEN_FOR, terminal_width

    return terminal_width() if sys.stdout is not None and sys.stdout.isatty() else WRITTEN_FOR


def run(verb: str, module: ModuleType, words: list[str]) -> int:
    """Parse the words and run the verb; gives the exit code. No exception leaves."""
    if not hasattr(module, "add_arguments"):
        return int(module.run(words))
    for name in ("stdout", "stderr"):
        # Closed by whoever started this (`>&-`): then nobody wants to read it.
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - for as long as the process
        # What this terminal cannot show must not end the program.
        if hasattr(stream := getattr(sys, name), "reconfigure"):
            stream.reconfigure(errors="replace")
    parser = make_parser(verb, module)
    parser.as_json = "--json" in words
    parser.words = words
    try:
        arguments = parser.parse_args(words)
    except OSError as error:
        return report(error, as_json=parser.as_json)
    try:
        _take_over(verb)
        code: int = module.run(arguments)
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 - this is the boundary: what passes it is a traceback
        return report(error, as_json=arguments.json)
    return code


# What works without settings, looks only, or is there to put broken ones right.
_WITHOUT_SETTINGS: Final = frozenset(
    {
        "completion", "doctor", "drain", "firewall", "gpu", "logs", "remove", "report", "service", "stats", "status",
        "stop", "upgrade", "version",
    }
)  # fmt: skip


def _take_over(verb: str) -> None:
    """Have the settings of the earlier program, once, where there are none of ours. Raises ConfigError."""
    if verb in _WITHOUT_SETTINGS:
        return
    from infernet.config import places
    from infernet.settings.earlier import take_over

    if (done := take_over(places())) is not None:
        complain(done.text)


def report(error: BaseException, *, as_json: bool) -> int:
    """Tell the user of an error in one line; gives the exit code. `SystemExit` is raised again."""
    leaf = innermost(error)
    if isinstance(leaf, SystemExit):
        raise leaf
    if os.environ.get("INFERNET_DEBUG"):
        import traceback

        traceback.print_exception(error)
    if isinstance(leaf, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(leaf, BrokenPipeError):
        # Whoever read our output has enough.
        _let_go_of_output()
        return FAILED
    text = explain(leaf) or _unexpected(leaf)
    if as_json:
        details = leaf.details if isinstance(leaf, Failure) else {}
        _print_error(text, **details)
    _let_go_of_output()
    complain(text)
    if isinstance(leaf, Failure):
        return leaf.exit_code
    return MISUSED if type(leaf).__name__ == "FlagError" else FAILED


def _let_go_of_output() -> None:
    """What cannot be written now must not be tried again when Python ends: it would complain, and exit with 120."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_error(text: str, **details: Any) -> None:
    # Where nothing can be printed, the line on standard error says so.
    with contextlib.suppress(OSError):
        print(json.dumps({"error": text, **details}, indent=2), flush=True)


def complain(text: str) -> None:
    """One line on standard error, cleaned of what strangers may have put into it."""
    from protocol.formats.text import clean_line

    print(f"infernet: {clean_line(text, 1000)}", file=sys.stderr)


def warn(text: str) -> None:
    """Something the user should know, on standard error."""
    complain(f"warning: {text}")


def innermost(error: BaseException) -> BaseException:
    """The one exception to tell of in a group: one for people rather than one that only followed from it."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = list(_leaves(error))
    return next((leaf for leaf in leaves if explain(leaf) is not None), leaves[0])


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def explain(error: BaseException) -> str | None:
    """The text of an error that was written for people, None for any other."""
    from infernet.host.files import reason_of

    known = (Failure, *(getattr(sys.modules[module], name) for module, name in _FOR_PEOPLE if module in sys.modules))
    if isinstance(error, known):
        return str(error)
    if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
        return f"cannot write the output ({reason_of(error)}): make room where it goes"
    if isinstance(error, OSError) and error.errno in _ENVIRONMENT_ERRORS:
        where = f" {error.filename}" if error.filename else " a file"
        reason = reason_of(error)
        return f"cannot use{where} ({reason}): put that right, or choose another folder with INFERNET_HOME"
    return None


def _unexpected(error: BaseException) -> str:
    """Write down where it happened, without the values that an exception quotes; gives one line for the user."""
    from infernet.config import directories
    from infernet.host.files import make_private_directory
    from infernet.log import describe

    text = f"something unexpected went wrong ({type(error).__name__})"
    try:
        path: Path = directories()[1] / "crash.log"
        make_private_directory(path.parent)
        # Only the last one matters, so that the file stays small.
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "w") as log:
            log.write(describe(error) + "\n")
    except Exception:  # noqa: BLE001 - the error that is being told must be told, whatever else is wrong
        return f"{text}: run it again with INFERNET_DEBUG=1 to see where"
    return f"{text}: where is in {path}; INFERNET_DEBUG=1 shows more"


def self_command() -> list[str]:
    """The command that starts this very program again, for a process of its own."""
    if getattr(sys, "frozen", False):
        return [sys.executable]
    return [sys.executable, "-P", "-m", "infernet.cli"]


def self_environment() -> dict[str, str]:
    """Environment variables under which `self_command` finds the modules that this process has found."""
    if getattr(sys, "frozen", False):
        return dict(os.environ)
    folder = str(Path(__file__).resolve().parents[2])
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))}
