"""SparklesChat: pictures become vectors that stand between the words, wherever the text refers to them.

B dialogues, T tokens, N images of the whole batch in order of use, P image tokens, Q query tokens per image,
V vocabulary, S new tokens; D_q and D_lm are the widths of Q-Former and language model. A batch is a dict of
    input_ids int64[B, T], with Q times IMAGE_TOKEN_ID per image      attention_mask int64[B, T]
    pixel_values float32[N, 3, H, W], N >= 0                          labels int64[B, T], -100 where no loss
    loss_weights float32[B, T], of the labels, if they differ         image_features float[N, Q, D_q], if known
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from sparkles.models.cache import Beginnings
from sparkles.models.decoding import PromptReader, RunningBatch
from sparkles.models.learning import check_backend, compile_layers, recompute_activations
from sparkles.models.projector import Projector
from sparkles.models.qformer import QFormer
from sparkles.models.resampler import PatchPooling, Resampler
from sparkles.models.rows import Rows, in_groups, pack
from sparkles.models.vision import VisionEncoder
from sparkles.types import IGNORE_INDEX, IMAGE_TOKEN_ID, InputError

QueryPart = QFormer | Resampler | PatchPooling

_IMAGES_PER_CALL = 16


class SparklesChat(nn.Module):
    """Frozen vision encoder and Q-Former, one trainable projector, frozen language model.

    `qformer` and `projector` may be given without the sizes of their neighbours, which they are then called with.
    A resampler in the Q-Former's place, or a Q-Former with `trainable=True`, learns together with the projector.

    How fast it learns, and in how much memory, is a choice; the loss is the same:

    Args:
        max_images_per_forward: bounds the memory of `encode_images`.
        length_groups: parts of a training batch, by length, each padded for itself.
        packed: put all rows of a training batch one behind the other instead, without any padding.
        gradient_checkpointing: keep only the inputs of the language model's layers, and compute the rest again.
        compile_backend: of `torch.compile` for these layers while they learn, such as "inductor".
        decoding_backend: likewise for the language model while it answers, see `RunningBatch`.
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
        packed: bool = False,
        gradient_checkpointing: bool = False,
        compile_backend: str | None = None,
        decoding_backend: str | None = None,
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
        self.max_images_per_forward = max_images_per_forward
        if length_groups < 1:
            raise InputError(f"model.length_groups={length_groups}, expected 1 or more")
        self.length_groups = length_groups
        self.packed = packed
        if compile_backend is not None:
            compile_layers(self.language, compile_backend)
        if decoding_backend is not None:
            check_backend("decoding_backend", decoding_backend)
        self.decoding_backend = decoding_backend
        if gradient_checkpointing:
            recompute_activations(self.language)
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
        rows, mask = Rows(inputs_embeds, targets, weights, visible={}), batch["attention_mask"]
        calls = [pack(rows, mask)] if self.packed else in_groups(rows, mask, self.length_groups)
        return torch.stack([self._summed_loss(call) for call in calls]).sum() / weights.sum()

    def _summed_loss(self, rows: Rows) -> Tensor:
        """Weighted sum of the targets' cross-entropy: float32[]."""
        columns = rows.weights.any(dim=0).nonzero().squeeze(1)  # [K], with a loss in any row
        output = self.language(
            inputs_embeds=rows.inputs_embeds,
            logits_to_keep=columns,  # the vocabulary is large: no logits where nothing is learned
            use_cache=False,
            **rows.visible,
        )
        losses = F.cross_entropy(
            output.logits.float().flatten(0, 1), rows.targets[:, columns].flatten(), reduction="none"
        )
        # Not `@`, which autocast would compute in half precision, where such sums overflow.
        return torch.dot(losses, rows.weights[:, columns].flatten())

    @torch.no_grad()
    def generate(self, batch: Mapping[str, Tensor], **generation: Any) -> Tensor:
        """New token ids int64[B, S] of a left-padded batch; `generation` is for transformers' `generate`."""
        input_ids, attention_mask = batch["input_ids"], batch["attention_mask"]
        if not attention_mask[:, -1].all():
            raise ValueError("generation goes on from the last token, which is padding here; pad on the left")
        return self.language.generate(  # type: ignore[operator]  # every causal LM has it
            inputs_embeds=self.embed(input_ids, batch["pixel_values"], batch.get("image_features")),
            attention_mask=attention_mask,  # position ids follow from it, so padding does not count
            **generation,
        )

    def prompt_reader(
        self, features: Callable[[Sequence[int]], Tensor], *, beginnings: Beginnings
    ) -> PromptReader:
        """For prompts whose pictures have numbers.

        Args:
            features: what `encode_images` makes of the pictures of these numbers: float[N, Q, D_q], N >= 1.

        Raises:
            InputError: the language model is `unfit` for it.
        """

        def embed(input_ids: Tensor, pictures: Sequence[int]) -> Tensor:
            if not pictures:
                return self.language.get_input_embeddings()(input_ids)
            return self.embed(input_ids, input_ids.new_empty(0, 3, 0, 0), features(pictures))

        return PromptReader(self.language, embed, slots=self.qformer.num_query_tokens, beginnings=beginnings)

    def running_batch(
        self, features: Callable[[Sequence[int]], Tensor], *, remembered_bytes: int = 2**28
    ) -> RunningBatch:
        """An empty one, which reads its prompts itself; arguments and errors are those of `prompt_reader`.

        Args:
            remembered_bytes: of keys and values that are kept of rows and of common beginnings, for prompts to come.
        """
        reader = self.prompt_reader(features, beginnings=Beginnings(remembered_bytes))
        return RunningBatch(reader, compile_backend=self.decoding_backend)
