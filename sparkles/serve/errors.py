"""What a client is told when there is no answer, in the shape that OpenAI's endpoints use."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse


class ApiError(Exception):
    """A request that gets no answer; nothing but the message reaches the client."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """`{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}`"""
        kind = "server_error" if self.status >= 500 else _TYPES.get(self.status, "invalid_request_error")
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        """As it is sent."""
        return JSONResponse(self.body(), self.status, headers=self.headers)


_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
