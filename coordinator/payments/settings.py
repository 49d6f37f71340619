"""From the configuration to a gateway's client and its secrets, which come from files or the environment alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from coordinator.config import Config, ConfigRefused
from coordinator.payments.coinpayportal import BASE_URL, CoinPayPortalConfig
from coordinator.payments.webhook import WebhookSecrets

SECRET_BYTES_MAX: Final = 8192
_OTHERS_READ: Final = stat.S_IROTH | stat.S_IWOTH

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PaymentSettings:
    """What it takes to speak with the gateway. Nothing of it is shown by `repr`."""

    client: CoinPayPortalConfig
    webhooks: WebhookSecrets


def payment_settings(config: Config, environment: Mapping[str, str] = os.environ) -> PaymentSettings | None:
    """The settings of the gateway; None where none is configured. Raises ConfigRefused."""
    needed = {
        "gateway_business_id": config.gateway_business_id,
        "gateway_api_key": config.gateway_api_key,
        "gateway_webhook_secret": config.gateway_webhook_secret,
    }
    if not any(needed.values()):
        return None
    missing = [name for name, value in needed.items() if not value]
    if missing:
        raise ConfigRefused(f"payments need {' and '.join(missing)}, too; leave out all three to take no payments")
    api_key = _secret("gateway_api_key", config.gateway_api_key, environment)
    token = config.gateway_payout_token
    secrets = _secret("gateway_webhook_secret", config.gateway_webhook_secret, environment).split()
    try:
        return PaymentSettings(
            CoinPayPortalConfig(
                api_key=api_key,
                business_id=config.gateway_business_id,
                base_url=config.gateway_url or BASE_URL,
                payout_token=_secret("gateway_payout_token", token, environment) if token else None,
                payout_email=config.gateway_payout_email,
            ),
            WebhookSecrets(
                tuple(secret.encode() for secret in secrets), accept_old_form=config.gateway_accept_old_webhooks
            ),
        )
    except ValueError as error:
        raise ConfigRefused(f"the payment gateway's settings: {error}") from None


def _secret(setting: str, source: str, environment: Mapping[str, str]) -> str:
    """What a setting names. Raises ConfigRefused, which names the setting and never the secret."""
    kind, _, name = source.partition(":")
    if kind == "env" and name:
        value = environment.get(name, "")
    elif kind == "file" and name:
        value = _read(setting, Path(name).expanduser())
    else:
        # The text itself may be a secret that somebody wrote here by mistake.
        raise ConfigRefused(f"{setting} names a secret: file:<path> or env:<NAME>, and is never the secret itself")
    if not value.strip():
        raise ConfigRefused(f"{setting} names {kind}:{name}, and nothing is there")
    return value.strip()


def _read(setting: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & _OTHERS_READ:
                log.warning("secret_is_readable_by_all", setting=setting, hint="chmod o= on its file")
            data = file.read(SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigRefused(f"{setting}: cannot read its file: {error.strerror}") from None
    if len(data) > SECRET_BYTES_MAX:
        raise ConfigRefused(f"{setting}: its file has more than {SECRET_BYTES_MAX} bytes, so it is another one")
    try:
        return data.decode("ascii")
    except UnicodeDecodeError:
        raise ConfigRefused(f"{setting}: its file is no text of ASCII") from None
