"""Scripted responders and judges, a tiny model, and small benchmark files with pictures."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sparkles.data.encoding import Encoder
from sparkles.data.images import ImageTransform
from sparkles.eval.benchmark import Prediction, Score
from sparkles.eval.bison import Bison
from sparkles.eval.responders import ModelResponder
from sparkles.eval.sparkles_eval import SparklesEval
from sparkles.models.projector import Projector
from sparkles.models.qformer import QFormer
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.models.vision import VisionEncoder
from sparkles.prompt_format import MINIGPT4
from sparkles.types import CRITERIA, CriterionScores, Dialogue, Image, Message, Prompt, Response, Verdict

IMAGE_SIZE, NUM_QUERIES = 16, 2


@dataclass
class ScriptedResponder:
    """Says `answer(prompt)`; Ctrl-C arrives with prompt number `interrupt_at` (from 0)."""

    answer: Callable[[Prompt], str] = lambda prompt: "Therefore, the answer is IMAGE#1."
    name: str = "scripted"
    interrupt_at: int | None = None
    asked: list[Prompt] = field(default_factory=list)

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        for prompt in prompts:
            if len(self.asked) == self.interrupt_at:
                raise KeyboardInterrupt
            self.asked.append(prompt)
        return [Response(text=self.answer(prompt), seconds=0.25) for prompt in prompts]


@dataclass
class ScriptedJudge:
    """Rates a dialogue as `ratings` has it by dialogue id, with one number for all; cannot rate any other."""

    ratings: Mapping[str, float]
    name: str = "scripted judge 1"
    judged: list[Dialogue] = field(default_factory=list)

    def judge(self, dialogues: Sequence[Dialogue]) -> list[Verdict]:
        self.judged += dialogues
        return [self._verdict(self.ratings.get(dialogue.dialogue_id)) for dialogue in dialogues]

    def _verdict(self, rating: float | None) -> Verdict:
        if rating is None:
            return Verdict(scores=None, judge=self.name, unscored_reason="unreadable reply")
        scores = {answer: dict.fromkeys(CRITERIA, rating) for answer in ("A1", "A2")}
        reasons = {answer: dict.fromkeys(CRITERIA, "as scripted") for answer in ("A1", "A2")}
        return Verdict(scores=scores, reasons=reasons, judge=self.name)


@pytest.fixture
def scripted_responder() -> type[ScriptedResponder]:
    return ScriptedResponder


@pytest.fixture
def scripted_judge() -> type[ScriptedJudge]:
    return ScriptedJudge


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with red.png, green.png, 804.png, 33.jpg and the pair test1-7-3-img0.png, test1-7-3-img1.png."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    colors = {"red.png": "red", "green.png": "green", "804.png": "blue", "33.jpg": "white"}
    pair = {"test1-7-3-img0.png": "red", "test1-7-3-img1.png": "black"}
    for name, color in (colors | pair).items():
        PIL.Image.new("RGB", (20, 10), color).save(folder / name)
    return folder


@pytest.fixture
def bison_file(tmp_path: Path) -> Path:
    """Four records: 1 and 3 show the true picture first, 2 and 4 second; the last two are of kind place."""
    records = [
        {
            "evaluation_id": number,
            "caption": f"something red, number {number}",
            "true_image_id": 7,
            "image_candidates": [
                {"image_id": 7, "image_filename": "red.png"},
                {"image_id": 8, "image_filename": "green.png"},
            ][:: 1 if number % 2 else -1],
            "kind": "color" if number <= 2 else "place",
        }
        for number in range(1, 5)
    ]
    return _write(tmp_path / "bison.json", records)


@pytest.fixture
def dialogue_file(tmp_path: Path) -> Path:
    """Two SparklesEval records with the ids 7 and 9."""
    records = [
        {
            "evaluation_id": number,
            "dialogue": [
                {
                    "role": "user",
                    "content": "See IMAGE#804<Img><ImageHere></Img>?",
                    "images": [{"image_id": 804, "caption": "a blue field"}],
                },
                {"role": "assistant", "content": "The reference answer."},
                {
                    "role": "user",
                    "content": f"And IMAGE#33<Img><ImageHere></Img>, for {number}?",
                    "images": [{"image_id": 33, "caption": "snow"}],
                },
                {"role": "assistant", "content": "Another."},
            ],
        }
        for number in (7, 9)
    ]
    return _write(tmp_path / "sparkles_eval.json", records)


@pytest.fixture
def bison(bison_file: Path, pictures: Path) -> Bison:
    return Bison(annotations=bison_file, images=pictures)


@pytest.fixture
def dialogues(dialogue_file: Path, pictures: Path) -> SparklesEval:
    return SparklesEval(annotations=dialogue_file, images=pictures)


@pytest.fixture
def prompt(pictures: Path) -> Prompt:
    red, green = (
        Image(image_id=number, caption=f"something {color}", path=pictures / f"{color}.png")
        for number, color in enumerate(["red", "green"], start=1)
    )
    return Prompt(
        messages=(
            Message(role="user", content="See IMAGE#1<Img><ImageHere></Img>!", images=(red,)),
            Message(role="assistant", content="I do."),
            Message(role="user", content="And IMAGE#2<Img><ImageHere></Img>?", images=(green,)),
        )
    )


def _write(path: Path, records: object) -> Path:
    path.write_text(json.dumps(records))
    return path


@pytest.fixture
def make_prediction() -> Callable[..., Prediction]:
    """An item of one question, or with `rating` (and `answers`) a rated dialogue of two turns."""

    def make(
        item_id: str = "1",
        *,
        correct: bool = True,
        answer: str | None = "TRUE",
        question: str = "",
        pictures: Sequence[str] = (),
        rating: float | Mapping[str, CriterionScores] | None = None,
        answers: Sequence[str] = (),
        judge: str = "judge",
    ) -> Prediction:
        images = [
            {"image_id": number, "caption": "", "path": path, "box": None}
            for number, path in enumerate(pictures, start=1)
        ]
        question = question or f"question {item_id}"
        tags = "".join(f" IMAGE#{image['image_id']}<Img><ImageHere></Img>" for image in images)
        dialogue: list[dict[str, Any]] = []
        for number, said in enumerate(answers or ["Therefore, the answer is TRUE."]):
            shown = images if number == 0 else []
            dialogue += [
                {"role": "user", "content": question + (tags if shown else ""), "images": shown},
                {"role": "assistant", "content": said, "images": []},
            ]
        if answers:
            if isinstance(rating, float | int):
                rating = {name: dict.fromkeys(CRITERIA, float(rating)) for name in ("A1", "A2")}
            score = Score(verdict=Verdict(scores=rating, judge=judge))
        else:
            score = Score(answer=answer, correct=correct and answer is not None)
        return Prediction(
            item_id=item_id,
            kind="",
            prompt=question,
            image_ids=[image["image_id"] for image in images],
            dialogue=dialogue,
            tries=[{"turn": 1, "response": "", "seconds": 0.0, "truncated": False}],
            key="",
            label=None if answers else "TRUE",
            score=score,
        )

    return make


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """A run folder with the predictions of each benchmark."""

    def write(name: str, **benchmarks: Sequence[Prediction]) -> Path:
        folder = tmp_path / name / "predictions"
        folder.mkdir(parents=True)
        for benchmark, predictions in benchmarks.items():
            lines = "".join(f"{prediction.to_json()}\n" for prediction in predictions)
            (folder / f"{benchmark}.jsonl").write_text(lines)
        return folder.parent

    return write


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """One character, one token."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *map(chr, range(32, 127))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="?"
    )
    return Encoder(tokenizer=tokenizer, prompt_format=MINIGPT4, num_query_tokens=NUM_QUERIES, max_length=600)


