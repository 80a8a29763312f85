"""Teach the miniature's language model its language and its tasks from text alone."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.data import IterableDataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from sparkles.nano.corpus import Conversation, random_conversation, slot_words
from sparkles.nano.language import NUMBERS
from sparkles.nano.muon import BatchedMuon
from sparkles.nano.world import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES
from sparkles.prompt_format import IMAGE_PLACEHOLDER, MINIGPT4
from sparkles.types import IGNORE_INDEX, IMAGE_TOKEN_ID

SLOTS_PER_IMAGE = len(PLACES) + 2
MAX_WORDS_PER_SLOT = 4
FACT_WORDS = (
    *SIZES,
    *COLORS,
    *SHAPES,
    *BACKGROUNDS,
    *PLACES,
    *NUMBERS,
    "nothing",
    "more",
    "fewer",
    "same",
    "another",
)
VERDICT_WORDS = ("yes", "no", "TRUE", "FALSE")


def build_language_model(vocabulary_size: int) -> LlamaForCausalLM:
    """A LLaMA of about a million parameters with random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary_size,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=2048,
            rms_norm_eps=1e-6,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
            initializer_range=0.02,
        )
    )


@dataclass(frozen=True)
class TextSequence:
    """One conversation as ids: image slots hold IMAGE_TOKEN_ID, `slots` the word ids of each slot in order."""

    input_ids: list[int]
    labels: list[int]
    slots: list[list[int]]


def encode_conversation(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, *, system: bool
) -> TextSequence:
    """All turns in one sequence, with loss on every answer and on the separator behind it."""
    text = MINIGPT4.system_message if system else ""
    learned = bytearray()  # 1 for each character with loss
    for message in conversation.messages:
        if message.role == "user":
            text += MINIGPT4.user_prefix + message.content + MINIGPT4.assistant_prefix
        else:
            answer = MINIGPT4.answer_prefix + message.content
            learned += bytes(len(text) - len(learned)) + b"\1" * len(answer + MINIGPT4.end_of_answer)
            text += answer
    text += MINIGPT4.end_of_answer

    input_ids, labels = [tokenizer.bos_token_id], [IGNORE_INDEX]
    position = 0
    segments = text.split(IMAGE_PLACEHOLDER)
    stripped = [segment.strip(" ") for segment in segments]
    encoded = tokenizer(stripped, add_special_tokens=False, return_offsets_mapping=True)
    tokens = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    for index, (segment, (ids, offsets)) in enumerate(zip(segments, tokens, strict=True)):
        if index > 0:
            input_ids += [IMAGE_TOKEN_ID] * SLOTS_PER_IMAGE
            labels += [IGNORE_INDEX] * SLOTS_PER_IMAGE
            position += len(IMAGE_PLACEHOLDER)
        origin = position + len(segment) - len(segment.lstrip(" "))
        input_ids += ids
        labels += [
            IGNORE_INDEX if 0 in learned[origin + begin : origin + end] else token
            for token, (begin, end) in zip(ids, offsets, strict=True)
        ]
        position += len(segment)
    slots = [word_ids(words, tokenizer) for scene in conversation.scenes for words in slot_words(scene)]
    return TextSequence(input_ids, labels, slots)


