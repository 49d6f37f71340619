"""One question and what became of it: the answer as it streams, and afterwards who gave it and how fast.

The three ways to ask (the running node, a node of our own, the coordinator) all speak to this.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Final

from infernet.cli.command import Failure
from infernet.cli.output import duration, is_styled, print_json
from protocol.formats.amounts import format_usd
from protocol.formats.text import TerminalCleaner, clean_line

# What the user can do, by the name of the refusal.
ADVICE: Final = {
    "no_provider": "`infernet peers` shows who is known, and `infernet why` why somebody is not asked; offer more with "
    "--pay, name a provider with --peer, start one, or try --remote",
    "no_model": "leave --model out, or choose one that `infernet peers` shows; one whose engine has just failed is "
    "there again in a moment",
    "not_free": "pay for it (--pay 0.01), or ask its owner to --allow your key (the npub of `infernet status`)",
    "not_allowed": "ask its owner, or ask another provider",
    "price": "its price has changed: ask again, or ask another provider",
    "lease": "`infernet wallet` shows what you have; --pay says what an answer may cost, --max-tokens how long it gets",
    "busy": "try again in a moment, or ask another provider",
    "rate_limited": "try again in a moment, or ask another provider",
    "draining": "it is shutting down: ask another provider",
    "context_exceeded": "shorten the question, or lower --max-tokens",
    "too_large": "shorten the question",
    "stale": "set this machine's clock",
    "clock_skew": "set this machine's clock",
    "no_route": "ask again in a moment, or name an aggregator that reaches the provider with --via",
    "engine_unavailable": "its engine is down: try again in a moment, or ask another provider",
    "engine_failed": "try again, or ask another provider",
    "peer_lost": "ask again: another provider may answer",
    "deadline": "ask again, or give more time with --timeout",
    "slow_reader": "ask again, and let the answer run",
    "shutdown": "ask again: another provider may answer",
}
# ... and when one provider was named, so that there is no other one.
ADVICE_FOR_ONE: Final = {
    "peer_lost": "check that a node runs there, and that address, port and firewall let you in",
    "busy": "try again in a moment",
    "shutdown": "it is shutting down: try again later",
    "draining": "it is shutting down: try again later",
}
SUCCESS: Final = ("stop", "length")


class NoAnswer(Failure):
    """The question was not answered, or not to the end."""

    def __init__(
        self,
        text: str,
        code: str | None,
        retry_after_ms: int = 0,
        *,
        advice: str | None = None,
        what: str = "no answer",
    ) -> None:
        self._said = (text, code, retry_after_ms)
        self._advice = advice
        advice = advice if advice is not None else ADVICE.get(code or "", "")
        wait = f" (in {duration(retry_after_ms / 1000)})" if retry_after_ms >= 500 else ""
        super().__init__(f"{what}: {text.rstrip('.')}{'; ' if advice else ''}{advice}{wait}", code=code)

    def because(self, advice: str) -> NoAnswer:
        """The same, with something better to do about it."""
        text, code, retry_after_ms = self._said
        return NoAnswer(text, code, retry_after_ms, advice=advice)

    def told(self, *, asked_one: bool, has_begun: bool, paid_uusd: int = 0) -> NoAnswer:
        """The same, for somebody who asked one provider and no other, or has read, or paid for, half an answer."""
        text, code, retry_after_ms = self._said
        if paid_uusd:
            text = f"{text.rstrip('.')} (it has cost {format_usd(paid_uusd)})"
        advice = ADVICE_FOR_ONE.get(code or "") if asked_one else self._advice
        what = "the answer broke off" if has_begun else "no answer"
        return NoAnswer(text, code, retry_after_ms, advice=advice, what=what)


@dataclass
class Question:
    """What is asked, as the command line gave it."""

    messages: list[dict[str, str]] = field(repr=False)
    model: str | None
    max_tokens: int
    temperature: float
    seed: int | None
    timeout_s: float
    #: What the answer may cost, in micro-USD; None: what the running node is set to.
    spend_uusd_max: int | None = None

    @classmethod
    def of(cls, arguments: argparse.Namespace, text: str) -> Question:
        messages = [{"role": "user", "content": text}]
        if arguments.system:
            messages.insert(0, {"role": "system", "content": arguments.system})
        return cls(
            *(messages, arguments.model, arguments.max_tokens, arguments.temperature, arguments.seed),
            *(arguments.timeout, arguments.pay),
        )

    def payload(self) -> dict[str, Any]:
        """What the running node is asked."""
        return {
            "messages": self.messages,
            "model": self.model,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "timeout_s": self.timeout_s,
            "spend_uusd_max": self.spend_uusd_max,
        }


class Conversation:
    """Takes what happens to a question, prints the answer, and keeps account."""

    def __init__(self, route: str, *, as_json: bool, shows_money: bool = False) -> None:
        #: By which way it is asked; told with the result.
        self.route = route
        self._as_json = as_json
        self._shows_money = shows_money
        self._lease = ""
        self._paid_uusd = 0
        self._cleaner = TerminalCleaner()
        self._text: list[str] = []
        self._last_shown = "\n"
        self._asked_at_s = time.monotonic()
        self._first_at_s: float | None = None
        self._first_tokens = 0
        self._last_at_s = self._asked_at_s
        self._output_tokens = 0
        self._accepted: dict[str, Any] = {}
        self._place: tuple[object, object] | None = None
        self._done: dict[str, Any] | None = None

    @property
    def tokens(self) -> int:
        """Output tokens so far."""
        return self._output_tokens

    @property
    def paid_uusd(self) -> int:
        """What has been signed for the answer so far, in micro-USD."""
        return self._paid_uusd

    def take(self, event: str, data: dict[str, Any]) -> None:
        """One thing that happened: accepted, queued, resumed, paid, text or done. Others are ignored."""
        if event == "accepted":
            self._accepted = data
        elif event == "queued":
            self._on_queued(data)
        elif event == "resumed":
            self._on_resumed(data)
        elif event == "paid":
            self._on_paid(data)
        elif event == "text":
            self._on_text(str(data.get("text", "")), int(data.get("output_tokens", 0)))
        elif event == "done":
            self._done = data
            self._output_tokens = int(data.get("output_tokens", self._output_tokens))
            self._paid_uusd = int(data.get("paid_uusd", self._paid_uusd))

    def _on_text(self, text: str, output_tokens: int) -> None:
        self._last_at_s = time.monotonic()
        self._output_tokens = output_tokens
        if self._first_at_s is None and text:
            self._first_at_s, self._first_tokens = self._last_at_s, output_tokens
        self._text.append(text)
        # SPEC 05: The asker MUST clean the text before it shows it: it is a stranger's.
        shown = self._cleaner.feed(text)
        if shown and not self._as_json:
            self._last_shown = shown
            print(shown, end="", flush=True)

    def _on_paid(self, data: dict[str, Any]) -> None:
        """Only our own node says this, and never the coordinator of `--remote`."""
        self._paid_uusd = int(data["paid_uusd"])
        if not self._shows_money:
            return
        lease, cap = str(data["lease"]), format_usd(int(data["cap_uusd"]))
        if lease != self._lease:
            self._lease = lease
            self._note(f"lease {lease[:8]}: {cap} is locked for {_name(data)}")
        self._note(f"voucher {data['voucher']}: {format_usd(int(data['signed_uusd']))} of {cap}")

    def _on_queued(self, data: dict[str, Any]) -> None:
        place = (data.get("provider"), data.get("position"))
        if place == self._place:
            return
        self._place = place
        ahead = "next" if place[1] == 0 else f"{place[1]} before it"
        self._note(f"every slot is taken: it waits at {_name(data)}, {ahead}, about {_seconds(data)}")

    def _on_resumed(self, data: dict[str, Any]) -> None:
        lost = _name(data, "lost")
        self._note(f"provider {lost} went away; {_name(data)} goes on (reads {data.get('prompt_tokens')} tokens again)")
        self._accepted = self._accepted | {key: data.get(key) for key in ("provider", "provider_name")}

    def _note(self, text: str) -> None:
        """Say beside the answer what happens to it."""
        if self._as_json:
            return
        if sys.stdout.isatty():
            self.end_line()
        line = clean_line(text, 200)
        print(f"\x1b[2m[{line}]\x1b[0m" if is_styled(sys.stderr) else f"[{line}]", file=sys.stderr, flush=True)

    def end_line(self) -> None:
        """Leave the cursor at the beginning of a line."""
        if not self._last_shown.endswith("\n"):
            print(flush=True)
            self._last_shown = "\n"

    def finish(self) -> int:
        """Print what is to be said afterwards; gives the exit code. Raises NoAnswer."""
        self.end_line()
        if self._done is None:
            raise NoAnswer("it broke off without a word", "peer_lost")
        result = self.result(self._done)
        if result["outcome"] not in SUCCESS:
            raise NoAnswer(f"it ended with {clean_line(str(result['outcome']))}", str(result["outcome"]))
        if self._as_json:
            print_json(result)
        else:
            print(_summary(result), file=sys.stderr)
        return 0

    def result(self, done: dict[str, Any]) -> dict[str, Any]:
        """The JSON answer; `infernet chat --help` lists its fields."""
        first_s = None if self._first_at_s is None else self._first_at_s - self._asked_at_s
        return {
            "text": "".join(self._text),
            "outcome": done.get("outcome"),
            "provider": done.get("provider") or self._accepted.get("provider"),
            "provider_name": self._accepted.get("provider_name"),
            "model": self._accepted.get("model"),
            "job": self._accepted.get("job"),
            "prompt_tokens": done.get("prompt_tokens", self._accepted.get("prompt_tokens")),
            "output_tokens": self._output_tokens,
            "first_token_s": None if first_s is None else round(first_s, 3),
            "duration_s": round(self._last_at_s - self._asked_at_s, 3),
            "tokens_per_s": self._tokens_per_s(),
            "route": self.route,
            "via": self._accepted.get("via"),
            "served": done.get("served"),
            "paid_uusd": self._paid_uusd,
        }

    def _tokens_per_s(self) -> float | None:
        """The rate after the first tokens; None when they were all there were."""
        if self._first_at_s is None or self._last_at_s <= self._first_at_s:
            return None
        return round((self._output_tokens - self._first_tokens) / (self._last_at_s - self._first_at_s), 1)


def _name(data: dict[str, Any], key: str = "provider") -> str:
    """What a provider is called here: its name where it is known, or the beginning of its key."""
    return clean_line(str(data.get(f"{key}_name") or ""), 48) or str(data.get(key) or "somebody")[:8]


def _seconds(data: dict[str, Any]) -> str:
    wait_ms = data.get("wait_ms")
    return f"{max(1, round(wait_ms / 1000))} s" if isinstance(wait_ms, (int, float)) else "a moment"


def _summary(result: dict[str, Any]) -> str:
    others = len(result["served"] or ()) - 1
    before = f" after {others} other{'s' if others > 1 else ''}" if others > 0 else ""
    parts = [f"served by {_name(result)}{before}", clean_line(str(result["model"] or ""), 64)]
    if result["prompt_tokens"] is not None:
        parts.append(f"{result['prompt_tokens']} + {result['output_tokens']} tokens")
    if result["first_token_s"] is not None:
        parts.append(f"first after {result['first_token_s']:.2f} s")
    if result["tokens_per_s"] is not None:
        parts.append(f"then {result['tokens_per_s']:.1f} tokens/s")
    if result["paid_uusd"]:
        parts.append(f"cost {format_usd(result['paid_uusd'])}")
    if result["outcome"] == "length":
        parts.append("cut at --max-tokens or the end of its context")
    way = f"{result['route']}, passed on by {str(result['via'])[:8]}" if result["via"] else result["route"]
    # All of it is what others said: a coordinator may put anything where a number belongs.
    return clean_line(f"[{', '.join(part for part in parts if part)}; {way}]", 400)
