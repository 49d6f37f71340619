"""Money that comes in and goes out, as one object of the core. Without a gateway there is neither."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, Final

from coordinator.config import Config
from coordinator.core.money import MoneyRefused
from coordinator.core.settlement import Settlement
from coordinator.payments.call_budget import CallBudget
from coordinator.payments.coinpayportal import CoinPayPortal
from coordinator.payments.deposit_rules import Limits
from coordinator.payments.deposits import Deposits
from coordinator.payments.payouts import PayoutLimits, Payouts
from coordinator.payments.settings import PaymentSettings, payment_settings
from coordinator.store.db import Database

NOT_CONFIGURED: Final = "payments_not_configured"


class Payments:
    """Deposits and payouts, with the gateway's client between `start` and `stop`. Raises ConfigRefused."""

    def __init__(
        self,
        config: Config,
        database: Database,
        settlement: Settlement,
        wall_ms: Callable[[], int],
        monotonic_s: Callable[[], float],
    ) -> None:
        self._config = config
        self._database = database
        self._settlement = settlement
        self._wall_ms = wall_ms
        self._calls = CallBudget(monotonic_s)
        self._settings = payment_settings(config)
        self._deposits: Deposits | None = None
        self._payouts: Payouts | None = None
        self._open = AsyncExitStack()

    async def start(self) -> None:
        """Begin to ask the gateway, if there is one."""
        if self._settings is not None:
            await self._start(self._settings)

    async def _start(self, settings: PaymentSettings) -> None:
        gateway = await self._open.enter_async_context(CoinPayPortal(settings.client))
        config = self._config
        self._deposits = Deposits(
            gateway,
            settings.webhooks,
            self._calls,
            Limits(config.deposit_review_uusd, config.deposits_review_per_hour_uusd),
            self._database,
            self._settlement.ledger,
            self._wall_ms,
            self._settlement.stop_because,
            lambda: not self._settlement.is_running,
        )
        self._deposits.start()
        self._open.push_async_callback(self._deposits.stop)
        if not config.gateway_payout_email:
            return  # the gateway sends none without it
        self._payouts = Payouts(
            gateway,
            self._calls,
            PayoutLimits(
                config.payout_uusd_min,
                config.payouts_per_day_and_key_uusd,
                config.payouts_per_day_uusd,
                config.payout_resend_uusd_max,
                config.payout_automatic_uusd,
            ),
            self._database,
            self._settlement.ledger,
            self._wall_ms,
            self._settlement.stop_because,
            lambda: not self._settlement.is_running,
        )
        self._payouts.start()
        self._open.push_async_callback(self._payouts.stop)

    async def stop(self) -> None:
        """Ask no more, and close what is open."""
        await self._open.aclose()

    @property
    def deposits(self) -> Deposits:
        """Raises MoneyRefused where no gateway is configured."""
        if self._deposits is None:
            raise not_configured()
        return self._deposits

    @property
    def payouts(self) -> Payouts:
        """Raises MoneyRefused where no gateway is configured, or none that sends."""
        if self._payouts is None and self._deposits is not None:
            text = "this coordinator takes payments and sends none: its operator has not set gateway_payout_email"
            raise MoneyRefused(503, NOT_CONFIGURED, text)
        if self._payouts is None:
            raise not_configured()
        return self._payouts

    def health(self) -> dict[str, Any]:
        """What the operator should know at a glance."""
        frozen = self._payouts.frozen if self._payouts is not None else None
        return {
            "deposits": self._deposits is not None,
            "payouts": self._payouts is not None,
            "payouts_frozen": frozen.reason if frozen is not None else None,
        }


def not_configured() -> MoneyRefused:
    """What every route about payments answers where there is no gateway."""
    text = "this coordinator takes and sends no payments: its operator has configured no payment gateway"
    return MoneyRefused(503, NOT_CONFIGURED, text)