def word_ids(words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a slot's words, filled up with -1: int[MAX_WORDS_PER_SLOT]."""
    ids = tokenizer.convert_tokens_to_ids(["▁" + word for word in words])
    assert isinstance(ids, list)
    return ids + [-1] * (MAX_WORDS_PER_SLOT - len(ids))


class ConversationStream(IterableDataset[dict[str, torch.Tensor]]):
    """Endless batches of conversations of similar length, each about `tokens_per_batch` tokens with padding.

    Deterministic by seed; meant for at most one loader worker.

    Args:
        dialogues: share of two-turn dialogues; the rest are questions about pairs of images.
        forced_choices, forced_empty: see `random_conversation`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        tokens_per_batch: int,
        dialogues: float,
        forced_choices: float = 0.0,
        forced_empty: float = 0.0,
        seed: int,
        num_batches: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.tokens_per_batch = tokens_per_batch
        self.dialogues = dialogues
        self.forced_choices = forced_choices
        self.forced_empty = forced_empty
        self.seed = seed
        self.num_batches = num_batches

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        rng = random.Random(self.seed)
        made = 0
        while made < self.num_batches:
            sequences = [
                encode_conversation(
                    random_conversation(
                        rng,
                        dialogues=self.dialogues,
                        forced_choices=self.forced_choices,
                        forced_empty=self.forced_empty,
                    ),
                    self.tokenizer,
                    system=rng.random() < 0.4,
                )
                for _ in range(512)
            ]
            batches = self._bucket(sequences)
            rng.shuffle(batches)
            for batch in batches[: self.num_batches - made]:
                yield pad_text_batch(batch, pad_token_id=self.tokenizer.pad_token_id)
                made += 1

    def _bucket(self, sequences: list[TextSequence]) -> list[list[TextSequence]]:
        batches: list[list[TextSequence]] = [[]]
        for sequence in sorted(sequences, key=lambda s: len(s.input_ids)):
            if (len(batches[-1]) + 1) * len(sequence.input_ids) > self.tokens_per_batch and batches[-1]:
                batches.append([])
            batches[-1].append(sequence)
        return batches


def pad_text_batch(batch: Sequence[TextSequence], *, pad_token_id: int) -> dict[str, torch.Tensor]:
    """input_ids, labels int64[B, T] padded on the right; slots int64[slots of the batch, MAX_WORDS_PER_SLOT]."""
    length = max(len(sequence.input_ids) for sequence in batch)
    input_ids = torch.full((len(batch), length), pad_token_id)
    labels = torch.full((len(batch), length), IGNORE_INDEX)
    for row, sequence in enumerate(batch):
        input_ids[row, : len(sequence.input_ids)] = torch.tensor(sequence.input_ids)
        labels[row, : len(sequence.labels)] = torch.tensor(sequence.labels)
    slots = torch.tensor([slot for sequence in batch for slot in sequence.slots])
    return {"input_ids": input_ids, "labels": labels, "slots": slots}


def embed_with_words(
    batch: dict[str, torch.Tensor],
    embedding: torch.nn.Module,
    *,
    jitter: float = 0.0,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Input embeddings in which each image slot is the sum of its words' embeddings: float[B, T, D].

    Args:
        jitter: spread of the words' random weights and of the noise, so that the model forgives inexact projections.
    """
    input_ids, slots = batch["input_ids"], batch["slots"]
    is_slot = input_ids == IMAGE_TOKEN_ID
    inputs_embeds = embedding(input_ids.clamp_min(0))
    words = embedding(slots.clamp_min(0))  # [slots, words, D]
    weights = (slots >= 0).to(words.dtype)
    if jitter:
        weights = weights * (1 + jitter * (2 * torch.rand(weights.shape, generator=generator) - 1))
    sums = (words * weights.unsqueeze(-1)).sum(1)
    if jitter:
        scale = sums.detach().pow(2).mean().sqrt()
        sums = sums + jitter * 0.4 * scale * torch.randn(sums.shape, generator=generator)
    return inputs_embeds.masked_scatter(is_slot.unsqueeze(-1), sums)


def target_weights(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Loss weight of each vocabulary entry: verdicts 3, facts 2, all else 1. float[V]"""
    weights = torch.ones(len(tokenizer))
    for words, weight in ((FACT_WORDS, 2.0), (VERDICT_WORDS, 3.0)):
        weights[[tokenizer.convert_tokens_to_ids("▁" + word) for word in words]] = weight
    return weights


class LanguageLoss:
    """Weighted mean cross entropy at the labelled positions. No attention mask: padding is behind everything.

    Behind the last attention, only these positions go on.

    Args:
        weights: float[V], see `target_weights`.
        compile_backend: of `torch.compile`, which makes one set of kernels for batches of all shapes; None for none.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        weights: torch.Tensor,
        *,
        jitter: float,
        compile_backend: str | None = None,
    ) -> None:
        self.model = model
        self.weights = weights
        self.jitter = jitter
        self._attended, self._loss = self._attend, self._read_out
        if compile_backend is not None:
            self._attended, self._loss = (
                torch.compile(part, backend=compile_backend, dynamic=True)
                for part in (self._attend, self._read_out)
            )

    def __call__(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        embeds = embed_with_words(batch, self.model.get_input_embeddings(), jitter=self.jitter)
        targets = batch["labels"][:, 1:]
        learned = targets != IGNORE_INDEX
        loss: torch.Tensor = self._loss(self._attended(embeds)[:, :-1][learned], targets[learned])
        return loss

    def _attend(self, embeds: torch.Tensor) -> torch.Tensor:
        """float[B, T, D] -> float[B, T, D], of which the last layer's feed-forward part is yet to come."""
        decoder = self.model.model
        rotary = decoder.rotary_emb(embeds, position_ids=torch.arange(embeds.shape[1])[None])
        hidden = embeds
        for layer in decoder.layers[:-1]:
            hidden = layer(hidden, position_embeddings=rotary)
        last = decoder.layers[-1]
        attended, _ = last.self_attn(
            last.input_layernorm(hidden), position_embeddings=rotary, attention_mask=None
        )
        return hidden + attended

    def _read_out(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """float[N, D] of the labelled positions, int64[N] -> float[]"""
        last = self.model.model.layers[-1]
        hidden = hidden + last.mlp(last.post_attention_layernorm(hidden))
        logits = self.model.lm_head(self.model.model.norm(hidden))
        weights = self.weights[targets]
        return (F.cross_entropy(logits, targets, reduction="none") * weights).sum() / weights.sum()


def build_optimizers(model: LlamaForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for everything else."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        BatchedMuon(matrices, lr=lr, weight_decay=0.01),
        torch.optim.AdamW(others, lr=lr, weight_decay=0.01, betas=(0.9, 0.98)),
    ]
