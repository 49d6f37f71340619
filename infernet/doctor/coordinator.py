"""Checks of the coordinator as this node meets it. It is asked what it tells anybody, and nothing is signed."""

from __future__ import annotations

import shlex
from typing import Any, Final
from urllib.parse import urlsplit

import trio

from infernet.config import Config
from infernet.coordinator_client import (
    CoordinatorError,
    CoordinatorRefused,
    CoordinatorUnreachable,
    new_client,
    read_json,
    request,
)
from infernet.doctor.contract import Check, Finding, Part, Situation, fail, ok, skip, text_of, warn
from infernet.proxy import proxy_for
from protocol.constants import PROTOCOL_VERSION
from protocol.envelope import AUTH_WINDOW_S
from protocol.errors import LocalProtocolError
from protocol.ids import node_id_from_text, npub
from protocol.networks import is_globally_routable, read_ip
from protocol.records import Role

REQUEST_TIMEOUT_S: Final = 5.0
_DEADLINE_S: Final = 8.0
SKEW_WANTED_S: Final = 10.0
_PEERS_LISTED: Final = 100


async def _get(config: Config, url: str, path: str) -> dict[str, Any]:
    async with new_client(proxy_for(config, url), REQUEST_TIMEOUT_S) as http:
        return read_json(await request(http, "GET", url.rstrip("/") + path))


async def _encrypted(situation: Situation) -> Finding:
    await trio.lowlevel.checkpoint()
    url = situation.config.coordinator_url
    if url is None:
        return skip("there is no coordinator")
    parts = urlsplit(url)
    ip = read_ip(parts.hostname or "")
    is_near = parts.hostname == "localhost" or (ip is not None and not is_globally_routable(ip))
    if parts.scheme == "http" and not is_near:
        return warn(
            "requests to the coordinator travel in the clear over the Internet",
            f"if it offers that: `infernet config set --url https://{shlex.quote(parts.netloc)}`",
        )
    return ok("nobody between reads requests to the coordinator" if parts.scheme == "https" else "it is near by")


async def _reachable(situation: Situation) -> Finding:
    url = situation.config.coordinator_url
    if url is None:
        return skip("there is no coordinator")
    before_ms = situation.machine.wall_ms()
    try:
        fields = await _get(situation.config, url, "/api/v1/coordinator")
    except CoordinatorUnreachable as error:
        return fail(
            str(error).partition(": it may")[0],
            f"see whether it is up: `curl {shlex.quote(url)}/api/health`; if it has moved: "
            "`infernet config set --url URL`",
        )
    except CoordinatorRefused as error:
        return fail(str(error), "ask whoever runs it, or correct the URL: `infernet config set --url URL`")
    except CoordinatorError:
        fields = {}
    if not text_of(fields, "key"):
        return fail(
            f"{url} does not answer like an Infernet coordinator", "correct the URL: `infernet config set --url URL`"
        )
    situation.coordinator = fields
    situation.asked_ms = before_ms, situation.machine.wall_ms()
    return ok(f"the coordinator at {url} answers")


async def _key(situation: Situation) -> Finding:
    await trio.lowlevel.checkpoint()
    assert situation.coordinator is not None
    pinned = situation.config.coordinator_key
    assert pinned is not None, "a URL without a key is refused when the configuration is read"
    try:
        found = node_id_from_text(text_of(situation.coordinator, "key"))
    except LocalProtocolError:
        return fail(
            "the coordinator shows something that is no key", "correct the URL: `infernet config set --url URL`"
        )
    if found != pinned:
        return fail(
            f"the coordinator shows the key {npub(found)}, and this node trusts {npub(pinned)}",
            "ask whoever runs it, not over this network, whether the key has changed; only then "
            f"`infernet config set --coordinator-key {npub(found)}`",
        )
    return ok("the coordinator shows the key that this node trusts")


async def _protocol(situation: Situation) -> Finding:
    await trio.lowlevel.checkpoint()
    assert situation.coordinator is not None
    version = situation.coordinator.get("protocol_version")
    if version != PROTOCOL_VERSION:
        shown = version if isinstance(version, int) else "none that it tells"
        return fail(
            f"the coordinator speaks protocol version {shown}, this node {PROTOCOL_VERSION}",
            "upgrade infernet" if isinstance(version, int) and version > PROTOCOL_VERSION else "have it upgraded",
        )
    return ok(f"both speak protocol version {PROTOCOL_VERSION}")


