"""Judges over an endpoint: one LLM, or several whose ratings are averaged.

A judge reads what the rated model wrote, and may repeat it; neither is to move a score. Towards the judge, each text
is one JSON string, which nothing inside it can end. Back from the judge, only what stands behind a code is read: the
code is a hash of the texts and stands in none of them, so the model cannot have written what bears it.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import count, product
from pathlib import Path
from statistics import fmean
from string import Template
from typing import Any

from sparkles.eval import original
from sparkles.eval.endpoint import Endpoint, MakeClient
from sparkles.eval.environment import AsksEndpoints, EndpointRecord
from sparkles.eval.judges import ANSWERS, HIGHEST, LOWEST, judge_fields, parse_verdict
from sparkles.eval.prompting import load_prompt, prompt_hash
from sparkles.llm_client import ChatMessage, Completion, Estimate, Outcome, Request
from sparkles.types import CRITERIA, Dialogue, InputError, Judge, Verdict

PARSER = 1
"""Raised with each change that may read another score out of the same reply: verdicts are then made anew."""
_JSON_REPLY = re.compile(r"(?:```(?:json)?\s*)?(\{.*\})(?:\s*```)?", re.DOTALL)
_FIELDS = ("images", "Q1", "A1", "Q2", "A2", "code")
_LONGEST_QUOTE = 200


class LLMJudge:
    """Rates dialogues with a model behind an endpoint, which reads captions in place of the pictures.

    What cannot be read, is refused or failed is unscored, with the reason; no other model is asked instead.

    Args:
        client: see `sparkles.eval.endpoint.MakeClient`.
        journal: file that keeps every reply, of this judge alone; None keeps none.
        prompt_file: name of a shipped prompt or path of a text file. It may use $images (ids and captions, JSON), $Q1,
            $A1, $Q2, $A2 (JSON strings), and $code; a prompt without $code trusts the judge to repeat no ratings.
        temperature: None leaves it to the endpoint, as some models require.
        structured: hold the reply to a JSON schema, where the endpoint can.
        original_parser: read replies as the published code does, see `sparkles.eval.original`: in the paper's format
            (never `structured`), whatever stands before the code included.
        repeat: another number asks for another verdict of the same judge.

    Raises:
        InputError: the prompt uses a field that does not exist.
    """

    def __init__(
        self,
        *,
        model: str,
        client: MakeClient,
        journal: str | Path | None = None,
        prompt_file: str = "judge",
        temperature: float | None = 0.0,
        max_tokens: int = 2_048,
        structured: bool = True,
        original_parser: bool = False,
        repeat: int = 1,
    ) -> None:
        self.model = model
        self.prompt = load_prompt(prompt_file)
        _check_fields(self.prompt, prompt_file)
        self.asks_for_code = "code" in self.prompt.get_identifiers()
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.structured = structured and not original_parser
        self.original_parser = original_parser
        self.repeat = repeat
        self._endpoint = Endpoint(client, journal)
        settings = [
            f"prompt {prompt_hash(prompt_file)[:8]}",
            f"parser {PARSER}",
            f"temperature {temperature}",
            f"{max_tokens} tokens",
            *(["free text"] if not self.structured else []),
            *(["original parser"] if original_parser else []),
            *([f"repeat {repeat}"] if repeat != 1 else []),
        ]
        self._settings = ", ".join(settings)
        self.name = self._called(model)

    def judge(self, dialogues: Sequence[Dialogue]) -> list[Verdict]:
        """Rate each dialogue, in order.

        Raises:
            InputError: a dialogue has not two finished turns, or an image without a caption.
            ClientError: there is no key for the endpoint.
            BudgetError: there is a budget, but no price for the model.
        """
        codes = [self._code(dialogue) for dialogue in dialogues]
        outcomes = self._endpoint.ask(map(self._request, dialogues, codes))
        return list(map(self._verdict, outcomes, codes))

    def estimate(self, dialogues: Sequence[Dialogue]) -> Estimate:
        """What `judge` would cost."""
        return self._endpoint.estimate(
            self._request(dialogue, self._code(dialogue)) for dialogue in dialogues
        )

    @property
    def endpoints(self) -> list[EndpointRecord]:
        """For `environment.json`."""
        return [self._endpoint.description(self.model)]

    def _code(self, dialogue: Dialogue) -> str:
        return reply_code(judge_fields(dialogue).values()) if self.asks_for_code else ""

    def _request(self, dialogue: Dialogue, code: str) -> Request:
        for image in dialogue.images:
            if not image.caption.strip():
                raise InputError(
                    f"dialogue {dialogue.dialogue_id!r}: image {image.image_id} has no caption, which is what a judge "
                    "reads; add one to its annotations"
                )
        fields = judge_fields(dialogue)
        quoted = {
            name: text if name == "images" else json.dumps(text, ensure_ascii=False)
            for name, text in fields.items()
        }
        return Request(
            model=self.model,
            messages=(ChatMessage("user", (self.prompt.substitute(quoted, code=code),)),),
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            schema=verdict_schema(with_code=self.asks_for_code) if self.structured else None,
            try_number=self.repeat,
            draw_for=dialogue.dialogue_id if self.temperature != 0 else "",
        )

    def _verdict(self, outcome: Outcome, code: str) -> Verdict:
        if not isinstance(outcome, Completion):
            return Verdict(
                scores=None,
                judge=self.name,
                unscored_reason=f"{outcome.reason}: {outcome.message}",
                failed=True,
            )
        judge = self._called(outcome.model or self.model)
        if outcome.finish_reason != "stop":
            return _unscored(f"the reply ended with {outcome.finish_reason!r}: {_short(outcome.text)}", judge)
        if self.original_parser:
            return original.parse_verdict(outcome.text, judge=judge)
        return read_reply(outcome.text, code=code, judge=judge)

    def _called(self, model: str) -> str:
        return f"{model} ({self._settings})"


class EnsembleJudge:
    """The mean of several judges; unscored unless all of them rated, lest the panel differ from dialogue to dialogue.

    Each member's scores stay in `Verdict.members`, and beside its reason.

    Raises:
        InputError: there are not two judges, or two are the same.
    """

    def __init__(self, *, judges: Mapping[str, Judge]) -> None:
        names = Counter(judge.name for judge in judges.values())
        if len(names) < 2 or len(names) < len(judges):
            raise InputError(
                f"an ensemble needs at least two different judges, got {', '.join(names.elements()) or 'none'}; "
                "the same model may be asked again as a judge with another repeat="
            )
        self.judges = tuple(judges.values())
        self.name = f"mean of {'; '.join(names)}"

    def judge(self, dialogues: Sequence[Dialogue]) -> list[Verdict]:
        return list(map(self._mean, *(judge.judge(dialogues) for judge in self.judges)))

    @property
    def endpoints(self) -> list[EndpointRecord]:
        """Of those members that ask one."""
        return [one for judge in self.judges if isinstance(judge, AsksEndpoints) for one in judge.endpoints]

    def _mean(self, *verdicts: Verdict) -> Verdict:
        named = {judge.name: verdict for judge, verdict in zip(self.judges, verdicts, strict=True)}
        scores = {name: verdict.scores for name, verdict in named.items() if verdict.scores is not None}
        if len(scores) < len(named):
            problems = [f"{name}: {named[name].unscored_reason}" for name in named if name not in scores]
            failed = any(verdict.failed for verdict in verdicts)
            return Verdict(
                scores=None,
                judge=self.name,
                unscored_reason="; ".join(problems),
                failed=failed,
                members=scores,
            )
        mean: dict[str, dict[str, float]] = {answer: {} for answer in ANSWERS}
        reasons: dict[str, dict[str, str]] = {answer: {} for answer in ANSWERS}
        for answer, criterion in product(ANSWERS, CRITERIA):
            mean[answer][criterion] = fmean(given[answer][criterion] for given in scores.values())
            reasons[answer][criterion] = "\n".join(
                f"{name} gives {scores[name][answer][criterion]:g}: "
                f"{verdict.reasons.get(answer, {}).get(criterion, '')}"
                for name, verdict in named.items()
            )
        judge = (
            f"mean of {'; '.join(verdict.judge for verdict in verdicts)}"  # with the versions that answered
        )
        return Verdict(scores=mean, reasons=reasons, judge=judge, members=scores)


def reply_code(texts: Collection[str]) -> str:
    """Eight characters that depend on the texts and stand in none of them.

    >>> reply_code(["some answer"]) == reply_code(["some answer"]) != reply_code(["another"])
    True
    """
    hashes = (hashlib.sha256(json.dumps([*texts, number]).encode()).hexdigest()[:8] for number in count())
    return next(code for code in hashes if not any(code in text for text in texts))


def read_reply(reply: str, *, code: str = "", judge: str = "") -> Verdict:
    """The verdict in a judge's reply, JSON of `verdict_schema` or the paper's format, behind `code` if there is one."""
    if (found := _JSON_REPLY.fullmatch(reply.strip())) is not None:
        return _read_json(found[1], code, judge)
    if code:
        *quoted, own = re.split(rf"^\W*ratings\W+{code}\W*$", reply, flags=re.IGNORECASE | re.MULTILINE)
        if not quoted:
            return _unscored(f"the reply has no line 'Ratings {code}': {_short(reply)}", judge)
        reply = own
    return parse_verdict(reply, judge=judge)


def verdict_schema(*, with_code: bool) -> dict[str, Any]:
    """JSON schema of a reply, within what endpoints take as strict."""
    rated = _object({"explanation": {"type": "string"}, "rating": {"type": "number"}})
    answers = {answer: _object(dict.fromkeys(CRITERIA, rated)) for answer in ANSWERS}
    return _object(({"code": {"type": "string"}} if with_code else {}) | answers)


def _check_fields(prompt: Template, prompt_file: str) -> None:
    unknown = [f"${name}" for name in prompt.get_identifiers() if name not in _FIELDS]
    if not prompt.is_valid():
        unknown.append("a lone $")
    if unknown:
        raise InputError(
            f"prompt_file={prompt_file}: cannot fill in {', '.join(unknown)}; it may use "
            f"{', '.join(f'${name}' for name in _FIELDS)}, and $$ for a dollar sign"
        )


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _read_json(reply: str, code: str, judge: str) -> Verdict:
    try:
        fields = json.loads(reply)
        if code and fields["code"] != code:
            return _unscored(f"the reply has the code {fields['code']!r}, expected {code!r}", judge)
        rated = {
            (answer, criterion): fields[answer][criterion] for answer, criterion in product(ANSWERS, CRITERIA)
        }
        ratings = {place: found["rating"] for place, found in rated.items()}
        explanations = {place: str(found["explanation"]) for place, found in rated.items()}
    except (ValueError, TypeError, KeyError) as error:
        return _unscored(f"not JSON of the schema ({type(error).__name__}: {error}): {_short(reply)}", judge)
    problems = [
        f"{' '.join(place)}: rated {rating!r}, expected {LOWEST} to {HIGHEST}"
        for place, rating in ratings.items()
        if type(rating) not in (int, float) or not LOWEST <= rating <= HIGHEST
    ]
    if problems:
        return _unscored("; ".join(problems), judge)
    return Verdict(
        scores={a: {c: float(ratings[a, c]) for c in CRITERIA} for a in ANSWERS},
        reasons={a: {c: explanations[a, c] for c in CRITERIA} for a in ANSWERS},
        judge=judge,
    )


def _unscored(reason: str, judge: str) -> Verdict:
    return Verdict(scores=None, judge=judge, unscored_reason=reason)


def _short(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]} ...")
