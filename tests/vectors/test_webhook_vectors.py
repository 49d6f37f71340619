"""specs/vectors of the payment gateway's webhooks."""

from __future__ import annotations

import pytest

from coordinator.payments.webhook import WebhookRefused, WebhookSecrets, verify
from tests.helpers_vectors import Vector, each, load


@each("webhook")
def test_webhook(vector: Vector) -> None:
    secrets = WebhookSecrets(tuple(secret.encode() for secret in vector["secrets"]), bool(vector["accept_old_form"]))
    arguments = (vector["signatures"], vector["old_signatures"], vector["body"].encode(), vector["now_s"], secrets)
    if vector["valid"]:
        verify(*arguments)
    else:
        with pytest.raises(WebhookRefused):
            verify(*arguments)


def test_the_measured_vector_of_the_first_implementation_is_there() -> None:
    signature = "bb136f8a65e6b6dd9fce0ba3aa6af7489e1c4335375e313fb592efa13067e8fa"
    assert [v["valid"] for v in load("webhook") if v["old_signatures"] == [signature]].count(True) == 1
