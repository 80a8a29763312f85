import csv
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import lightning as L
import PIL.Image
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from sparkles.data.encoding import Encoder
from sparkles.data.images import ImageTransform
from sparkles.eval.asking import Asking
from sparkles.eval.bison import Bison
from sparkles.eval.callbacks import BenchmarkCallback
from sparkles.eval.sparkles_eval import SparklesEval
from sparkles.prompt_format import MINIGPT4
from sparkles.types import Dialogue, InputError, Verdict

ANSWER = "Therefore, the answer is IMAGE#1.###"


class ParrotModel(nn.Module):
    """Answers everything with ANSWER, one character per token."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.num_prompts = 0
        self.saw_pixels = False
        self.was_sampled = False

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        self.saw_pixels |= bool((pixel_values.abs() > 0.01).any())  # more than rounding of the mean
        return pixel_values.flatten(2)

    def generate(self, batch: Mapping[str, torch.Tensor], **generation: Any) -> torch.Tensor:
        self.num_prompts += len(batch["input_ids"])
        self.was_sampled |= "logits_processor" in generation
        return torch.tensor([ord(character) for character in ANSWER]).expand(len(batch["input_ids"]), -1)


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = ParrotModel()

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return self.model.weight.sum()

    def validation_step(self, batch: torch.Tensor) -> None:
        self.log("val/loss", self.model.weight.sum())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Data(L.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        vocabulary = {chr(i): i for i in range(128)}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
        backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        backend.decoder = decoders.Fuse()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token="\0", bos_token="\1", eos_token="\2", unk_token="?"
        )
        self.encoder = Encoder(
            tokenizer=tokenizer, prompt_format=MINIGPT4, num_query_tokens=1, max_length=2_000
        )
        self.eval_transform = ImageTransform(image_size=8)
        self.features = None

    def train_dataloader(self) -> DataLoader[int]:
        return DataLoader([0, 1])  # type: ignore[arg-type]

    val_dataloader = train_dataloader


@pytest.fixture
def make(bison_file: Path, pictures: Path, tmp_path: Path) -> Callable[..., SimpleNamespace]:
    def make(
        *,
        max_steps: int = 2,
        accumulate_grad_batches: int = 1,
        checkpoints: Path | None = None,
        tracker: Logger | None = None,
        **options: Any,
    ) -> SimpleNamespace:
        settings: dict[str, Any] = {
            "benchmarks": {"bison": Bison(annotations=bison_file, images=pictures)},
            "run_dir": str(tmp_path / "run"),
            "generation": {"max_new_tokens": 40},
            "batch_size": 3,
        }
        callbacks = [BenchmarkCallback(**settings | options), RichProgressBar()]
        if checkpoints:
            callbacks.append(ModelCheckpoint(checkpoints, filename="last", every_n_train_steps=1))
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=max_steps,
            accumulate_grad_batches=accumulate_grad_batches,
            callbacks=callbacks,
            logger=tracker or CSVLogger(tmp_path / "log"),
            log_every_n_steps=1,
            enable_checkpointing=checkpoints is not None,
            enable_model_summary=False,
        )
        return SimpleNamespace(trainer=trainer, module=Module(), data=Data(), run_dir=tmp_path / "run")

    return make


def test_validate_measures_the_benchmarks_and_logs_them(
    make: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    run = make()
    run.trainer.validate(run.module, run.data)
    metrics = json.loads((run.run_dir / "metrics.json").read_text())
    assert (metrics["bison/accuracy"], metrics["bison/num"], metrics["bison/unscored"]) == (0.5, 4, 0)
    assert (run.run_dir / "report.html").is_file()
    assert run.module.model.saw_pixels
    run.trainer.logger.save()
    [logged] = (tmp_path / "log").rglob("metrics.csv")
    assert "bison/accuracy" in logged.read_text()


def test_fit_asks_nothing(make: Callable[..., SimpleNamespace]) -> None:
    run = make()
    run.trainer.fit(run.module, run.data)
    assert run.module.model.num_prompts == 0
    assert not run.run_dir.exists()


def test_a_second_validation_of_the_same_weights_asks_nothing(make: Callable[..., SimpleNamespace]) -> None:
    first, second = make(), make()
    first.trainer.validate(first.module, first.data)
    second.trainer.validate(second.module, second.data)
    assert (first.module.model.num_prompts, second.module.model.num_prompts) == (4, 0)


def test_a_control_is_asked_instead(make: Callable[..., SimpleNamespace]) -> None:
    run = make(asking=Asking(control="blank"))
    run.trainer.validate(run.module, run.data)
    assert not run.module.model.saw_pixels


@pytest.mark.parametrize(("mode", "sampled"), [("generate", False), ("paper", True)])
def test_the_paper_samples_from_the_first_try_on(
    make: Callable[..., SimpleNamespace], mode: Any, sampled: bool
) -> None:
    run = make(asking=Asking(mode=mode))
    run.trainer.validate(run.module, run.data)
    assert run.module.model.was_sampled == sampled


def test_every_n_steps_measures_during_the_fit_and_trains_on(
    make: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    run = make(every_n_steps=2, max_steps=5)
    run.trainer.fit(run.module, run.data)
    assert sorted(path.name for path in (run.run_dir / "steps").iterdir()) == ["2", "4"]
    for step in (2, 4):
        folder = run.run_dir / "steps" / str(step)
        assert json.loads((folder / "metrics.json").read_text())["bison/num"] == 4
        assert (folder / "report.html").is_file()
    assert run.module.model.training
    assert (run.trainer.global_step, run.module.model.num_prompts) == (5, 8)
    run.trainer.logger.save()
    [logged] = (tmp_path / "log").rglob("metrics.csv")
    rows = list(csv.DictReader(logged.open()))
    assert [row["step"] for row in rows if row["bison/accuracy"]] == ["2", "4"]


def test_accumulated_batches_are_one_step(make: Callable[..., SimpleNamespace]) -> None:
    run = make(every_n_steps=1, max_steps=2, accumulate_grad_batches=2)
    run.trainer.fit(run.module, run.data)
    assert run.module.model.num_prompts == 8


def test_never_measuring_is_null_and_not_zero(make: Callable[..., SimpleNamespace]) -> None:
    with pytest.raises(InputError, match="every_n_steps must be at least 1, or null for never, got 0"):
        make(every_n_steps=0)


class BrokenJudge:
    """Behind an endpoint that nobody answers at."""

    name = "broken"

    def judge(self, dialogues: Sequence[Dialogue]) -> list[Verdict]:
        raise InputError("no key for the judge; set OPENAI_API_KEY")


@pytest.fixture
def make_judged(
    make: Callable[..., SimpleNamespace], dialogue_file: Path, pictures: Path
) -> Callable[..., Any]:
    dialogues = SparklesEval(annotations=dialogue_file, images=pictures)
    return lambda **options: make(benchmarks={"dialogues": dialogues}, judge=BrokenJudge(), **options)


def test_a_judge_that_fails_after_the_fit_loses_no_model(
    make_judged: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    run = make_judged(checkpoints=tmp_path / "checkpoints")
    run.trainer.fit(run.module, run.data)
    with pytest.raises(InputError, match="no key for the judge"):
        run.trainer.validate(run.module, run.data)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2


def test_a_judge_that_fails_during_the_fit_does_not_end_it(
    make_judged: Callable[..., SimpleNamespace], caplog: pytest.LogCaptureFixture
) -> None:
    run = make_judged(every_n_steps=1)
    run.trainer.fit(run.module, run.data)
    assert run.trainer.global_step == 2
    assert [
        f"the benchmarks at step {step} failed, the training goes on: no key for the judge; set OPENAI_API_KEY"
        for step in (1, 2)
    ] == [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]


def test_items_go_to_wandb_as_a_table_with_their_pictures(
    make: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a stand-in, because the package is not installed with the tests."""
    pictures: list[Any] = []

    def picture(image: PIL.Image.Image, caption: str) -> str:
        pictures.append((image.getpixel((0, 0)), caption))
        return f"picture {caption}"

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Image=picture))
    tracker = mock.create_autospec(WandbLogger, instance=True)
    run = make(tracker=tracker)
    run.trainer.validate(run.module, run.data)

    logged = [call.args[0] for call in tracker.log_metrics.call_args_list if call.args]
    measured = [metrics for metrics in logged if "bison/accuracy" in metrics]
    assert [found["bison/num"] for found in measured] == [4]
    [table] = tracker.log_table.call_args_list
    assert table.args == ("bison/items",)
    rows = [dict(zip(table.kwargs["columns"], row, strict=True)) for row in table.kwargs["data"]]
    assert len(rows) == 4
    assert (rows[0]["picture 1"], rows[0]["picture 2"]) == ("picture 1", "picture 2")
    assert pictures[:2] == [((255, 0, 0), "1"), ((0, 128, 0), "2")]
    assert (rows[0]["label"], rows[0]["answer"], rows[0]["response"]) == (
        "IMAGE#1",
        "IMAGE#1",
        "Therefore, the answer is IMAGE#1.",
    )
    assert "something red, number 1" in rows[0]["prompt"]
