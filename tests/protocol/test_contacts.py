"""The address book: what is known, who is dialled again and when, and how a node keeps company."""

from __future__ import annotations

import random

from protocol import constants as c
from protocol.contacts import CONTACTS_MAX, LOOK_S, NEIGHBOURS_MIN, RETRY_S_MAX, Contacts
from protocol.directory import Directory
from protocol.events import Dial
from protocol.ids import NodeId
from tests.helpers_machines import now, record_of
from tests.helpers_records import NOW_MS, signing_key

A = signing_key("a").node
ME = signing_key("me").node


def contacts_of(directory: Directory | None = None, neighbours_min: int = 0) -> Contacts:
    return Contacts(ME, Directory() if directory is None else directory, random.Random(1), now(), neighbours_min)


def test_given_addresses_come_before_those_that_a_heartbeat_claims() -> None:
    directory = Directory()
    directory.add(record_of("a", addresses=("/ip4/1.1.1.1/tcp/1", "/ip4/2.2.2.2/tcp/2")), NOW_MS)
    contacts = contacts_of(directory)
    contacts.learn(A, ("/ip4/2.2.2.2/tcp/2", "/ip4/3.3.3.3/tcp/3"), connect=False, connected=False)
    assert contacts.addresses(A) == ("/ip4/2.2.2.2/tcp/2", "/ip4/3.3.3.3/tcp/3", "/ip4/1.1.1.1/tcp/1")
    assert contacts.addresses(ME) == ()


def test_new_addresses_come_first_and_their_number_is_bounded() -> None:
    contacts = contacts_of()
    for number in range(50):
        contacts.learn(A, (f"/ip4/10.0.0.{number}/tcp/1",), connect=False, connected=False)
    addresses = contacts.addresses(A)
    assert addresses[0] == "/ip4/10.0.0.49/tcp/1"
    assert len(addresses) == c.HEARTBEAT_ADDRESSES_MAX


def test_hints_never_take_the_place_of_what_the_owner_gave() -> None:
    contacts = contacts_of()
    contacts.learn(A, ("/ip4/1.1.1.1/tcp/1",), connect=True, connected=False)
    for number in range(50):
        contacts.learn(A, (f"/ip4/10.0.0.{number}/tcp/1",), connect=False, connected=False)
    addresses = contacts.addresses(A)
    assert addresses[:2] == ("/ip4/1.1.1.1/tcp/1", "/ip4/10.0.0.49/tcp/1")
    contacts.learn(A, ("/ip4/2.2.2.2/tcp/1",), connect=True, connected=True)
    assert contacts.addresses(A)[:2] == ("/ip4/2.2.2.2/tcp/1", "/ip4/1.1.1.1/tcp/1")


def test_a_wanted_peer_is_dialled_at_once_and_again_with_growing_patience() -> None:
    contacts = contacts_of()
    assert contacts.learn(A, ("/a",), connect=True, connected=False) == [Dial(A, ("/a",))]
    at_s, waits = 0.0, []
    for _ in range(14):
        contacts.on_unreachable(A, now(at_s))
        deadline = contacts.next_deadline()
        assert deadline is not None
        assert contacts.on_deadline((), now(deadline - 0.001)) == []
        assert contacts.on_deadline((), now(deadline)) == [Dial(A, ("/a",))]
        assert contacts.next_deadline() is None
        waits.append(deadline - at_s)
        at_s = deadline
    assert 0.5 <= waits[0] <= 1.5
    assert all(0.5 * 2**n <= wait <= 1.5 * 2**n for n, wait in enumerate(waits[:8]))
    assert max(waits) <= 1.5 * RETRY_S_MAX
    assert waits[-1] >= 0.5 * RETRY_S_MAX


def test_patience_starts_anew_after_a_connection() -> None:
    contacts = contacts_of()
    contacts.learn(A, ("/a",), connect=True, connected=False)
    for _ in range(6):
        contacts.on_unreachable(A, now())
    contacts.on_connected(A)
    assert contacts.next_deadline() is None
    contacts.on_unreachable(A, now())
    deadline = contacts.next_deadline()
    assert deadline is not None
    assert deadline <= 1.5


