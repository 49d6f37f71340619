"""infernet/own_addresses.py: what others are told of where this node is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from infernet.config import Config
from infernet.own_addresses import advertised, undialled
from tests.helpers_records import PROVIDER as NODE

HERE = Config(config_dir=Path("c"), state_dir=Path("s"), data_dir=Path("d"), address="198.51.100.7")
LISTENING = ["/ip4/127.0.0.1/tcp/5000/p2p/x"]


@pytest.mark.parametrize(
    ("p2p_port", "bind_port", "told"),
    [
        # The port that was free is known only once it is listened on.
        (0, None, 5000),
        (5000, None, 5000),
        # A router leads its port 6000 here.
        (6000, 5000, 6000),
        (0, 5000, 5000),
    ],
)
def test_others_are_told_the_port_that_leads_here(p2p_port: int, bind_port: int | None, told: int) -> None:
    config = dataclasses.replace(HERE, p2p_port=p2p_port, bind_port=bind_port)
    (address,) = advertised(config, LISTENING, NODE.node)
    assert address.startswith(f"/ip4/198.51.100.7/tcp/{told}/p2p/")
    assert config.listen_port == (p2p_port if bind_port is None else bind_port)


def test_who_hides_or_does_not_listen_tells_nothing() -> None:
    assert advertised(dataclasses.replace(HERE, advertise=False), LISTENING, NODE.node) == []
    assert advertised(HERE, [], NODE.node) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"p2p_port": 807}, True),
        ({"p2p_port": 1024}, False),
        # What others are told is what they do not dial.
        ({"p2p_port": 807, "bind_port": 5000}, True),
        ({"p2p_port": 5000, "bind_port": 807}, False),
        ({"p2p_port": 0}, False),
        ({"p2p_port": 807, "advertise": False}, False),
        ({"p2p_port": 807, "p2p_enabled": False}, False),
        ({"p2p_port": 807, "listen_hosts": ()}, False),
    ],
)
def test_a_port_that_no_node_dials_is_told_of_where_one_would(changes: dict[str, Any], says: bool) -> None:
    told = undialled(dataclasses.replace(HERE, **changes))
    assert ("no port below 1024" in told and "807" in told) if says else told == ""
