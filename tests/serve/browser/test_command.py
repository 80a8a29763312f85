"""`python -m sparkles.serve chat` itself."""

from pathlib import Path
from typing import Any

import pytest

from sparkles.prompt_format import image_reference
from sparkles.types import Image, Message, Prompt
from tests.serve.browser.command import running_chat
from tests.serve.conftest import Nano

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'sparkles[serve]'")


def test_the_command_serves_nano_and_writes_nothing(
    page: Any, nano: Nano, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.serve.browser.chat_page import ChatPage

    image = Image(image_id=1, path=pictures[0])
    asked = Message(role="user", content=f"Describe {image_reference(1)} briefly.", images=(image,))
    [expected] = nano.responder.respond([Prompt(messages=(asked,))])
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    with running_chat(f"feedback={tmp_path / 'feedback'}") as address:
        chat = ChatPage(page).open(address)
        assert chat.ask("Describe ", pictures[0], " briefly.") == expected.text.strip()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
