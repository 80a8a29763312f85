"""What models behind an endpoint think of dialogues before they are kept: columns of quality and safety beside them.

A language model reads captions and dialogue and judges both (`llm_assessor`); a provider's moderation endpoint names
what in the texts is unfit to be published (`moderator`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import json_repair

from sparkles.llm_client import (
    ChatMessage,
    Completion,
    LLMClient,
    ModerationRequest,
    OnOutcome,
    Outcome,
    Request,
)
from sparkles.prompt_format import image_mention, strip_tags
from sparkles.types import Dialogue, InputError

PROMPT_FILE = Path(__file__).parent / "prompts" / "assess.txt"
LOWEST, HIGHEST = 1, 10
SCHEMA = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "quality": {"type": "number"}, "unsafe": {"type": "string"}},
    "required": ["reason", "quality", "unsafe"],
    "additionalProperties": False,
}


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """Of one dialogue."""

    quality: float | None = None
    """1 to 10, by a judge."""
    unsafe: str = ""
    """What is unfit for publication, in words; "" if nothing is."""
    reason: str = ""
    """The assessor's."""
    problem: str = ""
    """Why there is no assessment; "" if there is."""
    failed: bool = False
    """The call has no reply: another run asks again."""


@dataclass(frozen=True, kw_only=True)
class Assessor:
    """How a model is asked about a dialogue, and its reply read."""

    model: str
    request: Callable[[Dialogue], Request]
    read: Callable[[str], Assessment]

    def assess(
        self, client: LLMClient, dialogues: Sequence[Dialogue], on_outcome: OnOutcome | None = None
    ) -> list[Assessment]:
        """Assess each dialogue, in order. The client's journal keeps every reply."""
        return [
            self._read(outcome) for outcome in client.complete_all(map(self.request, dialogues), on_outcome)
        ]

    def _read(self, outcome: Outcome) -> Assessment:
        if not isinstance(outcome, Completion):
            return Assessment(problem=f"{outcome.reason}: {outcome.message}", failed=True)
        if outcome.finish_reason != "stop":  # what is cut can look whole
            return Assessment(problem=f"the reply ended with {outcome.finish_reason}")
        return self.read(outcome.text)


def llm_assessor(model: str, *, prompt_file: Path = PROMPT_FILE, max_tokens: int = 512) -> Assessor:
    """A judge of quality and safety.

    Args:
        prompt_file: text with $images and $dialogue, for which JSON is filled in.
    """
    prompt = Template(Path(prompt_file).read_text(encoding="utf-8").strip())

    def request(dialogue: Dialogue) -> Request:
        images = {image_mention(image.image_id): image.caption for image in dialogue.images}
        said = [{message.role: strip_tags(message.content)} for message in dialogue.messages]
        text = prompt.substitute(images=_json(images), dialogue=_json(said))
        return Request(
            model=model, messages=(ChatMessage("user", (text,)),), max_tokens=max_tokens, schema=SCHEMA
        )

    return Assessor(model=model, request=request, read=read_judgement)


def moderator(model: str) -> Assessor:
    """The provider's moderation endpoint, which reads what both sides say."""

    def request(dialogue: Dialogue) -> Request:
        said = (f"{message.role}: {strip_tags(message.content)}" for message in dialogue.messages)
        return ModerationRequest.of(model, "\n".join(said))

    return Assessor(model=model, request=request, read=read_moderation)


def read_judgement(text: str) -> Assessment:
    """The assessment in a judge's reply."""
    loaded = json_repair.loads(text)
    reply: Mapping[str, Any] = loaded if isinstance(loaded, dict) else {}
    quality = reply.get("quality")
    if not isinstance(quality, int | float) or isinstance(quality, bool) or not LOWEST <= quality <= HIGHEST:
        return Assessment(problem=f"no quality from {LOWEST} to {HIGHEST} in {text[:200]!r}")
    if "unsafe" not in reply:
        return Assessment(problem=f"nothing on what is unsafe in {text[:200]!r}")
    return Assessment(
        quality=quality, unsafe=str(reply.get("unsafe") or ""), reason=str(reply.get("reason", ""))
    )


def read_moderation(text: str) -> Assessment:
    """The assessment in a result of a moderation endpoint: the categories that it flags, and the highest scores.

    >>> read_moderation('{"flagged": true, "categories": {"hate": true}, "category_scores": {"hate": 0.91}}')
    Assessment(quality=None, unsafe='hate', reason='hate 0.91', problem='', failed=False)
    """
    result = json.loads(text)
    flagged = [name for name, is_flagged in result["categories"].items() if is_flagged]
    scores = sorted(result["category_scores"].items(), key=lambda item: -item[1])[:3]
    return Assessment(
        unsafe=", ".join(flagged) or ("flagged" if result["flagged"] else ""),
        reason=", ".join(f"{name} {score:.2f}" for name, score in scores),
    )


class Acceptable:
    """A `Filter`: wants dialogues that were assessed, are safe, and of enough quality where that was judged."""

    def __init__(
        self, assessments: Mapping[Dialogue, Assessment], *, min_quality: float | None = None
    ) -> None:
        if min_quality is not None and not LOWEST <= min_quality <= HIGHEST:
            raise InputError(f"min_quality is {min_quality}, expected {LOWEST} to {HIGHEST}")
        self.min_quality = min_quality
        self._assessments = assessments

    def __call__(self, dialogue: Dialogue) -> str:
        found = self._assessments[dialogue]
        if found.problem:
            return f"not assessed: {found.problem}"
        if found.unsafe:
            return f"unsafe, {found.unsafe}: {found.reason}"
        if self.min_quality is not None and (found.quality or 0) < self.min_quality:
            return f"quality {found.quality:g}: {found.reason}"
        return ""


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1)
