"""protocol/recent.py: what was put last stays, however much is put."""

from __future__ import annotations

from protocol.recent import Recent


def test_the_one_put_longest_ago_makes_room() -> None:
    table: Recent[str, int] = Recent(2)
    table.put("a", 1)
    table.put("b", 2)
    assert table.put("a", 3) == 3
    table.put("c", 4)
    assert (list(table), table.values()) == (["a", "c"], [3, 4])
    assert "b" not in table
    assert table.get("b") is None
    assert len(table) == 2


def test_asking_is_no_use_and_popping_removes() -> None:
    table: Recent[str, int] = Recent(2)
    table.put("a", 1)
    table.put("b", 2)
    assert table.get("a") == 1
    table.put("c", 3)
    assert table.get("a") is None
    assert table.pop("b") == 2
    assert table.pop("b") is None
    assert list(table) == ["c"]
