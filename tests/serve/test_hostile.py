"""Requests that mean harm: each is refused within a second, and the server goes on."""

import base64
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from sparkles.serve.api import build_app
from sparkles.serve.engine import Engine
from sparkles.serve.limits import Limits
from sparkles.serve.question import Sampling
from tests.serve.conftest import MODEL
from tests.serve.running_server import RunningServer
from tests.serve.test_pictures import bomb, png

LIMITS = Limits(body_bytes=3_000_000, body_seconds=0.3, images=4, image_pixels=1_000_000)
CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
KEY = "k3y"


@pytest.fixture(scope="module")
def port(engine: Engine) -> Iterator[int]:
    app = build_app(
        engine, name=MODEL, defaults=Sampling(max_tokens=8), limits=LIMITS, api_key=KEY, image_urls=True
    )
    with RunningServer(app) as server:
        yield server.port


def chat(*parts: Any, **options: Any) -> bytes:
    """A body that shows what `parts` say, one message."""
    return json.dumps(
        {"model": MODEL, "messages": [{"role": "user", "content": list(parts) or "Hi"}], **options}
    ).encode()


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def data_url(content: bytes, kind: str = "png") -> dict[str, Any]:
    return image(f"data:image/{kind};base64,{base64.b64encode(content).decode()}")


BODIES = {
    "nothing": b"",
    "no json": b"{",
    "not an object": b"[1, 2]",
    "nested 100,000 deep": b"[" * 100_000,
    "nested messages": b'{"model": "SparklesChat", "messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "a number of 10,000 digits": b'{"model": "SparklesChat", "seed": ' + b"9" * 10_000 + b"}",
    "no utf-8": b'{"model": "\xff\xfe"}',
    "half a surrogate pair": b'{"model": "SparklesChat", "messages": [{"role": "user", "content": "\\ud83d"}]}',
    "a name with half a pair": b'{"model": "\\ud83d", "messages": [{"role": "user", "content": "Hi"}]}',
    "no messages": json.dumps({"model": MODEL, "messages": []}).encode(),
    "257 messages": json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}] * 257}).encode(),
    "another role": json.dumps({"model": MODEL, "messages": [{"role": "root", "content": "Hi"}]}).encode(),
    "not a number": b'{"model": "SparklesChat", "temperature": NaN, "messages": [{"role": "user", "content": "a"}]}',
    "too many tokens": chat(max_tokens=10**9),
    "too many choices": chat(n=10**9),
    "no choice": chat(n=0),
    "a long stop string": chat(stop="a" * 10_000),
    "too long a text": chat({"type": "text", "text": "word " * 500_000}),
    "too many images": chat(*[data_url(png())] * 5),
    "too large a body": chat({"type": "text", "text": "x" * 4_000_000}),
    "a decompression bomb": chat(data_url(bomb(50_000, 50_000))),
    "a smaller bomb": chat(data_url(bomb(5_000, 5_000))),
    "a bomb by another name": chat(data_url(bomb(30_000, 30_000), "jpeg")),
    "half a picture": chat(data_url(png(64, 64)[:80])),
    "a script as picture": chat(data_url(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "svg+xml")),
    "no base64": chat(image("data:image/png;base64,@@@@")),
    "a file": chat(image("file:///etc/passwd")),
    "a path": chat(image("/etc/passwd")),
    "loopback": chat(image("http://127.0.0.1:22/")),
    "loopback by another name": chat(image("http://2130706433/")),
    "cloud metadata": chat(image("http://169.254.169.254/latest/meta-data/")),
    "a private network": chat(image("http://192.168.0.1/admin")),
    "loopback in IPv6": chat(image("http://[::ffff:127.0.0.1]/")),
    "a broken URL": chat(image("http://[")),
}  # fmt: skip


def refused(connection: http.client.HTTPConnection) -> int:
    """The status of a refusal, which must have the shape of OpenAI's and no traceback."""
    response = connection.getresponse()
    text = response.read().decode()
    assert "Traceback" not in text
    assert ".py" not in text
    error = json.loads(text)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    return response.status


