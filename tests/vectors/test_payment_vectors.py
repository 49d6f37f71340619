"""coins.json, amounts.json and addresses.json: this implementation answers as the vectors say."""

from __future__ import annotations

import pytest

from protocol.formats.addresses import BadAddress, check_address
from protocol.formats.amounts import BadAmount, Rounding, format_amount, parse_amount
from protocol.formats.coins import UnknownPair, find_pair, pair_of_asset
from tests.helpers_vectors import Vector, each, plain


@each("coins")
def test_coins(vector: Vector) -> None:
    if vector["valid"]:
        assert plain(find_pair(vector["coin"], vector["given_network"])) == vector["pair"]
        return
    with pytest.raises(UnknownPair) as caught:
        find_pair(vector["coin"], vector["given_network"])
    assert caught.value.fault == vector["fault"]


@each("amounts")
def test_amounts(vector: Vector) -> None:
    pair = pair_of_asset(vector["asset"])
    rounding = None if vector["rounding"] is None else Rounding(vector["rounding"])
    if vector["valid"]:
        assert parse_amount(pair, vector["text"], rounding) == vector["units"]
        assert format_amount(pair, vector["units"]) == vector["written"]
        return
    with pytest.raises(BadAmount) as caught:
        parse_amount(pair, vector["text"], rounding)
    assert caught.value.fault == vector["fault"]


@each("addresses")
def test_addresses(vector: Vector) -> None:
    pair = pair_of_asset(vector["asset"])
    if vector["valid"]:
        given = {name: vector[name] for name in ("text", "account", "destination_tag", "warnings")}
        assert plain(check_address(pair, vector["given"])) == given
        return
    with pytest.raises(BadAddress) as caught:
        check_address(pair, vector["given"])
    assert caught.value.fault == vector["fault"]
    assert str(caught.value).isprintable()
