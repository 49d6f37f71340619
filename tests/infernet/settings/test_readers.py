"""infernet/settings/readers.py: amounts are text everywhere and never a float; splits, shares, workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from infernet.config import Config, ConfigError, load, read_file, save, why_nobody_pays
from infernet.engines.selection import engine_configs
from infernet.settings.readers import Dollars, as_plain, read_dollars, read_gpu_split, read_shares, read_worker
from protocol.ids import NodeId, npub, peer_id


def home_of(path: Path, **environ: str) -> dict[str, str]:
    return {"INFERNET_HOME": str(path), **environ}


@pytest.mark.parametrize(
    ("word", "uusd"),
    [("0", 0), ("0.10", 100_000), ("$0.10", 100_000), ("1", 1_000_000), ("0.000001", 1), ("1000000", 10**12)],
)
def test_dollars_are_read_to_the_unit_and_written_as_they_are_read(word: str, uusd: int) -> None:
    read = read_dollars(word)
    assert read == uusd
    assert read_dollars(as_plain(read)) == uusd


@pytest.mark.parametrize(
    "value",
    [0.1, 1, True, None, [], "", "-1", "1e3", "NaN", "inf", "0.0000001", "1000000.000001", "1,5", " 1", "٣", "9" * 40],
)
def test_what_is_no_amount_in_text_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        read_dollars(value)


def test_prices_in_the_file_are_text_and_a_float_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config" / "config.toml"
    save(path, {"price_in_usd": Dollars(100_000), "spend_usd_max": Dollars(10_000)}, keep=False)
    assert read_file(path) == {"schema_version": 1, "price_in_usd": "0.10", "spend_usd_max": "0.01"}
    loaded = load({}, home_of(tmp_path))
    assert (loaded.config.price_in_usd, loaded.config.spend_usd_max) == (100_000, 10_000)
    path.write_text("price_in_usd = 0.1\n")
    with pytest.raises(ConfigError, match="in quotes"):
        load({}, home_of(tmp_path))


def test_prices_come_from_flags_and_the_environment_too(tmp_path: Path) -> None:
    loaded = load({"price_out_usd": "0.25"}, home_of(tmp_path, INFERNET_PRICE_JOB_USD="0.000005"))
    config = loaded.config
    assert (config.price_in_usd, config.price_out_usd, config.price_job_usd) == (0, 250_000, 5)
    assert "nobody can pay it" in (why_nobody_pays(config) or "")
    # Not told by every command that reads the settings.
    assert not loaded.warnings
    for changes in ({"price_out_usd": None}, {"role": "client"}, {"coordinator_url": "http://127.0.0.1:1"}):
        flags = {"price_out_usd": "0.25", "coordinator_key": "ab" * 32} | changes
        assert why_nobody_pays(load(flags, home_of(tmp_path)).config) is None


def test_the_engine_asks_what_the_configuration_says(tmp_path: Path) -> None:
    model = tmp_path / "a.gguf"
    model.write_bytes(b"GGUF")
    prices = {"price_in_usd": Dollars(1), "price_out_usd": Dollars(2), "price_job_usd": Dollars(3)}
    config = Config(config_dir=tmp_path, state_dir=tmp_path, data_dir=tmp_path, model=str(model), **prices)
    (engine,) = engine_configs(config)
    assert (engine.price_in_uusd, engine.price_out_uusd, engine.price_job_uusd) == (1, 2, 3)


@pytest.mark.parametrize(("value", "shares"), [("3,1", (3, 1)), ("1 1", (1, 1)), ([2, 0, 1], (2, 0, 1)), ("", ())])
def test_shares_of_a_cluster_are_kept_in_their_order_and_twice_if_they_come_twice(
    value: object, shares: tuple[int, ...]
) -> None:
    assert read_shares(value) == shares
    assert read_shares(as_plain(shares)) == shares


@pytest.mark.parametrize("value", ["a", "-1", "1.5", "0,0", [True], [1.0], 3, None, "1," * 40, "9999999"])
def test_what_is_no_share_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="must"):
        read_shares(value)


def test_a_worker_is_a_key_or_an_address_that_says_who_it_is() -> None:
    node = bytes.fromhex("c6047f9441ed7d6d3045406e95c07cd85c778e4b8cef3ca7abac09b95c709ee5")
    assert read_worker(node.hex()) == npub(NodeId(node))
    address = f"/ip4/192.168.1.2/tcp/46337/p2p/{peer_id(NodeId(node))}"
    assert read_worker(address) == address
    for value in ("", "x", "/ip4/192.168.1.2/tcp/46337", 7):
        with pytest.raises(ValueError, match="must be"):
            read_worker(value)


@pytest.mark.parametrize(
    ("word", "split"),
    [
        ("auto", ()),
        ("20,24", (20.0, 24.0)),
        ("8 8", (8.0, 8.0)),
        ([], ()),
        ([10, 5.5], (10.0, 5.5)),
        ("0,24", (0.0, 24.0)),
    ],
)
def test_a_split_is_gigabytes_for_each_card(word: object, split: tuple[float, ...]) -> None:
    assert read_gpu_split(word) == split
    assert read_gpu_split(as_plain(split)) == split


@pytest.mark.parametrize("word", ["", "all", "-1", "nan", "inf", "1e9", "0", [True], ["x"], 7, None, [1] * 65])
def test_what_is_no_split_is_refused(word: object) -> None:
    with pytest.raises(ValueError, match="must"):
        read_gpu_split(word)


def test_the_settings_of_exllama_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config" / "config.toml"
    save(path, {"engine": "exllamav3", "gpu_split": (20.0, 8.0), "cache": "q6", "tensor_parallel": True}, keep=False)
    config = load({}, home_of(tmp_path)).config
    assert (config.engine, config.gpu_split, config.cache) == ("exllamav3", (20.0, 8.0), "q6")
    assert config.tensor_parallel is True
    assert load({}, home_of(tmp_path, INFERNET_GPU_SPLIT="auto")).config.gpu_split == ()
