"""infernet/discovery/mdns_packets.py: what we write others can read, and no packet does more than say nothing."""

from __future__ import annotations

import random

import dns.message
import dns.name
import dns.opcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st
from zeroconf import ServiceInfo
from zeroconf._protocol.incoming import DNSIncoming
from zeroconf._protocol.outgoing import DNSOutgoing

from infernet.discovery import mdns_packets as packets
from infernet.discovery.mdns_packets import NOTHING, Packet, answer, question, read
from protocol.ids import peer_id
from tests.helpers_records import PROVIDER

ADDRESS = f"/ip4/192.168.7.7/tcp/46337/p2p/{peer_id(PROVIDER.node)}"
SERVICE = "_infernet._udp.local."


def response(*records: tuple[str, int, str, str], section: str = "additional", flags: int = 0x8400) -> bytes:
    """A packet with any records: name, lifetime, type, text."""
    message = dns.message.Message(id=0)
    message.flags = flags  # type: ignore[assignment]
    for name, lifetime_s, kind, text in records:
        getattr(message, section).append(dns.rrset.from_text(name, lifetime_s, "IN", kind, text))
    return message.to_wire()


def txt(text: str, name: str = f"x.{SERVICE}", lifetime_s: int = 120) -> tuple[str, int, str, str]:
    return name, lifetime_s, "TXT", text


def test_a_question_and_an_answer_are_understood() -> None:
    assert read(question()) == Packet(asks=True)
    assert read(answer("abc123", ADDRESS)) == Packet(addresses=(ADDRESS,))
    assert len(answer("a" * 32, ADDRESS)) < packets.PACKET_BYTES_MAX / 2


def test_a_goodbye_is_no_news() -> None:
    assert read(answer("abc123", ADDRESS, lifetime_s=0)) == NOTHING


def test_another_implementation_writes_what_we_read() -> None:
    info = ServiceInfo(
        SERVICE, f"abc123.{SERVICE}", port=46337, properties={b"dnsaddr": ADDRESS.encode()}, server="abc123.local."
    )
    out = DNSOutgoing(0x8400)
    out.add_answer_at_time(info.dns_pointer(), 0)
    for record in (info.dns_service(), info.dns_text()):
        out.add_additional_answer(record)
    (packet,) = out.packets()
    assert read(packet) == Packet(addresses=(ADDRESS,))


def test_another_implementation_reads_what_we_write() -> None:
    asked = DNSIncoming(question())
    assert (asked.valid, [entry.name for entry in asked.questions]) == (True, [SERVICE])
    told = DNSIncoming(answer("abc123", ADDRESS))
    pointer, text = told.answers()
    assert (told.valid, pointer.alias, text.name) == (True, f"abc123.{SERVICE}", f"abc123.{SERVICE}")
    assert text.text[1:] == f"dnsaddr={ADDRESS}".encode()


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\0" * 12,
        dns.message.make_query("_p2p._udp.local.", "PTR", id=7).to_wire(),
        dns.message.make_query(SERVICE, "TXT", id=7).to_wire(),
        dns.message.make_query(f"x.{SERVICE}", "PTR", id=7).to_wire(),
        response((SERVICE, 120, "PTR", f"x.{SERVICE}"), section="answer"),
        response(txt('"dnsaddr=/ip4/1.2.3.4/tcp/1"', name="x._p2p._udp.local.")),
        response(txt('"address=/ip4/1.2.3.4/tcp/1"')),
        response(txt('"dnsaddr=/ip4/1.2.3.4/tcp/1\\255"')),
        response(txt('"dnsaddr=/ip4/1.2.3.4/tcp/1"'), flags=0xA400),
        answer("abc123", ADDRESS)[:-1],
        answer("abc123", ADDRESS) + bytes(packets.PACKET_BYTES_MAX),
    ],
)
def test_what_is_not_about_us_says_nothing(packet: bytes) -> None:
    assert read(packet) == NOTHING


def test_a_packet_may_hold_several_addresses_and_only_so_many_are_taken() -> None:
    many = [f"/ip4/192.168.7.{number}/tcp/46337" for number in range(20)]
    packet = response(*(txt(f'"dnsaddr={address}" "other=1"') for address in many), section="answer")
    assert read(packet) == Packet(addresses=tuple(many[: packets.ADDRESSES_MAX]))


@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes_around_our_name_are_a_packet_or_nothing(noise: bytes, at: int) -> None:
    name = dns.name.from_text(SERVICE).to_wire()
    assert isinstance(read(noise[:at] + name + noise[at:]), Packet)


def test_no_broken_packet_breaks_more(request: pytest.FixtureRequest) -> None:
    rng = random.Random(46337)
    seeds = [question(), answer("abc123", ADDRESS), response(txt('"dnsaddr=/ip4/1.2.3.4/tcp/1"'))]
    understood = 0
    for _ in range(200_000 if request.config.getoption("--nightly") else 4000):
        packet = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(1, 5)):
            match rng.randrange(3):
                case 0:
                    packet[rng.randrange(len(packet))] = rng.randrange(256)
                case 1:
                    del packet[rng.randrange(len(packet)) + 1 :]
                case 2:
                    packet[rng.randrange(len(packet)) : 0] = rng.randbytes(rng.randrange(20))
        found = read(bytes(packet))
        understood += found != NOTHING
        assert len(found.addresses) <= packets.ADDRESSES_MAX
    assert understood, "the packets were broken so badly that nothing of the reading was tried"
