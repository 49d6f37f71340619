"""The pages of all verbs and of all settings, made from what the program itself reads.

python -m infernet.cli.pages docs
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from infernet.cli.__main__ import GROUPS
from infernet.cli.command import make_parser
from infernet.config import Config
from infernet.settings.readers import as_plain
from infernet.settings.table import BY_NAME, SETTINGS, Setting

COMMANDS: Final = "commands.md"
SETTINGS_PAGE: Final = "settings.md"

_MADE: Final = "<!-- Made from the program: python -m infernet.cli.pages docs -->"
_COMMANDS_HEAD: Final = f"""\
# All commands

{_MADE}

Every verb has `--help`, which says what stands here, and `--json`, which prints the result, or the error as
`{{"error": "..."}}`, as one JSON object; [json.md](json.md) has its keys. Colour is for terminals: in a pipe there is
none, and `NO_COLOR` is heeded. Where a verb takes settings, [settings.md](settings.md) says what each does.
`INFERNET_HOME` moves all files below one folder; `INFERNET_DEBUG=1` shows what is behind an error.

Exit codes:

- 0: what was asked for is so afterwards, also where it was so before (`infernet service uninstall` without a service).
  A node in the foreground is ended by Ctrl-C, and ends with 0.
- 1: it is not, or what was asked about is not there: no node runs (which `stop` and `drain` tell, too), there is
  no such model or worker, no log.
- 2: the command line, or an answer, is not what the verb can work with; nothing was done.
- 130: ended by Ctrl-C before it was done, which `infernet logs -f` never is.
"""
_SETTINGS_HEAD: Final = f"""\
# All settings

{_MADE}

Later ones win: the default, the file `config.toml`, the environment, flags. `infernet config show` says what holds on a
machine and where each value comes from; `infernet config set` writes into the file what its flags say. In the file a
list is a TOML list; in the environment and in a flag its items stand with commas or spaces between them. Amounts of
money are texts, `"0.10"`.
"""
_KEPT: Final = "`infernet start` writes it into the file when its flag is given."


def commands_page() -> str:
    """Every verb, by what somebody is after."""
    contents = "".join(
        f"- {title}: {', '.join(f'[{verb}](#infernet-{verb})' for verb in group)}\n" for title, group in GROUPS.items()
    )
    return f"{_COMMANDS_HEAD}\n{contents}" + "".join(
        f"\n## {title}\n" + "".join(_verb(verb, summary) for verb, summary in group.items())
        for title, group in GROUPS.items()
    )


def settings_page() -> str:
    """Every setting: its key, flag, variable, default and meaning."""
    return _SETTINGS_HEAD + "".join(map(_setting, SETTINGS))


def _verb(verb: str, summary: str) -> str:
    module = importlib.import_module(f"infernet.cli.{verb}")
    parser = make_parser(verb, module)
    text = f"\n### infernet {verb}\n\n{summary[0].upper()}{summary[1:]}.\n\n"
    text += f"```\ninfernet {verb} {module.USAGE}\n```\n\n```text\n{module.DESCRIPTION}\n```\n"
    actions = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    taken = {action.dest: action for action in actions if _is_setting(action)}
    own = [action for action in actions if not _is_setting(action) and action.dest not in ("help", "json")]
    if own:
        rows = "".join(
            f"| {_cell(f'`{_spelt(action)}`')} | {_cell((action.help or '') % vars(action))} |\n" for action in own
        )
        text += f"\n| word or flag | meaning |\n|---|---|\n{rows}"
    if missing := [setting for setting in SETTINGS if setting.name not in taken]:
        links = [f"[`{_flags(action)}`](settings.md#{name})" for name, action in taken.items()]
        lacks = ", ".join(f"`{setting.flag}`" for setting in missing)
        text += f"\nAll [settings](settings.md) but {lacks}.\n" if len(links) > len(missing) else ""
        text += f"\nSettings: {', '.join(links)}.\n" if 0 < len(links) <= len(missing) else ""
    else:
        text += "\nAll [settings](settings.md).\n"
    _, _, examples = module.EXAMPLES.partition("\n")
    return f"{text}\n```\n{_dedented(examples)}\n```\n"


def _is_setting(action: argparse.Action) -> bool:
    # Some verbs have a flag of their own that is called like a setting.
    setting = BY_NAME.get(action.dest)
    return setting is not None and action.help == setting.help


def _cell(text: str) -> str:
    """Text in a column of a table of Markdown."""
    return text.replace("|", "\\|").replace("\n", " ")


def _dedented(examples: str) -> str:
    return "\n".join(line.removeprefix("  ") for line in examples.splitlines())


def _flags(action: argparse.Action) -> str:
    return ", ".join(action.option_strings)


def _spelt(action: argparse.Action) -> str:
    """How an argument is written on the command line."""
    value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if not action.option_strings:
        return "|".join(map(str, action.choices)) if action.choices else value
    if action.nargs == 0:
        return _flags(action)
    return f"{_flags(action)} {'|'.join(map(str, action.choices)) if action.choices else value}"


def _setting(setting: Setting) -> str:
    return "\n".join(
        [
            f"\n### {setting.name}\n",
            f"{setting.help[0].upper()}{setting.help[1:]}.{f' {_KEPT}' if setting.is_kept else ''}\n",
            "| flag | environment | default |",
            "|---|---|---|",
            f"| `{setting.flag}` | `{setting.variable}` | {_default(setting)} |\n",
        ]
    )


def _default(setting: Setting) -> str:
    value = as_plain(Config.__dataclass_fields__[setting.name].default)
    if value is None or value in ("", []):
        return "none"
    return _cell(f"`{_as_toml(value)}`")


def _as_toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_as_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def pages() -> Iterator[tuple[str, str]]:
    """Name and text of each page."""
    yield COMMANDS, commands_page()
    yield SETTINGS_PAGE, settings_page()


def main(folder: Path) -> None:
    """Write the pages into a folder."""
    for name, text in pages():
        (folder / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
