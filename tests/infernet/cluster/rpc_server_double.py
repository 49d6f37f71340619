"""A test double of llama.cpp's ggml-rpc-server: it echoes bytes, and says what b11434's says when it starts.

    python -P rpc_server_double.py --host 127.0.0.1 --port PORT

What it prints has the shape of `ggml_backend_rpc_start_server` in llama.cpp b11434, and like there it stays in a buffer
until somebody connects. One connection at a time, as there. A connection that sends `die` ends the process by SIGABRT.
"""

from __future__ import annotations

import os
import socket
import sys

STREAM = sys.stdout


def say(text: str) -> None:
    """A line, as the real one says it."""
    STREAM.write(text + "\n")


def main() -> None:
    """Serve until killed."""
    port = int(sys.argv[sys.argv.index("--port") + 1])
    with socket.create_server(("127.0.0.1", port)) as listener:
        say("Starting RPC server v7.0.0")
        say(f"  endpoint       : 127.0.0.1:{port}")
        say("Devices:")
        say("  CPU: A test double (3072 MiB, 2048 MiB free)")
        while True:
            connection, _ = listener.accept()
            say("Accepted client connection")
            sys.stdout.flush()
            with connection:
                while data := connection.recv(65536):
                    if data == b"die":
                        os.abort()
                    connection.sendall(data)


if __name__ == "__main__":
    main()
