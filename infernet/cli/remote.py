"""Asking through the coordinator's public chat: `infernet chat --remote`. The coordinator sees question and answer."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, Final

import httpx

from infernet.cli.command import Failure
from infernet.cli.conversation import Conversation, NoAnswer, Question
from protocol.formats.text import clean_line

CONNECT_TIMEOUT_S: Final = 15.0
# The coordinator sends a comment every 15 s.
SILENCE_TIMEOUT_S: Final = 45.0
RECONNECTIONS_MAX: Final = 3
# What its operator gives for a day is spent; a program may want to know that, and when to come back.
BUDGET_SPENT: Final = "budget_spent"
RECONNECT_PAUSE_S: Final = 1.0
RESPONSE_BYTES_MAX: Final = 1024 * 1024
EVENT_BYTES_MAX: Final = 4 * 1024 * 1024


def ask(url: str, question: Question, conversation: Conversation, proxy: httpx.Proxy | None = None) -> None:
    """Ask the coordinator at this URL. Raises NoAnswer or Failure. Leaving early hangs up, which cancels the job."""
    timeout = httpx.Timeout(SILENCE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    deadline = time.monotonic() + question.timeout_s
    with httpx.Client(
        base_url=url, timeout=timeout, follow_redirects=False, proxy=proxy, trust_env=proxy is None
    ) as http:
        job = _open(http, url, question)
        job_id = str(job.get("jobId", ""))
        if not job_id.isalnum():
            raise Failure(f"{url} does not answer like an Infernet coordinator: is the URL right?")
        _follow(http, url, job_id, conversation, deadline)


def _open(http: httpx.Client, url: str, question: Question) -> dict[str, Any]:
    body: dict[str, Any] = {
        "messages": question.messages,
        "maxTokens": question.max_tokens,
        "temperature": question.temperature,
    }
    if question.model is not None:
        body["modelName"] = question.model
    try:
        with http.stream("POST", "/api/chat", json=body) as response:
            content = bytearray()
            for piece in response.iter_bytes():
                content += piece
                if len(content) > RESPONSE_BYTES_MAX:
                    raise Failure(f"{url} answers with more than it should: is the URL right?")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = clean_line(str(error)) or type(error).__name__
        raise Failure(f"the coordinator at {url} cannot be reached ({reason}): check the URL and the network") from None
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise Failure(f"{url} does not answer like an Infernet coordinator: is the URL right?")
    if response.is_error:
        raise _refused(response, answer)
    return answer


def _refused(response: httpx.Response, answer: dict[str, Any]) -> NoAnswer:
    text = clean_line(str(answer.get("error") or f"HTTP status {response.status_code}"))
    hint = clean_line(str(answer.get("hint") or ""))
    retry_after = response.headers.get("retry-after", "")
    is_number = retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 6
    code = BUDGET_SPENT if answer.get("code") == BUDGET_SPENT else None
    # Its own hint knows better than ours, so no code that would add one.
    return NoAnswer(f"{text}; {hint}" if hint else text, code, int(retry_after) * 1000 if is_number else 0)


def _follow(http: httpx.Client, url: str, job_id: str, conversation: Conversation, deadline: float) -> None:
    """Read the answer to its end; a connection that breaks is made again where it broke."""
    last_id = ""
    tries = 0
    while True:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
        try:
            with http.stream("GET", f"/api/chat/stream/{job_id}", headers=headers) as response:
                if response.is_error:
                    raise NoAnswer(f"the coordinator gave HTTP status {response.status_code}", None)
                for event_id, event, data in read_events(response.iter_bytes()):
                    last_id = event_id or last_id
                    tries = 0
                    if _take(event, data, job_id, conversation):
                        return
                    if time.monotonic() > deadline:
                        raise NoAnswer("it took too long", "deadline")
        except httpx.HTTPError as error:
            reason = clean_line(str(error)) or type(error).__name__
        else:
            reason = "the stream ended in the middle"
        tries += 1
        if tries > RECONNECTIONS_MAX or time.monotonic() > deadline:
            raise NoAnswer(f"the connection to {url} was lost ({reason})", "peer_lost")
        time.sleep(RECONNECT_PAUSE_S)


def _take(event: str, data: dict[str, Any], job_id: str, conversation: Conversation) -> bool:
    """Translate one event of the coordinator's; True when it was the last."""
    if event == "meta":
        provider = data.get("provider")
        conversation.take(
            "accepted",
            {
                "job": job_id,
                "provider": provider.get("id") if isinstance(provider, dict) else data.get("provider_node_id"),
                "provider_name": data.get("provider_name"),
                "model": data.get("model"),
                "prompt_tokens": data.get("prompt_tokens"),
            },
        )
    elif event == "token":
        tokens = data.get("output_tokens")
        conversation.take("text", {"text": data.get("text", ""), "output_tokens": tokens or conversation.tokens + 1})
    elif event == "queued":
        place = {"position": data.get("position"), "wait_ms": data.get("wait_ms")}
        conversation.take("queued", place | _provider(data, "provider"))
    elif event == "resumed":
        read = {"prompt_tokens": data.get("prompt_tokens")}
        conversation.take("resumed", read | _provider(data, "provider") | _provider(data, "lost"))
    elif event == "done":
        usage = data.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        done = {"outcome": data.get("reason", "stop"), "prompt_tokens": usage.get("prompt_tokens")}
        if usage.get("completion_tokens") is not None:
            done["output_tokens"] = usage["completion_tokens"]
        if isinstance(data.get("served"), list):
            done["served"] = [_served(part) for part in data["served"] if isinstance(part, dict)]
        conversation.take("done", done)
        return True
    elif event == "error":
        raise NoAnswer(clean_line(str(data.get("message") or "it failed")), str(data.get("code") or ""))
    return False


def _provider(data: dict[str, Any], key: str) -> dict[str, Any]:
    """A provider as the coordinator shows it, under the names that a conversation knows."""
    view = data.get(key)
    view = view if isinstance(view, dict) else {}
    return {key: view.get("id"), f"{key}_name": view.get("name")}


def _served(part: dict[str, Any]) -> dict[str, Any]:
    return {
        "provider": _provider(part, "provider")["provider"],
        "attempt": part.get("attempt"),
        "prompt_tokens": part.get("prompt_tokens"),
        "output_tokens": part.get("completion_tokens"),
    }


def read_events(pieces: Iterator[bytes]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Server-sent events (HTML standard, 9.2.6) whose data is a JSON object: (id, event, data). Others are skipped.

    Raises Failure for an event without end.
    """
    event_id, event, data = "", "message", bytearray()
    for line in _lines(pieces):
        if not line:
            value = _json_object(data)
            if value is not None:
                yield event_id, event, value
            event, data = "message", bytearray()
            continue
        name, _, value_bytes = line.partition(b":")
        value_bytes = value_bytes.removeprefix(b" ")
        if name == b"data":
            data += value_bytes + b"\n"
        elif name == b"event":
            event = value_bytes.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value_bytes:
            event_id = value_bytes.decode("utf-8", "replace")
        if len(data) > EVENT_BYTES_MAX:
            raise Failure("the coordinator sent an event without end")


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Lines that end in LF or CR LF: not `splitlines`, which also splits where an answer has a line separator."""
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        *lines, rest = buffer.split(b"\n")
        for line in lines:
            yield bytes(line.removesuffix(b"\r"))
        buffer = bytearray(rest)
        if len(buffer) > EVENT_BYTES_MAX:
            raise Failure("the coordinator sent a line without end")


def _json_object(data: bytearray) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
