"""Training SparklesChat: losses, optimizer, and what a checkpoint holds."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sparkles.models.checkpoints import CheckpointError, check_fit, load_projection, state_hash
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.types import IGNORE_INDEX


class SparklesModule(L.LightningModule):
    """Trains what `model` leaves trainable, and saves nothing else.

    Args:
        optimizer: makes the optimizer from parameter groups: `torch.optim.AdamW` with all but `params` given.
        scheduler: makes the per-step schedule from the optimizer; None keeps the rate constant.
        checkpoint: projection to start from (stage 1, or a finished run); see `load_projection`.
        allow_other_base_weights: take a checkpoint that was trained on other frozen weights.
    """

    def __init__(
        self,
        *,
        model: SparklesChat,
        optimizer: Callable[[Iterable[dict[str, Any]]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        checkpoint: str | Path | None = None,
        allow_other_base_weights: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.allow_other_base_weights = allow_other_base_weights
        # A checkpoint lacks the frozen weights on purpose; on_load_checkpoint sees that it lacks no others.
        self.strict_loading = False
        # Taken here, once: a strategy may shard the parts later, or a precision plugin cast them.
        self.frozen_hashes = {name: state_hash(part) for name, part in model.frozen_parts.items()}
        self.trainable_names = {name for name, param in self.named_parameters() if param.requires_grad}
        if checkpoint is not None:
            load_projection(model, checkpoint)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.model(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["input_ids"]))
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        # Weighted by labelled tokens, so that val/loss is their mean over the whole set for any batch size.
        num_labels = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
        self.log("val/loss", self.model(batch), prog_bar=True, batch_size=num_labels, sync_dist=True)

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
        checkpoint["frozen_hashes"] = self.frozen_hashes

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint whose trainable weights or frozen parts are not this model's."""
        trainable = {name: param for name, param in self.named_parameters() if name in self.trainable_names}
        check_fit(checkpoint["state_dict"], trainable, "the checkpoint does not fit the trainable weights")
        saved: dict[str, str] = checkpoint.get("frozen_hashes", {})
        different = [
            f"{name}: trained on sha256 {saved.get(name, 'unknown')}, this model has {own}"
            for name, own in self.frozen_hashes.items()
            if saved.get(name) != own
        ]
        if different and not self.allow_other_base_weights:
            advice = (
                "load the weights (and the dtype) that it was trained on, "
                "or set module.allow_other_base_weights=true to go on regardless"
            )
            raise CheckpointError(
                "\n  ".join(["the checkpoint was trained on other frozen weights:", *different, advice])
            )
