"""Vectors of addresses that payouts may go to, each with the place where it was published."""

from __future__ import annotations

from collections.abc import Iterator

from _vectors_common import Vector, file, invalid, plain, valid
from protocol.formats.addresses import AddressFault as Fault
from protocol.formats.addresses import BadAddress, check_address
from protocol.formats.coins import pair_of_asset

# Source, asset, address.
_GOOD: tuple[tuple[str, str, str], ...] = (
    ("the first block of Bitcoin", "BTC", "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa"),
    ("base58_keys_valid.json of Bitcoin Core", "BTC", "1AGNa15ZQXAZUgFiqJ2i7Z2DPU2J6hW62i"),
    ("base58_keys_valid.json of Bitcoin Core", "BTC", "3CMNFxN1oHBc4R1EpboAL5yzHGgE611Xou"),
    ("BIP-350", "BTC", "BC1QW508D6QEJXTDG4Y5R3ZARVARY0C5XW7KV8F3T4"),
    ("BIP-173", "BTC", "bc1qrp33g0q5c5txsp9arysrx4k6zdkfs4nce4xj0gdcccefvpysxf3qccfmv3"),
    ("BIP-350", "BTC", "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0"),
    ("CashAddr", "BCH", "bitcoincash:qpm2qsznhks23z7629mms6s4cwef74vcwvy22gdx6a"),
    ("CashAddr, without the prefix", "BCH", "qr95sy3j9xwd2ap32xkykttr4cvcu7as4y0qverfuy"),
    ("CashAddr, in upper case", "BCH", "BITCOINCASH:QQQ3728YW0Y47SQN6L2NA30MCW6ZM78DZQRE909M2R"),
    ("CashAddr, a script's", "BCH", "bitcoincash:ppm2qsznhks23z7629mms6s4cwef74vcwvn0h829pq"),
    ("CashAddr, the table of sizes", "BCH", "bitcoincash:qr6m7j9njldwwzlg9v7v53unlr4jkmx6eylep8ekg2"),
    ("EIP-55", "ETH", "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"),
    ("EIP-55", "POL", "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359"),
    ("EIP-55", "BNB", "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB"),
    ("EIP-55", "USDC-base", "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb"),
    ("EIP-55, capitals only, which is its checksum", "ETH", "0x52908400098527886E0F7030069857D2E4169EE7"),
    ("EIP-55, no capitals, which is its checksum", "ETH", "0xde709f2102306220921060314715629080e2fb77"),
    ("EIP-55, without the checksum", "USDT-ethereum", "0x5aaeb6053f3e94c9b9a09f33669435e7ef1beaed"),
    ("EIP-55, without the checksum", "USDT-polygon", "0x5AAEB6053F3E94C9B9A09F33669435E7EF1BEAED"),
    ("documentation of Solana", "SOL", "7EcDhSYGxXyscszYEp35KHN8vvw3svAuLKTzXwCFLtV"),
    ("Solana Cookbook", "USDC-solana", "vines1vzrYbzLMRdu58ou5XTby4qAqVRqmqo36NKPTg"),
    ("ripple-address-codec", "XRP", "r9cZA1mLK5R5Am25ArfXFmqgNwjZgnfk59"),
    ("ripple-address-codec, no tag", "XRP", "X7AcgcsBL6XDcUb289X4mJ8djcdyKaB5hJDWMArnXr61cqZ"),
    ("ripple-address-codec, tag 11747", "XRP", "X7AcgcsBL6XDcUb289X4mJ8djcdyKaLFuhLRuNXPrDeJd9A"),
    ("ripple-address-codec, tag 0", "XRP", "XVLhHMPHU98es4dbozjVtdWzVrDjtV8AqEL4xcZj5whKbmc"),
    ("ripple-address-codec, the largest tag", "XRP", "XVLhHMPHU98es4dbozjVtdWzVrDjtV18pX8yuPT7y4xaEHi"),
    (
        "CIP-19, type 0",
        "ADA",
        "addr1qx2fxv2umyhttkxyxp8x0dlpdt3k6cwng5pxj3jhsydzer3n0d3vllmyqwsx5wktcd8cc3sq835lu7drv2xwl2wywfgse35a3x",
    ),
    (
        "CIP-19, type 2",
        "ADA",
        "addr1yx2fxv2umyhttkxyxp8x0dlpdt3k6cwng5pxj3jhsydzerkr0vd4msrxnuwnccdxlhdjar77j6lg0wypcc9uar5d2shs2z78ve",
    ),
    ("CIP-19, type 6", "ADA", "addr1vx2fxv2umyhttkxyxp8x0dlpdt3k6cwng5pxj3jhsydzers66hrl8"),
    (
        "documentation of cardano-wallet, Byron era, Icarus",
        "ADA",
        "Ae2tdPwUPEZFRbyhz3cpfC2CumGzNkFBN2L42rcUc2yjQpEkxDbkPodpMAi",
    ),
    (
        "cardano-js-sdk, Byron era, Daedalus",
        "ADA",
        "DdzFFzCqrhsw3prhfMFDNFowbzUku3QmrMwarfjUbWXRisodn97R436SHc1rimp4MhPNmbdYb1aTdqtGSJixMVMi5MkArDQJ6Sc1n3Ez",
    ),
    ("@ensdomains/address-encoder", "DOGE", "DBXu2kgc3xtvCUWFcxFE3r9hEYgmuaaCyD"),
    ("@ensdomains/address-encoder, a script's", "DOGE", "AF8ekvSf6eiSBRspJjnfzK6d1EM6pnPq3G"),
)

