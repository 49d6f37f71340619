"""What a failed call says to the operator, and the difference that matters to the machine."""

from __future__ import annotations

from coordinator.payments.gateway import GatewayError, GatewayRefused, GatewayUnclear, GatewayUnreachable


def test_errors_read_as_one_line() -> None:
    refused = GatewayRefused("rate_limited", status=429, detail="Too many requests", retry_after_s=17)
    assert str(refused) == "the gateway: rate_limited, HTTP 429, Too many requests"
    assert str(GatewayUnclear("timeout")) == "the gateway: timeout"


def test_what_is_unclear_is_never_taken_for_a_refusal() -> None:
    assert issubclass(GatewayUnreachable, GatewayRefused)
    assert not issubclass(GatewayUnclear, GatewayRefused)
    assert issubclass(GatewayUnclear, GatewayError)
