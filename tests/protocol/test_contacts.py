"""The address book: what is known of whom, and who is dialled again and when."""

from __future__ import annotations

import random

from protocol import constants as c
from protocol.contacts import CONTACTS_MAX, LASTING_S, RETRY_S_MAX, Contacts
from protocol.directory import Directory
from protocol.effects import Dial
from protocol.events import LearnAddresses
from protocol.ids import NodeId
from tests.helpers_machines import now, record_of
from tests.helpers_records import NOW_MS, signing_key

A, B = signing_key("a").node, signing_key("b").node


def contacts_of(directory: Directory | None = None) -> Contacts:
    return Contacts(Directory() if directory is None else directory, random.Random(1))


def wanted() -> Contacts:
    contacts = contacts_of()
    assert contacts.learn(LearnAddresses(A, ("/a",), connect=True), connected=False) == [Dial(A, ("/a",))]
    return contacts


def retry_s(contacts: Contacts) -> float:
    deadline = contacts.next_deadline()
    assert deadline is not None
    return deadline


# ---------------------------------------------------------------- addresses


def test_given_addresses_come_before_those_that_a_heartbeat_claims() -> None:
    directory = Directory()
    directory.add(record_of("a", addresses=("/ip4/1.1.1.1/tcp/1", "/ip4/2.2.2.2/tcp/2")), NOW_MS)
    contacts = contacts_of(directory)
    contacts.learn(LearnAddresses(A, ("/ip4/2.2.2.2/tcp/2", "/ip4/3.3.3.3/tcp/3"), connect=False), connected=False)
    assert contacts.addresses(A) == ("/ip4/2.2.2.2/tcp/2", "/ip4/3.3.3.3/tcp/3", "/ip4/1.1.1.1/tcp/1")
    assert contacts.addresses(B) == ()


def test_new_addresses_come_first_and_their_number_is_bounded() -> None:
    contacts = contacts_of()
    for number in range(50):
        contacts.learn(LearnAddresses(A, (f"/ip4/10.0.0.{number}/tcp/1",), connect=False), connected=False)
    addresses = contacts.addresses(A)
    assert addresses[0] == "/ip4/10.0.0.49/tcp/1"
    assert len(addresses) == c.HEARTBEAT_ADDRESSES_MAX


def test_hints_never_take_the_place_of_what_the_owner_gave() -> None:
    contacts = contacts_of()
    contacts.learn(LearnAddresses(A, ("/ip4/1.1.1.1/tcp/1",), connect=True), connected=False)
    for number in range(50):
        contacts.learn(LearnAddresses(A, (f"/ip4/10.0.0.{number}/tcp/1",), connect=False), connected=False)
    addresses = contacts.addresses(A)
    assert addresses[:2] == ("/ip4/1.1.1.1/tcp/1", "/ip4/10.0.0.49/tcp/1")
    contacts.learn(LearnAddresses(A, ("/ip4/2.2.2.2/tcp/1",), connect=True), connected=True)
    assert contacts.addresses(A)[:2] == ("/ip4/2.2.2.2/tcp/1", "/ip4/1.1.1.1/tcp/1")


def test_who_was_given_first_is_named_first() -> None:
    contacts = contacts_of()
    for node in (B, A, B):
        contacts.learn(LearnAddresses(node, ("/x",), connect=False), connected=False)
    assert contacts.given() == (B, A)


def test_the_book_is_bounded_and_forgets_wanted_peers_last() -> None:
    contacts = wanted()
    for number in range(2 * CONTACTS_MAX):
        contacts.learn(LearnAddresses(NodeId(number.to_bytes(32, "big")), ("/x",), connect=False), connected=False)
    assert len(contacts.given()) == CONTACTS_MAX
    assert contacts.addresses(A) == ("/a",)


# ---------------------------------------------------------------- dialling again


def test_a_wanted_peer_is_dialled_at_once_and_again_with_growing_patience() -> None:
    contacts = wanted()
    at_s, waits = 0.0, []
    for _ in range(14):
        contacts.on_unreachable(A, now(at_s))
        deadline = retry_s(contacts)
        assert contacts.on_deadline(now(deadline - 0.001)) == []
        assert contacts.on_deadline(now(deadline)) == [Dial(A, ("/a",))]
        assert contacts.next_deadline() is None
        waits.append(deadline - at_s)
        at_s = deadline
    assert all(0.5 * 2**n <= wait <= 1.5 * 2**n for n, wait in enumerate(waits[:8]))
    assert max(waits) <= 1.5 * RETRY_S_MAX
    assert waits[-1] >= 0.5 * RETRY_S_MAX


def test_patience_starts_anew_after_a_connection_that_lasted() -> None:
    contacts = wanted()
    for _ in range(6):
        contacts.on_unreachable(A, now())
    contacts.on_connected(A, now(10.0))
    assert contacts.next_deadline() is None
    contacts.on_unreachable(A, now(10.0 + LASTING_S))
    assert retry_s(contacts) <= 10.0 + LASTING_S + 1.5


def test_patience_grows_with_a_peer_that_comes_and_goes() -> None:
    """It accepts every connection and drops it at once: it must not be dialled every second for ever."""
    contacts = wanted()
    at_s = 0.0
    for _ in range(8):
        contacts.on_connected(A, now(at_s))
        contacts.on_unreachable(A, now(at_s + 0.1))
        at_s = retry_s(contacts)
        assert contacts.on_deadline(now(at_s)) == [Dial(A, ("/a",))]
    contacts.on_connected(A, now(at_s))
    contacts.on_unreachable(A, now(at_s))
    assert retry_s(contacts) - at_s >= 0.5 * 2**8


def test_nobody_dials_again_whom_nobody_wants() -> None:
    contacts = contacts_of()
    contacts.learn(LearnAddresses(A, ("/a",), connect=False), connected=False)
    contacts.on_unreachable(A, now())
    assert contacts.next_deadline() is None
    assert contacts.learn(LearnAddresses(A, ("/b",), connect=True), connected=True) == []
    assert contacts.is_wanted(A)


def test_a_fresh_address_of_a_wanted_peer_is_tried_at_once_and_not_twice() -> None:
    contacts = wanted()
    contacts.on_unreachable(A, now())
    assert contacts.learn(LearnAddresses(A, ("/b",), connect=True), connected=False) == [Dial(A, ("/b", "/a"))]
    assert contacts.next_deadline() is None


def test_whoever_failed_is_due_again_after_the_same_waits() -> None:
    contacts = contacts_of()
    assert contacts.is_due(A, now())
    waits = []
    at_s = 0.0
    for failures in range(1, 5):
        contacts.on_unreachable(A, now(at_s))
        assert contacts.failures(A) == failures
        begun_s = at_s
        while not contacts.is_due(A, now(at_s)):
            at_s += 0.25
        waits.append(at_s - begun_s)
    assert all(0.5 * 2**n <= wait <= 1.5 * 2**n + 0.25 for n, wait in enumerate(waits))


def test_what_is_remembered_of_failures_is_bounded() -> None:
    contacts = contacts_of()
    contacts.on_unreachable(A, now())
    for number in range(CONTACTS_MAX):
        contacts.on_unreachable(NodeId(number.to_bytes(32, "big")), now())
    assert contacts.failures(A) == 0
