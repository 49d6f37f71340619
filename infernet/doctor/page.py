"""The troubleshooting page, made from the table of checks, so that it says of each what the program does.

python -m infernet.doctor.page > docs/troubleshooting.md
"""

from __future__ import annotations

import sys
from typing import Final

from infernet.doctor.contract import Check, Part
from infernet.doctor.table import CHECKS

_HEAD: Final = """\
# Troubleshooting

<!-- Made from the table of checks: python -m infernet.doctor.page > docs/troubleshooting.md -->

`infernet doctor` looks at everything below and says, for each thing, what it found and what to do about it. It changes
nothing: it writes into no folder of the node, and databases are looked at on a copy.

```
infernet doctor                                   everything, with a real question to the engine at the end
infernet doctor --skip-network --skip-engine      in a moment, and without a connection
infernet doctor --strict                          exit with 1 also when a check warned
infernet doctor --json | jq -r '.checks[] | select(.status == "fail") | .id + ": " + .fix'
```

Each check ends `ok`, `warn` (it works, and you should know), `fail`, or `skip` (nothing to look at, left out, or a
check that it rests on failed). The exit code is 0 when nothing failed, 1 when something did, 2 for a flag that does not
exist. Ids keep their meaning from version to version, so that scripts and bug reports can name them. A check that takes
longer than its deadline fails, and the others go on. All of this has run on Linux; on macOS it has not been tried.

If that does not help, `infernet report` writes down what others need to help you, without keys, names and addresses.

| id | what must be so |
|---|---|
"""
_COSTS: Final = {
    Part.LOCAL: "",
    Part.NETWORK: "Left out by `--skip-network`.",
    Part.ENGINE: "Left out by `--skip-engine`.",
}


def render() -> str:
    """The whole page."""
    rows = "".join(f"| [`{check.id}`](#{_anchor(check)}) | {check.title} |\n" for check in CHECKS)
    return _HEAD + rows + "".join(map(_section, CHECKS))


def _anchor(check: Check) -> str:
    # As GitHub makes them from headings.
    return check.id.replace(".", "")


def _section(check: Check) -> str:
    needs = ", ".join(f"`{name}`" for name in check.needs)
    facts = [_COSTS[check.part], f"Skipped unless {needs} went well." if needs else ""]
    more = " ".join(filter(None, facts))
    text = f"\n### {check.id}\n\n{check.title}. {check.looks}\n\nWhat to do: {check.remedy}\n"
    return f"{text}\n{more}\n" if more else text


if __name__ == "__main__":
    sys.stdout.write(render())
