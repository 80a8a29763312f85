"""Benchmarks as part of a run: `trainer.validate` asks them after the validation loss."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from sparkles.eval.benchmark import Benchmark
from sparkles.eval.responders import ModelResponder
from sparkles.eval.run import evaluate, read_all
from sparkles.types import Judge


class BenchmarkCallback(L.Callback):
    """Measures `pl_module.model`, with the encoder and the transform of the trainer's datamodule.

    Runs in `trainer.validate` only, not in the validation during `fit`: fit first, then benchmarks. But the files
    are read before either, so that a mistake in them does not wait for the end of the training.

    Args:
        generation: keyword arguments of transformers' `generate`.
        judge: rates dialogues; None if no benchmark has any.
        original_answer_text: see `ModelResponder`.
        blank_images: the control that shows what is scored without looking.
    """

    def __init__(
        self,
        *,
        benchmarks: Mapping[str, Benchmark],
        run_dir: str | Path,
        generation: Mapping[str, Any],
        judge: Judge | None = None,
        batch_size: int = 16,
        original_answer_text: bool = False,
        blank_images: bool = False,
        name: str = "SparklesChat",
        progress: bool = True,
    ) -> None:
        self.benchmarks = list(benchmarks.values())
        self.run_dir = Path(run_dir)
        self.generation = generation
        self.judge = judge
        self.batch_size = batch_size
        self.original_answer_text = original_answer_text
        self.blank_images = blank_images
        self.name = name
        self.progress = progress

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        read_all(self.benchmarks, self.judge)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.VALIDATING:
            return
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        responder = ModelResponder(
            model=pl_module.model,  # type: ignore[arg-type]
            encoder=datamodule.encoder,
            transform=datamodule.eval_transform,
            generation=self.generation,
            batch_size=self.batch_size,
            original_answer_text=self.original_answer_text,
            blank_images=self.blank_images,
            name=self.name,
        )
        with trainer.precision_plugin.forward_context():
            metrics = evaluate(
                self.benchmarks,
                responder,
                self.judge,
                self.run_dir,
                progress=self.progress,
                save_every=4 * self.batch_size,
            )
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=trainer.global_step)
