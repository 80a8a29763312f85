"""Training SparklesChat: losses, optimizer, and what a checkpoint holds."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import lightning as L
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sparkles.models.checkpoints import Origin, check_fit, check_origin, check_separator, load_projection
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.prompt_format import PromptFormat
from sparkles.types import IGNORE_INDEX


class FeatureStore(Protocol):
    """Keeps the features of images: `sparkles.data.features.FeatureCache`."""

    def put(self, keys: Tensor, features: Tensor) -> None:
        """uint8[N, K], float16[N, Q, D_q]"""
        ...


class SparklesModule(L.LightningModule):
    """Trains what `model` leaves trainable, and saves nothing else.

    Args:
        optimizer: makes the optimizer from parameter groups: `torch.optim.AdamW` with all but `params` given.
        scheduler: makes the per-step schedule from the optimizer; None keeps the rate constant.
        prompt_format: what the texts are written in; compared with what the language model and the checkpoint
            were trained with, and recorded.
        checkpoint: projection to start from (stage 1, or a finished run); see `load_projection`.
        allow_other_base_weights: take a checkpoint that was trained on other frozen weights.
        allow_other_prompt_format: take a checkpoint, or a language model, that was trained with another.
        sum_accumulated: the original's: gradients accumulated over several batches are added up, not averaged.
    """

    def __init__(
        self,
        *,
        model: SparklesChat,
        optimizer: Callable[[Iterable[dict[str, Any]]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        prompt_format: PromptFormat | None = None,
        checkpoint: str | Path | None = None,
        allow_other_base_weights: bool = False,
        allow_other_prompt_format: bool = False,
        sum_accumulated: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.allowances = {
            "allow_other_base_weights": allow_other_base_weights,
            "allow_other_prompt_format": allow_other_prompt_format,
        }
        self.sum_accumulated = sum_accumulated
        self.feature_store: FeatureStore | None = None  # for batches with `feature_keys`
        # A checkpoint lacks the frozen weights on purpose; on_load_checkpoint sees that it lacks no others.
        self.strict_loading = False
        # Taken here, once: a strategy may shard the parts later, or a precision plugin cast them.
        self.origin = Origin.of(model, prompt_format)
        self.trainable_names = {name for name, param in self.named_parameters() if param.requires_grad}
        if prompt_format is not None and not allow_other_prompt_format:
            check_separator(model.language, prompt_format)
        if checkpoint is not None:
            load_projection(model, checkpoint, origin=self.origin, **self.allowances)

    @property
    def encoder_hash(self) -> str | None:
        """Of all that makes image features; None if a part of it learns."""
        hashes = [self.frozen_hashes.get(name) for name in ("vision", "qformer")]
        return None if None in hashes else "-".join(map(str, hashes))

    @property
    def frozen_hashes(self) -> Mapping[str, str]:
        """sha256 of each frozen part."""
        return self.origin.base_hashes

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.model(self._with_features(batch))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["input_ids"]))
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        # Lightning divides what it gets by the number of accumulated batches.
        return loss * self.trainer.accumulate_grad_batches if self.sum_accumulated else loss

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        # Weighted by labelled tokens, so that val/loss is their mean over the whole set for any batch size.
        num_labels = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
        self.log(
            "val/loss",
            self.model(self._with_features(batch)),
            prog_bar=True,
            batch_size=num_labels,
            sync_dist=True,
        )

    def _with_features(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The batch with `image_features` of all its images: cached ones, and others, which are kept from now on."""
        if "feature_keys" not in batch:
            return batch
        pixels = batch["pixel_values"]
        features = batch["cached_features"]
        if len(pixels):
            encoded = self.model.encode_to_keep(pixels)
            if self.feature_store is not None:
                self.feature_store.put(batch["feature_keys"], encoded)
            is_cached = batch["is_cached"].view(-1, 1, 1)
            features = encoded.new_empty(len(is_cached), *encoded.shape[1:])
            features = features.masked_scatter(is_cached, batch["cached_features"])
            features = features.masked_scatter(~is_cached, encoded)
        # Rounded in either case, so that a run does not depend on what earlier runs have left in the cache.
        return {**batch, "image_features": features}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Weight decay on matrices only, as in the original; none on biases and norms."""
        trainable = [param for param in self.parameters() if param.requires_grad]
        optimizer = self.make_optimizer(
            [
                {"params": [param for param in trainable if param.ndim >= 2]},
                {"params": [param for param in trainable if param.ndim < 2], "weight_decay": 0.0},
            ]
        )
        if self.make_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_scheduler(optimizer), "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if name in self.trainable_names}
        checkpoint |= self.origin.checkpoint_entries()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint whose trainable weights, or what they were trained with, are not this model's."""
        trainable = {name: param for name, param in self.named_parameters() if name in self.trainable_names}
        check_fit(checkpoint["state_dict"], trainable, "the checkpoint does not fit the trainable weights")
        check_origin(Origin.from_checkpoint(checkpoint), self.origin, "the checkpoint", **self.allowances)
