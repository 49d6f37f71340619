"""A test double of llama.cpp's llama-server with RPC: it holds a connection to each worker, and aborts without it.

    python -P llama_server_double.py --version
    python -P llama_server_double.py --help
    python -P llama_server_double.py --rpc HOST:PORT,... --api-key-file FILE --alias NAME ...

`--version` and `listening on` have the shapes of llama.cpp b11434 (`common/build-info.cpp.in`,
`tools/server/server.cpp`), the pages those that its server has for the OpenAI-compatible adapter. Each piece of an
answer goes to every worker and back before it is sent, and losing one ends this process by SIGABRT, as b11434 does. A
question with the word `forever` gets an answer without an end. DOUBLE_BUILD in the environment is the number of the
build.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WORDS = ("Two ", "machines ", "said ", "this", ".")
LOCK = threading.Lock()
STREAM = sys.stderr


def option(name: str) -> str:
    """The value of an argument."""
    return sys.argv[sys.argv.index(name) + 1]


def ask_workers(workers: list[socket.socket], data: bytes) -> None:
    """Have every worker echo some bytes; without one there is nothing to go on with."""
    with LOCK:
        for worker in workers:
            try:
                worker.sendall(data)
                echoed = b""
                while len(echoed) < len(data):
                    piece = worker.recv(65536)
                    if not piece:
                        raise OSError("gone")
                    echoed += piece
            except OSError:
                say("Remote RPC server crashed or returned malformed response")
                os.abort()


def say(text: str) -> None:
    """A line, as the real one says it."""
    STREAM.write(text + "\n")


def main() -> None:
    """Serve until killed."""
    if "--version" in sys.argv:
        say(f"version: 0.26.0 (build {os.environ.get('DOUBLE_BUILD', '11434')}, commit unknown)")
        say("built with a test double for nothing")
        return
    if "--help" in sys.argv:
        say("--rpc SERVERS     comma separated list of RPC servers (host:port)")
        return
    key = Path(option("--api-key-file")).read_text("ascii").strip()
    alias = option("--alias")
    workers = []
    for door in option("--rpc").split(","):
        host, _, port = door.partition(":")
        workers.append(socket.create_connection((host, int(port))))
    # The weights.
    ask_workers(workers, b"w" * 1_000_000)

    class Pages(BaseHTTPRequestHandler):
        """The pages of llama-server that the adapter reads."""

        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def reply(self, value: object, status: int = 200) -> None:
            """One JSON answer."""
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def is_welcome(self) -> bool:
            """Whether the key was shown."""
            if self.headers.get("authorization") == f"Bearer {key}":
                return True
            self.reply({"error": {"code": 401, "message": "Invalid API Key"}}, 401)
            return False

        def do_GET(self) -> None:
            """Lists and properties."""
            if not self.is_welcome():
                return
            if self.path == "/v1/models":
                listed = {"id": alias, "object": "model", "owned_by": "llamacpp", "meta": {"n_ctx": 512}}
                self.reply({"object": "list", "data": [listed]})
            else:
                self.reply({"error": {"code": 404, "message": "File Not Found"}}, 404)

        def do_POST(self) -> None:
            """Counting and answering."""
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if not self.is_welcome():
                return
            if self.path == "/apply-template":
                self.reply({"prompt": " ".join(message["content"] for message in body["messages"])})
            elif self.path == "/tokenize":
                self.reply({"tokens": [1] * len(body["content"].split())})
            else:
                self.generate(body)

        def generate(self, body: dict[str, object]) -> None:
            """An answer, whole or piece by piece."""
            prompt = str(body.get("prompt") or " ".join(m["content"] for m in body.get("messages", ())))  # type: ignore[attr-defined]
            ask_workers(workers, b"prefill")
            counts = {"prompt_tokens": len(prompt.split()), "completion_tokens": 1}
            if not body["stream"]:
                choice = {"index": 0, "message": {"role": "assistant", "content": "Two"}, "text": "Two"}
                self.reply({"choices": [choice], "usage": counts})
                return
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            limit, number = int(str(body["max_tokens"])), 0
            words = list(WORDS)
            try:
                while number < limit and (number < len(words) or "forever" in prompt):
                    ask_workers(workers, b"token")
                    number += 1
                    delta = {"content": words[(number - 1) % len(words)]}
                    self.event({"choices": [{"index": 0, "delta": delta}], "timings": {"predicted_n": number}})
                reason = "length" if number >= limit else "stop"
                number += reason == "stop"
                done = {"index": 0, "delta": {}, "finish_reason": reason}
                self.event({"choices": [done], "timings": {"predicted_n": number}})
                self.event({"choices": [], "usage": counts | {"completion_tokens": number}})
                self.wfile.write(b"data: [DONE]\n\n")
            except (BrokenPipeError, ConnectionResetError):
                pass  # whoever asked has enough
            self.close_connection = True

        def event(self, value: object) -> None:
            """A server-sent event."""
            self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())
            self.wfile.flush()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    say(f"srv  llama_server: listening on http://127.0.0.1:{server.server_address[1]}")
    server.serve_forever()


if __name__ == "__main__":
    main()