# Source and what is wrong; asset; address; fault.
_BAD: tuple[tuple[str, str, str, Fault], ...] = (
    ("the first block's, a letter changed", "BTC", "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNb", Fault.BAD_CHECKSUM),
    ("base58_keys_valid.json, testnet", "BTC", "mo9ncXisMeAoXwqcV5EWuyncbmCcQN4rVs", Fault.TESTNET),
    ("base58_keys_valid.json, testnet, a script's", "BTC", "2N2JD6wb56AfK4tfmM6PwdVmoYk2dCKf4Br", Fault.TESTNET),
    (
        "base58_keys_valid.json, a secret key",
        "BTC",
        "5Kd3NBUAdUnhyzenEwVLy9pBKxSwXvE9FMPyR4UKZvpe6E3AgLr",
        Fault.SECRET_KEY,
    ),
    ("the hash of nothing but zeros", "BTC", "1111111111111111111114oLvT2", Fault.NOBODYS),
    (
        "BIP-350, a test network",
        "BTC",
        "tb1pqqqqp399et2xygdj5xreqhjjvcmzhxw4aywxecjdzew6hylgvsesf3hn0c",
        Fault.TESTNET,
    ),
    (
        "BIP-350, another prefix",
        "BTC",
        "tc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vq5zuyut",
        Fault.BAD_CHARACTERS,
    ),
    (
        "BIP-350, version 1 with the checksum of bech32",
        "BTC",
        "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqh2y7hd",
        Fault.BAD_CHECKSUM,
    ),
    (
        "BIP-350, version 16 with the checksum of bech32",
        "BTC",
        "BC1S0XLXVLHEMJA6C4DQV22UAPCTQUPFHLXM9H8Z3K2E72Q4K9HCZ7VQ54WELL",
        Fault.BAD_CHECKSUM,
    ),
    (
        "BIP-350, version 0 with the checksum of bech32m",
        "BTC",
        "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kemeawh",
        Fault.BAD_CHECKSUM,
    ),
    (
        "BIP-350, a character that is none",
        "BTC",
        "bc1p38j9r5y49hruaue7wxjce0updqjuyyx0kh56v8s25huc6995vvpql3jow4",
        Fault.BAD_CHARACTERS,
    ),
    (
        "BIP-350, version 17",
        "BTC",
        "BC130XLXVLHEMJA6C4DQV22UAPCTQUPFHLXM9H8Z3K2E72Q4K9HCZ7VQ7ZWS8R",
        Fault.UNSUPPORTED_TYPE,
    ),
    ("BIP-350, a program of one byte", "BTC", "bc1pw5dgrnzv", Fault.BAD_LENGTH),
    (
        "BIP-350, a program of 41 bytes",
        "BTC",
        "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7v8n0nx0muaewav253zgeav",
        Fault.BAD_LENGTH,
    ),
    ("BIP-350, version 0 of 16 bytes", "BTC", "BC1QR508D6QEJXTDG4Y5R3ZARVARYV98GJ9P", Fault.BAD_LENGTH),
    (
        "BIP-350, more than 4 bits of padding",
        "BTC",
        "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7v07qwwzcrf",
        Fault.BAD_LENGTH,
    ),
    ("BIP-350, no data", "BTC", "bc1gmk9yu", Fault.BAD_CHECKSUM),
    ("BIP-173, mixed case", "BTC", "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8F3t4", Fault.BAD_CHARACTERS),
    # These two are valid in BIP-350, and refused here.
    ("BIP-350, version 16, which anybody can spend", "BTC", "BC1SW50QGDZ25J", Fault.UNSUPPORTED_TYPE),
    (
        "BIP-350, version 1 of 40 bytes, which anybody can spend",
        "BTC",
        "bc1pw508d6qejxtdg4y5r3zarvary0c5xw7kw508d6qejxtdg4y5r3zarvary0c5xw7kt5nd6y",
        Fault.UNSUPPORTED_TYPE,
    ),
    ("CashAddr, the old form", "BCH", "1BpEi6DfDAUFd7GtittLSdBeYJvcoaVggu", Fault.UNSUPPORTED_TYPE),
    ("CashAddr, the old form, a script's", "BCH", "3CWFddi6m4ndiGyKqzYvsFYagqDLPVMTzC", Fault.UNSUPPORTED_TYPE),
    ("CashAddr, a test network", "BCH", "bchtest:pr6m7j9njldwwzlg9v7v53unlr4jkmx6eyvwc0uz5t", Fault.TESTNET),
    ("CashAddr, a test network that is not named", "BCH", "pr6m7j9njldwwzlg9v7v53unlr4jkmx6eyvwc0uz5t", Fault.TESTNET),
    ("CashAddr, another prefix", "BCH", "pref:pr6m7j9njldwwzlg9v7v53unlr4jkmx6ey65nvtks5", Fault.BAD_CHARACTERS),
    (
        "CashAddr, 24 bytes",
        "BCH",
        "bitcoincash:q9adhakpwzztepkpwp5z0dq62m6u5v5xtyj7j3h2ws4mr9g0",
        Fault.UNSUPPORTED_TYPE,
    ),
    (
        "CashAddr, 32 bytes",
        "BCH",
        "bitcoincash:qvch8mmxy0rtfrlarg7ucrxxfzds5pamg73h7370aa87d80gyhqxq5nlegake",
        Fault.UNSUPPORTED_TYPE,
    ),
    (
        "CashAddr, a checksum without an address",
        "BCH",
        "bitcoincash:qpzry9x8gf2tvdw0s3jn54khce6mua7lcw20ayyn",
        Fault.BAD_LENGTH,
    ),
    (
        "CashAddr, a letter changed",
        "BCH",
        "bitcoincash:qpm2qsznhks23z7629mms6s4cwef74vcwvy22gdx6q",
        Fault.BAD_CHECKSUM,
    ),
    ("EIP-55, one capital changed", "ETH", "0x5AAeb6053F3E94C9b9A09f33669435E7Ef1BeAed", Fault.BAD_CHECKSUM),
    ("EIP-55, one digit short", "ETH", "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAe", Fault.BAD_LENGTH),
    ("EIP-55, no prefix", "ETH", "5aaeb6053f3e94c9b9a09f33669435e7ef1beaed", Fault.UNRECOGNISED),
    ("zeros", "ETH", "0x0000000000000000000000000000000000000000", Fault.NOBODYS),
    ("a burn address", "BNB", "0x000000000000000000000000000000000000dEaD", Fault.NOBODYS),
    ("the contract of USDC on Base", "USDC-base", "0x833589fCD6eDb6E08f4c7C32D4f71b54bDA02913", Fault.BAD_CHECKSUM),
    ("the contract of USDC on Base", "USDC-base", "0x833589fcd6edb6e08f4c7c32d4f71b54bda02913", Fault.NOBODYS),
    ("a name of ENS", "ETH", "vitalik.eth", Fault.BAD_CHARACTERS),
    ("32 bytes, a secret key or a transaction", "ETH", "0x" + "1f" * 32, Fault.SECRET_KEY),
    ("the system program", "SOL", "1" * 32, Fault.NOBODYS),
    ("the wrapped coin", "SOL", "So11111111111111111111111111111111111111112", Fault.NOBODYS),
    ("the mint of USDC", "USDC-solana", "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v", Fault.NOBODYS),
    (
        "a program's address, solana-web3.js",
        "SOL",
        "7ytmC1nT1xY4RfxCV2ZgyA7UakC93do5ZdyhdF3EtPj7",
        Fault.UNSUPPORTED_TYPE,
    ),
    ("31 bytes", "SOL", "1" * 31, Fault.BAD_LENGTH),
    ("a letter that base58 has not", "SOL", "7EcDhSYGxXyscszYEp35KHN8vvw3svAuLKTzXwCFLt0", Fault.BAD_CHARACTERS),
    ("xrpl.org, ACCOUNT_ZERO", "XRP", "rrrrrrrrrrrrrrrrrrrrrhoLvTp", Fault.NOBODYS),
    ("xrpl.org, the genesis account's seed", "XRP", "snoPBrXtMeMyMHUVTgbuqAfg1SUTb", Fault.SECRET_KEY),
    (
        "ripple-address-codec, a test network",
        "XRP",
        "T719a5UwUCnEs54UsxG9CJYYDhwmFCqkr7wxCcNcfZ6p5GZ",
        Fault.TESTNET,
    ),
    (
        "ripple-address-codec, a checksum",
        "XRP",
        "XVLhHMPHU98es4dbozjVtdWzVrDjtV5fdx1mHp98tDMoQXa",
        Fault.BAD_CHECKSUM,
    ),
    (
        "ripple-address-codec, another prefix",
        "XRP",
        "dGzKGt8CVpWoa8aWL1k18tAdy9Won3PxynvbbpkAqp3V47g",
        Fault.UNRECOGNISED,
    ),
    (
        "ripple-address-codec, a tag of 64 bits",
        "XRP",
        "XVLhHMPHU98es4dbozjVtdWzVrDjtV18pX8zeUygYrCgrPh",
        Fault.UNSUPPORTED_TYPE,
    ),
    (
        "CIP-19, a script's with a stake key",
        "ADA",
        "addr1z8phkx6acpnf78fuvxn0mkew3l0fd058hzquvz7w36x4gten0d3vllmyqwsx5wktcd8cc3sq835lu7drv2xwl2wywfgs9yc0hh",
        Fault.UNSUPPORTED_TYPE,
    ),
    (
        "CIP-19, a pointer",
        "ADA",
        "addr1gx2fxv2umyhttkxyxp8x0dlpdt3k6cwng5pxj3jhsydzer5pnz75xxcrzqf96k",
        Fault.UNSUPPORTED_TYPE,
    ),
    (
        "CIP-19, a script's",
        "ADA",
        "addr1w8phkx6acpnf78fuvxn0mkew3l0fd058hzquvz7w36x4gtcyjy7wx",
        Fault.UNSUPPORTED_TYPE,
    ),
    (
        "CIP-19, a stake address",
        "ADA",
        "stake1uyehkck0lajq8gr28t9uxnuvgcqrc6070x3k9r8048z8y5gh6ffgw",
        Fault.UNSUPPORTED_TYPE,
    ),
    ("CIP-19, a test network", "ADA", "addr_test1vz2fxv2umyhttkxyxp8x0dlpdt3k6cwng5pxj3jhsydzerspjrlsz", Fault.TESTNET),
    (
        "CIP-19, a letter changed",
        "ADA",
        "addr1vx2fxv2umyhttkxyxp8x0dlpdt3k6cwng5pxj3jhsydzers66hrl9",
        Fault.BAD_CHECKSUM,
    ),
    (
        "cardano-js-sdk, Byron era, a test network",
        "ADA",
        "2cWKMJemoBakkUSWX3DZdx8eXGeqjN6mkgVUCND1RNB736qWS5v1CGgQGNNTFUZSXaVLj",
        Fault.TESTNET,
    ),
    (
        "Byron era, a letter changed",
        "ADA",
        "Ae2tdPwUPEZFRbyhz3cpfC2CumGzNkFBN2L42rcUc2yjQpEkxDbkPodpMAj",
        Fault.BAD_CHECKSUM,
    ),
    (
        "Byron era, an address for a voucher",
        "ADA",
        "Ae2tdPwUPEZ3DdaWu8jn553npu6jwEPAJiahruj3xQjPXxgoxfYDWusJz7x",
        Fault.UNSUPPORTED_TYPE,
    ),
    ("address-encoder, a letter changed", "DOGE", "DBXu2kgc3xtvCUWFcxFE3r9hEYgmuaaCyE", Fault.BAD_CHECKSUM),
    ("a Bitcoin address", "ETH", "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4", Fault.WRONG_COIN),
    ("a Dogecoin address", "BTC", "DBXu2kgc3xtvCUWFcxFE3r9hEYgmuaaCyD", Fault.WRONG_COIN),
    (
        "an address of Tron: its contract of USDT",
        "USDT-ethereum",
        "TR7NHqjeKQxGTCi8q8ZY4pL8otSzgjLj6t",
        Fault.WRONG_COIN,
    ),
    ("a Solana address", "USDC-base", "7EcDhSYGxXyscszYEp35KHN8vvw3svAuLKTzXwCFLtV", Fault.WRONG_COIN),
    ("an address of Ethereum", "USDC-solana", "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed", Fault.WRONG_COIN),
    ("nothing", "BTC", "", Fault.BAD_LENGTH),
    ("129 characters", "ADA", "addr1" + "q" * 124, Fault.BAD_LENGTH),
    ("a line break at the end", "ETH", "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed\n", Fault.BAD_CHARACTERS),
    ("a payment request", "BTC", "bitcoin:1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa", Fault.BAD_CHARACTERS),
    ("the words of BIP-39's first vector", "ETH", "abandon " * 11 + "about", Fault.SECRET_KEY),
)


def addresses() -> Vector:
    """addresses.json."""
    return file(
        "An address of a wallet as somebody wrote it, for an asset: its normal form, the account and destination tag "
        "to name to the chain, and what to warn of; or which fault it has. Each comment says where it comes from.",
        [*_good_addresses(), *_bad_addresses()],
    )


def _good_addresses() -> Iterator[Vector]:
    for source, asset, given in _GOOD:
        yield valid(source, asset=asset, given=given, **plain(check_address(pair_of_asset(asset), given)))


def _bad_addresses() -> Iterator[Vector]:
    for source, asset, given, fault in _BAD:
        assert _fault(asset, given) is fault, (source, given)
        yield invalid(source, asset=asset, given=given, fault=fault)


def _fault(asset: str, given: str) -> Fault | None:
    try:
        check_address(pair_of_asset(asset), given)
    except BadAddress as error:
        return error.fault
    return None
