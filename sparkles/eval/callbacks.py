"""Benchmarks as part of a run: after the training, and during it if asked."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn

from sparkles.data.images import load_image
from sparkles.eval.asking import PLAINLY, Asking
from sparkles.eval.benchmark import Benchmark, Prediction
from sparkles.eval.metrics import rating_of
from sparkles.eval.predictions import read_predictions
from sparkles.eval.responders import ModelResponder
from sparkles.eval.run import evaluate, read_all
from sparkles.types import Image, InputError, Judge

logger = logging.getLogger(__name__)

SAVE_EVERY = 200
"""Items of one process between two writes; several batches, sorted by length together."""

ROWS_IN_TRACKER = 100
"""Items of a benchmark whose pictures and answers go into a tracker; all of them are in the run's folder."""


class BenchmarkCallback(L.Callback):
    """Measures `pl_module.model`, with the encoder and the transform of the trainer's datamodule.

    `trainer.validate` asks the benchmarks after the validation loss, so: fit first, then benchmarks. But the files are
    read before either, lest a mistake in them wait for the end of the training.

    Args:
        generation: keyword arguments of transformers' `generate`, see `ModelResponder`.
        judge: rates dialogues; None if no benchmark has any.
        asking: how often, and under which control.
        every_n_steps: also ask during the fit, every so many optimizer steps, into `steps/<step>/` of the run's folder.
            What goes wrong there is said, and the training goes on.
        batch_size, original_answer_text: see `ModelResponder`.
    """

    def __init__(
        self,
        *,
        benchmarks: Mapping[str, Benchmark],
        run_dir: str | Path,
        generation: Mapping[str, Any],
        judge: Judge | None = None,
        asking: Asking = PLAINLY,
        every_n_steps: int | None = None,
        batch_size: int | Literal["auto"] = "auto",
        original_answer_text: bool = False,
        name: str = "SparklesChat",
        progress: bool = True,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise InputError(f"every_n_steps must be at least 1, or null for never, got {every_n_steps}")
        self.benchmarks = list(benchmarks.values())
        self.run_dir = Path(run_dir)
        self.generation = {**generation, "do_sample": True} if asking.mode == "paper" else generation
        self.judge = judge
        self.asking = asking
        self.every_n_steps = every_n_steps
        self.batch_size = batch_size
        self.original_answer_text = original_answer_text
        self.name = name
        self.progress = progress
        self._last_step = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        read_all(self.benchmarks, self.judge, self.asking)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_step = trainer.global_step  # which a resumed run has asked at already

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self.every_n_steps is None or step == self._last_step or step % self.every_n_steps:
            return
        self._last_step = step
        try:
            self._measure(trainer, pl_module, self.run_dir / "steps" / str(step))
        except (InputError, OSError) as error:  # every process meets it, see `run.evaluate`
            if trainer.is_global_zero:
                logger.warning("the benchmarks at step %d failed, the training goes on: %s", step, error)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._measure(trainer, pl_module, self.run_dir)

    def _measure(self, trainer: L.Trainer, pl_module: L.LightningModule, folder: Path) -> None:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        responder = ModelResponder(
            model=pl_module.model,  # type: ignore[arg-type]
            encoder=datamodule.encoder,
            transform=datamodule.eval_transform,
            generation=self.generation,
            features=datamodule.features,
            batch_size=self.batch_size,
            original_answer_text=self.original_answer_text,
            seed=self.asking.seed,
            name=self.name,
        )
        with trainer.precision_plugin.forward_context():
            metrics = evaluate(
                self.benchmarks,
                responder,
                self.judge,
                folder,
                asking=self.asking,
                progress=self.progress,
                save_every=SAVE_EVERY,
            )
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        for tracker in trainer.loggers:
            tracker.log_metrics(numbers, step=trainer.global_step)
            if isinstance(tracker, WandbLogger) and trainer.is_global_zero:
                for benchmark in self.benchmarks:
                    path = folder / "predictions" / f"{benchmark.name}.jsonl"
                    _log_table(tracker, benchmark.name, read_predictions(path)[:ROWS_IN_TRACKER])


def _log_table(tracker: WandbLogger, name: str, predictions: Sequence[Prediction]) -> None:
    """A row for each item: its pictures, what was asked and said, and what came of it."""
    import wandb  # an extra, which is there if its logger is

    width = max((len(prediction.image_ids) for prediction in predictions), default=0)
    rows = []
    for prediction in predictions:
        shown = [Image(**image) for message in prediction.dialogue for image in message["images"]]
        pictures = [wandb.Image(load_image(image), caption=str(image.image_id)) for image in shown]
        said = [message["content"] for message in prediction.dialogue if message["role"] == "assistant"]
        rows.append(
            [
                prediction.item_id,
                *pictures,
                *[None] * (width - len(pictures)),
                prediction.prompt,
                "\n\n".join(said),
                prediction.label,
                prediction.score.answer,
                rating_of(prediction),
            ]
        )
    # A column for each picture, because a cell of a W&B table shows one.
    numbered = [f"picture {number}" for number in range(1, 1 + width)]
    columns = ["item", *numbered, "prompt", "response", "label", "answer", "rating"]
    tracker.log_table(f"{name}/items", columns=columns, data=rows)
