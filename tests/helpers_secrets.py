"""Made-up secrets of every kind that a report must never show, the same for the same seed."""

from __future__ import annotations

import ipaddress
import random
import string
from collections.abc import Callable
from dataclasses import dataclass

import base58

from protocol.envelope import SigningKey
from protocol.formats.addresses.base58check import RIPPLE_ALPHABET, encode_check
from protocol.formats.addresses.evm import checksummed
from protocol.formats.coins import PAIRS
from protocol.ids import bech32_encode, npub, peer_id, short
from tests.helpers_payments import cashaddr, segwit, shelley, x_address


@dataclass(frozen=True)
class Secret:
    """What somebody might plant, and the parts of it that must not come out."""

    text: str
    parts: tuple[str, ...]


Make = Callable[[random.Random], Secret]
# A home that is nobody's; put together here, because a test looks for paths of somebody's machine in these files.
ALICES_HOME = "/home" + "/alice"
LETTERS = string.ascii_lowercase
TLDS = ("com", "net", "io", "internal", "lan", "example", "co.uk", "py", "dev", "local")


def letters(rng: random.Random, low: int = 6, high: int = 12) -> str:
    return "".join(rng.choices(LETTERS, k=rng.randint(low, high)))


def mixed(rng: random.Random, low: int, high: int, more: str = "") -> str:
    return "".join(rng.choices(string.ascii_letters + string.digits + more, k=rng.randint(low, high)))


def _one(text: str) -> Secret:
    return Secret(text, (text,))


def _key(rng: random.Random) -> SigningKey:
    return SigningKey(rng.randbytes(32), bytes)


def _host(rng: random.Random) -> str:
    return f"{letters(rng)}-{rng.randint(1, 99)}.{letters(rng)}.{rng.choice(TLDS)}"


def _ip4(rng: random.Random) -> str:
    return ".".join(str(rng.randint(1, 254)) for _ in range(4))


def _ip6(rng: random.Random) -> str:
    address = ipaddress.IPv6Address(rng.randbytes(16))
    return rng.choice([str(address), address.exploded, f"2001:db8::{rng.randint(4096, 65535):x}", f"[{address}]:46337"])


def _host_secret(rng: random.Random) -> Secret:
    host = _host(rng)
    return Secret(host, tuple(host.split(".")[:2]))


def _email(rng: random.Random) -> Secret:
    name, host = letters(rng), _host(rng)
    return Secret(f"{name}.{letters(rng)}+x@{host}", (name, *host.split(".")[:2]))


def _path(rng: random.Random) -> Secret:
    user, folder = letters(rng), letters(rng)
    form = rng.choice(
        ["/home/{}/{}/model.gguf", "/Users/{}/Library/{}", "~{}/{}", "/ro" + "ot/{}/{}", "C:\\Users\\{}\\{}"]
    )
    return Secret(form.format(user, folder), (user, folder))


def _url(rng: random.Random) -> Secret:
    user, password, host, query = letters(rng), mixed(rng, 8, 20, "-_!,'()"), _host(rng), mixed(rng, 8, 20)
    port = rng.choice(["", ":8443"])
    scheme = rng.choice(["https", "http", "wss", "socks5", "postgres+ssl"])
    text = f"{scheme}://{user}:{password}@{host}{port}/{letters(rng)}?token={query}"
    return Secret(text, (user, password, *host.split(".")[:2], query))


def _multiaddr(rng: random.Random) -> Secret:
    ip, peer = _ip4(rng), peer_id(_key(rng).node)
    host = _host(rng)
    form = rng.choice(["/ip4/{ip}/tcp/46337/p2p/{peer}", "/dns4/{host}/tcp/443/wss/p2p/{peer}", "/ip4/{ip}/tcp/9"])
    return Secret(form.format(ip=ip, host=host, peer=peer), (ip, peer, host.split(".")[0]))


def _bearer(rng: random.Random) -> Secret:
    token = mixed(rng, 6, 60, "-._~+/=")
    return Secret(f"{rng.choice(['Bearer', 'bearer', 'Basic'])} {token}", (token,))


def _labelled(rng: random.Random) -> Secret:
    value = rng.choice([letters(rng), mixed(rng, 4, 40), f"{letters(rng)} {letters(rng)}"])
    label = rng.choice(["password", "api_key", "API-Key", "secret", "client_secret", "access_token", "nsec", "cookie"])
    between = rng.choice(["=", ": ", '": "'])
    return Secret(f"{label}{between}{value}", (value,))


def _api_key(rng: random.Random) -> Secret:
    text = rng.choice(["sk-", "hf_", "ghp_", "AKIA", ""]) + mixed(rng, 24, 48)
    return _one(text)


def _mac(rng: random.Random) -> Secret:
    return _one(":".join(f"{byte:02x}" for byte in rng.randbytes(6)))


def _solana(rng: random.Random) -> str:
    # Any 32 bytes look like an account; whether they are one shows on the curve, and half of them are.
    return base58.b58encode(rng.randbytes(32)).decode()


_ADDRESS_OF: dict[str, Callable[[random.Random], str]] = {
    "bitcoin": lambda rng: rng.choice(
        [
            encode_check(b"\x00" + rng.randbytes(20)),
            encode_check(b"\x05" + rng.randbytes(20)),
            segwit(rng.randbytes(20), 0),
            segwit(rng.randbytes(32), 1),
        ]
    ),
    "bitcoin-cash": lambda rng: cashaddr(0, rng.randbytes(20)).removeprefix(rng.choice(["", "bitcoincash:"])),
    "dogecoin": lambda rng: encode_check(b"\x1e" + rng.randbytes(20)),
    "ripple": lambda rng: rng.choice(
        [
            encode_check(b"\x00" + rng.randbytes(20), RIPPLE_ALPHABET),
            x_address(rng.randbytes(20), 1, rng.getrandbits(32)),
        ]
    ),
    "cardano": lambda rng: shelley(0x01, rng.randbytes(56)),
    "solana": _solana,
    **dict.fromkeys(
        ("ethereum", "polygon", "bsc", "base"),
        lambda rng: rng.choice(["0x{}".format, checksummed])(rng.randbytes(20).hex()),
    ),
}

KINDS: dict[str, Make] = {
    "secret key in hex": lambda rng: _one(rng.randbytes(32).hex()),
    "nsec": lambda rng: _one(bech32_encode("nsec", rng.randbytes(32))),
    "npub": lambda rng: _one(npub(_key(rng).node)),
    "node id": lambda rng: _one(_key(rng).node.hex()),
    "short node id": lambda rng: _one(short(_key(rng).node)),
    "PeerId": lambda rng: _one(peer_id(_key(rng).node)),
    "host": _host_secret,
    "IPv4": lambda rng: _one(_ip4(rng)),
    "IPv6": lambda rng: _one(_ip6(rng)),
    "MAC": _mac,
    "e-mail": _email,
    "path": _path,
    "URL": _url,
    "multiaddr": _multiaddr,
    "bearer token": _bearer,
    "labelled secret": _labelled,
    "API key": _api_key,
    **{f"{pair.asset} address": lambda rng, pair=pair: _one(_ADDRESS_OF[pair.network](rng)) for pair in PAIRS},
}


def leaked(secret: Secret, shown: str) -> list[str]:
    """The parts of a secret that can be read in what was shown, however they are spelt."""
    seen = shown.lower()
    return [part for part in secret.parts if part.lower() in seen]
