"""Make the weights that ship with the miniature: `python -m sparkles.nano`.

1. language/: learns its language and its tasks from text alone.
2. The gate: with true facts in the image slots the language model must know every task.
3. vision.safetensors, qformer.safetensors: learn to read facts off pictures.
4. stage1.safetensors: the projection, aligned on coarse captions by `train.py experiment=stage1`.

Weights are rounded to half precision before stage 1, so what is measured is what ships.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import AutoTokenizer

from sparkles.config import CONFIG_DIR
from sparkles.models.checkpoints import load_projection, save_projection
from sparkles.models.language import load_language_model
from sparkles.nano.corpus import random_conversation
from sparkles.nano.pretrain_language import (
    ConversationStream,
    LanguageLoss,
    build_language_model,
    build_optimizers,
    target_weights,
)
from sparkles.nano.pretrain_vision import (
    ReadOut,
    SceneStream,
    cells_of_patches,
    use_sincos_positions,
)
from sparkles.nano.text_reference import TextReference, accuracy_by_kind
from sparkles.nano.tokenizer import build_tokenizer
from sparkles.prompt_format import SYSTEM_MESSAGE

console = Console()
SAVE_EVERY = 200  # steps


class GateError(SystemExit):
    """The weights do not know enough to ship."""


def make_weights(cfg: DictConfig) -> None:
    """All four steps; `cfg` is `conf/pretrain.yaml`. Steps that were done, in part or whole, are not repeated."""
    torch.set_num_threads(cfg.threads)
    work = Path(cfg.run_dir)
    made = work / "weights"
    made.mkdir(parents=True, exist_ok=True)
    pretrain_language(cfg, made, work)
    check_gate(cfg, made)
    pretrain_vision(cfg, made, work)
    align_stage1(cfg, made, work)
    # Only now, so that what ships is never a mixture of old and new parts.
    shutil.copytree(made, cfg.out, dirs_exist_ok=True)
    console.print(f"weights are in {cfg.out}")


def pretrain_vision(cfg: DictConfig, out: Path, work: Path) -> None:
    torch.manual_seed(cfg.seed)
    vision = instantiate(cfg.model.vision, checkpoint=None)
    qformer = instantiate(cfg.model.qformer, checkpoint=None)
    use_sincos_positions(vision)
    qformer.eval()  # no dropout
    read_out = ReadOut(vision.hidden_size, qformer.hidden_size)
    parts = nn.ModuleDict({"vision": vision, "qformer": qformer, "read_out": read_out})
    optimizer = torch.optim.AdamW(parts.parameters(), lr=cfg.vision.lr, weight_decay=0.02, betas=(0.9, 0.98))
    cells = cells_of_patches(vision.backbone.patch_embed.grid_size[0])

    def loss_of(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        pixel_values, targets = batch
        tokens = vision(pixel_values)
        by_query, of_patches = read_out.losses(qformer(tokens), tokens[:, 1:], targets, cells)
        return torch.stack(list(by_query.values())).sum() + 0.5 * of_patches

    _train(
        "vision",
        parts,
        [optimizer],
        _batches(SceneStream(cfg.seed, cfg.vision.batch_size), cfg.threads),
        loss_of,
        steps=cfg.vision.steps,
        constant_until=0.6,
        checkpoint=work / "vision.pt",
    )
    for name, part in (("vision", vision), ("qformer", qformer)):
        halves = {key: _half(value) for key, value in part.state_dict().items()}
        save_file(halves, out / f"{name}.safetensors")


def pretrain_language(cfg: DictConfig, out: Path, work: Path) -> None:
    torch.manual_seed(cfg.seed)
    rng = random.Random(cfg.seed)
    texts = [message.content for _ in range(8000) for message in random_conversation(rng).messages]
    tokenizer = build_tokenizer([SYSTEM_MESSAGE, *texts])
    model = build_language_model(len(tokenizer))
    loss_of = LanguageLoss(
        model,
        target_weights(tokenizer),
        jitter=cfg.language.jitter,
        compile_backend=_working(cfg.language.compile_backend),
    )
    for number, part in enumerate(cfg.language.rounds, start=1):
        stream = ConversationStream(
            tokenizer,
            tokens_per_batch=cfg.language.tokens_per_batch,
            dialogues=part.dialogues,
            forced_choices=part.forced_choices,
            forced_empty=part.forced_empty,
            seed=cfg.seed + number - 1,
            num_batches=part.steps,
        )
        _train(
            f"language, round {number}",
            model,
            build_optimizers(model, part.lr),
            _batches(stream, cfg.threads),
            loss_of,
            steps=part.steps,
            constant_until=0.45,
            checkpoint=work / f"language{number}.pt",
        )
    model.half().save_pretrained(out / "language")
    tokenizer.save_pretrained(out / "language")


def align_stage1(cfg: DictConfig, out: Path, work: Path) -> None:
    """Run `train.py experiment=stage1` on the new parts and keep its projection."""
    overrides = [
        "experiment=stage1",
        "callbacks=[progress,checkpoint]",
        "logger=none",
        f"run_dir={work / 'stage1'}",
        f"model.vision.checkpoint={out / 'vision.safetensors'}",
        f"model.qformer.checkpoint={out / 'qformer.safetensors'}",
        f"model.language.path={out / 'language'}",
    ]
    subprocess.run([sys.executable, str(CONFIG_DIR.parent / "train.py"), *overrides], check=True)
    holder = nn.ModuleDict({"projector": instantiate(cfg.model.projector)})
    load_projection(holder, work / "stage1" / "checkpoints" / "last.ckpt")
    save_projection(holder, out / "stage1.safetensors", {"experiment": "stage1"})


def check_gate(cfg: DictConfig, out: Path) -> None:
    """Print the text reference of every kind; refuse the weights where one is below what is required."""
    tokenizer = AutoTokenizer.from_pretrained(out / "language")
    reference = TextReference(load_language_model(out / "language"), tokenizer)
    accuracies = accuracy_by_kind(reference, num=cfg.gate.num, seed=cfg.seed)
    table = Table("kind", "text reference, %", title=f"gate: at least {cfg.gate.required:g} % on each kind")
    for kind, accuracy in accuracies.items():
        table.add_row(kind, f"{accuracy:.1f}", style="red" if accuracy < cfg.gate.required else "")
    console.print(table)
    (out / "gate.json").write_text(json.dumps({"num": cfg.gate.num, "accuracy": dict(accuracies)}, indent=1))
    if failed := [kind for kind, accuracy in accuracies.items() if accuracy < cfg.gate.required]:
        raise GateError(f"the gate is not passed by {', '.join(failed)}; train longer (language.rounds)")


def _train(
    name: str,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    batches: Iterable[object],
    loss_of: Callable[..., torch.Tensor],
    *,
    steps: int,
    constant_until: float,
    checkpoint: Path,
) -> None:
    """Warm-up, constant, then linearly to nearly nothing. Every `SAVE_EVERY` steps all is saved, to resume from."""

    def factor(step: int) -> float:
        decay = (steps - step) / (steps * (1 - constant_until))
        return min(1.0, (step + 1) / 100) * max(0.01, min(1.0, decay))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]
    stateful: list[Any] = [model, *optimizers, *schedules]
    done = 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        done = state["step"]
        for one, saved in zip(stateful, state["states"], strict=True):
            one.load_state_dict(saved)
        console.print(f"{name}: continues at step {done} of {steps}")
    remaining = islice(batches, done, None)
    if done:  # only now, because a DataLoader's iterator draws its workers' seed when it is made
        torch.set_rng_state(state["rng"])
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=steps, completed=done)
        for step, batch in zip(range(done, steps), remaining, strict=False):
            loss = loss_of(batch)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for one in stateful[1:]:
                one.step()
            progress.update(task, advance=1, description=f"{name} loss {loss.item():.3f}")
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
                state = {
                    "step": step + 1,
                    "states": [one.state_dict() for one in stateful],
                    "rng": torch.get_rng_state(),
                }
                torch.save(state, checkpoint.with_suffix(".new"))
                checkpoint.with_suffix(".new").replace(checkpoint)


def _working(compile_backend: str | None) -> str | None:
    """The backend, unless this machine lacks what it needs: a C++ compiler and Python's headers, for instance."""
    if compile_backend is None:
        return None
    try:
        torch.compile(torch.square, backend=compile_backend)(torch.ones(2))
    except Exception as error:  # torch wraps what the compiler says in exceptions of many kinds
        console.print(
            f"language.compile_backend={compile_backend} does not work here ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0]}); going on without, which takes a quarter longer",
            style="yellow",
            markup=False,
        )
        return None
    return compile_backend


def _batches(stream: IterableDataset[Any], threads: int) -> DataLoader[Any]:
    """Its batches; made by another process while the model learns, if its threads leave a core for that."""
    if (os.cpu_count() or 1) > threads:
        return DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=64)
    return DataLoader(stream, batch_size=None)


def _half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half().contiguous() if tensor.is_floating_point() else tensor.contiguous()
