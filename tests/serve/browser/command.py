"""`python -m sparkles.serve chat` as users start it."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]


@contextmanager
def running_chat(*overrides: str) -> Iterator[str]:
    """Serves nano for as long as the `with` block lasts; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sparkles.serve", "chat", f"port={port}", *overrides]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        address = f"http://127.0.0.1:{port}"
        if not any(address in line for line in process.stdout):
            raise AssertionError(process.communicate()[1])
        _wait_for(port)
        yield f"{address}/"
    finally:
        process.terminate()
        process.communicate(timeout=30)


def _wait_for(port: int) -> None:
    """The command says where it serves just before it does."""
    end = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            assert time.monotonic() < end, "nobody listens"
            time.sleep(0.05)
        else:
            return
