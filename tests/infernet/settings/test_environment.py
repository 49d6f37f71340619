"""Variables that are no settings: who is warned of which, and what a vendor of rented machines says."""

from __future__ import annotations

from pathlib import Path

import pytest

from infernet.config import load
from infernet.settings.environment import EARLIER, EARLIER_KEYS, EARLIER_SERVERS, place_of_vendor, without_effect

SECRET = "sk-do-not-repeat-me"


def warned(engines: tuple[str, ...] = (), *, has_url: bool = False, has_key: bool = False, **environ: str) -> list[str]:
    return list(without_effect(environ, engines, has_url=has_url, has_key=has_key))


# ---------------------------------------------------------------- without effect


def test_those_of_the_earlier_program_are_named_with_what_to_set() -> None:
    for name, instead in EARLIER.items():
        assert warned(**{name: SECRET}) == [
            f"the variable {name} is of the earlier program, and has no effect: {instead}"
        ]
        assert warned(**{name: ""}) == []


@pytest.mark.parametrize("name", [*EARLIER_SERVERS, *EARLIER_KEYS])
def test_what_other_programs_read_matters_only_where_a_server_is_looked_for(name: str) -> None:
    assert warned(**{name: SECRET}) == []
    (line,) = warned(("openai",), **{name: SECRET})
    assert f"{name} is of the earlier program, and has no effect: set INFERNET_ENGINE_" in line
    assert SECRET not in line
    assert warned(("openai",), has_url=True, has_key=True, **{name: SECRET}) == []


def test_what_nobody_reads_is_told_in_one_line_and_what_somebody_reads_is_not() -> None:
    assert warned(INFERNET_HOME="/x", INFERNET_DEBUG="1", INFERNET_COORDINATOR_PORT="1", INFERNET_DEV_X="1") == []
    assert warned(INFERNET_P2P_PORT="1", INFERNET_PUBLIC_PORT="1", INFERNET_ENGINE_KEY="k", OTHER="x") == []
    assert warned(INFERNET_PURPOSE=SECRET) == [
        "unknown variable INFERNET_PURPOSE has no effect; `infernet config show` lists those there are"
    ]
    many = {f"INFERNET_QQQ{number}": SECRET for number in range(1000)}
    (line,) = warned(**many)
    assert "INFERNET_QQQ0, INFERNET_QQQ1, " in line
    assert "and 995 more have no effect" in line
    assert SECRET not in line


def test_a_name_is_one_short_line() -> None:
    (line,) = warned(**{"INFERNET_\x1b[2J\n" + "X" * 100_000: "1"})
    assert line.isprintable()
    assert len(line) < 200


# ---------------------------------------------------------------- vendors of machines


def test_a_vendor_says_address_and_port() -> None:
    both = {"RUNPOD_PUBLIC_IP": "9.9.9.9", "PUBLIC_IPADDR": "8.8.8.8", "RUNPOD_TCP_PORT_46337": "65535"}
    assert place_of_vendor(both) == {"address": "9.9.9.9", "p2p_port": 65535, "bind_port": 46337}
    told = place_of_vendor({"PUBLIC_IPADDR": "9.9.9.9", "VAST_TCP_PORT_46337": "40123"})
    assert told == {"address": "9.9.9.9", "p2p_port": 40123, "bind_port": 46337}


@pytest.mark.parametrize("text", ["", "10.0.0.7", "127.0.0.1", "pod.example", "0.0.0.0", "9.9.9.9; rm", "192.0.2.1"])
def test_what_is_no_public_address_is_not_taken(text: str) -> None:
    assert place_of_vendor({"RUNPOD_PUBLIC_IP": text, "RUNPOD_TCP_PORT_46337": "1"}) == {}


@pytest.mark.parametrize("text", ["", "0", "-1", "65536", "0001234567", "x", "9" * 9999, "\u0665"])
def test_without_a_port_that_leads_here_the_address_is_not_taken_either(text: str) -> None:
    assert place_of_vendor({"RUNPOD_PUBLIC_IP": "9.9.9.9", "RUNPOD_TCP_PORT_46337": text}) == {}
    assert place_of_vendor({"RUNPOD_PUBLIC_IP": "9.9.9.9", "RUNPOD_TCP_PORT_22": "40022"}) == {}


@pytest.mark.parametrize(
    ("more", "address", "port"),
    [
        ({}, "9.9.9.9", 40123),
        ({"INFERNET_P2P_PORT": "5000"}, "9.9.9.9", 5000),
        ({"INFERNET_ADDRESS": "8.8.8.8"}, "8.8.8.8", 46337),
        ({"INFERNET_PROXY": "socks5://127.0.0.1:9050"}, None, 46337),
        ({"RUNPOD_PUBLIC_IP": "nonsense"}, None, 46337),
        ({"RUNPOD_TCP_PORT_46337": ""}, None, 46337),
        ({"RUNPOD_TCP_PORT_46337": "0001234567"}, None, 46337),
    ],
)
def test_the_owner_s_word_counts_before_the_vendor_s(
    tmp_path: Path, more: dict[str, str], address: str | None, port: int
) -> None:
    vendor = {"RUNPOD_PUBLIC_IP": "9.9.9.9", "RUNPOD_TCP_PORT_46337": "40123"}
    loaded = load(environ={"INFERNET_HOME": str(tmp_path), **vendor, **more})
    assert (loaded.config.address, loaded.config.p2p_port) == (address, port)
    assert loaded.warnings == ()
    assert loaded.origins["address"] == ("default" if address is None else "environment")