@pytest.fixture(scope="session")
def model() -> SparklesChat:
    """Of random weights, for pictures of `IMAGE_SIZE` pixels."""
    torch.manual_seed(0)
    language = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=98,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            initializer_range=0.3,  # enough for greedy choices that differ from token to token
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    return SparklesChat(
        vision=VisionEncoder(
            name="vit_tiny_patch16_224", img_size=IMAGE_SIZE, patch_size=8, embed_dim=24, depth=2, num_heads=2
        ),
        qformer=QFormer(
            vision_hidden_size=24,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            num_query_tokens=NUM_QUERIES,
        ),
        projector=Projector(in_features=16, out_features=32),
        language=language,
    )


@pytest.fixture(scope="session")
def greedy() -> Mapping[str, Any]:
    """Random weights choose any token; without the special ones every answer has its full length."""
    return {"max_new_tokens": 12, "do_sample": False, "suppress_tokens": [0, 1, 2]}


@pytest.fixture
def make_responder(
    model: SparklesChat, encoder: Encoder, greedy: Mapping[str, Any]
) -> Callable[..., ModelResponder]:
    def make(**options: Any) -> ModelResponder:
        transform = ImageTransform(image_size=IMAGE_SIZE)
        return ModelResponder(
            **{"model": model, "encoder": encoder, "transform": transform, "generation": greedy} | options
        )

    return make
