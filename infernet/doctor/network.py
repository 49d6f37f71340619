"""Checks of the network as such: interfaces, names, proxies. No line repeats a proxy's address or its password."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import httpx
import psutil

from infernet.config import ConfigError
from infernet.doctor.contract import Check, Finding, Part, Situation, fail, in_thread, ok, skip, warn
from infernet.own_addresses import interface_hosts, is_loopback_url
from infernet.proxy import ProxyError, open_proxy
from protocol.networks import read_ip


def _up(situation: Situation) -> Finding:
    config = situation.config
    local_only = config.coordinator_url is not None and is_loopback_url(config.coordinator_url)
    running = {name for name, state in psutil.net_if_stats().items() if state.isup}
    hosts = [ip_address(host) for host in interface_hosts()]
    if running and any(not host.is_loopback and not host.is_link_local for host in hosts):
        return ok("this machine has a network")
    if local_only:
        return ok("this machine has no network but itself, which is where the coordinator is")
    return warn("this machine has no network address but its own", "plug it in, or join a wireless network")


def _dns(situation: Situation) -> Finding:
    url = situation.config.coordinator_url
    if url is None:
        return ok("there is no coordinator to look up")
    host = urlsplit(url).hostname or ""
    if situation.config.proxy is not None:
        return ok("the proxy looks the coordinator's name up, and nobody else")
    if read_ip(host) is not None:
        return ok("the coordinator is given by its address, and needs no name")
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no name"
        return fail(
            f"the name {host} of the coordinator is not known ({reason.lower()})",
            f"correct it (`infernet config set --url URL`), or mend the resolver: `getent hosts {host}` must answer",
        )
    return ok(f"the coordinator's name has {len({entry[4][0] for entry in found})} addresses")


async def _socks(situation: Situation) -> Finding:
    try:
        proxy = open_proxy(situation.config)
    except ConfigError as error:
        return fail(str(error), "correct the file, or the setting: `infernet config set --proxy-login-file PATH`")
    if proxy is None:
        return skip("no proxy is set for this node")
    try:
        await proxy.greet()
    except ProxyError as error:
        # Where it is stays out of what people show to others.
        found = str(error).replace(str(proxy), "its address").partition(":")[0]
        return fail(
            f"{found}, so nothing leaves this machine",
            "start it (Tor listens on 127.0.0.1:9050, its browser's on 9150), or correct the setting: "
            "`infernet config set --proxy socks5://127.0.0.1:9050`",
        )
    return ok("the proxy answers, and speaks SOCKS5")


def _proxy(situation: Situation) -> Finding:
    if situation.config.proxy is not None:
        return ok("this node has a proxy of its own, and heeds none of the environment")
    proxies = {scheme: url for scheme, url in getproxies_environment().items() if scheme in ("http", "https", "all")}
    if not proxies:
        return ok("no proxy is set")
    for scheme, proxy in proxies.items():
        try:
            httpx.Proxy(proxy if "://" in proxy else f"http://{proxy}")
        except (ValueError, httpx.InvalidURL):
            return fail(
                f"{scheme.upper()}_PROXY is not the address of a proxy",
                f"correct or unset it: `unset {scheme.upper()}_PROXY {scheme}_proxy`",
            )
    url = situation.config.coordinator_url
    if url is None:
        return warn(
            "a proxy is set, and peers are dialled without it",
            "nothing, if this machine may also connect directly; else peers are out of reach",
        )
    parts = urlsplit(url)
    host = parts.hostname or ""
    if (parts.scheme in proxies or "all" in proxies) and not proxy_bypass(host):
        if is_loopback_url(url):
            return fail(
                "requests to the coordinator on this machine go to a proxy, which cannot reach it",
                f"run `export NO_PROXY={host}` before infernet commands",
            )
        return warn(
            "requests to the coordinator go through a proxy; its link and peers are dialled directly",
            f"if that is not wanted: `export NO_PROXY={host}`",
        )
    return ok("a proxy is set, and not used for the coordinator")


CHECKS: Final = (
    Check(
        id="network.up",
        title="There is a network",
        looks="Whether any interface has an address besides this machine's own.",
        remedy="Connect the machine to a network.",
        examine=in_thread(_up),
        needs=("config.readable",),
        part=Part.NETWORK,
    ),
    Check(
        id="dns",
        title="Coordinator's name is known",
        looks="Whether the host in `coordinator_url` can be looked up.",
        remedy="Correct the URL, or mend the machine's resolver.",
        examine=in_thread(_dns),
        needs=("config.readable",),
        part=Part.NETWORK,
    ),
    Check(
        id="proxy.socks",
        title="SOCKS proxy answers",
        looks="Whether what `proxy` names answers, speaks SOCKS5 and lets this node in. With it set, everything that "
        "leaves this machine goes through it, or does not leave.",
        remedy="Start the proxy, or correct `proxy` and `proxy_login_file`. Nothing is sent around it meanwhile: peers "
        "and the coordinator are out of reach.",
        examine=_socks,
        needs=("config.readable",),
        deadline_s=8.0,
        part=Part.NETWORK,
    ),
    Check(
        id="proxy",
        title="Proxy settings fit",
        looks="`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`: requests to the coordinator honour them, its "
        "link and peers do not.",
        remedy="Correct or unset the variable, or name the coordinator in `NO_PROXY`.",
        examine=in_thread(_proxy),
        needs=("config.readable",),
        part=Part.NETWORK,
    ),
)
