"""The token that whoever asks for metrics has to show, where one is set; it must be, where others reach the port."""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Final

from infernet.config import Config, ConfigError
from infernet.host.files import FilesError, read_secret

# Fewer could be tried out; more is no token but another file.
TOKEN_BYTES_MIN: Final = 16
TOKEN_BYTES_MAX: Final = 256
_SCHEME: Final = b"bearer"


class Token:
    """What must be shown. It is never printed."""

    def __init__(self, value: bytes) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "Token(...)"

    def is_in(self, authorization: bytes) -> bool:
        """Whether an Authorization header shows it. How long that takes does not tell how much of it was right."""
        scheme, _, shown = authorization.partition(b" ")
        # Both are always done.
        return (scheme.lower() == _SCHEME) & hmac.compare_digest(shown.strip(), self._value)


def open_token(config: Config) -> Token | None:
    """The token that is set. Raises ConfigError."""
    if config.metrics_token_file is None:
        return None
    path = Path(config.metrics_token_file).expanduser()
    try:
        value = read_secret(path, "token file", "--metrics-token-file", TOKEN_BYTES_MAX)
    except FilesError as error:
        raise ConfigError(str(error)) from None
    if not TOKEN_BYTES_MIN <= len(value) <= TOKEN_BYTES_MAX or not all(0x21 <= byte <= 0x7E for byte in value):
        raise ConfigError(
            f"{path} does not hold a token: it must be one line of {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} characters "
            "of ASCII without blanks, such as `openssl rand -hex 32` makes"
        )
    return Token(value)
