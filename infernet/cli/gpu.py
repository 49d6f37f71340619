"""`infernet gpu`: the GPUs of this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from protocol.gpus import VENDOR_WORDS, as_words

if TYPE_CHECKING:
    from infernet.hardware.contract import Card, Interconnects

USAGE: Final = "[list|json] [--json]"
DESCRIPTION: Final = """\
The GPUs that this machine has, as their drivers describe them, those that cannot be used last, with the reason. What a
processor or a server's management chip has built in to draw a picture is not counted.

All of this stays on this machine. Of each GPU that can be used a running provider tells others who made it, its model's
name, and its memory in coarse steps of the nominal size (<8gb, 8-16gb, 16-24gb, 24-48gb, >=48gb), and no more.

With --json: host {os, arch, memory_bytes}; gpus, each {vendor, index, model, vram_bytes, vram_used_bytes,
utilisation_percent, temperature_c, power_w, driver, cuda, slot, uuid, source, trouble, announced {vendor, vram_tier,
model}}; cpus, each {model, cores, threads}; interconnects {nvlink, xgmi: {available, topology, link_count},
infiniband_ports, efa_adapters, rdma_capable}.
What is not known is null. uuid and slot name this very card: leave them out of what you publish."""
EXAMPLES: Final = """\
examples:
  infernet gpu
  infernet gpu json | jq -r '.gpus[] | select(.announced) | .announced.vram_tier'
  infernet gpu --json | jq '[.gpus[].vram_bytes // 0] | add'"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """In which form."""
    parser.add_argument(
        "action", nargs="?", choices=["list", "json"], default="list", help="list: a table; json: the same as --json"
    )


def run(arguments: argparse.Namespace) -> int:
    """Look, and print what there is."""
    from infernet.cli.output import print_json
    from infernet.hardware.detect import find_cards, find_interconnects

    # From here on an error is told as an object, too.
    arguments.json = arguments.json or arguments.action == "json"
    cards = find_cards()
    if arguments.json:
        print_json(
            {
                "host": _host(),
                "gpus": [_as_json(card) for card in cards],
                "cpus": _cpus(),
                "interconnects": _interconnects_as_json(find_interconnects(cards)),
            }
        )
        return 0
    _print(cards, find_interconnects(cards))
    return 0


def _print(cards: Sequence[Card], interconnects: Interconnects) -> None:
    from infernet.cli.output import print_fields, print_table

    if not any(card.is_usable for card in cards):
        print("No GPU can be used here: jobs run on the processor.")
        print_fields([("processor", [f"{cpu['model']}, {cpu['cores']} cores" for cpu in _cpus()])])
    if cards:
        columns = ("gpu", "model", "memory", "busy", "temp", "power", "driver", "told others")
        print_table(columns, [_row(card) for card in cards])
    print_fields([("cannot be used", [f"{card.model}: {card.trouble}" for card in cards if card.trouble])])
    print_fields(
        [("CUDA", f"up to {cuda}, by its driver") for cuda in sorted({card.cuda for card in cards if card.cuda})]
    )
    print_fields(
        [
            (name, f"{fabric.topology}, {fabric.link_count} links")
            for name, fabric in (("NVLink", interconnects.nvlink), ("xGMI", interconnects.xgmi))
            if fabric.available
        ]
    )
    print_fields([("RDMA", _rdma(interconnects))])


def _rdma(interconnects: Interconnects) -> str:
    """What leads into the memory of other machines; empty where nothing does."""
    if not interconnects.rdma_capable:
        return ""
    ports, efa = interconnects.infiniband_ports, interconnects.efa_adapters
    return f"ports that are up: {ports}" + (f"; adapters of Amazon (EFA): {efa}" if efa else "")


def _row(card: Card) -> list[object]:
    told = _announced(card)
    return [
        f"{VENDOR_WORDS[card.vendor]} {card.index}",
        card.model,
        _memory(card),
        None if card.utilisation_percent is None else f"{card.utilisation_percent} %",
        None if card.temperature_c is None else f"{card.temperature_c} °C",
        None if card.power_w is None else f"{card.power_w:.0f} W",
        card.driver,
        told["vram_tier"] if told else "nothing",
    ]


def _memory(card: Card) -> str | None:
    if card.vram_bytes is None:
        return None
    total = f"{card.vram_bytes / (1 << 30):.1f} GiB"
    return total if card.vram_used_bytes is None else f"{card.vram_used_bytes / (1 << 30):.1f} / {total}"


def _announced(card: Card) -> dict[str, str] | None:
    """What others are told of a card, in the words that the coordinator shows; None where they are told nothing."""
    from infernet.hardware.contract import announced

    return as_words(announced(card)) if card.is_usable else None


def _as_json(card: Card) -> dict[str, Any]:
    import msgspec

    told: dict[str, Any] = msgspec.to_builtins(card)
    return told | {
        "vendor": VENDOR_WORDS[card.vendor],
        "trouble": card.trouble or None,
        "announced": _announced(card),
    }


def _interconnects_as_json(interconnects: Interconnects) -> dict[str, Any]:
    import msgspec

    told: dict[str, Any] = msgspec.to_builtins(interconnects)
    return told


def _host() -> dict[str, Any]:
    """Of what kind this machine is; not what it is called, since such output ends up in public reports."""
    import platform
    import sys

    import psutil

    return {"os": sys.platform, "arch": platform.machine(), "memory_bytes": psutil.virtual_memory().total}


def _cpus() -> list[dict[str, Any]]:
    import os

    import psutil

    from infernet.hardware.processor import model

    threads = os.cpu_count() or 1
    return [{"model": model(), "cores": psutil.cpu_count(logical=False) or threads, "threads": threads}]
