import asyncio
import io
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any, ClassVar

import PIL.Image
import pytest

from sparkles.serve.pictures import PictureError, PublicWeb, decode, is_public, read_data_url


def png(width: int = 4, height: int = 4) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (width, height), "red").save(file, "PNG")
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes that says to have so many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1_000_000))) + chunk(b"IEND", b"")
    )


# --- bytes


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_pictures_of_the_usual_kinds_are_read(kind: str) -> None:
    file = io.BytesIO()
    PIL.Image.new("L", (5, 3)).save(file, kind)
    picture = decode(file.getvalue(), max_pixels=15)
    assert (picture.mode, picture.size) == ("RGB", (5, 3))


@pytest.mark.parametrize("content", [b"", b"no picture", png()[:45], b"%PDF-1.4", b"%!PS-Adobe-3.0 EPSF-3.0"])
def test_what_is_no_picture_is_refused(content: bytes) -> None:
    with pytest.raises(PictureError, match="cannot be read; expected one of PNG, JPEG"):
        decode(content, max_pixels=100)


@pytest.mark.parametrize("size", [(4, 4), (1, 16)])
def test_a_picture_with_too_many_pixels_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(PictureError, match=r"has . x .* pixels; at most 15 are taken"):
        decode(png(*size), max_pixels=15)


@pytest.mark.parametrize("size", [(5_000, 5_000), (60_000, 60_000)])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PIL.Image.Image, "load", lambda _: pytest.fail("it was unpacked"))
    with pytest.raises(PictureError):
        decode(bomb(*size), max_pixels=20_000_000)


@pytest.mark.parametrize(
    "url",
    [
        "data:text/html;base64,AAAA",
        "data:image/png,AAAA",
        "data:image/png;base64,A",
        "data:image/png;base64,ä",
    ],
)
def test_data_urls_of_another_form_are_refused(url: str) -> None:
    with pytest.raises(PictureError, match=r"expected data:image|does not hold base64"):
        read_data_url(url)


# --- the web


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1",
     "255.255.255.255", "::", "::1", "fe80::1", "fc00::1", "ff02::1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
     "2002:7f00:1::"],
)  # fmt: skip
def test_addresses_of_this_machine_and_its_networks_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ip_address(address))


class Site(BaseHTTPRequestHandler):
    """A picture, and ways that lead to it or astray."""

    redirects: ClassVar[dict[str, str]] = {
        "/near": "/picture",
        "/far": "/near",
        "/loop": "/loop",
        "/file": "file:///etc/passwd",
        "/ftp": "ftp://example.com/x.png",
        "/metadata": "http://169.254.169.254/latest/meta-data/",
        "/nowhere": "",
    }
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        location = self.redirects.get(self.path)
        bodies = {"/picture": png(), "/large": bytes(200_000)}
        self.send_response(302 if location is not None else 200 if self.path in bodies else 404)
        if location:
            self.send_header("Location", location)
        body = bodies.get(self.path, b"")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def fetch(url: str, **options: Any) -> bytes:
    return asyncio.run(PublicWeb(**{"max_bytes": 100_000, "seconds": 2.0, **options}).fetch(url))


def loopback_alone(address: Any) -> bool:
    """Lets the test's own site be asked."""
    return bool(address == ip_address("127.0.0.1"))


@pytest.mark.parametrize("path", ["/picture", "/near", "/far"])
def test_a_picture_is_fetched_over_redirects(site: str, path: str) -> None:
    assert fetch(site + path, may_connect=loopback_alone) == png()


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/missing", "status 404"),
        ("/large", "more than 100,000 bytes"),
        ("/loop", "more than 3 times"),
        ("/nowhere", "more than 3 times"),
        ("/file", "only http and https"),
        ("/ftp", "only http and https"),
        ("/metadata", "only pictures at public addresses"),
    ],
)
def test_what_leads_astray_is_refused(site: str, path: str, says: str) -> None:
    with pytest.raises(PictureError, match=says):
        fetch(site + path, may_connect=loopback_alone)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_this_machine_is_not_asked_whatever_it_is_called(site: str, host: str) -> None:
    Site.asked.clear()
    port = site.rpartition(":")[2]
    with pytest.raises(PictureError, match="public"):
        fetch(f"http://{host}:{port}/picture")
    assert Site.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.com/x",
        "gopher://x",
        "/etc/passwd",
        "http://",
        "http://[",
        "http://a:b/",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(PictureError, match=r"only http and https|could not be fetched"):
        fetch(url)


def test_a_name_that_leads_to_a_private_address_is_refused_if_any_of_its_addresses_is_one(
    site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(site.rpartition(":")[2])

    async def resolve(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in ("93.184.216.34", "127.0.0.1")
        ]

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", resolve)
    with pytest.raises(PictureError, match="only pictures at public addresses"):
        fetch(f"http://innocent.example:{port}/picture")


def test_the_connection_goes_to_the_address_that_was_checked(
    site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(site.rpartition(":")[2])
    resolved: list[str] = []
    resolve = asyncio.base_events.BaseEventLoop.getaddrinfo

    async def rebinding(loop: Any, host: str, *arguments: Any, **options: Any) -> Any:
        """The name leads to the site once, and then elsewhere."""
        if host == "rebinding.example":
            resolved.append(host)
            host = "127.0.0.1" if len(resolved) == 1 else "127.0.0.2"
        return await resolve(loop, host, *arguments, **options)

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", rebinding)
    assert fetch(f"http://rebinding.example:{port}/picture", may_connect=loopback_alone) == png()
    assert len(resolved) == 1


def test_a_site_that_does_not_answer_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(PictureError, match="could not be fetched"):
            fetch(url, seconds=0.2, may_connect=loopback_alone)