def test_nobody_dials_whom_nobody_wants() -> None:
    contacts = contacts_of()
    contacts.learn(A, ("/a",), connect=False, connected=False)
    contacts.on_unreachable(A, now())
    assert contacts.next_deadline() is None
    assert contacts.learn(A, ("/b",), connect=True, connected=True) == []


def test_a_fresh_address_is_tried_at_once_and_not_twice() -> None:
    contacts = contacts_of()
    contacts.learn(A, ("/a",), connect=True, connected=False)
    contacts.on_unreachable(A, now())
    assert contacts.learn(A, ("/b",), connect=True, connected=False) == [Dial(A, ("/b", "/a"))]
    assert contacts.next_deadline() is None


def test_the_book_is_bounded_and_forgets_wanted_peers_last() -> None:
    contacts = contacts_of()
    contacts.learn(A, ("/a",), connect=True, connected=False)
    for number in range(2 * CONTACTS_MAX):
        contacts.learn(NodeId(number.to_bytes(32, "big")), ("/x",), connect=False, connected=False)
    assert len(contacts._given) == CONTACTS_MAX
    assert contacts.addresses(A) == ("/a",)


# ---------------------------------------------------------------- company


def crowd() -> Directory:
    directory = Directory()
    for number in range(10):
        directory.add(record_of(str(number), addresses=(f"/ip4/10.0.0.{number}/tcp/1",)), NOW_MS)
    directory.add(record_of("me"), NOW_MS)
    directory.add(record_of("hidden", addresses=()), NOW_MS)
    return directory


def look(contacts: Contacts, connected: list[NodeId]) -> list[NodeId]:
    deadline = contacts.next_deadline()
    assert deadline is not None
    effects = contacts.on_deadline(connected, now(deadline))
    following = contacts.next_deadline()
    assert following is not None
    assert deadline + 0.5 * LOOK_S <= following <= deadline + 1.5 * LOOK_S
    dials = [effect for effect in effects if isinstance(effect, Dial)]
    assert len(dials) == len(effects)
    return [dial.peer for dial in dials]


def test_a_lonely_node_dials_some_whom_it_knows() -> None:
    dialled = look(contacts_of(crowd(), NEIGHBOURS_MIN), [])
    assert len(set(dialled)) == NEIGHBOURS_MIN
    assert not {ME, signing_key("hidden").node} & set(dialled)


def test_a_node_in_company_dials_nobody_and_one_that_lacks_one_dials_one_stranger() -> None:
    contacts = contacts_of(crowd(), NEIGHBOURS_MIN)
    friends = [signing_key(str(number)).node for number in range(2 * NEIGHBOURS_MIN)]
    assert [look(contacts, friends) for _ in range(20)] == [[]] * 20
    few = friends[: NEIGHBOURS_MIN - 1]
    (stranger,) = look(contacts, few)
    assert stranger not in few


def test_a_node_in_just_enough_company_meets_a_stranger_now_and_then() -> None:
    """A clique whose members know of the rest of the network does not stay apart from it."""
    contacts = contacts_of(crowd(), NEIGHBOURS_MIN)
    clique = [signing_key(str(number)).node for number in range(NEIGHBOURS_MIN)]
    met = [look(contacts, clique) for _ in range(100)]
    assert all(len(strangers) <= 1 for strangers in met)
    assert 10 < sum(map(len, met)) < 45
    assert not {node for strangers in met for node in strangers} & set(clique)


def test_saved_peers_are_company_before_any_record_is_known() -> None:
    contacts = contacts_of(neighbours_min=NEIGHBOURS_MIN)
    contacts.learn(A, ("/a",), connect=False, connected=False)
    assert look(contacts, []) == [A]


def test_company_is_not_looked_for_among_those_who_are_dialled_anyway() -> None:
    contacts = contacts_of(neighbours_min=NEIGHBOURS_MIN)
    contacts.learn(A, ("/a",), connect=True, connected=False)
    assert look(contacts, []) == []


def test_a_node_that_does_not_dial_has_no_timer() -> None:
    assert contacts_of(crowd()).next_deadline() is None
