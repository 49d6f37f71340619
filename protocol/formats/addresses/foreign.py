"""What people paste instead of an address of ours: secret keys, and addresses of coins that are not paid here.

A secret key that was typed into a form may be in a log, a history or a clipboard from then on; its owner has to hear
so.
"""

from __future__ import annotations

import re
from typing import Final

from protocol.formats.addresses import base58check
from protocol.formats.addresses.outcome import AddressFault, BadAddress

#: A list of words is longer than an address and still is looked at.
CHARACTERS_LOOKED_AT: Final = 512

# Words of BIP-39 have three to eight letters, and a list at least twelve of them.
_WORDS: Final = re.compile(r"\s*(?:[a-z]{3,8}[\s,]+){11,23}[a-z]{3,8}\s*", re.ASCII | re.IGNORECASE)
# As many digits as a secret of any of these chains has; the number of a transaction looks alike.
_SECRET_DIGITS: Final = re.compile("(?:0[xX])?[0-9a-fA-F]{64}", re.ASCII)
_SECRET_PREFIXES: Final = (
    "xprv",
    "yprv",
    "zprv",
    "dgpv",
    "nsec1",
    "addr_xsk1",
    "root_xsk1",
    "acct_xsk1",
    "suiprivkey1",
)
_PUBLIC_PREFIXES: Final = ("xpub", "ypub", "zpub", "dgub", "acct_xvk1", "npub1")
# Base58check: version bytes of Bitcoin's and Dogecoin's exported keys ("Wallet import format", Bitcoin Wiki).
_WIF_VERSIONS: Final = (0x80, 0x9E, 0xEF, 0xF1)
_WIF_BYTES: Final = (33, 34)
# Seeds of XRP, for secp256k1 and for Ed25519 ("base58 Encodings", xrpl.org).
_SEED_PREFIXES: Final = {17: b"\x21", 19: b"\x01\xe1\x4b"}
_KEYPAIR_BYTES: Final = 64
_HASH_BYTES: Final = 20
_OTHER_VERSIONS: Final = {0x30: "a Litecoin", 0x32: "a Litecoin", 0x41: "a Tron", 0x4C: "a Dash"}
_OTHER_PREFIXES: Final = {
    "ltc1": "a Litecoin",
    "cosmos1": "a Cosmos",
    "kaspa:": "a Kaspa",
    "bnb1": "a BNB Beacon Chain",
}


def refuse_secret(text: str) -> None:
    """Raise BadAddress for what is, or looks like, a secret key or the words of a wallet."""
    looked_at = text[:CHARACTERS_LOOKED_AT]
    if (
        _WORDS.fullmatch(looked_at)
        or _SECRET_DIGITS.fullmatch(looked_at)
        or looked_at.lower().startswith(_SECRET_PREFIXES)
        or _is_encoded_secret(looked_at)
    ):
        raise BadAddress(
            AddressFault.SECRET_KEY,
            "this looks like a secret key: show it to nobody, and if it is one, move what it holds to a new wallet",
        )
    if looked_at.lower().startswith(_PUBLIC_PREFIXES):
        raise BadAddress(
            AddressFault.UNSUPPORTED_TYPE, "this is a public key, not an address: give one that it receives at"
        )


def other_coin(text: str) -> str | None:
    """Whose address this is, where it is one of a coin that is not paid here: "a Tron", "a Litecoin"."""
    for prefix, owner in _OTHER_PREFIXES.items():
        if text.lower().startswith(prefix):
            return owner
    payload = _payload(text, base58check.BITCOIN_ALPHABET)
    return _OTHER_VERSIONS.get(payload[0]) if len(payload) == 1 + _HASH_BYTES else None


def _is_encoded_secret(text: str) -> bool:
    bitcoin = _payload(text, base58check.BITCOIN_ALPHABET)
    if len(bitcoin) in _WIF_BYTES and bitcoin[0] in _WIF_VERSIONS:
        return True
    seed = _payload(text, base58check.RIPPLE_ALPHABET)
    if len(seed) in _SEED_PREFIXES and seed.startswith(_SEED_PREFIXES[len(seed)]):
        return True
    try:
        return len(base58check.decode(text)) == _KEYPAIR_BYTES
    except BadAddress:
        return False


def _payload(text: str, alphabet: str) -> bytes:
    """The bytes behind a base58check text; none where it is no such text."""
    try:
        return base58check.decode_check(text, alphabet)
    except BadAddress:
        return b""
