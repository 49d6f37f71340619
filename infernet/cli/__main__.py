"""`infernet`: finds the verb and runs it. Loads nothing else, so that help comes at once."""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import Final

# What each verb does, by what somebody is after. The module has the verb's name.
GROUPS: Final = {
    "Run a node": {
        "init": "make this node's key and configuration",
        "start": "run the node",
        "stop": "end the running node",
        "drain": "let the running node finish its jobs, and end",
        "service": "have systemd or launchd run the node",
        "config": "show every setting and where it came from, or change some",
        "remove": "wipe this node from this machine",
    },
    "Ask": {
        "chat": "ask a question",
    },
    "See what it does": {
        "status": "what the running node is doing",
        "tui": "the running node as it works, on the whole terminal",
        "stats": "what the running node has done so far, in numbers",
        "logs": "what the running node has written down",
        "peers": "whom the running node knows",
        "why": "why whom it would ask, and why others do not ask it",
        "doctor": "find out what is wrong here, and what to do about it",
        "report": "write down what others need to help, and nothing that says whose it is",
    },
    "What it offers": {
        "gpu": "the GPUs of this machine, and what others are told of them",
        "engine": "what could run models here, and whether it does",
        "cluster": "a model on several machines of yours",
        "model": "the models of this machine: list, fetch, choose, remove",
        "benchmark": "how fast the models of this node are",
        "price": "what this node asks for its work",
        "schedule": "in which hours this node runs jobs for others",
    },
    "Money": {
        "wallet": "money of this node: what it has, spends and earns",
        "payments": "deposits and payouts",
        "payout": "where earned money goes, and having it sent",
    },
    "Reach others": {
        "invite": "make a line with which somebody else's node joins",
        "join": "connect with such a line",
        "login": "who this node is, and what its coordinator knows of it",
        "register": "enter this node at its coordinator, or bring its entry up to date",
        "update": "the same as register",
        "firewall": "the commands that let peers in; it changes nothing",
    },
    "This program": {
        "completion": "have your shell complete verbs and flags",
        "upgrade": "how to get a newer version; it changes nothing",
        "version": "the version of this program",
    },
}
VERBS: Final = {verb: summary for group in GROUPS.values() for verb, summary in group.items()}
# Started by the program itself, never by people.
HIDDEN: Final = ("engine-worker", "dht-worker", "hardware-worker", "cluster-keeper")

_LISTED: Final = "\n".join(
    f"\n{title}:\n" + "\n".join(f"  {verb:10}  {summary}" for verb, summary in group.items())
    for title, group in GROUPS.items()
)
HELP: Final = f"""\
usage: infernet VERB [OPTIONS]

One peer-to-peer inference market out of GPUs anywhere: run models for others, or ask a question.
{_LISTED}

Begin with:
  infernet init                  answer a few questions
  infernet model pull            fetch a small model (93 MB)
  infernet start                 join the market
  infernet chat "Why is the sky blue?"

`infernet VERB --help` explains a verb, with examples. All have --json.
INFERNET_HOME moves all files below one folder. INFERNET_DEBUG=1 shows what is behind an error.
"""


def main(words: list[str] | None = None) -> int:
    """Run the verb that the command line names; gives the exit code: 0 done, 1 failed, 2 misused, 130 interrupted."""
    try:
        return _main(words)
    except KeyboardInterrupt:
        return 130  # before there was anything to undo: while a verb is loaded and its words are read


def _main(words: list[str] | None) -> int:
    words = sys.argv[1:] if words is None else words
    verb, rest = (words[0], words[1:]) if words else ("", [])
    if verb in ("-h", "--help", "help"):
        if rest and rest[0] in VERBS:
            return _run(rest[0], ["--help"])
        return _help()
    if verb == "--version":
        verb = "version"
    if verb not in VERBS and verb not in HIDDEN:
        return _complain(verb)
    return _run(verb, rest)


def _help() -> int:
    from infernet.cli.command import help_width, report
    from infernet.cli.layout import fitted

    try:
        print(fitted(HELP, help_width()), end="", flush=True)
    except OSError as error:
        return report(error, as_json=False)
    return 0


def _run(verb: str, words: list[str]) -> int:
    from infernet.cli.command import run

    return run(verb, importlib.import_module(f"infernet.cli.{verb.replace('-', '_')}"), words)


def _complain(verb: str) -> int:
    if not verb:
        print(HELP, end="", file=sys.stderr)
        return 2
    near = difflib.get_close_matches(verb, VERBS, n=2, cutoff=0.7)
    hint = (
        f"did you mean {' or '.join(sorted(near, key=list(VERBS).index))}?"
        if near
        else 'to ask a question: infernet chat "..."'
    )
    print(f"infernet: there is no verb {verb[:40]!r}; {hint} (infernet --help lists them)", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
