"""What users think of answers, kept as training data, one line of JSON for each answer that was rated.

    FOLDER/good.jsonl, bad.jsonl, flagged.jsonl    training files of the original, as `sparkles.data.annotations` reads
    FOLDER/images/                                 the pictures of rated answers, each once

Nothing else that users say or show is written to disk.
"""

import json
import os
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from filelock import FileLock

from sparkles.data.annotations import AnnotationError, sample_record
from sparkles.data.files import write_whole
from sparkles.prompt_format import PromptFormatError
from sparkles.serve.conversation import ChatError, Conversation, Verdict
from sparkles.types import Image, Sample


class Feedback:
    """Keeps rated answers in a folder; several servers may share it.

    Args:
        model: the name under which the answers are kept.
    """

    def __init__(self, folder: str | Path, *, model: str) -> None:
        self.folder = Path(folder)
        self.model = model

    def keep(self, conversation: Conversation, index: int, verdict: Verdict) -> None:
        """Write down what the user says of the answer of a turn. It is on disk when this returns, or not at all.

        An answer is rated once. Its record holds the dialogue up to it, without what was never answered.

        Raises:
            ChatError: there is no such answer, it has been rated, or it cannot be training data.
        """
        if verdict not in get_args(Verdict) or not 0 <= index < len(conversation.turns):
            raise ChatError(f"there is no answer {index} to be called {verdict!r:.20}")
        turn = conversation.turns[index]
        if not turn.answer or not turn.ending:
            raise ChatError("there is no answer yet to be rated")
        if turn.verdict:
            raise ChatError(f"this answer has been rated as {turn.verdict} already")
        until_here = Conversation(turns=conversation.turns[: index + 1], key=conversation.key)
        try:
            record = sample_record(self._sample(until_here))
        except (AnnotationError, PromptFormatError) as error:
            raise ChatError(f"this answer cannot be kept as training data: {error}") from error
        record |= {
            "verdict": verdict,
            "model": self.model,
            "sampling": asdict(turn.sampling),
            "ending": turn.ending,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        images = self.folder / "images"
        images.mkdir(parents=True, exist_ok=True)
        for upload in until_here.uploads.values():
            path = images / f"{upload.digest}{upload.suffix}"
            if not path.exists():
                write_whole(path, upload.content)
        _append(self.folder / f"{verdict}.jsonl", json.dumps(record).encode("ascii"))
        turn.verdict = verdict

    def _sample(self, conversation: Conversation) -> Sample:
        """The last turn with all before it; images have the ids of their files, while the text keeps its numbers."""
        uploads, prompt = conversation.uploads, conversation.prompt
        messages = tuple(
            replace(
                message,
                images=tuple(Image(image_id=uploads[str(image.image_id)].digest) for image in message.images),
            )
            for message in prompt.messages
        )
        item_id = f"{conversation.key}/turn{len(conversation.turns)}"
        return Sample(
            prompt=replace(prompt, messages=messages, item_id=item_id),
            answer=conversation.messages[-1].content,
        )


def _append(path: Path, line: bytes) -> None:
    """Write a line behind the others; what a crash left of one goes, since nobody was told that it is there."""
    with FileLock(f"{path}.lock"), path.open("a+b") as file:
        file.seek(0)
        whole_lines = file.read().rfind(b"\n") + 1
        file.truncate(whole_lines)
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())
