"""uvicorn in a thread of its own, on a port of this machine."""

import threading
import time
from types import TracebackType
from typing import Self

import uvicorn
from fastapi import FastAPI


class RunningServer:
    """Serves for as long as its `with` block lasts, and lets requests in flight end then.

    Args:
        port: a free one, if 0.
        patience: seconds for requests in flight, which are cut then; None waits for all.
    """

    def __init__(self, app: FastAPI, *, port: int = 0, patience: int | None = None) -> None:
        self._server = uvicorn.Server(
            uvicorn.Config(app, port=port, log_level="critical", timeout_graceful_shutdown=patience)
        )
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    @property
    def port(self) -> int:
        port: int = self._server.servers[0].sockets[0].getsockname()[1]
        return port

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def stop(self) -> None:
        """Ask it to end, as a signal does."""
        self._server.should_exit = True

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "uvicorn could not start"
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._thread.join()
