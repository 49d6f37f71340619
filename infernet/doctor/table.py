"""The table of all checks, in the order in which they are shown: a check comes after those that it needs."""

from __future__ import annotations

from typing import Final

from infernet.doctor import (
    configuration,
    coordinator,
    engine,
    files,
    key,
    machine,
    model,
    network,
    node,
    ports,
    stores,
)
from infernet.doctor.contract import Check

_FAMILIES: Final = (
    *(machine.CHECKS, configuration.CHECKS, key.CHECKS, files.CHECKS, node.CHECKS, stores.CHECKS),
    *(network.CHECKS, ports.CHECKS, coordinator.CHECKS, model.CHECKS, engine.CHECKS),
)


def _ordered(checks: list[Check]) -> tuple[Check, ...]:
    """The checks family by family, but each after those that it waits for."""
    ordered: list[Check] = []
    waiting = list(checks)
    while waiting:
        known = {check.id for check in ordered}
        at = next(number for number, check in enumerate(waiting) if known.issuperset((*check.needs, *check.after)))
        ordered.append(waiting.pop(at))
    return tuple(ordered)


CHECKS: Final = _ordered([check for family in _FAMILIES for check in family])
