"""What becomes of a request: a reply, told apart by how it ended, or the reason why there is none."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias

FailureReason = Literal[
    "request",  # it cannot be sent: a picture is missing
    "refused_call",  # the endpoint does not take it: unknown model, text too long (HTTP 4xx)
    "unauthorized",
    "quota",  # the account is out of money
    "rate_limited",
    "server_error",
    "timeout",
    "connection",
    "malformed",  # the body is cut short, or not what a chat endpoint sends
    "wrong_model",
    "budget",
    "interrupted",
]


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens that the provider charges for."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    """Those of `input_tokens` that the provider had kept from an earlier call."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A reply. Only with `finish_reason == "stop"` is it the model's whole answer."""

    text: str
    """For a refusal, its words."""
    finish_reason: str
    """stop, length (cut at `max_tokens`), content_filter, refusal, empty, or what else the endpoint says."""
    usage: Usage | None
    """None where the endpoint does not tell."""
    model: str
    """Who answered, with its version, as the endpoint says; "" where it does not."""
    seconds: float
    tries: int
    """Calls that it took."""
    structured: bool = False
    """The endpoint held the reply to the request's schema."""

    def to_record(
        self, asked_model: str, dollars: float | None = None, *, bound: float = 0.0
    ) -> dict[str, Any]:
        """What the journal keeps. `asked_model` is the name that prices are known by; `dollars` None for unknown.

        `bound`, the most that the reply can have cost, is kept where the endpoint does not tell the tokens.
        """
        record = {"asked_model": asked_model, "dollars": dollars, **asdict(self)}
        return record | {"bound": bound} if self.usage is None and bound else record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Completion":
        values = {field.name: record[field.name] for field in fields(cls) if field.name in record}
        return cls(**values | {"usage": usage_of(record)})


def usage_of(record: Mapping[str, Any]) -> Usage | None:
    """Tokens of a journalled reply."""
    return Usage(**record["usage"]) if record["usage"] else None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """No reply, and why. It is not journalled: the next run asks again."""

    reason: FailureReason
    message: str
    tries: int = 0
    seconds: float = 0.0


Outcome: TypeAlias = Completion | Failure
