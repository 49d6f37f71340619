"""Sanitising: whatever is sent, only allow-listed keys and words are kept."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.core import specs

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)
GPU = st.dictionaries(
    st.sampled_from(["vendor", "vram_tier", "model", "uuid", "driver", "serial", "hostname"]),
    st.sampled_from(["nvidia", "24-48gb", "RTX 4090", "Ⅷ", ""]) | JSON,
)
SPECS = JSON | st.dictionaries(
    st.sampled_from(["gpus", "gpu_count", "served_models", "cpu", "load", "interconnects", "hostname", "bench"]),
    JSON | st.lists(GPU, max_size=40) | st.lists(st.text(), max_size=60) | st.integers(),
)


@given(SPECS)
def test_r9_what_is_stored_of_a_heartbeat_has_only_allowed_keys_and_words(sent: Any) -> None:
    """R9: whatever a node sent as its specs was stored as it came."""
    stored = specs.stored(specs.sanitise(sent))
    assert set(stored) == {"gpus", "gpu_count", "served_models"}
    assert len(stored["gpus"]) <= 16
    for gpu in stored["gpus"]:
        assert set(gpu) == {"vendor", "vram_tier", "model"}
        assert gpu["vendor"] in specs.VENDORS
        assert gpu["vram_tier"] in specs.TIERS
        assert isinstance(gpu["model"], str)
        assert len(gpu["model"]) <= 64
    assert type(stored["gpu_count"]) is int
    assert 0 <= stored["gpu_count"] <= 1024
    assert len(stored["served_models"]) <= 32
    assert all(isinstance(name, str) and 0 < len(name) <= 128 for name in stored["served_models"])
    json.dumps(stored).encode()  # no lone surrogate


@given(st.text(max_size=300))
def test_cleaned_text_has_no_controls_and_is_clean_already(text: str) -> None:
    cleaned = specs.clean_text(text, 64)
    assert len(cleaned) <= 64
    assert not any(character in cleaned for character in "\x00\x1b\n\r\t\u202e\u2066\U000e0041")
    assert specs.clean_text(cleaned, 64) == cleaned.strip()


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("alice@laptop:35372324", "35372324"),
        ("alice@laptop", ""),
        ("my node", "my node"),
        ("a\x1b[31mred\u202e", "a[31mred"),
        ("x" * 99, "x" * 48),
    ],
)
def test_names_tell_nothing_of_user_and_host(sent: str, kept: str) -> None:
    assert specs.clean_name(sent) == kept


@pytest.mark.parametrize("address", ["203.0.113.7", "2001:db8::1", "node.example.org", "localhost", "a1"])
def test_addresses_that_may_be_published(address: str) -> None:
    assert specs.is_address(address)


@pytest.mark.parametrize(
    "address", ["", " ", "fe80::1%eth0", "a b", "-a.org", "a..b", "1.2.3", "/etc", "a" * 64, "a." * 130 + "a", "ä.de"]
)
def test_addresses_that_may_not(address: str) -> None:
    assert not specs.is_address(address)
