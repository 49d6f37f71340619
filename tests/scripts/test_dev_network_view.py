"""scripts/_dev_network_view.py: what the network tells of itself."""

from __future__ import annotations

import pytest

from _dev_network_view import Teller

LINE = "n1: provider, INFERNET_HOME=/a/folder/with/a/name/of/some/length/[n1]/" + "x" * 200


def test_a_line_stays_whole_so_that_it_can_be_copied(capsys: pytest.CaptureFixture[str]) -> None:
    Teller(as_json=False).tell("up", LINE)
    assert capsys.readouterr().out == f"{LINE}\n"
