"""What a node has done since it started, beside the jobs of others, which the protocol counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from infernet.driver import AppEffect
from protocol.effects import HeartbeatSigned, JobDone, JobFailed
from protocol.errors import Refusal


@dataclass(slots=True)
class Asked:
    """Questions of this node that have ended. Tokens and money are of those that were answered."""

    answered: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    paid_uusd: int = 0


@dataclass(slots=True)
class Heartbeats:
    """Signed records of ourselves: `told` ones went to the coordinator at once, `missed` ones found no link to it."""

    signed: int = 0
    told: int = 0
    missed: int = 0


class Tally:
    """Counts what the peer tells the application."""

    def __init__(self) -> None:
        self._asked = Asked()
        self._heartbeats = Heartbeats()
        self._last_signed_s: float | None = None

    def observe(self, effect: AppEffect, now_s: float, *, is_linked: bool | None) -> None:
        """Something has happened. `is_linked` is None for a node that keeps no link."""
        if isinstance(effect, HeartbeatSigned):
            self._last_signed_s = now_s
            self._heartbeats.signed += 1
            if is_linked is not None:
                self._heartbeats.told += is_linked
                self._heartbeats.missed += not is_linked
        elif isinstance(effect, JobDone):
            asked = self._asked
            asked.answered += 1
            # The question, as the first of them has read it.
            asked.prompt_tokens += effect.served[0].prompt_tokens if effect.served else 0
            asked.output_tokens += sum(part.output_tokens for part in effect.served)
            asked.paid_uusd += sum(part.paid_uusd for part in effect.served)
        elif isinstance(effect, JobFailed):
            if effect.code is Refusal.CANCELLED:
                self._asked.cancelled += 1
            else:
                self._asked.failed += 1

    def asked(self) -> dict[str, Any]:
        """Our questions."""
        return asdict(self._asked)

    def heartbeats(self, now_s: float) -> dict[str, Any]:
        """Our heartbeats, and how long ago the last one was signed."""
        last_s = self._last_signed_s
        return {**asdict(self._heartbeats), "age_s": round(now_s - last_s, 1) if last_s is not None else None}
