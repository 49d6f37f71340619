"""What `infernet init` says of this machine, in a line each: its GPUs, and whether a firewall wants a word. No verb.

Neither may fail or hold up what was done: drivers may hang, and then they are not heard.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from threading import Thread
from typing import TYPE_CHECKING, Final

from infernet.config import Config, ConfigError, load
from protocol.formats.text import clean_line
from protocol.records import Role

if TYPE_CHECKING:
    from infernet.hardware.contract import Card

# A driver that has to be woken takes two seconds; who has just answered questions waits no longer.
GPUS_TIMEOUT_S: Final = 4.0
_MODELS_SHOWN: Final = 4


def of_this_machine() -> Iterator[str]:
    """The lines that have something to say, for the settings as every command reads them."""
    try:
        config = load().config
    except ConfigError:
        return  # the next command says so, with more room
    if config.role is Role.PROVIDER:
        yield _gpus(_cards_in_time(GPUS_TIMEOUT_S), runs_llama="llama" in config.engines)
    yield from _firewall(config)


def _cards_in_time(timeout_s: float) -> list[Card] | None:
    """The GPUs of this machine; None where their drivers did not answer in time."""
    from infernet.hardware import detect

    found: list[list[Card]] = []

    def look() -> None:
        try:
            found.append(detect.find_cards())
        except Exception:  # noqa: BLE001 - a broken driver is told as one that does not answer
            return

    # Nobody waits for it at the end either.
    looking = Thread(target=look, daemon=True)
    looking.start()
    looking.join(timeout_s)
    return found[0] if found else None


def _gpus(cards: list[Card] | None, *, runs_llama: bool) -> str:
    if cards is None:
        return "GPUs: their drivers do not answer now; `infernet gpu` asks again."
    usable = Counter((clean_line(card.model, 80), card.vram_bytes) for card in cards if card.is_usable)
    unusable = sum(not card.is_usable for card in cards)
    why = f"; {unusable} cannot be used, and `infernet gpu` says why" if unusable else ""
    if not usable:
        instead = ", so models run on the processor" if runs_llama else ""
        return f"GPUs: none that can be used{instead}{why}."
    named = [_named(model, vram_bytes, count) for (model, vram_bytes), count in usable.most_common(_MODELS_SHOWN)]
    more = f" and {len(usable) - _MODELS_SHOWN} more kinds" if len(usable) > _MODELS_SHOWN else ""
    return f"GPUs: {', '.join(named)}{more}{why}."


def _named(model: str, vram_bytes: int | None, count: int) -> str:
    times = f"{count} x " if count > 1 else ""
    return f"{times}{model}" + (f" ({vram_bytes / (1 << 30):.0f} GiB)" if vram_bytes is not None else "")


def _firewall(config: Config) -> Iterator[str]:
    from infernet.cli.firewall import need_by_settings
    from infernet.host.firewalls import detect

    need = need_by_settings(config)
    if not need.is_needed:
        return
    if not need.ports:
        yield f"Firewall: {need.reason}."
        return
    installed = detect(sys.platform)
    who = f"{installed[0].name} is installed, and" if installed else "if a firewall is in their way,"
    words = ", ".join(map(str, need.ports))
    yield f"Firewall: peers come in by TCP port {words}; {who} `infernet firewall` says what to type."
