"""A real OpenAI-compatible server for tests: llama.cpp's own, in a process of its own, over TCP.

    python -P tests/infernet/engines/llama_server.py MODEL CONTEXT_TOKENS SLOTS KEY

says its address when the model is loaded, and ends when its standard input closes.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Serve until nobody holds our input any more."""
    import xllamacpp

    path, context_tokens, slots, key = sys.argv[1:5]
    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.model_alias = {"smol-on-a-server"}
    parameters.n_parallel = int(slots)
    parameters.n_ctx = int(context_tokens) * int(slots)
    parameters.n_batch = parameters.n_ubatch = 16
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.api_keys = [key]
    parameters.cache_ram_mib = 0
    parameters.verbosity = -1
    server = xllamacpp.Server(parameters)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
