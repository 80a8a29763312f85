"""How likely a model finds each of some answers to a prompt; nothing is generated.

B prompts, K options of each, T tokens of the longest context, S of the longest ending, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from sparkles.data.encoding import Encoded, Encoder, EncodingError
from sparkles.eval.answers import conclusion
from sparkles.types import Prompt, Sample


class ChatModel(Protocol):
    """SparklesChat, as far as a responder needs it. It is also a `torch.nn.Module`."""

    language: PreTrainedModel

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """float[N, 3, H, W] -> float[N, Q, D_q]"""
        ...

    def encode_to_keep(self, pixel_values: Tensor) -> Tensor:
        """`encode_images`, rounded for a `FeatureCache`: float16[N, Q, D_q]."""
        ...

    def embed(self, input_ids: Tensor, pixel_values: Tensor, image_features: Tensor | None) -> Tensor:
        """Word embeddings with the images in their slots: float[B, T, D_lm]."""
        ...

    def generate(self, batch: Mapping[str, Tensor], **generation: Any) -> Tensor:
        """New token ids int64[B, S] of a left-padded batch."""
        ...


@dataclass(frozen=True, kw_only=True)
class Contest:
    """A prompt's options as the sentence that concludes the answer."""

    context: Encoded
    """The prompt, and what the sentences begin with in common."""
    endings: list[Tensor]
    """int64[S] for each option: the rest of its sentence, up to what ends an answer."""


def contest(prompt: Prompt, encoder: Encoder) -> Contest:
    """The prompt with each of its options as the answer.

    Args:
        encoder: with the system message in front of training texts, as prompts have it.

    Raises:
        EncodingError: a sentence does not fit behind the prompt.
    """
    answered = [
        encoder.encode_sample(Sample(prompt=prompt, answer=conclusion(option))) for option in prompt.options
    ]
    if any(one.dropped_tokens for one in answered):
        raise EncodingError(
            f"item {prompt.item_id!r}: no room for an answer behind the prompt; raise data.max_length"
        )
    # Prompt and answer are tokenised jointly, so that where they meet the tokens are those of training.
    ids = [one.input_ids for one in answered]
    columns = enumerate(zip(*ids, strict=False))
    shared = next((place for place, column in columns if len(set(column)) > 1), min(map(len, ids)))
    return Contest(
        context=Encoded(input_ids=ids[0][:shared], labels=None, images=answered[0].images),
        endings=[torch.tensor(one[shared:]) for one in ids],
    )


@torch.inference_mode()
def ending_log_probs(
    model: ChatModel, batch: Mapping[str, Tensor], endings: Sequence[Sequence[Tensor]]
) -> Tensor:
    """float32[B, K]: log probability of each context's endings, K of each, given the context.

    Each context, and each image in it, is read once.

    Args:
        batch: left-padded contexts, as for `generate`.
    """
    mask = batch["attention_mask"]  # [B, T]
    num_options = len(endings[0])
    context: Any = model.language(
        inputs_embeds=model.embed(batch["input_ids"], batch["pixel_values"], batch.get("image_features")),
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        logits_to_keep=1,
        use_cache=True,
    )
    context.cache.batch_repeat_interleave(num_options)
    rows = [ending.to(mask.device) for options in endings for ending in options]
    ids = pad_sequence(rows, batch_first=True)  # [B * K, S]
    real = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    mask = mask.repeat_interleave(num_options, dim=0)
    output: Any = model.language(
        input_ids=ids,
        attention_mask=torch.cat([mask, real], dim=1),
        position_ids=mask.sum(1, keepdim=True) + torch.arange(ids.shape[1], device=ids.device),
        cache=context.cache,
    )
    # The context's last token predicts the first of an ending, whose last token predicts nothing that counts.
    first = context.logits[:, -1:].repeat_interleave(num_options, dim=0)
    logits = torch.cat([first, output.logits[:, :-1]], dim=1)  # [B * K, S, V]
    log_probs = logits.float().log_softmax(dim=-1).gather(2, ids.unsqueeze(2)).squeeze(2)
    return (log_probs * real).sum(1).view(-1, num_options)
