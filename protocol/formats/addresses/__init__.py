"""Is this text an address that this coin can be paid to? Decided from the text alone, before any money moves.

`check_address(find_pair("USDC", "base"), "0x5aAe...")` gives the address in its one normal form, with warnings, or
raises `BadAddress`, which says what to do. A payment to a wrong address cannot be called back, so what is doubtful is
refused: test networks, other coins' addresses, forms from which nobody could spend, token contracts, and secret keys.

Reading order: `outcome` (what comes out), `checking` (the one door), then a file for each kind of address; `foreign`
knows what is no address of ours at all.
"""

from protocol.formats.addresses.checking import check_address
from protocol.formats.addresses.outcome import Address, AddressFault, AddressWarning, BadAddress

__all__ = ["Address", "AddressFault", "AddressWarning", "BadAddress", "check_address"]
