"""The command line of `scripts/dev_network`. Standard library only: it is read before anything is installed."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

NODES_MAX = 200
PACED_MODELS = ("model-a", "model-b", "model-c")

EPILOG = """\
Nodes are called n1, n2 ...; all are told the address of n1 and find the others by themselves.

examples:
  scripts/dev_network 6
      three providers of a small real model, three askers, on loopback
  scripts/dev_network 20 --paced --providers 5 --check
      as many as the machine holds: engines that answer at once with the same words; does everybody reach everything?
  sudo scripts/dev_network 8 --namespaces --nat n3 --nat n6,n7
      each node in a network namespace of its own; n3 behind one router, n6 and n7 behind another: they get out,
      nobody gets in
  sudo scripts/dev_network 6 --paced --nat n3 --fault n1-n3:loss=0.05,delay=0.1 --check
      n3 has a bad line to the node that may relay for it
  sudo scripts/dev_network 8 --paced --fault n2-n5:delay=0.2,jitter=0.05 --fault 'n1-*:blackhole@30+20'
      a slow line, and from the 30th to the 50th second n1 is cut off without a sign
  scripts/dev_network 6 --paced --serve n1=a --serve n4=a,b --aggregators 1
      n1 and n4 provide, n2 aggregates, the others ask
  scripts/dev_network 2 --paced --providers 1 --paid
      a provider that wants money, an asker that pays, a coordinator that holds it, and a double for its gateway
  scripts/dev_network 8 --paced --kill n1@20 --check --for 60
      the node that everybody was told of is killed after 20 s

faults, joined by commas:
  delay=S jitter=S    every piece so many seconds later, and up to so many more
  loss=SHARE          so many pieces are lost, and sent again after a pause, as TCP does
  rate=BYTES          no more per second
  dribble=S           byte by byte, with this pause after each
  blackhole           nothing arrives and nothing closes, as when a cable is cut
  cut                 connections are reset and refused
  @START              from this second on; @START+LENGTH: and no longer than that
A pair is NAME-NAME; * is everybody. On loopback a proxy before each node does this to its connections. In namespaces it
is done to packets, so that real TCP meets it; dribble and cut are not there, and all behind one router share its line.

