"""`infernet-coordinator`: start the thin server."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from typing import Any, Final

from coordinator import version
from coordinator.config import Config, ConfigRefused, load
from protocol.ids import NodeId, npub

DESCRIPTION: Final = """\
The coordinator of an Infernet market: the only server in it, and a thin one. It records what nodes say they can do,
keeps a link to each, and serves the public chat at /chat. Turn it off, and jobs between nodes go on.
"""

EPILOG: Final = """\
Try it:
  infernet-coordinator                         listen on http://127.0.0.1:8080
  infernet-coordinator --port 0 --json         any free port, told as one JSON line
  curl http://127.0.0.1:8080/api/v1/coordinator   its key, which `infernet init` pins

Settings come from the defaults, then config.toml in --home, then the environment (INFERNET_COORDINATOR_<NAME>, for
example INFERNET_COORDINATOR_CHATS_PER_HOUR=0), then these flags. The key and the database live in --home; back up
coordinator.key, because nodes know the coordinator by it. Logs are JSON lines on stderr and never hold a prompt.
Behind a proxy, name it in trusted_proxies, or all its users count as one for the rate limits.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        "infernet-coordinator",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    arguments.add_argument("--host", help="address to listen on (default 127.0.0.1; :: for every one of this machine)")
    arguments.add_argument("--port", type=int, help="port to listen on (default 8080; 0 for any free one)")
    arguments.add_argument("--home", help="directory of key, database and config.toml")
    arguments.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="default info")
    arguments.add_argument("--json", action="store_true", help="print one JSON line when ready, instead of text")
    arguments.add_argument("--version", action="version", version=f"infernet-coordinator {version()}")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run; returns the exit code: 0 after a shutdown that was asked for, 1 when it could not start, 2 for usage."""
    flags: dict[str, Any] = vars(parser().parse_args(argv))
    as_json = bool(flags.pop("json", False))
    try:
        config = load(flags)
    except ConfigRefused as error:
        return _fail(error)
    # The server takes a second to import; --help and a wrong setting need not wait for it.
    from coordinator import log, server

    log.configure(config.log_level)
    try:
        asyncio.run(server.run(config, lambda url, node: _announce(config, url, node, as_json=as_json)))
    except (server.CannotStart, server.Broken) as error:
        return _fail(error)
    return 0


def _fail(error: Exception) -> int:
    sys.stderr.write(f"infernet-coordinator: {error}\n")
    return 1


def _announce(config: Config, url: str, node: NodeId, *, as_json: bool) -> None:
    """Say that the server is ready, to a person or to a program."""
    key_hex, npub_text = node.hex(), npub(node)
    if as_json:
        text = json.dumps({"url": url, "key": key_hex, "npub": npub_text, "pid": os.getpid()})
    else:
        text = (
            f"Infernet coordinator on {url}\n  chat  {url}/chat\n  key   {key_hex}\n  npub  {npub_text}\n"
            f"  home  {config.home_path}\nCtrl-C stops it."
        )
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
