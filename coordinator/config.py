"""Every setting of the coordinator, its default, and where it may come from.

Later ones win: the default here, `config.toml` in --home, the environment (`INFERNET_COORDINATOR_<NAME>`), flags.
A name that is not known, or a value of the wrong type, is refused with what would have been right.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import platformdirs
from msgspec import Meta

from protocol import constants as c

ENVIRONMENT_PREFIX: Final = "INFERNET_COORDINATOR_"
# With this prefix a node is told where its coordinator is and which key it has; both may run in one environment.
_OF_THE_NODE: Final = ("url", "key")
FILE_NAME: Final = "config.toml"
# Settings of a node, about its coordinator; both programs may run in one environment.
_NODE_VARIABLES: Final = frozenset({"INFERNET_COORDINATOR_URL", "INFERNET_COORDINATOR_KEY"})

Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=1)]
Rate = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0)]
BasisPoints = Annotated[int, Meta(ge=0, le=c.BASIS_POINTS)]
MicroDollars = Annotated[int, Meta(ge=0, le=c.LEASE_CAP_UUSD_MAX)]
# Half of what a sealed prompt may hold, because padding may double it.
PromptBytes = Annotated[int, Meta(ge=1, le=c.SEALED_BYTES_MAX // 2 - 4096)]
OutputTokens = Annotated[int, Meta(ge=1, le=c.OUTPUT_TOKENS_MAX)]


class ConfigRefused(Exception):
    """A setting does not hold; the message is one line: where, what, what would be right."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings. Rates count per hour and client address prefix (/24 of IPv4, /56 of IPv6); 0 switches one off."""

    host: str = "127.0.0.1"
    port: Port = 8080
    home: str = ""

    # Pages can be left out; the core does not need them.
    web: bool = True
    log_level: str = "info"

    # Only behind these proxies is X-Forwarded-For read, from the right.
    trusted_proxies: tuple[str, ...] = ()
    # Requests straight from this machine are not limited, unless this says so.
    limit_loopback: bool = False
    registrations_per_hour: Rate = 60
    # Heartbeats are 120 an hour and node: room for some hundred nodes behind one address.
    node_requests_per_hour: Rate = 36_000
    # Each is a call of the payment gateway, which takes 1,000 an hour in all.
    deposits_per_hour: Rate = 60
    chats_per_hour: Rate = 20
    chats_at_once_per_client: Rate = 2

    # A bound on memory: texts in flight live only there.
    chats_at_once: Count = 256
    chat_prompt_bytes_max: PromptBytes = 8 * 1024
    chat_output_tokens_max: OutputTokens = 512
    chat_timeout_s: Seconds = 600.0
    # A reader who lost the connection has this long to come back before the job is cancelled.
    chat_grace_s: Seconds = 6.0
    # ... and one who never came has this long.
    chat_first_reader_s: Seconds = 30.0
    # A finished answer stays in memory this long, so that a reader can still resume.
    chat_keep_s: Seconds = 60.0

    # Every entry of the ledger once more, on disk before it is acknowledged: a file in --home, or elsewhere. "": none.
    journal: str = "ledger.journal"
    # Of every claim the coordinator keeps so much; a provider sees it in the lease.
    fee_bps: BasisPoints = 0
    # What the operator gives for the public chat each day (UTC), and what one of its answers may cost at most.
    sponsor_budget_uusd: MicroDollars = 0
    chat_spend_uusd_max: MicroDollars = 20_000

    # The payment gateway. Without business and key nothing can be paid in or out, and the routes say so. Secrets are
    # named, never written here: `file:<path>` or `env:<NAME>`; webhooks may have two while one is being changed.
    gateway_url: str = ""
    gateway_business_id: str = ""
    gateway_payout_email: str = ""
    gateway_api_key: str = ""
    gateway_payout_token: str = ""
    gateway_webhook_secret: str = ""
    gateway_accept_old_webhooks: bool = False
    deposit_uusd_min: MicroDollars = 1_000_000
    deposit_uusd_max: MicroDollars = 1_000_000_000
    # More in one payment, or in all of one hour, waits until a person has looked at it.
    deposit_review_uusd: MicroDollars = 500_000_000
    deposits_review_per_hour_uusd: MicroDollars = 2_000_000_000
    payout_uusd_min: MicroDollars = 5_000_000
    payouts_per_day_and_key_uusd: MicroDollars = 500_000_000
    payouts_per_day_uusd: MicroDollars = 5_000_000_000
    # A payout that the gateway certainly does not have is sent again by itself up to this, above it by a person.
    payout_resend_uusd_max: MicroDollars = 100_000_000
    # Whoever has so much and an address is paid out without asking; 0: nobody.
    payout_automatic_uusd: MicroDollars = 0

    links_at_once: Count = 4096
    # Streams of the chat are requests, too.
    requests_at_once: Count = 2048
    node_kept_days: Count = 30
    job_kept_days: Count = 30

    @property
    def home_path(self) -> Path:
        """Where database, key and configuration file live."""
        return Path(self.home).expanduser()

    @property
    def journal_path(self) -> Path | None:
        """Where the journal of the ledger is, if there is one."""
        return self.home_path / Path(self.journal).expanduser() if self.journal else None


_NAMES: Final = tuple(field.name for field in msgspec.structs.fields(Config))


def load(flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Config:
    """The configuration in force. `flags` holds only those that were given. Raises ConfigRefused."""
    from_environment = _from_environment(environment)
    home = flags.get("home") or from_environment.get("home") or platformdirs.user_data_dir("infernet-coordinator")
    path = Path(str(home)).expanduser()
    from_file = _from_file(path / FILE_NAME)
    if "home" in from_file:
        raise ConfigRefused(f"{path / FILE_NAME}: home cannot be set in the file that lies in it; use --home")
    # The environment holds text, so numbers are read out of it; the file has types of its own.
    settings = {
        **_typed(from_file, str(path / FILE_NAME), strict=True),
        **_typed(from_environment, "environment", strict=False),
        **_typed(flags, "flags", strict=True),
        "home": str(path),
    }
    config = msgspec.convert(settings, Config)
    _check(config)
    return config


def _from_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigRefused(f"cannot read {path}: {error}") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigRefused(f"{path} is not TOML: {error}") from None


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in environment.items():
        if key.startswith(ENVIRONMENT_PREFIX) and key not in _NODE_VARIABLES:
            name = key.removeprefix(ENVIRONMENT_PREFIX).lower()
            if name in _OF_THE_NODE:
                continue
            found[name] = value.split(",") if name == "trusted_proxies" and value else value
    return found


def _typed(settings: Mapping[str, Any], source: str, *, strict: bool) -> dict[str, Any]:
    """Check one source on its own, so that the message can say which it was."""
    for name in settings:
        if name not in _NAMES:
            near = difflib.get_close_matches(name, _NAMES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known settings: {', '.join(_NAMES)}"
            raise ConfigRefused(f"{source}: unknown setting {name!r}; {hint}")
    try:
        checked = msgspec.convert(dict(settings), Config, strict=strict)
    except msgspec.ValidationError as error:
        raise ConfigRefused(f"{source}: {error}") from None
    return {name: getattr(checked, name) for name in settings}


def _check(config: Config) -> None:
    if config.log_level not in ("debug", "info", "warning", "error"):
        raise ConfigRefused(f"log_level is debug, info, warning or error, not {config.log_level!r}")
    for proxy in config.trusted_proxies:
        try:
            ipaddress.ip_network(proxy)
        except ValueError as error:
            raise ConfigRefused(f"trusted_proxies: {error}; write for example 10.0.0.0/8") from None