Faults need root, to tell which process a connection comes from; so do namespaces. Every process and namespace
ends with this command, also when it is killed. Homes, keys and logs of the nodes lie in a temporary folder, infernet-*,
that goes, too; only kill -9 leaves it."""


@dataclass(frozen=True)
class Fault:
    """A fault between two names, from a second on, for a time."""

    one: str
    other: str
    what: str
    start_s: float
    length_s: float | None


@dataclass(frozen=True)
class Arguments:
    """What the command line asked for."""

    count: int
    providers: int
    aggregators: int
    paced: bool
    models: tuple[str, ...]
    serves: dict[str, tuple[str, ...]]
    namespaces: bool
    routers: tuple[tuple[str, ...], ...]
    faults: tuple[Fault, ...]
    kills: tuple[tuple[str, float], ...]
    paid: bool
    check: bool
    for_s: float | None
    json: bool

    @property
    def names(self) -> list[str]:
        """The names of all nodes."""
        return [f"n{number}" for number in range(1, self.count + 1)]

    def role(self, name: str) -> str:
        """What a node does: those that `--serve` names or else the first ones provide, the next ones aggregate."""
        providers = list(self.serves) or self.names[: self.providers]
        others = [each for each in self.names if each not in providers]
        if name in providers:
            return "provider"
        return "aggregator" if name in others[: self.aggregators] else "client"

    def served_by(self, name: str) -> tuple[str, ...]:
        """The models of a provider with the paced engine."""
        return self.serves.get(name) or (self.models[self.names.index(name) % len(self.models)],)


def parse(words: list[str]) -> Arguments:
    """Read the command line; leaves the process on `--help` and on what it cannot read."""
    parser = argparse.ArgumentParser(
        prog="scripts/dev_network",
        description="Start a network of N real nodes on this machine and watch it; Ctrl-C ends it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("count", metavar="N", type=_count, help=f"how many nodes, 1 to {NODES_MAX}")
    parser.add_argument(
        "--providers", type=int, metavar="K", help="how many of them serve a model (default: 3; about 250 MB each)"
    )
    parser.add_argument(
        "--aggregators", type=int, default=0, metavar="K", help="how many relay for others (default: 0)"
    )
    parser.add_argument("--paced", action="store_true", help="no real engines: a double that answers with fixed words")
    parser.add_argument(
        "--models", type=_words, default=PACED_MODELS, help="with --paced: models, dealt out in turns (default: three)"
    )
    parser.add_argument(
        "--serve",
        action="append",
        type=_serve,
        default=[],
        metavar="NAME=MODELS",
        help="with --paced: who serves what; these are the providers then, and no others",
    )
    parser.add_argument(
        "--paid", action="store_true", help="with a coordinator, prices, and a double for the payment gateway"
    )
    parser.add_argument("--namespaces", action="store_true", help="each node in a network namespace of its own (root)")
    parser.add_argument(
        "--nat", action="append", type=_words, default=[], metavar="NAMES", help="put these behind one router (root)"
    )
    parser.add_argument(
        "--fault", action="append", type=_fault, default=[], metavar="PAIR:FAULTS", help="a bad line (root); see below"
    )
    parser.add_argument(
        "--kill", action="append", type=_kill, default=[], metavar="NAME@S", help="kill -9 this node at this second"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="after all that, let every node ask every model, and end (1: one failed); with --paid each asker has $5",
    )
    parser.add_argument("--for", dest="for_s", type=_seconds, metavar="S", help="end after so many seconds")
    parser.add_argument("--json", action="store_true", help="print what happens as lines of JSON")
    parsed = parser.parse_args(words)
    arguments = Arguments(
        count=parsed.count,
        providers=_providers(parsed),
        aggregators=parsed.aggregators,
        paced=parsed.paced,
        models=parsed.models,
        serves=dict(parsed.serve),
        namespaces=parsed.namespaces or bool(parsed.nat),
        routers=tuple(parsed.nat),
        faults=tuple(parsed.fault),
        kills=tuple(parsed.kill),
        paid=parsed.paid,
        check=parsed.check,
        for_s=parsed.for_s,
        json=parsed.json,
    )
    complaint = _complaint(arguments)
    if complaint:
        parser.error(complaint)
    return arguments


def _providers(parsed: argparse.Namespace) -> int:
    if parsed.providers is not None:
        return int(parsed.providers)
    return len(dict(parsed.serve)) or min(3, parsed.count)


def _complaint(arguments: Arguments) -> str:
    """What is wrong with the command line as a whole; empty when nothing is."""
    if arguments.providers < 0 or arguments.aggregators < 0:
        return "a number of nodes is not negative"
    if arguments.providers + arguments.aggregators > arguments.count:
        return f"{arguments.providers} providers and {arguments.aggregators} aggregators are more than N"
    if arguments.serves and (not arguments.paced or arguments.providers != len(arguments.serves)):
        return "--serve goes with --paced, and without --providers"
    behind = [name for router in arguments.routers for name in router]
    named = [*behind, *arguments.serves, *(name for name, _ in arguments.kills)]
    named += [name for fault in arguments.faults for name in (fault.one, fault.other) if name != "*"]
    unknown = [name for name in named if name not in arguments.names]
    if unknown:
        return f"there is no node {unknown[0]!r}: they are n1 to n{arguments.count}"
    if arguments.role("n1") == "client":
        return "n1 must be a provider or an aggregator: askers listen nowhere, and nobody could find the others"
    if "n1" in behind:
        return "n1 cannot be behind a router: it is the one that all others are told of"
    if len(set(behind)) < len(behind):
        return "a node is behind one router only"
    return ""


def _count(word: str) -> int:
    if not word.isdecimal() or not 1 <= int(word) <= NODES_MAX:
        raise argparse.ArgumentTypeError(f"1 to {NODES_MAX} nodes")
    return int(word)


def _seconds(word: str) -> float:
    if re.fullmatch(r"\d+(?:\.\d+)?", word) is None:
        raise argparse.ArgumentTypeError("a number of seconds, as 60")
    return float(word)


def _words(word: str) -> tuple[str, ...]:
    words = tuple(part for part in word.split(",") if part)
    if not words:
        raise argparse.ArgumentTypeError("names, joined by commas")
    return words


def _serve(word: str) -> tuple[str, tuple[str, ...]]:
    name, equals, models = word.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError("a name and its models, as n2=model-a,model-b")
    return name, _words(models)


def _kill(word: str) -> tuple[str, float]:
    match = re.fullmatch(r"(\w+)@(\d+(?:\.\d+)?)", word)
    if match is None:
        raise argparse.ArgumentTypeError("a name and a second, as n1@20")
    return match[1], float(match[2])


def _fault(word: str) -> Fault:
    match = re.fullmatch(r"(\w+|\*)-(\w+|\*):([^@]+)(?:@(\d+(?:\.\d+)?)(?:\+(\d+(?:\.\d+)?))?)?", word)
    if match is None:
        raise argparse.ArgumentTypeError("a pair and its faults, as n2-n5:delay=0.2 or 'n1-*:blackhole@30+20'")
    one, other, what, start, length = match.groups()
    return Fault(one, other, what, float(start or 0), None if length is None else float(length))
