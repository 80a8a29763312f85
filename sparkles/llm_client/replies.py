"""What endpoints send, read: a reply, or an error that says whether to try again and whether it may be charged."""

import json
import math
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from typing import Any

import openai

from sparkles.llm_client.outcomes import Completion, FailureReason, Usage
from sparkles.llm_client.requests import RequestError

_LONGEST_MESSAGE = 500
_MAY_BE_BETTER_SOON = {408, 409, 425, 429}
_VERSION = r"([-@:]\d{3}[\d-]*|@\S+)?"
"""What an endpoint may add to the name it was asked for: -0613, -2024-08-06, @main."""


@dataclass(eq=False)
class CallError(Exception):
    """One call that gave nothing to use."""

    reason: FailureReason
    message: str
    retry: bool = False
    retry_after: float = 0.0
    """Seconds that the endpoint asks to wait."""
    charged: bool = False
    """The provider may charge for it although no usable reply came."""
    stops_all: bool = False
    """Every other call would fare the same."""
    reply: Completion | None = None
    """What came, where that is not what was asked for; it is paid for."""


def read_reply(
    body: str, *, asked_model: str, aliases: Collection[str], structured: bool, seconds: float, tries: int
) -> Completion:
    """The reply in the body of an HTTP 200.

    Raises:
        CallError: malformed; another model's; or empty, for no reason given.
    """
    try:
        fields = json.loads(body)
        choice = fields["choices"][0]
        message = choice["message"]
        text, refusal = _text(message.get("content")), message.get("refusal")
        reply = Completion(
            text=refusal or text,
            finish_reason=_finish_reason(choice.get("finish_reason"), text, refusal),
            usage=_usage(fields.get("usage")),
            model=str(fields.get("model") or ""),
            seconds=seconds,
            tries=tries,
            structured=structured,
        )
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise _malformed("chat completion", error, body) from error
    _check_model(reply, asked_model, aliases)
    if reply.finish_reason == "empty":
        raise CallError("malformed", "an empty reply", retry=True, reply=reply)
    return reply


def read_moderation(
    body: str, *, asked_model: str, aliases: Collection[str], structured: bool, seconds: float, tries: int
) -> Completion:
    """The result of a moderation, as JSON: `{"flagged", "categories": {name: bool}, "category_scores"}`.

    It counts no tokens unless the endpoint does.

    Raises:
        CallError: malformed, or another model's.
    """
    try:
        fields = json.loads(body)
        (result,) = fields["results"]
        reply = Completion(
            text=json.dumps({name: result[name] for name in ("flagged", "categories", "category_scores")}),
            finish_reason="stop",
            usage=_usage(fields.get("usage")) or Usage(input_tokens=0, output_tokens=0),
            model=str(fields.get("model") or ""),
            seconds=seconds,
            tries=tries,
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _malformed("moderation", error, body) from error
    _check_model(reply, asked_model, aliases)
    return reply


def _malformed(expected: str, error: Exception, body: str) -> CallError:
    return CallError(
        "malformed",
        f"not a {expected} ({type(error).__name__}: {error}): {_short(body)!r}",
        retry=True,
        charged=True,
    )


def _check_model(reply: Completion, asked_model: str, aliases: Collection[str]) -> None:
    """Raise CallError where another model has answered."""
    if reply.model and not _answers_for(reply.model, asked_model, aliases):
        raise CallError(
            "wrong_model",
            f"asked {asked_model!r}, answered by {reply.model!r}; if that is the same model, list it in aliases",
            retry=True,
            reply=reply,
        )


def read_error(error: Exception) -> CallError:
    """What a call that raised means. Errors that are no endpoint's are raised again."""
    match error:
        case TimeoutError() | openai.APITimeoutError():
            return CallError("timeout", "no reply in time", retry=True, charged=True)
        case openai.APIConnectionError():
            cause = error.__cause__ or error
            connected = type(cause).__name__ not in ("ConnectError", "ConnectTimeout")
            message = f"connection lost: {cause}" if connected else f"cannot connect: {cause}"
            return CallError("connection", message, retry=True, charged=connected)
        case openai.APIStatusError():
            return _read_status(error)
        case RequestError():
            return CallError("request", str(error))
    raise error


def refuses(error: openai.APIStatusError, *features: str) -> bool:
    """Whether the endpoint turned the call down for the sake of one of these settings."""
    return error.status_code in (400, 422) and any(feature in error.message for feature in features)


def _read_status(error: openai.APIStatusError) -> CallError:
    status, message = error.status_code, _short(error.message)
    if status == 429 and error.code == "insufficient_quota":
        return CallError("quota", message, stops_all=True)
    if status in _MAY_BE_BETTER_SOON or status >= 500:
        reason: FailureReason = "rate_limited" if status == 429 else "server_error"
        return CallError(reason, message, retry=True, retry_after=_retry_after(error.response.headers))
    if status == 401:
        return CallError("unauthorized", message, stops_all=True)
    if error.code == "content_filter":  # the provider would not even show it to the model
        filtered = Completion(
            text="", finish_reason="content_filter", usage=Usage(input_tokens=0, output_tokens=0), model="",
            seconds=0.0, tries=1,
        )  # fmt: skip
        return CallError("refused_call", message, reply=filtered)
    return CallError("unauthorized" if status == 403 else "refused_call", message)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds to wait, given as a number or as a date; 0 where there is no such header.

    >>> _retry_after({"retry-after": "20"}), _retry_after({"retry-after-ms": "150"}), _retry_after({})
    (20.0, 0.15, 0.0)
    """
    if (milliseconds := headers.get("retry-after-ms", "")).isdecimal():
        return int(milliseconds) / 1000
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _text(content: Any) -> str:
    """The words of a reply, which some endpoints send in parts.

    >>> _text([{"type": "text", "text": "Two "}, {"type": "text", "text": "cats."}])
    'Two cats.'
    """
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    if not isinstance(content, str | None):
        raise TypeError(f"content is {type(content).__name__}")
    return content or ""


def _finish_reason(said: str | None, text: str, refusal: str | None) -> str:
    if refusal:
        return "refusal"
    if said in (None, "stop"):
        return "stop" if text.strip() else "empty"
    return said


def _usage(fields: Mapping[str, Any] | None) -> Usage | None:
    if not fields:
        return None
    details = fields.get("prompt_tokens_details") or {}
    return Usage(
        input_tokens=int(fields["prompt_tokens"]),
        output_tokens=int(fields.get("completion_tokens") or 0),
        cached_tokens=int(details.get("cached_tokens") or 0),
    )


def _answers_for(answered: str, asked: str, aliases: Collection[str]) -> bool:
    """Whether a model's name is that of the asked one, but for its version or its provider's prefix.

    >>> _answers_for("gpt-4o-2024-08-06", "gpt-4o", []), _answers_for("gpt-4o-mini", "gpt-4o", [])
    (True, False)
    >>> _answers_for("model.gguf", "qwen", ["*.gguf"]), _answers_for("org/qwen@main", "org/qwen", [])
    (True, True)
    """
    name = re.escape(asked.rpartition("/")[2].removesuffix("-latest"))
    same = asked == answered or re.fullmatch(name + _VERSION, answered.rpartition("/")[2])
    return bool(same) or any(fnmatchcase(answered, alias) for alias in aliases)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]} ..."
