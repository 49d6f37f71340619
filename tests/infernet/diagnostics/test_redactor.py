"""infernet/diagnostics/redactor.py: what may stay stays, what names somebody goes, and nothing else comes out."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infernet.diagnostics.log_lines import redacted
from infernet.diagnostics.redactor import TEXT_CHARACTERS_MAX, Redactor
from protocol.formats.addresses import BadAddress, check_address
from protocol.formats.coins import PAIRS, Pair
from protocol.ids import npub, peer_id, short
from tests.helpers_node import key_of
from tests.helpers_secrets import ALICES_HOME, KINDS, Secret, leaked

COUNT = 1000
NODE = key_of(7).node

# Somebody's secret in the middle of what a program says.
FRAMES = (
    "{}",
    "cannot reach {}: connection refused",
    "failed ({})",
    'said "{}", then hung up',
    "a={}",
    "{},{}",
    "[{}]",
    "x:{}",
    "{}.",
    "<{}>",
)
FIELDS = ("reason", "detail", "error", "exception", "peer", "address", "addresses", "url", "ip", "path", "host", "name")


def plant(rng: random.Random, secret: Secret) -> str:
    """A line of a log with the secret somewhere in it."""
    text = rng.choice(FRAMES).replace("{}", secret.text)
    match rng.randrange(4):
        case 0:
            return text
        case 1:
            fields: dict[str, object] = {"event": text, "level": "info", "logger": secret.text}
        case 2:
            fields = {"event": "peer.fault", rng.choice(FIELDS): text, secret.text: "x", "extra": secret.text}
        case _:
            fields = {"event": "peer.fault", rng.choice(FIELDS): [text, secret.text], "level": secret.text}
    return json.dumps({"timestamp": secret.text} | fields)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_secrets_of_each_kind_never_come_out(kind: str) -> None:
    rng = random.Random(kind)
    redactor = Redactor()
    for _ in range(COUNT):
        secret = KINDS[kind](rng)
        line = plant(rng, secret)
        shown = redacted(line, redactor)
        assert not leaked(secret, shown), (line, shown)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.asset)
def test_the_wallets_that_are_made_up_are_wallets(pair: Pair) -> None:
    """Else the test above would prove less than it says."""
    rng = random.Random(1)
    found = 0
    for _ in range(20):
        try:
            check_address(pair, KINDS[f"{pair.asset} address"](rng).text)
            found += 1
        except BadAddress:
            continue
    # Half of all 32 bytes are no point of Solana's curve.
    assert found == 20 or (pair.network == "solana" and found > 3)


@pytest.mark.parametrize(
    "text",
    [
        "connection refused",
        "the coordinator does not answer within 5 s",
        "a failed job, 3 of 17 (0.25 s), 40 % of the memory",
        "CoordinatorUnreachable (it is down) at driver.py:120 run > node.py:33 _observe; from KeyError at wire.py:1 x",
        "no route to host: is the network up?",
        "listens on 127.0.0.1:46337, [::1]:46337 and 0.0.0.0",
        "libp2p 0.8.1 over IPv6, sha-256, co-signed, slow_reader, tokens/s",
        "see config.toml and `infernet doctor` (port.taken) at 12:34:56",
        "it can't be; don't",
    ],
)
def test_what_names_nobody_stays(text: str) -> None:
    assert Redactor().text(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"at {ALICES_HOME}/x y", "at <path> y"),
        ("at /srv/a/state/daemon.log: full", "at <path>/daemon.log: full"),
        ("from 8.8.8.8 port 46337", "from <ip-1 public> port 46337"),
        ("from 10.0.0.7 and 10.0.0.8", "from <ip-1 private> and <ip-2 private>"),
        ("fe80::1%eth0 is down", "<ip-1 private> is down"),
        ("2001:4860:4860::8888, 127.9.9.9", "<ip-1 public>, <ip-2 loopback>"),
        ("999.1.1.1", "<address-1>"),
        ("ask bob@c.example.", "ask <email-1>"),
        ("at http://u:p@c.example:80/x?y.", "at <url-1 http>."),
        ("ftp://c.example", "<url-1>"),
        ("dial /ip4/1.2.3.4/tcp/1/p2p/x now", "dial <multiaddr-1> now"),
        ("infernet:q9yq9yq9yq9yq9y", "<invite>"),
        ("c.example, C.EXAMPLE and d.example", "<host-1>, <host-1> and <host-2>"),
        ("password: correct horse battery", "<secret>"),
        ("it said Bearer abc", "it said <secret>"),
        ("hunter22 and bücher", "<text> and <text>"),
        ("bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4", "<wallet-1>"),
        ("id 12345678", "id <number>"),
        ("x\nforged: y\x1b[2J", "x forged: y"),
        ("日本", "<text>"),
        ("💥 boom", "boom"),
    ],
)
def test_what_names_somebody_goes(text: str, shown: str) -> None:
    assert Redactor().text(text) == shown


def test_one_node_has_one_number_in_all_its_forms() -> None:
    redactor = Redactor()
    other = key_of(8).node
    assert redactor.text(f"{short(NODE)} met {npub(other)}") == "<node-1> met <node-2>"
    text = f"{NODE.hex()} {npub(NODE)} {peer_id(NODE)} {NODE.hex().upper()} {short(other)}"
    assert redactor.text(text) == "<node-1> <node-1> <node-1> <node-1> <node-2>"


def test_what_is_known_to_name_somebody_goes_wherever_it_stands() -> None:
    redactor = Redactor({"falcon": "host", "alice": "user", "/home/al ice": "path", "Alice Smith": "user", "x": "user"})
    shown = redactor.text("Falcon/alice: /home/al ice/y/config.toml, alice smith, malice, falcons, x")
    assert shown == "<host-1>/<user-1>: <path>/config.toml, <user-2>, malice, falcons, x"


def test_a_text_is_bounded_and_half_a_secret_at_its_end_is_none() -> None:
    assert len(Redactor().text("word " * 10_000)) <= TEXT_CHARACTERS_MAX


@given(st.text())
def test_whatever_comes_in_one_clean_line_goes_out(text: str) -> None:
    shown = Redactor().text(text)
    assert shown.isprintable()
    assert shown.isascii() or set(shown) - set(map(chr, range(128))) <= set("…–—→")
    assert len(shown) <= TEXT_CHARACTERS_MAX


@given(st.text(alphabet="/:.@=+-_ab1\\[]~%'\"(", max_size=2000))
def test_no_text_takes_long(text: str) -> None:
    """Patterns that try every way to read a text would never end on some of these."""
    Redactor({"a/b": "path"}).text(text * 20)