@pytest.fixture(scope="module")
def friend(port: int) -> openai.OpenAI:
    """Someone who means no harm."""
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0)


@pytest.fixture
def connection(port: int, friend: openai.OpenAI) -> Iterator[http.client.HTTPConnection]:
    """To the server; a second for all, and the server still answers afterwards."""
    start = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    yield connection
    connection.close()
    assert time.monotonic() - start < 1.0
    assert friend.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}]).choices


AUTHORIZED = {"Authorization": f"Bearer {KEY}"}


@pytest.mark.parametrize("name", BODIES)
def test_hostile_bodies_are_refused(connection: http.client.HTTPConnection, name: str) -> None:
    connection.request("POST", CHAT, BODIES[name], {**JSON, **AUTHORIZED})
    assert refused(connection) in ((413,) if name == "too large a body" else (400,))


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", CHAT, {}, 401),
        ("POST", CHAT, {"Authorization": "Bearer wrong"}, 401),
        ("POST", CHAT, {"Authorization": "Bearer " + "k" * 10_000}, 401),
        ("POST", CHAT, {**AUTHORIZED, "Content-Type": "text/plain"}, 400),
        ("DELETE", CHAT, AUTHORIZED, 405),
        ("GET", "/v1/../../etc/passwd", AUTHORIZED, 404),
        ("GET", "/v1/models/%2e%2e%2fetc%2fpasswd", AUTHORIZED, 404),
        ("GET", "/docs", AUTHORIZED, 404),
    ],
)
def test_hostile_heads_are_refused(
    connection: http.client.HTTPConnection, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    connection.request(method, path, chat() if method == "POST" else None, {**JSON, **headers})
    assert refused(connection) == status


def test_a_body_without_end_or_length_is_refused(connection: http.client.HTTPConnection) -> None:
    connection.putrequest("POST", CHAT)
    for name, value in {**AUTHORIZED, "Transfer-Encoding": "chunked"}.items():
        connection.putheader(name, value)
    connection.endheaders()
    stop = threading.Event()

    def send() -> None:
        chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
        try:
            while not stop.is_set():
                connection.send(chunk)
        except OSError:
            pass

    sending = threading.Thread(target=send)
    sending.start()
    try:
        assert refused(connection) == 413
    except ConnectionResetError:  # the server has closed while more was on its way
        pass
    finally:
        stop.set()
        sending.join()


def test_a_length_that_is_a_lie_is_refused_by_the_length(connection: http.client.HTTPConnection) -> None:
    connection.putrequest("POST", CHAT)
    for name, value in {**AUTHORIZED, "Content-Length": "99999999999"}.items():
        connection.putheader(name, value)
    connection.endheaders()
    assert refused(connection) == 413


def test_a_body_that_does_not_come_is_given_up(connection: http.client.HTTPConnection) -> None:
    connection.putrequest("POST", CHAT)
    for name, value in {**AUTHORIZED, "Content-Length": "100"}.items():
        connection.putheader(name, value)
    connection.endheaders(b'{"model"')
    connection.send(b":")
    assert refused(connection) == 408


def test_what_is_no_http_is_refused(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=1) as plain:
        plain.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert plain.recv(100).startswith(b"HTTP/1.1 400")


def test_without_a_key_only_this_machines_names_are_heard(engine: Engine) -> None:
    app = build_app(engine, name=MODEL, defaults=Sampling(max_tokens=8))
    with RunningServer(app) as server:
        for host, status in {
            "evil.example": 403,
            "[": 403,
            "localhost:8000": 200,
            f"127.0.0.1:{server.port}": 200,
        }.items():
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
            connection.request("GET", "/v1/models", headers={"Host": host})
            assert connection.getresponse().status == status
            connection.close()


def test_there_are_forty_of_them() -> None:
    assert len(BODIES) + 8 >= 40
