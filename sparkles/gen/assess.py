"""What a language model thinks of dialogues before they are kept: a column of quality and safety beside them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Protocol

import json_repair

from sparkles.llm_client import ChatMessage, Completion, LLMClient, Outcome, Request
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

    quality: float | None
    """1 to 10; None where there is none."""
    unsafe: str = ""
    """What is unfit for publication, in words; "" if nothing is."""
    reason: str = ""
    """The assessor's, or why there is no assessment."""


class Assessor(Protocol):
    """Judges dialogues by their texts and captions: a model behind an endpoint, a classifier, people."""

    name: str

    def assess(self, dialogues: Sequence[Dialogue]) -> list[Assessment]:
        """Assess each dialogue, in order."""
        ...


class LLMAssessor:
    """Asks a model behind an endpoint.

    Args:
        client: opened by the caller; its journal keeps every reply.
        prompt_file: text with $images and $dialogue, for which JSON is filled in.
    """

    def __init__(
        self, *, model: str, client: LLMClient, prompt_file: Path = PROMPT_FILE, max_tokens: int = 512
    ) -> None:
        self.name = model
        self.max_tokens = max_tokens
        self._client = client
        self._prompt = Template(Path(prompt_file).read_text(encoding="utf-8").strip())

    def assess(self, dialogues: Sequence[Dialogue]) -> list[Assessment]:
        return [
            read_assessment(outcome) for outcome in self._client.complete_all(map(self._request, dialogues))
        ]

    def _request(self, dialogue: Dialogue) -> Request:
        images = {image_mention(image.image_id): image.caption for image in dialogue.images}
        said = [{message.role: strip_tags(message.content)} for message in dialogue.messages]
        prompt = self._prompt.substitute(images=_json(images), dialogue=_json(said))
        return Request(
            model=self.name,
            messages=(ChatMessage("user", (prompt,)),),
            max_tokens=self.max_tokens,
            schema=SCHEMA,
        )


def read_assessment(outcome: Outcome) -> Assessment:
    """The assessment in a reply; without a quality where it cannot be read or the call failed."""
    if not isinstance(outcome, Completion):
        return Assessment(quality=None, reason=f"{outcome.reason}: {outcome.message}")
    loaded = json_repair.loads(outcome.text)
    reply = loaded if isinstance(loaded, dict) else {}
    quality = reply.get("quality")
    if not isinstance(quality, int | float) or isinstance(quality, bool) or not LOWEST <= quality <= HIGHEST:
        return Assessment(
            quality=None, reason=f"no quality from {LOWEST} to {HIGHEST} in {outcome.text[:200]!r}"
        )
    return Assessment(
        quality=quality, unsafe=str(reply.get("unsafe") or ""), reason=str(reply.get("reason", ""))
    )


class Acceptable:
    """A `Filter`: wants dialogues that were assessed, are safe, and of enough quality."""

    def __init__(self, assessments: Mapping[Dialogue, Assessment], *, min_quality: float) -> None:
        if not LOWEST <= min_quality <= HIGHEST:
            raise InputError(f"min_quality is {min_quality}, expected {LOWEST} to {HIGHEST}")
        self.min_quality = min_quality
        self._assessments = assessments

    def __call__(self, dialogue: Dialogue) -> str:
        found = self._assessments[dialogue]
        if found.quality is None:
            return f"not assessed: {found.reason}"
        if found.unsafe:
            return f"unsafe, {found.unsafe}: {found.reason}"
        return f"quality {found.quality:g}: {found.reason}" if found.quality < self.min_quality else ""


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1)
