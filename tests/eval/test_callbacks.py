import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from sparkles.data.encoding import Encoder
from sparkles.data.images import ImageTransform
from sparkles.eval.bison import Bison
from sparkles.eval.callbacks import BenchmarkCallback
from sparkles.prompt_format import MINIGPT4

ANSWER = "Therefore, the answer is IMAGE#1.###"


class ParrotModel(nn.Module):
    """Answers everything with ANSWER, one character per token."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.num_prompts = 0
        self.saw_pixels = False

    def generate(self, batch: Mapping[str, torch.Tensor], **generation: Any) -> torch.Tensor:
        self.num_prompts += len(batch["input_ids"])
        self.saw_pixels |= bool(batch["pixel_values"].any())
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

    def train_dataloader(self) -> DataLoader[int]:
        return DataLoader([0, 1])  # type: ignore[arg-type]

    val_dataloader = train_dataloader


@pytest.fixture
def make(bison_file: Path, pictures: Path, tmp_path: Path) -> Callable[..., SimpleNamespace]:
    def make(**options: Any) -> SimpleNamespace:
        callback = BenchmarkCallback(
            benchmarks={"bison": Bison(annotations=bison_file, images=pictures)},
            run_dir=str(tmp_path / "run"),
            generation={"max_new_tokens": 40},
            batch_size=3,
            **options,
        )
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=2,
            callbacks=[callback, RichProgressBar()],
            logger=CSVLogger(tmp_path / "log"),
            enable_checkpointing=False,
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


def test_blanked_images_are_another_run_without_pixels(make: Callable[..., SimpleNamespace]) -> None:
    run = make(blank_images=True)
    run.trainer.validate(run.module, run.data)
    assert not run.module.model.saw_pixels
