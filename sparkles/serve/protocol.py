"""The requests of OpenAI's chat completions, as far as they are understood here.

Answers are the openai package's own types, so they have the shape that its client reads.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
    "presence_penalty": (None, 0),
    "response_format": (None, {"type": "text"}),
    "tool_choice": (None, "none"),
    "tools": (None, []),
}
"""What would change the answer if it were heeded, and the values with which it would not."""


def _encodable(text: str) -> str:
    """JSON can spell halves of surrogate pairs, which are no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("not valid Unicode") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]


class TextPart(BaseModel):
    """Words."""

    type: Literal["text"]
    text: Text


class ImageURL(BaseModel):
    """Where a picture is: as a rule in the URL itself, `data:image/png;base64,...`."""

    url: Text


class ImagePart(BaseModel):
    """A picture between the words."""

    type: Literal["image_url"]
    image_url: ImageURL


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(BaseModel):
    """What one side said."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Part]

    @property
    def parts(self) -> list[TextPart | ImagePart]:
        """The content, in parts where it is plain text too."""
        if isinstance(self.content, str):
            return [TextPart(type="text", text=self.content)]
        return self.content


class StreamOptions(BaseModel):
    """Of a streamed answer."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of `POST /v1/chat/completions`; fields that mean nothing here are ignored."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: Text
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Text | list[Text] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def unheeded(self) -> list[str]:
        """Fields whose values ask for something that is not to be had."""
        given = self.model_extra or {}
        return [name for name, values in _NEUTRAL.items() if name in given and given[name] not in values]
