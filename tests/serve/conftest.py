"""The nano model behind an engine and an endpoint, and scenes to ask about."""

import base64
import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import openai
import PIL.Image
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from sparkles.config import CONFIG_DIR, register_resolvers
from sparkles.data.encoding import Encoder
from sparkles.data.images import ImageTransform, load_image
from sparkles.eval.responders import ModelResponder
from sparkles.launch import build_module
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.nano.world import random_scene, render
from sparkles.prompt_format import image_reference
from sparkles.serve.answer_text import AnswerText
from sparkles.serve.api import build_app
from sparkles.serve.conversation import Conversation, Turn, Upload
from sparkles.serve.engine import Engine
from sparkles.serve.question import Question, Sampling
from sparkles.types import Image, Message, Prompt
from tests.serve.running_server import RunningServer

MODEL = "SparklesChat"
MAX_TOKENS = 80
QUESTIONS = (
    "Describe {} briefly.",
    "What is the difference between {} and {}?",
    "Compare {}, {} and {} with each other.",
    "What do {}, {}, {} and {} have in common?",
)


class EndlessText(AnswerText):
    """An answer that only its limit ends."""

    ended = property(lambda self: False, lambda self, value: None)  # type: ignore[assignment]


@dataclass(frozen=True)
class Nano:
    """The parts that an engine is made of."""

    model: SparklesChat
    encoder: Encoder
    transform: ImageTransform

    def engine(self, **options: Any) -> Engine:
        return Engine(model=self.model, encoder=self.encoder, transform=self.transform, **options)

    @cached_property
    def responder(self) -> ModelResponder:
        return ModelResponder(
            model=self.model,
            encoder=self.encoder,
            transform=self.transform,
            generation={"max_new_tokens": MAX_TOKENS},
        )

    def question(self, prompt: Prompt, *, choices: int = 1, **sampling: Any) -> Question:
        encoded = self.encoder.encode_prompt(prompt)
        return Question(
            encoded=encoded,
            pixel_values=[self.transform(load_image(image)) for image in encoded.images],
            sampling=Sampling(**{"max_tokens": MAX_TOKENS, **sampling}),
            choices=choices,
        )


@pytest.fixture(scope="session")
def nano() -> Nano:
    register_resolvers()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("api")
    datamodule = instantiate(cfg.data, _convert_="all")
    return Nano(build_module(cfg).model, datamodule.encoder, datamodule.eval_transform)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[Path]]:
    """The files of so many different scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    rng = random.Random(0)

    def draw(number: int) -> list[Path]:
        files = [folder / f"{index}.png" for index in range(number)]
        for file in files:
            if not file.exists():
                render(random_scene(rng, "train")).save(file)
        return files

    return draw


@pytest.fixture(scope="session")
def prompts(scenes: Callable[[int], list[Path]]) -> Callable[[int], list[Prompt]]:
    """So many different prompts about one to four scenes each, every fifth in its second turn."""

    def ask(number: int) -> list[Prompt]:
        rng, files, asked = random.Random(1), scenes(max(8, number)), []
        for index in range(number):
            text = QUESTIONS[index % len(QUESTIONS)]
            shown = [files[index], *rng.sample(files, 3)][: text.count("{}")]
            images = tuple(Image(image_id=place, path=path) for place, path in enumerate(shown, start=1))
            content = text.format(*(image_reference(image.image_id) for image in images))
            messages: tuple[Message, ...] = (Message(role="user", content=content, images=images),)
            if index % 5 == 4:
                said = Message(role="assistant", content="There is a big red star at the top left.")
                messages += (said, Message(role="user", content="Are you sure about IMAGE#1?"))
            asked.append(Prompt(messages=messages, item_id=str(index)))
        return asked

    return ask


@pytest.fixture(scope="session")
def engine(nano: Nano) -> Iterator[Engine]:
    engine = nano.engine()
    yield engine
    engine.close()


@pytest.fixture
def conversation(scenes: Callable[[int], list[Path]]) -> Conversation:
    """Three scenes: shown without an answer, then compared, then asked about."""
    one, two, three = (Upload(path.read_bytes()) for path in scenes(3))
    drawn = Sampling(max_tokens=40, temperature=0.5, seed=3)
    return Conversation(
        turns=[
            Turn(("Look at ", one, "."), drawn, ending="stopped"),
            Turn(("Compare it with ", two, "."), drawn, answer="IMAGE#2 has more objects.", ending="stop"),
            Turn(("And ", three, "?"), drawn, answer="IMAGE#3 has a red star, as IMAGE#1", ending="length"),
        ]
    )


@pytest.fixture(scope="session")
def base_url(engine: Engine) -> Iterator[str]:
    """Of an endpoint without a key, with all limits as they come."""
    app = build_app(engine, name=MODEL, defaults=Sampling(max_tokens=MAX_TOKENS))
    with RunningServer(app) as server:
        yield server.base_url


@pytest.fixture(scope="session")
def client(base_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)


def data_url(picture: Path | PIL.Image.Image) -> str:
    """The picture as clients send it."""
    if isinstance(picture, Path):
        content = picture.read_bytes()
    else:
        file = io.BytesIO()
        picture.save(file, "PNG")
        content = file.getvalue()
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
