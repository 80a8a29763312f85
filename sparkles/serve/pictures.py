"""Pictures from outside: from a data URL, or from the public web. They stay in memory; nothing is written to disk."""

import asyncio
import base64
import binascii
import io
import socket
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore2
import PIL.Image
import PIL.ImageOps

from sparkles.types import InputError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_MAX_REDIRECTS = 3
_REDIRECTS = {301, 302, 303, 307, 308}
_TRANSLATED = IPv6Network("64:ff9b::/96")  # IPv4 addresses, for networks that speak IPv6 alone (RFC 6052)
_FAILURES = (
    OSError,  # a name that is not found, a certificate that is not trusted, the time that is over
    ValueError,  # no URL
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.TimeoutException,
    httpcore2.UnsupportedProtocol,
)


class PictureError(InputError):
    """A picture that is not to be had, cannot be read, or is too large."""


def decode(content: bytes, *, max_pixels: int) -> PIL.Image.Image:
    """The picture in RGB, upright; of an animation the first frame.

    Raises:
        PictureError: not a picture of `FORMATS`, broken, or of more than `max_pixels`.
    """
    try:
        with PIL.Image.open(io.BytesIO(content), formats=FORMATS) as file:
            if file.width * file.height <= max_pixels:
                return PIL.ImageOps.exif_transpose(file).convert("RGB")
            size = f"{file.width} x {file.height}"
    except Exception as error:  # decoders raise more on hostile bytes than they document
        raise PictureError(f"the picture cannot be read; expected one of {', '.join(FORMATS)}") from error
    raise PictureError(f"the picture has {size} pixels; at most {max_pixels:,} are taken: make it smaller")


def data_url(content: bytes, kind: str) -> str:
    r"""What `read_data_url` reads, if it is a picture.

    >>> data_url(b"\x89PNG", "image/png")
    'data:image/png;base64,iVBORw=='
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def read_data_url(url: str) -> bytes:
    r"""The content of `data:image/...;base64,...`.

    Raises:
        PictureError: it is not of this form.

    >>> read_data_url("data:image/png;base64,iVBORw==")
    b'\x89PNG'
    """
    header, _, payload = url.partition(",")
    if not (header.startswith("data:image/") and header.endswith(";base64")):
        raise PictureError(f"expected data:image/...;base64,... got {url[:40]!r}")
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PictureError("the data URL does not hold base64") from error


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address belongs to the internet, and not to this machine or a network around it.

    >>> [is_public(ip_address(text)) for text in ("8.8.8.8", "10.0.0.1", "169.254.169.254", "::ffff:127.0.0.1")]
    [True, False, False, False]
    """
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address.sixtofour or address.teredo or address in _TRANSLATED:  # lead to an IPv4 address, any
            return False
    return address.is_global and not address.is_multicast


class PublicWeb:
    """Fetches pictures by http and https, and from public addresses alone.

    A name is resolved once, and the connection goes to an address that was checked: what the name leads to later does
    not matter. Each redirect is a new URL, checked like the first. Proxies of the environment are not used.

    Args:
        max_bytes: of a picture.
        seconds: for it, redirects included.
        may_connect: says which addresses are allowed.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        seconds: float,
        may_connect: Callable[[IPv4Address | IPv6Address], bool] = is_public,
    ) -> None:
        self.max_bytes = max_bytes
        self.seconds = seconds
        self._backend = _CheckedBackend(may_connect)

    async def fetch(self, url: str) -> bytes:
        """What lies there.

        Raises:
            PictureError: nothing, too much, or not where it may be. Why a connection failed is not told: it would say
                what there is in the server's own network.
        """
        try:
            async with (
                asyncio.timeout(self.seconds),
                httpcore2.AsyncConnectionPool(network_backend=self._backend) as pool,
            ):
                return await self._follow(pool, url)
        except PictureError:
            raise
        except _FAILURES as error:
            raise PictureError(
                "the picture could not be fetched; is the URL public? Else send it as a data URL"
            ) from error

    async def _follow(self, pool: httpcore2.AsyncConnectionPool, url: str) -> bytes:
        for _ in range(1 + _MAX_REDIRECTS):
            if urlsplit(url).scheme not in ("http", "https"):
                raise PictureError("only http and https URLs are fetched")
            async with pool.stream("GET", url, headers={"Accept": "image/*"}) as response:
                if response.status not in _REDIRECTS:
                    return await self._read(response)
                headers = {name.lower(): value for name, value in response.headers}
                url = urljoin(url, headers.get(b"location", b"").decode())
        raise PictureError(f"the URL redirects more than {_MAX_REDIRECTS} times")

    async def _read(self, response: httpcore2.Response) -> bytes:
        if response.status != 200:
            raise PictureError(f"the URL answers with status {response.status}")
        content = b""
        async for chunk in response.aiter_stream():
            content += chunk
            if len(content) > self.max_bytes:
                raise PictureError(f"the picture has more than {self.max_bytes:,} bytes")
        return content


class _CheckedBackend(httpcore2.AnyIOBackend):
    """Connects if every address of the host is allowed, and to one of these."""

    def __init__(self, may_connect: Callable[[IPv4Address | IPv6Address], bool]) -> None:
        self._may_connect = may_connect

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [address[0] for *_, address in found]
        if not all(self._may_connect(ip_address(address)) for address in addresses):
            raise PictureError("only pictures at public addresses are fetched; send it as a data URL")
        return await super().connect_tcp(str(addresses[0]), port, timeout, local_address, socket_options)
