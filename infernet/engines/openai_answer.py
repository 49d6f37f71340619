"""One answer as it comes out of an OpenAI-compatible server, event by event.

What is counted (jobs are paid by it): where the server tells its count with each piece (llama-server, vLLM), that
count; elsewhere one token for each piece until the count comes at the end, which is never more, as a piece holds at
least a token. A count at the end that is below the pieces, above what was ordered, or above what the text can have
taken, is a lie or a fault, and costs the job. Where no count comes, because the run was cancelled or the server is
old, the pieces are what is counted. The token that ends a sequence is never counted: it is in all these servers'
figures exactly when they say that the model stopped, as they are given no stop strings.

Thoughts that a server sends apart from the answer are put back where they were, between the usual marks: they were
sampled, so they are paid for, so they are shown.
"""

from __future__ import annotations

from typing import Final

from infernet.engines.contract import Report
from infernet.engines.openai_http import ServerBroken, decode
from infernet.engines.openai_shapes import Choice, Chunk
from infernet.engines.stops import StopMatcher
from protocol.constants import ANSWER_BYTES_MAX, TEXTLESS_TOKENS_MAX
from protocol.effects import RunEngine
from protocol.events import EngineFinished, EngineProgress, EngineText
from protocol.records import Outcome

THOUGHTS_BEGIN: Final = "<think>"
THOUGHTS_END: Final = "</think>"
_OUTCOMES: Final = {"stop": Outcome.STOP, "length": Outcome.LENGTH}


class Answer:
    """The state of one answer. `output_tokens` is what was counted so far."""

    def __init__(self, run: RunEngine, tokens_max: int, report: Report) -> None:
        self._run = run.run
        self._tokens_max = tokens_max
        self._report = report
        self._stops = StopMatcher(run.request.stop)
        self._outcome: Outcome | None = None
        self._ended_by_model = False
        self._thinks = False
        self._tells_counts = False
        self._pieces = 0
        self._text_bytes = 0
        self._read_tokens = 0
        self._used: int | None = None
        self._moved_with = (0, 0)
        self.output_tokens = 0

    @property
    def has_begun(self) -> bool:
        """Whether the prompt is read: from then on the next piece comes soon."""
        return self._pieces > 0

    @property
    def is_complete(self) -> bool:
        """Whether all text is here; only the counts may still come."""
        return self._outcome is not None

    def moved(self) -> bool:
        """Whether there is more text, or more of the prompt was read, than when this was last asked."""
        before, self._moved_with = self._moved_with, (self._pieces, self._read_tokens)
        return before != self._moved_with

    def take(self, data: bytes) -> bool:
        """Take the data of an event; true ends the answer. Raises ServerBroken."""
        if data == b"[DONE]":
            return True
        if not data:
            return False
        chunk = decode(data, Chunk)
        if chunk.error is not None:
            raise ServerBroken("it gave up in the middle of an answer")
        if chunk.prompt_progress is not None and not self.has_begun:
            self._progress(chunk.prompt_progress.processed, chunk.prompt_progress.total)
        if not chunk.choices:
            self._used = _counted(chunk) or self._used
            return False
        # One answer was asked for.
        return self._choice(chunk.choices[0], chunk)

    def end(self) -> EngineFinished:
        """How it ended. Raises ServerBroken when it did not end, or cannot be true."""
        if self._outcome is None:
            raise ServerBroken("it ended an answer before its end")
        if self._stops.stopped or self._used is None:
            return EngineFinished(self._run, self._outcome, self.output_tokens)
        if self.output_tokens > self._used:
            raise ServerBroken("it counts fewer tokens than it sent pieces of text")
        self._count(self._used - self._ended_by_model)
        return EngineFinished(self._run, self._outcome, self.output_tokens)

    def _progress(self, done: int, total: int) -> None:
        if self._read_tokens < done <= total:
            self._read_tokens = done
            self._report(EngineProgress(self._run, done, total))

    def _choice(self, choice: Choice, chunk: Chunk) -> bool:
        text = self._text_of(choice)
        reason = choice.finish_reason
        if self.is_complete:
            if text:
                raise ServerBroken("it went on after the end of an answer")
            return False
        if reason is not None and reason not in _OUTCOMES:
            raise ServerBroken("it broke off an answer")
        self._ended_by_model = reason == "stop"
        self._pieces += bool(text)
        self._text_bytes += len(text.encode())
        if self._text_bytes > ANSWER_BYTES_MAX:
            raise ServerBroken(f"it sent more than {ANSWER_BYTES_MAX} bytes of text")
        counted = _counted(chunk)
        self._tells_counts = self._tells_counts or bool(counted)
        if counted and (text or reason is not None):
            self._count(counted - self._ended_by_model)
        elif text and not self._tells_counts:
            self._count(self._pieces)
        self._say(self._stops.feed(text))
        if self._stops.stopped:
            self._outcome = Outcome.STOP
            return True
        if reason is not None:
            self._used = counted or self._used
            self._say(self._stops.finish())
            self._outcome = _OUTCOMES[reason]
        return False

    def _text_of(self, choice: Choice) -> str:
        if choice.delta is None:
            return choice.text or ""
        text = choice.delta.thoughts
        if text and not self._thinks:
            self._thinks = True
            text = THOUGHTS_BEGIN + text
        if self._thinks and choice.delta.content:
            self._thinks = False
            text += THOUGHTS_END
        return text + (choice.delta.content or "")

    def _count(self, tokens: int) -> None:
        """So many tokens were sampled by now. Raises ServerBroken when that cannot be."""
        if tokens > self._tokens_max:
            raise ServerBroken("it counts more tokens than were ordered")
        if tokens > self._text_bytes + TEXTLESS_TOKENS_MAX:
            raise ServerBroken("it counts more tokens than the text can have taken")
        self.output_tokens = max(self.output_tokens, tokens)

    def _say(self, text: str) -> None:
        if text:
            self._report(EngineText(self._run, text, self.output_tokens))


def _counted(chunk: Chunk) -> int | None:
    """The count that comes with an event."""
    if chunk.usage is not None and chunk.usage.completion_tokens is not None:
        return chunk.usage.completion_tokens
    return chunk.timings.predicted_n if chunk.timings is not None else None
