"""Commands for a ledger: few keys, leases and payments, so that commands meet, and amounts around the edges."""

from __future__ import annotations

from hypothesis import strategies as st

from protocol.ids import LeaseId, NodeId
from protocol.ledger import (
    AnyCommand,
    Budget,
    Claim,
    Deposit,
    ExpireLease,
    OpenLease,
    OrderPayout,
    ReleaseHold,
    Resume,
    ReturnPayout,
    SettlePayout,
    SweepBudget,
)
from protocol.records import Signed

NOW_MS = 1_795_000_000_000
REQUEST = Signed(b"request", bytes(64))


def node(number: int) -> NodeId:
    """A key that signs nothing."""
    return NodeId(bytes(31) + bytes([number]))


def lease_id(number: int) -> LeaseId:
    """One of a few leases."""
    return LeaseId(bytes(31) + bytes([0x80 + number]))


def open_command(number: int = 1, **changes: object) -> OpenLease:
    """A lease of 1,000 for node 2, paid by node 1."""
    fields: dict[str, object] = {
        "lease": lease_id(number),
        "client": node(1),
        "day": None,
        "payer": node(9),
        "provider": node(2),
        "relay": None,
        "relay_bps": 0,
        "fee_bps": 0,
        "cap_uusd": 1000,
        "serve_until_ms": NOW_MS + 1000,
        "claim_by_ms": NOW_MS + 5000,
        "request": REQUEST,
        **changes,
    }
    return OpenLease(**fields)  # type: ignore[arg-type]  # a table of fields has no types of its own


nodes = st.integers(1, 3).map(node)
leases = st.integers(1, 3).map(lease_id)
amounts = st.sampled_from((0, 1, 3, 7, 100, 333, 999, 1000, 1001, 5000)) | st.integers(-1, 2000)
intents = st.sampled_from((b"a" * 16, b"b" * 16))
payments = st.sampled_from(("p1", "p2"))
days = st.integers(1, 2)
flags = st.sampled_from((0, 1))
gaps = st.sampled_from((0, 100, 4000))

commands: st.SearchStrategy[AnyCommand] = st.one_of(
    st.builds(Deposit, payments, nodes, st.sampled_from(("BTC", "USDC@base")), amounts, amounts, flags),
    st.builds(ReleaseHold, payments, nodes, amounts),
    st.builds(Budget, days, amounts),
    st.builds(SweepBudget, days),
    st.builds(
        lambda number, client, day, provider, relay, relay_bps, fee_bps, cap: open_command(
            number,
            client=client,
            day=day,
            provider=provider,
            relay=relay,
            relay_bps=relay_bps if relay is not None else 0,
            fee_bps=fee_bps,
            cap_uusd=cap,
        ),
        st.integers(1, 3),
        nodes,
        st.none() | days,
        nodes,
        st.none() | nodes,
        st.sampled_from((0, 1, 500, 9999)),
        st.sampled_from((0, 1, 300)),
        amounts,
    ),
    st.builds(Claim, leases, nodes, amounts, flags, st.none()),
    st.builds(ExpireLease, leases),
    st.builds(Resume, gaps),
    st.builds(OrderPayout, intents, nodes, amounts),
    st.builds(SettlePayout, intents, st.sampled_from(("BTC", "USDC@base")), amounts),
    st.builds(ReturnPayout, intents),
)
# Each with its time: mostly during the lease, sometimes after its end.
timed_commands = st.tuples(commands, st.sampled_from((NOW_MS, NOW_MS + 3000, NOW_MS + 5001, NOW_MS + 9500)))
