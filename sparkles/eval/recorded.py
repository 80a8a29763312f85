"""Answers that exist already: an earlier run's, given once more to another judge."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from sparkles.eval.predictions import read_run
from sparkles.prompt_format import strip_tags
from sparkles.types import Dialogue, InputError, Prompt, Response, Verdict


class RecordedResponder:
    """Says what was said in a run, to the same items.

    An item that was not asked there, or asked something else, gets no answer, and the evaluation says so at its end.

    Args:
        run: run folder with `predictions/`, one such file, or a result file of the original.

    Raises:
        RunFolderError: there are no predictions.
    """

    def __init__(self, *, run: str | Path) -> None:
        self.run = Path(run)
        self._answers = {
            _key(prediction.item_id, [message["content"] for message in prediction.dialogue[:end:2]]):
                prediction.dialogue[end]["content"]
            for predictions in read_run(self.run).values()
            for prediction in predictions
            for end in range(1, len(prediction.dialogue), 2)
        }  # fmt: skip
        digest = hashlib.sha256(repr(sorted(self._answers.items())).encode()).hexdigest()
        self.name = f"{self.run.stem}@{digest[:12]}"

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        """The answer to each prompt, in order.

        Raises:
            InputError: options are to be scored, which takes the model.
        """
        if any(prompt.options for prompt in prompts):
            raise InputError(
                f"eval.mode=likelihood needs the model that answered in {self.run}; leave it out"
            )
        return [self._answer(prompt) for prompt in prompts]

    def _answer(self, prompt: Prompt) -> Response:
        questions = [message.content for message in prompt.messages if message.role == "user"]
        said = self._answers.get(_key(prompt.item_id, questions))
        if said is None:
            return Response(
                text="", failure=f"{self.run} has no answer to this question of {prompt.item_id!r}"
            )
        return Response(text=said)


def _key(item_id: str, questions: Sequence[str]) -> tuple[str, ...]:
    return item_id, *map(strip_tags, questions)


class Unjudged:
    """Rates nothing: for answers that other judges are to read, see `RecordedResponder`."""

    name = "unjudged"

    def judge(self, dialogues: Sequence[Dialogue]) -> list[Verdict]:
        return [Verdict(scores=None, judge=self.name, unscored_reason="not judged yet") for _ in dialogues]
