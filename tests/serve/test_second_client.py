"""The endpoint, asked by a public program that is not ours: inspect_ai, in its own interpreter if that is named."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sparkles.prompt_format import IMAGE_TAG
from sparkles.types import Prompt
from tests.serve.conftest import Nano

PYTHON = os.environ.get("SPARKLES_INSPECT_PYTHON", sys.executable)


def has_inspect() -> bool:
    found = subprocess.run(
        [PYTHON, "-c", "import importlib.util as u, sys; sys.exit(not u.find_spec('inspect_ai'))"]
    )
    return found.returncode == 0


def parts(prompt: Prompt) -> list[dict[str, str]]:
    """The one message of a prompt, as `inspect_items` reads it."""
    (message,) = prompt.messages
    first, *rest = message.content.split(IMAGE_TAG)
    shown = [{"text": first}]
    for image, words in zip(message.images, rest, strict=True):
        shown += [{"image": str(image.path)}, {"text": words}]
    return [part for part in shown if part != {"text": ""}]


@pytest.mark.slow
def test_inspect_ai_gets_the_responders_answers(
    base_url: str, nano: Nano, prompts: Callable[[int], list[Prompt]], tmp_path: Path
) -> None:
    if not has_inspect():
        pytest.skip(
            "inspect_ai is not installed; SPARKLES_INSPECT_PYTHON may name an interpreter that has it"
        )
    asked = [prompt for prompt in prompts(10) if len(prompt.messages) == 1]
    items = tmp_path / "items.json"
    items.write_text(json.dumps([parts(prompt) for prompt in asked]))
    answered = subprocess.run(
        [PYTHON, str(Path(__file__).parent / "inspect_items.py"), str(items), str(tmp_path / "logs")],
        env={**os.environ, "SPARKLES_BASE_URL": base_url, "SPARKLES_API_KEY": "none"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answered.returncode == 0, answered.stderr
    expected = [response.text for response in nano.responder.respond(asked)]
    assert json.loads(answered.stdout.splitlines()[-1]) == expected
