"""Logging belongs to the whole process: a test that sets it up puts it back."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import structlog


@contextmanager
def logging_restored() -> Iterator[None]:
    """Leave handlers, levels and structlog as they were before the block."""
    root = logging.getLogger()
    handlers, level, raising = root.handlers, root.level, logging.raiseExceptions
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()
        structlog.reset_defaults()
        root.handlers, logging.raiseExceptions = handlers, raising
        root.setLevel(level)
