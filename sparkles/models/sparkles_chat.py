"""SparklesChat: pictures become vectors that stand between the words, wherever the text refers to them.

B dialogues, T tokens, N images of the whole batch in order of use, P image tokens, Q query tokens per image,
V vocabulary, S new tokens; D_q and D_lm are the widths of Q-Former and language model. A batch is a dict of
    input_ids int64[B, T], with Q times IMAGE_TOKEN_ID per image      attention_mask int64[B, T]
    pixel_values float32[N, 3, H, W], N >= 0                          labels int64[B, T], -100 where no loss
    loss_weights float32[B, T], of the labels, if they differ         image_features float[N, Q, D_q], if known
"""

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from sparkles.models.decoding import greedy_options, shared_prefix
from sparkles.models.projector import Projector
from sparkles.models.qformer import QFormer
from sparkles.models.resampler import PatchPooling, Resampler
from sparkles.models.vision import VisionEncoder
from sparkles.types import IGNORE_INDEX, IMAGE_TOKEN_ID

QueryPart = QFormer | Resampler | PatchPooling

_IMAGES_PER_CALL = 16


class SparklesChat(nn.Module):
    """Frozen vision encoder and Q-Former, one trainable projector, frozen language model.

    `qformer` and `projector` may be given without the sizes of their neighbours, which they are then called with.
    A resampler in the Q-Former's place, or a Q-Former with `trainable=True`, learns together with the projector.
    """

    def __init__(
        self,
        *,
        vision: VisionEncoder,
        qformer: QueryPart | Callable[..., QueryPart],
        projector: Projector | Callable[..., Projector],
        language: PreTrainedModel,
        max_images_per_forward: int | None = None,
        length_groups: int = 1,
    ) -> None:
        super().__init__()
        if not isinstance(qformer, QueryPart):
            qformer = qformer(vision_hidden_size=vision.hidden_size)
        if not isinstance(projector, Projector):
            widths = qformer.hidden_size, language.get_input_embeddings().embedding_dim
            projector = projector(in_features=widths[0], out_features=widths[1])
        self.vision = vision.requires_grad_(False)
        self.qformer = qformer.requires_grad_(qformer.trainable)
        self.projector = projector
        self.language = language.requires_grad_(False)
        self.max_images_per_forward = max_images_per_forward  # bounds the memory of encode_images
        self.length_groups = length_groups  # parts of a training batch, by length, each padded for itself
        self.train()

    @property
    def trainable_parts(self) -> dict[str, nn.Module]:
        names = ("qformer", "projector") if self.qformer.trainable else ("projector",)
        return {name: self.get_submodule(name) for name in names}

    @property
    def frozen_parts(self) -> dict[str, nn.Module]:
        return {name: part for name, part in self.named_children() if name not in self.trainable_parts}

    def train(self, mode: bool = True) -> Self:
        """Only trainable parts ever leave eval mode: the frozen ones are used as they were trained."""
        super().train(mode)
        for part in self.frozen_parts.values():
            part.eval()
        return self

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """float[N, 3, H, W] -> float[N, Q, D_q], with a gradient only if the Q-Former's part is trainable.

        Without images that part runs all the same, on nothing that is kept; `embed` says why.
        """
        if not len(pixel_values):
            return self.qformer(pixel_values.new_zeros(1, 1, self.vision.hidden_size))[:0]
        chunks = pixel_values.split(self.max_images_per_forward or len(pixel_values))
        return torch.cat([self.qformer(self.vision(chunk)) for chunk in chunks])

    def encode_to_keep(self, pixel_values: Tensor) -> Tensor:
        """`encode_images` for features that are kept: float16[N, Q, D_q].

        Images go in calls of a fixed number, filled up with blank ones: what an image is rounded to then depends
        neither on the others nor on how many of them were kept already.
        """
        blank = pixel_values.new_zeros(-len(pixel_values) % _IMAGES_PER_CALL, *pixel_values.shape[1:])
        calls = torch.cat([pixel_values, blank]).split(_IMAGES_PER_CALL)
        return torch.cat([self.encode_images(call) for call in calls])[: len(pixel_values)].half()

    def embed(self, input_ids: Tensor, pixel_values: Tensor, image_features: Tensor | None = None) -> Tensor:
        """Word embeddings with the projected images in their slots: float[B, T, D_lm].

        `image_features` are what `encode_images` made of the pixels, which then are not read.

        Without images the trainable parts still take part, on no vectors: their gradient is then zero rather
        than absent, for which processes that share gradients would wait forever.
        """
        if image_features is None:
            image_features = self.encode_images(pixel_values)
        image_embeds = self.projector(image_features)  # [N, Q, D_lm]
        is_slot = input_ids == IMAGE_TOKEN_ID  # [B, T]
        n_slots, n = int(is_slot.sum()), image_embeds.shape[:2].numel()
        if n_slots != n:
            raise ValueError(
                f"{n_slots} image slots in input_ids but {n} image embeddings; was a dialogue truncated?"
            )
        text_embeds = self.language.get_input_embeddings()(input_ids.masked_fill(is_slot, 0))  # [B, T, D_lm]
        return text_embeds.masked_scatter(is_slot.unsqueeze(-1), image_embeds.to(text_embeds.dtype))

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Mean cross-entropy over the labelled tokens of the batch, by their weights if there are any: float32[]."""
        inputs_embeds = self.embed(batch["input_ids"], batch["pixel_values"], batch.get("image_features"))
        targets = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)  # [B, T], token t predicts t + 1
        weights = (targets != IGNORE_INDEX).float()
        if "loss_weights" in batch:
            weights = weights * F.pad(batch["loss_weights"][:, 1:], (0, 1))
        if not weights.any():
            raise ValueError("no labelled token in the batch; was every answer cut off by max_length?")
        by_length = batch["attention_mask"].sum(1).argsort()
        groups = by_length.chunk(self.length_groups)
        losses = [
            self._summed_loss(
                inputs_embeds.index_select(0, rows),
                batch["attention_mask"][rows],
                targets[rows],
                weights[rows],
            )
            for rows in groups
        ]
        return torch.stack(losses).sum() / weights.sum()

    def _summed_loss(
        self, inputs_embeds: Tensor, attention_mask: Tensor, targets: Tensor, weights: Tensor
    ) -> Tensor:
        """Weighted sum of the targets' cross-entropy; columns in which every row is padding are left out."""
        used = attention_mask.any(dim=0)  # [T], columns in a row
        start, length = int(used.int().argmax()), int(used.sum())
        attention_mask = attention_mask.narrow(1, start, length)
        targets, weights = targets.narrow(1, start, length), weights.narrow(1, start, length)
        columns = weights.any(dim=0).nonzero().squeeze(1)  # [K], with a loss in any row
        output = self.language(
            inputs_embeds=inputs_embeds.narrow(1, start, length),
            # Padding behind everything is seen by none that counts; without a mask attention is faster.
            attention_mask=None if attention_mask[:, 0].all() else attention_mask,
            logits_to_keep=columns,  # the vocabulary is large: no logits where nothing is learned
            use_cache=False,
        )
        losses = F.cross_entropy(
            output.logits.float().flatten(0, 1), targets[:, columns].flatten(), reduction="none"
        )
        return losses @ weights[:, columns].flatten()

    @torch.no_grad()
    def generate(self, batch: Mapping[str, Tensor], **generation: Any) -> Tensor:
        """New token ids int64[B, S] of a left-padded batch; `generation` is for transformers' `generate`."""
        input_ids, attention_mask = batch["input_ids"], batch["attention_mask"]
        if not attention_mask[:, -1].all():
            raise ValueError("generation goes on from the last token, which is padding here; pad on the left")
        shared = shared_prefix(input_ids, attention_mask)
        return self.language.generate(  # type: ignore[operator]  # every causal LM has it
            inputs_embeds=self.embed(input_ids, batch["pixel_values"], batch.get("image_features")),
            attention_mask=attention_mask,  # position ids follow from it, so padding does not count
            **greedy_options(self.language, generation, shared=shared),
            **generation,
        )
