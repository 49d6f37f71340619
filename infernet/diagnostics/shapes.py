"""What the redactor recognises: the shapes of things that name somebody, and the words that name nobody.

Each that begins with a run of characters looks behind it first: else a long run would be tried from each of its
characters, to no avail.
"""

from __future__ import annotations

import builtins
import re
import sys
from functools import cache
from pathlib import Path
from typing import Final

from protocol.formats.addresses import AddressFault, BadAddress, check_address
from protocol.formats.coins import PAIRS

#: Kept in a path, so that a reader knows which file is meant.
KNOWN_FILES: Final = frozenset(
    {
        *("config.toml", "coordinators.json", "identity.key"),
        *("node.sqlite3", "money.sqlite3", "daemon.log", "daemon.pid", "daemon.sock"),
    }
)
# A word after which the rest of the line is nobody's business.
LABELLED: Final = re.compile(
    r"(?<![\w-])[\w-]*(?:authori[sz]ation|x-infernet-auth|cookie|api[-_ ]?key|passw(?:or)?d|passphrase|pwd|secret"
    r"|token(?!s)|nsec|priv(?:ate)?[-_ ]?key|mnemonic|seed[-_ ]?phrase|credential|prompt(?!_tokens)|messages|content)"
    r"[\w-]*[\"'\]]*\s*(?:[:=]|\bis\b)\s*[^\s].*",
    re.IGNORECASE | re.DOTALL,
)
BEARER: Final = re.compile(r"(?<![A-Za-z])(?:bearer|basic|digest|negotiate)\s+\S+", re.IGNORECASE)
INVITE: Final = re.compile(r"\binfernet:\S+", re.IGNORECASE)
URL: Final = re.compile(r"(?<![A-Za-z0-9+.-])[A-Za-z0-9+.-]+://\S+")
EMAIL: Final = re.compile(r"(?<![^\s@\"'<>(),;])[^\s@\"'<>(),;]+@[^\s@\"'<>(),;]+")
MULTIADDR: Final = re.compile(
    r"/(?:ip4|ip6|ip6zone|dns|dns4|dns6|dnsaddr|p2p|ipfs|onion3?|garlic(?:32|64)|unix|tcp|udp|ws|wss|p2p-circuit)"
    r"/[^\s\"',;()<>]+"
)
PATH: Final = re.compile(r"(?<![\w/~])(?:~[\w.-]*)?/[^\s\"'`,;()<>]*|[A-Za-z]:\\\S+")
# Three groups of digits and colons or more: IPv6, a MAC address, or a time of day.
COLONS: Final = re.compile(r"(?<![\w.])\[?[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f.]{0,15}){2,}(?:%\w+)?\]?")
TIME_OF_DAY: Final = re.compile(r"[0-2]?\d:[0-5]\d:[0-6]\d(?:\.\d{1,6})?")
IPV4: Final = re.compile(r"(?<![\w.])\d{1,10}(?:\.\d{1,10}){3}(?![\w])")
# Logs show the first eight digits of a node; whatever else is in hexadecimal is treated as if it were one.
NODE: Final = re.compile(
    r"(?<![A-Za-z0-9_])(?:npub1[02-9ac-hj-np-z]{20,}|16Uiu2HA[1-9A-HJ-NP-Za-km-z]{20,}|12D3Koo[1-9A-HJ-NP-Za-km-z]{20,}"
    r"|Qm[1-9A-HJ-NP-Za-km-z]{42,}|(?:0x)?[0-9a-f]{8,}(?![a-z0-9_]))",
    re.IGNORECASE,
)
# A long run of what encodings are made of, with something in it that no word has.
OPAQUE: Final = re.compile(
    r"(?<![A-Za-z0-9+/=_:-])(?=[A-Za-z+/=_:.-]*[0-9]|[A-Za-z0-9+/=_:.-]*[a-z][A-Z])[A-Za-z0-9+/=_:-]{17,}"
)
DOTTED: Final = re.compile(r"[\w-]+(?:\.[\w-]+)+")
WORD: Final = re.compile(r"[\w-]+")

_PLAIN_WORD: Final = re.compile(
    r"[A-Z]?[a-z]{1,16}|[A-Z]{1,12}|(?:[A-Z]{2,3})?[A-Z][a-z]{2,14}(?:[A-Z][a-z]{2,14}){0,4}"
)
_NUMBER: Final = re.compile(r"-?\d{1,6}(?:ms|s|min|h|d|B|kB|MB|GB|TB|MiB|GiB|x)?")
_DECIMAL: Final = re.compile(r"\d{1,6}(?:\.\d{1,6}){1,2}(?:s|ms|x)?")
_NAMES_WITH_DIGITS: Final = frozenset(
    {
        "ipv4", "ipv6", "libp2p", "sha256", "sha-256", "utf-8", "http2", "h2", "x25519", "secp256k1", "chacha20",
        "python3", "sqlite3", "p2p", "p2p_port", "i386", "x86_64", "aarch64", "arm64", "q4_1", "msg1", "w3c",
    }
)  # fmt: skip
PUNCTUATION: Final = frozenset(" .,;:!?()[]{}<>'\"`/=%*|&#@~$^\\+-_…–—→")


def is_plain_word(word: str) -> bool:
    """Whether a word, perhaps of several parts (`slow_reader`, `co-signed`), is one that names nobody."""
    if _NUMBER.fullmatch(word) or word.lower() in _NAMES_WITH_DIGITS or word in _exceptions():
        return True
    return all(part == "" or _PLAIN_WORD.fullmatch(part) for part in re.split("[-_]", word)) and len(word) <= 48


def is_plain_dotted(text: str) -> bool:
    """Whether something with dots in it is a number, a version, or a name of this program's own."""
    return bool(_DECIMAL.fullmatch(text)) or text in _own_names()


def is_wallet(text: str) -> bool:
    """Whether some coin can be paid to this address."""
    try:
        check_address(PAIRS[0], text)
    except BadAddress as error:
        return error.fault is AddressFault.WRONG_COIN
    return True


@cache
def _exceptions() -> frozenset[str]:
    return frozenset(name for name in dir(builtins) if isinstance(getattr(builtins, name), type))


@cache
def _own_names() -> frozenset[str]:
    """Files, modules and checks that every node has."""
    from infernet.doctor.table import CHECKS

    root = Path(__file__).resolve().parents[2]
    modules = [
        path.relative_to(root) for package in ("infernet", "protocol") for path in (root / package).rglob("*.py")
    ]
    names = {path.name for path in modules}
    names |= {".".join(path.with_suffix("").parts) for path in modules}
    names |= {f"{name}.py" for name in sys.stdlib_module_names}
    names |= {check.id for check in CHECKS}
    names |= KNOWN_FILES
    return frozenset(names | {"crash.log", "e.g", "i.e"})
