"""The link to a coordinator through a proxy: with TLS from end to end, whose name is checked as ever."""

from __future__ import annotations

import datetime as dt
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from infernet.carriers.link import LinkCarrier
from infernet.coordinator_client import RequestSigner
from infernet.driver import wall_ms
from tests.helpers_node import key_of
from tests.helpers_socks import SocksDouble, nothing_goes_around, socks_double

pytestmark = pytest.mark.anyio
NAME = "coordinator.example"
# Read before a test puts another one in its place.
DEFAULT_CONTEXT = ssl.create_default_context


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for NAME, signed by itself, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    path.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


@asynccontextmanager
async def tls_echo(certificate: Path) -> AsyncIterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    async def serve(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            async for data in stream:
                await stream.send_all(data)
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_ssl_over_tcp, serve, 0, context)
        yield listeners[0].transport_listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def carrier(url: str, double: SocksDouble) -> LinkCarrier:
    signer = RequestSigner(key_of(1), key_of(2).node, wall_ms)
    # What it drives has no part in opening a stream.
    return LinkCarrier(url, signer, None, random.Random(1), dict, double.proxy)  # type: ignore[arg-type]


async def test_the_name_in_the_certificate_is_the_coordinator_s(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssl, "create_default_context", lambda: DEFAULT_CONTEXT(cafile=str(certificate)))
    with socks_double() as double:
        async with tls_echo(certificate) as port:
            for name in (NAME, "other.example"):
                double.names[name, 443] = ("127.0.0.1", port)
            with nothing_goes_around(("127.0.0.1", double.port)), trio.fail_after(10):
                async with await carrier(f"https://{NAME}", double)._open_stream() as stream:
                    await stream.send_all(b"hello")
                    assert await stream.receive_some(5) == b"hello"
                other = await carrier("https://other.example", double)._open_stream()
                with pytest.raises(trio.BrokenResourceError) as caught:
                    await other.send_all(b"hello")
                await trio.aclose_forcefully(other)
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
        assert double.asked == [(NAME, 443), ("other.example", 443)]


async def test_a_certificate_that_nobody_vouches_for_is_refused(certificate: Path) -> None:
    with socks_double() as double:
        async with tls_echo(certificate) as port:
            double.names[NAME, 443] = ("127.0.0.1", port)
            with trio.fail_after(10):
                stream = await carrier(f"https://{NAME}", double)._open_stream()
                with pytest.raises(trio.BrokenResourceError):
                    await stream.send_all(b"hello")
                await trio.aclose_forcefully(stream)
