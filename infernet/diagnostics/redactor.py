"""Takes out of a text everything that says whose it is, and puts the kind of thing in its place.

Two lines of defence. What has a shape (keys, addresses, URLs, paths) is recognised and numbered, so that a reader can
still follow one node through a report. What is then left stays only if it is a plain word, a small number or a name of
this program: a text of a kind that nobody thought of is `<text>`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath
from typing import Final

from infernet.diagnostics import shapes
from protocol.errors import LocalProtocolError
from protocol.formats.text import clean_line
from protocol.ids import node_id_from_text
from protocol.networks import is_globally_routable

TEXT_CHARACTERS_MAX: Final = 400
# They say nothing about anybody, and much about what is wrong.
_PLAIN_IPS: Final = frozenset({"127.0.0.1", "0.0.0.0", "::1", "::"})  # noqa: S104 - names, not sockets
_LITERAL_CHARACTERS_MIN: Final = 2

_Replace = Callable[[str], str | None]


class _Done(str):
    """A piece that is decided: a placeholder, or what may stay."""

    __slots__ = ()


class Redactor:
    """Redacts the texts of one report. The same thing gets the same number in all of them.

    `literals` are texts that are known to name somebody (a host name, a user, a home folder), with their kind.
    """

    def __init__(self, literals: Mapping[str, str] | None = None) -> None:
        self._numbers: dict[str, dict[str, int]] = {}
        known = {text.lower(): kind for text, kind in (literals or {}).items() if len(text) >= _LITERAL_CHARACTERS_MIN}
        self._kinds = known
        # Folders first, and with all that lies below them; then the longest first.
        folders = _alternatives(text for text, kind in known.items() if kind == "path")
        words = _alternatives(known)
        self._folders = re.compile(rf"(?:{folders})(?:/[^\s\"'`,;()<>]*)?(?![A-Za-z0-9])", re.IGNORECASE)
        self._literals = re.compile(rf"(?<![A-Za-z0-9])(?:{words})(?![A-Za-z0-9])", re.IGNORECASE)

    # ------------------------------------------------------------ texts

    def text(self, text: str) -> str:
        """A free text, on one line of limited length, without anything that names somebody."""
        # Cut far beyond what is shown, so that half a secret at the end is not taken for a word.
        pieces = [clean_line(text, 8 * TEXT_CHARACTERS_MAX)]
        for pattern, replace in self._steps():
            pieces = _split(pieces, pattern, replace)
        shown = "".join(piece if isinstance(piece, _Done) else _only_punctuation(piece) for piece in pieces)
        shown = " ".join(shown.split())
        return shown if len(shown) <= TEXT_CHARACTERS_MAX else shown[: TEXT_CHARACTERS_MAX - 1] + "…"

    def _steps(self) -> Iterable[tuple[re.Pattern[str], _Replace]]:
        # First those that are known by the words before them, then those that may hold others, then the others.
        yield shapes.LABELLED, lambda _: "<secret>"
        yield shapes.BEARER, lambda _: "<secret>"
        if "path" in self._kinds.values():
            yield self._folders, self.path
        yield shapes.INVITE, lambda _: "<invite>"
        yield shapes.URL, self.url
        yield shapes.EMAIL, lambda found: self._numbered("email", found)
        yield shapes.MULTIADDR, lambda found: self._numbered("multiaddr", found)
        yield shapes.PATH, self.path
        if self._kinds:
            yield self._literals, lambda found: self._numbered(self._kinds[found.lower()], found)
        yield shapes.COLONS, self._colons
        yield shapes.IPV4, self.ip
        yield shapes.NODE, lambda found: "<number>" if found.isdigit() else self.node(found)
        yield shapes.OPAQUE, self._opaque
        yield shapes.DOTTED, lambda found: found if shapes.is_plain_dotted(found) else self._numbered("host", found)
        yield shapes.WORD, lambda found: found if shapes.is_plain_word(found) else "<text>"

    # ------------------------------------------------------------ things of a known kind

    def node(self, text: str) -> str:
        """A node in any of the forms of its key; the first eight digits of it, which logs show, are the same node."""
        try:
            key = node_id_from_text(text).hex()
        except LocalProtocolError:
            key = text.lower().removeprefix("0x")
        return self._numbered("node", key[:8] if re.fullmatch("[0-9a-f]+", key) else key)

    def url(self, text: str) -> str:
        """A URL, of which only the scheme is told."""
        end = len(text.rstrip(".,;:!?)]}'\"`>"))
        scheme = text.partition("://")[0].lower()
        shown = f" {scheme}" if scheme in ("http", "https", "ws", "wss") else ""
        return f"<url-{self._number('url', text[:end])}{shown}>{_only_punctuation(text[end:])}"

    def path(self, text: str) -> str:
        """A path, of which only a file that every node has is told."""
        if text == "/":
            return text
        end = len(text.rstrip(".:"))
        name = PurePath(text[:end]).name
        shown = f"<path>/{name}" if name in shapes.KNOWN_FILES else "<path>"
        return shown + _only_punctuation(text[end:])

    def ip(self, text: str) -> str:
        """An IP address, of which only is told whether it is one of the Internet."""
        bare = text.strip("[]").partition("%")[0]
        if bare in _PLAIN_IPS:
            return text
        try:
            address = ipaddress.ip_address(bare)
        except ValueError:
            return self._numbered("address", bare)
        kind = "loopback" if address.is_loopback else "public" if is_globally_routable(address) else "private"
        return f"<ip-{self._number('ip', str(address))} {kind}>"

    def name(self, text: str, kind: str = "name") -> str:
        """Anything, of which nothing is told but that it is the same elsewhere."""
        return self._numbered(kind, text)

    def _colons(self, found: str) -> str | None:
        if shapes.TIME_OF_DAY.fullmatch(found):
            return found
        # `::` is also how C++ and others write names; alone between words it is nobody's address.
        return None if found == "::" else self.ip(found.rstrip("."))

    def _opaque(self, found: str) -> str | None:
        if shapes.is_plain_word(found):
            return None  # a long name of an exception
        kind = "wallet" if shapes.is_wallet(found) else "secret"
        return self._numbered(kind, found)

    def _numbered(self, kind: str, value: str) -> str:
        return f"<{kind}-{self._number(kind, value)}>"

    def _number(self, kind: str, value: str) -> int:
        numbers = self._numbers.setdefault(kind, {})
        return numbers.setdefault(value.lower() if kind in ("host", "email") else value, len(numbers) + 1)


def _alternatives(texts: Iterable[str]) -> str:
    return "|".join(re.escape(text) for text in sorted(texts, key=lambda text: (-len(text), text)))


def _split(pieces: Iterable[str], pattern: re.Pattern[str], replace: _Replace) -> list[str]:
    """Decide what matches in the pieces that are undecided. Where `replace` gives None, it stays undecided."""
    result: list[str] = []
    for piece in pieces:
        if isinstance(piece, _Done):
            result.append(piece)
            continue
        start = 0
        for match in pattern.finditer(piece):
            replaced = replace(match[0]) if match[0] else None
            if replaced is not None:
                result += [piece[start : match.start()], _Done(replaced)]
                start = match.end()
        result.append(piece[start:])
    return result


def _only_punctuation(piece: str) -> str:
    return "".join(character for character in piece if character in shapes.PUNCTUATION)
