"""Which coordinators have answered this key: what one of them holds for it must not be forgotten with its address.

They stand in a file beside the key, since it is the key that owns the money there. `infernet remove` asks each of them.
One that never answered holds nothing, so a mistyped address is not written down.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from infernet.host.files import FilesError, make_private_directory, reason_of, way_out, write_private
from infernet.host.turns import one_at_a_time
from infernet.settings.readers import read_url
from protocol.errors import LocalProtocolError
from protocol.ids import NodeId, node_id

FILE_NAME: Final = "coordinators.json"
#: More than anybody has; the file is read whole.
COORDINATORS_MAX: Final = 256
_BYTES_MAX: Final = 256 * 1024


class Coordinator(Struct, frozen=True, forbid_unknown_fields=True):
    """One of them, as it was pinned: its address, and its key in hex digits."""

    url: str
    key: str

    @property
    def node(self) -> NodeId:
        """Its key. Raises LocalProtocolError where that is none."""
        return node_id(bytes.fromhex(self.key))


def former(config_dir: Path) -> tuple[Coordinator, ...]:
    """Those that are remembered, oldest first. Raises FilesError."""
    path = config_dir / FILE_NAME
    try:
        with path.open("rb") as file:
            data = file.read(_BYTES_MAX + 1)
        found = msgspec.json.decode(data, type=tuple[Coordinator, ...])
        for coordinator in found:
            read_url(coordinator.url)
            _ = coordinator.node
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise FilesError(f"cannot read {path} ({reason_of(error)}): check its owner and mode") from None
    except (msgspec.DecodeError, ValueError, LocalProtocolError):
        raise FilesError(
            f"{path} does not list coordinators: it says where this key may have money, so put it back from a copy, "
            "or move it away if you know that there is none"
        ) from None
    return found


def remember(config_dir: Path, url: str, key: NodeId) -> None:
    """Write one down that has answered this key, if it is not there. Raises FilesError."""
    one = Coordinator(url, key.hex())
    path = config_dir / FILE_NAME
    if one in former(config_dir):
        return
    try:
        make_private_directory(config_dir)
        with one_at_a_time(config_dir):
            before = former(config_dir)
            if one in before:
                return
            if len(before) >= COORDINATORS_MAX:
                raise FilesError(
                    f"{path} lists {len(before)} coordinators already: take out those where nothing is left"
                )
            write_private(path, msgspec.json.format(msgspec.json.encode((*before, one)), indent=2) + b"\n")
    except TimeoutError as error:
        raise FilesError(f"{error}, so {url} was not written down in {path}") from None
    except OSError as error:
        raise FilesError(f"cannot write {path} ({reason_of(error)}): {way_out(error)}") from None
