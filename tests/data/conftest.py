"""A tokenizer whose ids can be read in a test, and a small data set on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from sparkles.data.annotations import write_samples
from sparkles.data.encoding import Encoder
from sparkles.data.images import ImageTransform
from sparkles.data.mixture import SubsetSpec
from sparkles.prompt_format import MINIGPT4, image_reference
from sparkles.types import Dialogue, Image, Message, Prompt, Sample

NUM_QUERY_TOKENS = 3


class CharacterTokenizer:
    """One character, one token: its code point. BOS is 1, EOS is 2."""

    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    pad_token_id: int | None = None

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [[ord(character) for character in segment] for segment in text]}

    def decode(self, token_ids: list[int]) -> str:
        return "".join("^" if token_id == self.bos_token_id else chr(token_id) for token_id in token_ids)


def _user(text: str, *image_ids: int | str) -> Message:
    references = " and ".join(image_reference(image_id) for image_id in image_ids)
    images = tuple(Image(image_id=image_id, caption=f"caption of {image_id}") for image_id in image_ids)
    return Message(role="user", content=f"{text} {references}".strip(), images=images)


@pytest.fixture
def tokenizer() -> CharacterTokenizer:
    return CharacterTokenizer()


@pytest.fixture
def user() -> Callable[..., Message]:
    """user("compare", 1, 2): a message that refers to images 1 and 2."""
    return _user


@pytest.fixture
def make_encoder(tokenizer: CharacterTokenizer) -> Callable[..., Encoder]:
    def make(**changes: Any) -> Encoder:
        settings: dict[str, Any] = {
            "tokenizer": tokenizer,
            "prompt_format": MINIGPT4,
            "num_query_tokens": NUM_QUERY_TOKENS,
            "max_length": 1000,
        }
        return Encoder(**settings | changes)

    return make


@pytest.fixture
def dialogue() -> Dialogue:
    """Two turns: images 7 and 12, then image 3."""
    return Dialogue(
        dialogue_id="41",
        messages=(
            _user("compare", 7, 12),
            Message(role="assistant", content="IMAGE#7 is larger."),
            _user("and", 3),
            Message(role="assistant", content="It is small."),
        ),
    )


@pytest.fixture
def make_subset(tmp_path: Path) -> Callable[..., SubsetSpec]:
    """make_subset("cc", 5, ratio=2): five samples on disk with 0, 1, 2, 0, 1, ... images in their last turn."""

    def make(name: str, size: int, *, turn: int = 1, **changes: Any) -> SubsetSpec:
        earlier = (_user("earlier"), Message(role="assistant", content="answered")) * (turn - 1)
        folder = tmp_path / name
        folder.mkdir()
        gradient = PIL.Image.linear_gradient("L").resize((12, 12))
        samples = []
        for index in range(size):
            image_ids = [f"{name}{index}-{place}" for place in range(index % 3)]
            for place, image_id in enumerate(image_ids):
                solid = PIL.Image.new("L", gradient.size, index * 30 % 256)
                picture = PIL.Image.merge("RGB", (gradient, gradient.rotate(90 * (place + 1)), solid))
                picture.save(folder / f"{image_id}.png")
            prompt = Prompt(messages=(*earlier, _user(f"question {index}", *image_ids)))
            samples.append(Sample(prompt=prompt, answer=f"{name} answer {index}"))
        write_samples(tmp_path / f"{name}.json", samples)
        settings: dict[str, Any] = {"annotations": tmp_path / f"{name}.json", "images": folder}
        return SubsetSpec(name=name, **settings | changes)

    return make


@pytest.fixture
def transform() -> ImageTransform:
    return ImageTransform(image_size=8)
