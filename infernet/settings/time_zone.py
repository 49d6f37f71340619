"""Where a clock on the wall hangs: the zone of this machine, or one by its name."""

from __future__ import annotations

import re
import time
from typing import Final

from infernet.settings.hours import Offset

_NAME: Final = re.compile(r"[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_+-]{1,32}){0,2}")


def read_zone(value: object) -> str:
    """The name of a zone that this machine knows. Raises ValueError."""
    allowed = 'must be the name of a time zone, such as "Europe/Berlin" or "UTC"'
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise ValueError(allowed)
    from zoneinfo import ZoneInfo

    try:
        ZoneInfo(value)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"{allowed}, that this system knows: most have them in the package tzdata") from None
    return value


def offset_of(zone: str | None) -> Offset:
    """How far the clock of this zone, or of this machine, is ahead. The name has been read by `read_zone`."""
    if zone is None:
        return lambda at_s: time.localtime(at_s).tm_gmtoff
    from datetime import datetime, timedelta
    from zoneinfo import ZoneInfo

    info = ZoneInfo(zone)

    def offset(at_s: int) -> int:
        return int((datetime.fromtimestamp(at_s, info).utcoffset() or timedelta()).total_seconds())

    return offset
