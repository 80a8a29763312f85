"""A tiny SparklesChat with random weights, and batches of dialogues for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from sparkles.models.projector import Projector
from sparkles.models.qformer import QFormer
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.models.vision import VisionEncoder
from sparkles.types import IGNORE_INDEX, IMAGE_TOKEN_ID

IMAGE_SIZE, NUM_QUERIES, VOCABULARY, PAD = 16, 3, 40, 0


@dataclass(frozen=True)
class TinyDialogue:
    """`ids` hold NUM_QUERIES slots per image; the last `num_labels` of them are the answer."""

    ids: list[int]
    num_labels: int
    images: Tensor

    @property
    def labels(self) -> list[int]:
        return [IGNORE_INDEX] * (len(self.ids) - self.num_labels) + self.ids[-self.num_labels :]


@pytest.fixture
def make_model() -> Callable[..., SparklesChat]:
    def make(seed: int = 0, hidden_features: Sequence[int] = (), **options: Any) -> SparklesChat:
        torch.manual_seed(seed)
        language = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                initializer_range=0.3,  # enough for greedy choices that differ from token to token
                eos_token_id=1,
                pad_token_id=PAD,
            )
        )
        return SparklesChat(
            vision=VisionEncoder(
                name="vit_tiny_patch16_224",
                img_size=IMAGE_SIZE,
                patch_size=8,
                embed_dim=24,
                depth=2,
                num_heads=2,
            ),
            qformer=QFormer(
                vision_hidden_size=24,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                num_query_tokens=NUM_QUERIES,
            ),
            projector=Projector(in_features=16, out_features=32, hidden_features=hidden_features),
            language=language,
            **options,
        )

    return make


@pytest.fixture
def model(make_model: Callable[..., SparklesChat]) -> SparklesChat:
    return make_model()


@pytest.fixture
def dialogues() -> list[TinyDialogue]:
    """Of different lengths, with 2, 0, 1 and 4 images between the words."""
    generator = torch.Generator().manual_seed(7)

    def make(num_images: int, num_labels: int) -> TinyDialogue:
        def words(n: int) -> list[int]:
            return torch.randint(2, VOCABULARY, (n,), generator=generator).tolist()

        ids = words(2)
        for _ in range(num_images):
            ids += [IMAGE_TOKEN_ID] * NUM_QUERIES + words(2)
        images = torch.randn(num_images, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
        return TinyDialogue(ids + words(num_labels), num_labels, images)

    return [make(2, 5), make(0, 3), make(1, 7), make(4, 2)]


@pytest.fixture
def make_batch() -> Callable[..., dict[str, Tensor]]:
    def make(dialogues: Sequence[TinyDialogue], *, side: str = "right", extra: int = 0) -> dict[str, Tensor]:
        length = max(len(dialogue.ids) for dialogue in dialogues) + extra

        def pad(row: list[int], value: int) -> list[int]:
            padding = [value] * (length - len(row))
            return row + padding if side == "right" else padding + row

        return {
            "input_ids": torch.tensor([pad(dialogue.ids, PAD) for dialogue in dialogues]),
            "attention_mask": torch.tensor([pad([1] * len(dialogue.ids), 0) for dialogue in dialogues]),
            "labels": torch.tensor([pad(dialogue.labels, IGNORE_INDEX) for dialogue in dialogues]),
            "pixel_values": torch.cat([dialogue.images for dialogue in dialogues]),
        }

    return make