async def _skew(situation: Situation) -> Finding:
    await trio.lowlevel.checkpoint()
    assert situation.coordinator is not None
    theirs_ms = situation.coordinator.get("time_ms")
    if not isinstance(theirs_ms, int) or isinstance(theirs_ms, bool):
        return ok("the coordinator does not tell the time")
    before_ms, after_ms = situation.asked_ms
    # Told somewhere between question and answer: what lies within is no error.
    ahead_ms = max(0, before_ms - theirs_ms) or min(0, after_ms - theirs_ms)
    ahead_s = ahead_ms / 1000
    if abs(ahead_s) <= SKEW_WANTED_S:
        return ok(f"this machine's clock is within {max(1, round(abs(ahead_s)))} s of the coordinator's")
    found = f"this machine's clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the coordinator's"
    fix = "set it: `timedatectl set-ntp true`"
    if abs(ahead_s) > AUTH_WINDOW_S:
        return fail(f"{found}: nobody accepts what it signs", f"{fix}; if it is right, tell the coordinator's operator")
    return warn(found, fix)


async def _healthy(situation: Situation) -> Finding:
    url = situation.config.coordinator_url
    assert url is not None
    try:
        fields = await _get(situation.config, url, "/api/health")
    except CoordinatorError as error:
        return warn(f"the coordinator is not well: {error}", "wait, or tell whoever runs it")
    if fields.get("ok") is not True:
        return warn("the coordinator says that it is not well", "wait, or tell whoever runs it")
    return ok("the coordinator says that it is well")


async def _listed(situation: Situation) -> Finding:
    status, config = situation.status, situation.config
    if status is None:
        return skip("no node is running")
    if config.role is Role.CLIENT or not status.get("advertised_addresses"):
        return skip("this node publishes no address, so nobody lists it")
    assert config.coordinator_url is not None
    try:
        rows = (await _get(config, config.coordinator_url, f"/api/peers?limit={_PEERS_LISTED}")).get("data")
    except CoordinatorError as error:
        return warn(f"the coordinator lists nobody: {error}", "wait, or tell whoever runs it")
    listed = rows if isinstance(rows, list) else []
    if any(isinstance(row, dict) and row.get("pubkey") == text_of(status, "node_id") for row in listed):
        return ok("the coordinator lists this node as live")
    if len(listed) >= _PEERS_LISTED:
        return skip("the coordinator lists more nodes than it shows at once")
    return fail(
        "the coordinator does not list this node as live",
        "restart the node, which registers it again: `infernet stop`, then `infernet start`",
    )


CHECKS: Final = (
    Check(
        id="coordinator.encrypted",
        title="Requests are encrypted",
        looks="Whether a coordinator on the Internet is asked over HTTPS.",
        remedy="Use its `https://` address, if it has one. Requests are signed either way.",
        examine=_encrypted,
        needs=("config.readable",),
    ),
    Check(
        id="coordinator.reachable",
        title="Coordinator answers",
        looks="Whether the coordinator at `coordinator_url` can be reached, and is one.",
        remedy="Is it up, the URL right, and the network there? Without it, jobs between nodes that know each other "
        "go on.",
        examine=_reachable,
        needs=("config.readable", "dns", "proxy"),
        deadline_s=_DEADLINE_S,
        part=Part.NETWORK,
    ),
    Check(
        id="coordinator.key",
        title="Coordinator is the trusted one",
        looks="Whether the coordinator shows the key that this node pinned at `infernet init`. The node refuses any "
        "other.",
        remedy="Ask whoever runs it, by another way than this network, whether the key has changed. Only then change "
        "`coordinator_key`: who answers with another key may be somebody between.",
        examine=_key,
        needs=("coordinator.reachable",),
        part=Part.NETWORK,
    ),
    Check(
        id="coordinator.protocol",
        title="Coordinator speaks our protocol",
        looks="The protocol version that the coordinator tells.",
        remedy="Upgrade the older of the two.",
        examine=_protocol,
        needs=("coordinator.reachable",),
        part=Part.NETWORK,
    ),
    Check(
        id="clock.skew",
        title="Clock agrees with the coordinator's",
        looks=f"This machine's clock against the coordinator's: a warning above {SKEW_WANTED_S:.0f} s, a failure "
        f"above {AUTH_WINDOW_S:.0f} s, from where on nobody accepts what this node signs.",
        remedy="`timedatectl set-ntp true`. A node never sets the machine's clock.",
        examine=_skew,
        needs=("coordinator.reachable",),
        part=Part.NETWORK,
    ),
    Check(
        id="coordinator.healthy",
        title="Coordinator is well",
        looks="What the coordinator says of its own health.",
        remedy="Wait, or tell whoever runs it.",
        examine=_healthy,
        needs=("coordinator.reachable",),
        deadline_s=_DEADLINE_S,
        part=Part.NETWORK,
    ),
    Check(
        id="coordinator.listed",
        title="Coordinator lists this node",
        looks="Whether the coordinator shows others this node as live, where it runs and publishes an address.",
        remedy="Restart the node; it registers and sends a heartbeat at its start.",
        examine=_listed,
        needs=("coordinator.reachable", "node.heartbeat"),
        deadline_s=_DEADLINE_S,
        part=Part.NETWORK,
    ),
)
