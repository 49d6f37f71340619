"""Where the gateway's secrets come from: files and the environment, and never a setting, a log line or an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coordinator.config import Config, ConfigRefused
from coordinator.payments.coinpayportal import BASE_URL
from coordinator.payments.settings import payment_settings

KEY, TOKEN, SECRET = "cp_live_0123456789", "jwt.0123456789", "whsec_0123456789"
ENVIRONMENT = {"KEY": KEY, "TOKEN": f"{TOKEN}\n", "SECRET": f"{SECRET} old_{SECRET}"}


def config(**changes: Any) -> Config:
    settings: dict[str, Any] = {
        "gateway_business_id": "biz",
        "gateway_api_key": "env:KEY",
        "gateway_payout_token": "env:TOKEN",
        "gateway_webhook_secret": "env:SECRET",
        **changes,
    }
    return Config(**settings)


def test_without_any_of_it_there_are_no_payments() -> None:
    assert payment_settings(Config(), {}) is None


def test_secrets_come_from_the_environment_and_from_files(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    path.chmod(0o600)
    for source in ("env:KEY", f"file:{path}"):
        found = payment_settings(config(gateway_api_key=source), ENVIRONMENT)
        assert found is not None
        assert found.client.credentials == (KEY, TOKEN)
        assert found.webhooks.values == (SECRET.encode(), f"old_{SECRET}".encode())
        assert found.client.base_url == BASE_URL
        shown = repr(found)
        assert not any(secret in shown for secret in (KEY, TOKEN, SECRET))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gateway_business_id": ""}, "gateway_business_id"),
        ({"gateway_api_key": ""}, "gateway_api_key"),
        ({"gateway_webhook_secret": ""}, "gateway_webhook_secret"),
        ({"gateway_api_key": KEY}, "never the secret itself"),
        ({"gateway_api_key": "env:"}, "never the secret itself"),
        ({"gateway_api_key": "env:NOTHING"}, "nothing is there"),
        ({"gateway_api_key": "file:/nowhere/at/all"}, "cannot read its file"),
        ({"gateway_webhook_secret": "env:THREE"}, "one or two webhook secrets"),
        ({"gateway_api_key": "env:SPACED"}, "visible ASCII"),
        ({"gateway_url": "http://example.org/api"}, "https"),
        ({"gateway_payout_email": "nobody"}, "payout_email"),
    ],
)
def test_what_cannot_work_is_refused_without_showing_a_secret(changes: dict[str, str], says: str) -> None:
    environment = {**ENVIRONMENT, "THREE": "a b c", "SPACED": f"{KEY} {KEY}"}
    with pytest.raises(ConfigRefused, match=says) as caught:
        payment_settings(config(**changes), environment)
    assert not any(secret in str(caught.value) for secret in (KEY, TOKEN, SECRET))


def test_files_that_are_no_secrets_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    for content, says in ((b"", "nothing is there"), (b"x" * 9000, "another one"), (b"\xff\xfe", "ASCII")):
        path.write_bytes(content)
        with pytest.raises(ConfigRefused, match=says):
            payment_settings(config(gateway_api_key=f"file:{path}"), ENVIRONMENT)
