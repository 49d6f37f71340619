"""The tables of deposits, payouts and the public chat's own leases, as a step of the schema.

What has money in it is the ledger's; here is what the ledger does not know: addresses, gateways, and how far each
payment has come.
"""

from __future__ import annotations

from typing import Final

_INTEGER: Final = "INTEGER NOT NULL CHECK (typeof({name}) = 'integer' AND {name} >= 0)"


def _whole(name: str) -> str:
    return f"{name} {_INTEGER.format(name=name)}"


PAYMENTS_STEP: Final[tuple[str, ...]] = (
    # `request` is the client's own number, so that a request that is sent again makes no second invoice.
    f"""
    CREATE TABLE deposits (
        deposit         BLOB PRIMARY KEY CHECK (length(deposit) = 16),
        node            BLOB NOT NULL CHECK (length(node) = 32),
        request         TEXT NOT NULL,
        {_whole("amount_uusd")},
        code            TEXT NOT NULL,
        network         TEXT NOT NULL,
        stage           TEXT NOT NULL CHECK (stage IN ('new', 'open', 'credited', 'held', 'review', 'closed')),
        gateway_id      TEXT UNIQUE,
        address         TEXT,
        expected_units  INTEGER CHECK (expected_units > 0),
        expected_raw    TEXT,
        received_units  INTEGER CHECK (received_units >= 0),
        received_raw    TEXT,
        progress        INTEGER NOT NULL CHECK (progress BETWEEN 0 AND 3),
        is_expired      INTEGER NOT NULL CHECK (is_expired IN (0, 1)),
        is_failed       INTEGER NOT NULL CHECK (is_failed IN (0, 1)),
        {_whole("credited_uusd")},
        reason          TEXT NOT NULL,
        tx_hash         TEXT,
        created_ms      INTEGER NOT NULL,
        expires_ms      INTEGER,
        ended_ms        INTEGER,
        next_poll_ms    INTEGER,
        polls           INTEGER NOT NULL,
        UNIQUE (node, request),
        CHECK ((gateway_id IS NULL) = (stage = 'new')),
        CHECK ((gateway_id IS NULL) = (address IS NULL) AND (gateway_id IS NULL) = (expected_units IS NULL))
    ) STRICT
    """,
    "CREATE INDEX deposits_by_node ON deposits (node, created_ms)",
    "CREATE INDEX deposits_to_poll ON deposits (next_poll_ms) WHERE next_poll_ms IS NOT NULL",
    "CREATE INDEX deposits_to_review ON deposits (created_ms) WHERE stage IN ('held', 'review')",
    # One row for each body that was signed; `copies` counts how often it came.
    """
    CREATE TABLE webhooks (
        body_hash   BLOB PRIMARY KEY CHECK (length(body_hash) = 32),
        body        BLOB NOT NULL,
        signature   TEXT NOT NULL,
        received_ms INTEGER NOT NULL,
        copies      INTEGER NOT NULL,
        payment     TEXT,
        outcome     TEXT NOT NULL CHECK (outcome IN ('queued', 'settled', 'unknown', 'unreadable', 'other'))
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX webhooks_by_age ON webhooks (received_ms)",
    # Who may change the addresses of a key: fixed by its first word about payouts.
    """
    CREATE TABLE payout_keys (
        node       BLOB PRIMARY KEY CHECK (length(node) = 32),
        payout_key BLOB NOT NULL CHECK (length(payout_key) = 32),
        set_ms     INTEGER NOT NULL
    ) STRICT
    """,
    "CREATE INDEX payout_keys_by_key ON payout_keys (payout_key)",
    # The default is the row that is active and was chosen last.
    """
    CREATE TABLE payout_addresses (
        number          INTEGER PRIMARY KEY,
        node            BLOB NOT NULL CHECK (length(node) = 32),
        code            TEXT NOT NULL,
        network         TEXT NOT NULL,
        address         TEXT NOT NULL,
        account         TEXT NOT NULL,
        destination_tag INTEGER,
        set_by          BLOB NOT NULL CHECK (length(set_by) = 32),
        set_ms          INTEGER NOT NULL,
        active_from_ms  INTEGER NOT NULL,
        default_from_ms INTEGER NOT NULL CHECK (default_from_ms >= active_from_ms),
        UNIQUE (node, code, network, address)
    ) STRICT
    """,
    f"""
    CREATE TABLE payout_intents (
        intent           BLOB PRIMARY KEY CHECK (length(intent) = 16),
        node             BLOB NOT NULL CHECK (length(node) = 32),
        request          TEXT NOT NULL,
        {_whole("amount_uusd")},
        code             TEXT NOT NULL,
        network          TEXT NOT NULL,
        address          TEXT NOT NULL,
        status           TEXT NOT NULL
                         CHECK (status IN ('queued', 'sending', 'sent', 'confirmed', 'failed', 'unknown')),
        attempts         INTEGER NOT NULL,
        gateway_id       TEXT UNIQUE,
        tx_hash          TEXT,
        amount_raw       TEXT,
        created_ms       INTEGER NOT NULL,
        tried_ms         INTEGER,
        next_ms          INTEGER NOT NULL,
        ended_ms         INTEGER,
        absences         INTEGER NOT NULL,
        absent_since_ms  INTEGER,
        needs_person     INTEGER NOT NULL CHECK (needs_person IN (0, 1)),
        reason           TEXT NOT NULL,
        UNIQUE (node, request)
    ) STRICT
    """,
    "CREATE UNIQUE INDEX payout_intents_one_each ON payout_intents (node) WHERE ended_ms IS NULL",
    "CREATE INDEX payout_intents_open ON payout_intents (status) WHERE ended_ms IS NULL",
    "CREATE INDEX payout_intents_by_time ON payout_intents (created_ms)",
    """
    CREATE TRIGGER payout_intents_end_once BEFORE UPDATE ON payout_intents
    WHEN OLD.ended_ms IS NOT NULL AND (NEW.status <> OLD.status OR NEW.amount_uusd <> OLD.amount_uusd)
    BEGIN SELECT RAISE(ABORT, 'a payout has ended'); END
    """,
    # What the gateway lists and nobody here has ordered, until a person has looked at it.
    """
    CREATE TABLE payout_strays (
        gateway_id TEXT PRIMARY KEY,
        reason     TEXT NOT NULL,
        seen_ms    INTEGER NOT NULL,
        is_known   INTEGER NOT NULL CHECK (is_known IN (0, 1))
    ) STRICT
    """,
    """
    CREATE TABLE payments (
        name  TEXT PRIMARY KEY CHECK (name IN ('payouts_since_ms', 'payouts_frozen_ms')),
        value INTEGER NOT NULL,
        text  TEXT NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    # What the public chat may have signed on its own leases.
    """
    CREATE TABLE sponsor_marks (
        lease             BLOB PRIMARY KEY CHECK (length(lease) = 32),
        request           BLOB NOT NULL CHECK (length(request) = 16),
        body              BLOB NOT NULL,
        signature         BLOB NOT NULL CHECK (length(signature) = 64),
        mark_uusd         INTEGER NOT NULL,
        voucher_body      BLOB,
        voucher_signature BLOB,
        stored_ms         INTEGER NOT NULL,
        CHECK ((voucher_body IS NULL) = (voucher_signature IS NULL))
    ) STRICT
    """,
)
