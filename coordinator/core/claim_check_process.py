"""What a process that checks claims runs: parts come on standard input, answers go to standard output, until the end.

It has no key, no store and no network. It reads pickles because nobody but the process that started it can write here.
"""

from __future__ import annotations

import os
import pickle
import sys
from contextlib import suppress
from typing import BinaryIO

from coordinator.core.claim_checks import HEADER, check_all, encode_part
from protocol.records import Signed


def serve(parts: BinaryIO, answers: BinaryIO) -> None:
    """Answer every part, until there are no more."""
    while len(header := parts.read(HEADER.size)) == HEADER.size:
        (length,) = HEADER.unpack(header)
        part = parts.read(length)
        if len(part) < length:
            return  # whoever wrote it is gone
        claims = pickle.loads(part)  # noqa: S301 - see above
        answers.write(encode_part(check_all([Signed(body, signature) for body, signature in claims])))
        answers.flush()


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        serve(sys.stdin.buffer, sys.stdout.buffer)
    # Python would try once more to write what nobody has taken, and say that it cannot.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
