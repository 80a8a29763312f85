"""Training against what was recorded: learning rates, the order of subsets, and two runs, step by step.

A run is that of `train.py`: its configuration with `experiment=paper_exact`, Lightning's trainer, our data module on
files in the original's format.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict
from torch import Tensor

from sparkles.config import CONFIG_DIR, register_resolvers
from sparkles.data import mixture
from sparkles.data.mixture import Mixture
from sparkles.launch import build_module
from sparkles.models.schedule import linear_warmup_cosine

AssertWithin = Callable[[float, Tensor, Tensor], None]

OURS = {"llama_proj.weight": "layers.0.weight", "llama_proj.bias": "layers.0.bias"}
"""Trained tensors by their names in the original."""


class Run(L.Callback):
    """A recorded run, and what is to be compared with it of ours."""

    def __init__(self, name: str, expected: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.name, self.expected, self.tensors = name, expected, tensors
        self.rates: list[list[float]] = []  # for each batch, of each parameter group
        self.losses: list[float] = []  # for each batch
        self.weights: list[dict[str, Tensor]] = []  # after each optimizer step
        self.optimizer: dict[str, Any] = {}  # its state after the last step

    @property
    def batches_per_step(self) -> int:
        return self.expected["accum_grad_iters"]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(trainer.callback_metrics["train/loss"].item())
        if trainer.global_step > len(self.weights):
            state = pl_module.get_submodule("model.projector").state_dict()
            self.weights.append({name: tensor.clone() for name, tensor in state.items()})
            self.optimizer = trainer.optimizers[0].state_dict()


@pytest.fixture(scope="module")
def sizes(golden: Path, meta: dict[str, Any]) -> list[str]:
    """Overrides that bring the paper's model down to the recorded size, with the original's files for weights."""
    dims = meta["dims"]
    model = {
        "vision.img_size": dims["img"],
        "+vision.patch_size": dims["patch"],
        "+vision.embed_dim": dims["vit_dim"],
        "vision.depth": dims["vit_depth"],
        "+vision.num_heads": dims["vit_heads"],
        "vision.checkpoint.0": golden / "eva_vit.pth",
        "vision.dtype": "float32",
        "qformer.hidden_size": dims["qf_hidden"],
        "qformer.num_hidden_layers": dims["qf_layers"],
        "qformer.num_attention_heads": dims["qf_heads"],
        "qformer.intermediate_size": dims["qf_inter"],
        "qformer.num_query_tokens": dims["num_query"],
        "qformer.checkpoint": golden / "blip2_qformer.pth",
        "language.path": golden / "llama",
        "language.dtype": "float32",
    }
    changes = [
        f"+model.{key[1:]}={value}" if key[0] == "+" else f"model.{key}={value}"
        for key, value in model.items()
    ]
    return ["model=sparkles_7b", f"checkpoint={golden / 'minigpt4_stage1.pth'}", *changes]


class Script:
    """Chooses subsets in a given order, where a mixture would leave it to chance."""

    def __init__(self, order: list[str]) -> None:
        self.order = iter(order)

    def choices(self, names: list[str], ratios: list[float]) -> list[str]:
        return [next(self.order)]


@pytest.fixture(scope="module", params=["plain", "accum2"])
def run(
    request: pytest.FixtureRequest,
    golden: Path,
    sizes: list[str],
    records: Callable[[str], Any],
    tensors: Callable[[str], dict[str, Tensor]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    name = request.param
    run = Run(name, records("train")[name], tensors("train"))
    order = run.expected["batch_order"]
    # Each recorded batch becomes a subset, which per_batch mixing goes through in one batch. Batches of ours have
    # one size, so members are repeated to fill it: that leaves the loss as it is, a mean over tokens.
    members = {batch: records("samples")[batch]["members"] for batch in order}
    batch_size = math.lcm(*map(len, members.values()))
    folder = tmp_path_factory.mktemp(name)
    for batch, cases in members.items():
        content = [records("annotations")[case] for case in cases] * (batch_size // len(cases))
        (folder / f"{batch}.json").write_text(json.dumps(content), encoding="utf-8")
    cfg = configure(run, [*sizes, f"data.batch_size={batch_size}"])
    with open_dict(cfg):
        cfg.data.subsets = {
            batch: {
                "_target_": "sparkles.data.mixture.SubsetSpec",
                "name": batch,
                "annotations": str(folder / f"{batch}.json"),
                "images": str(golden / "images"),
            }
            for batch in members
        }
        cfg.data.val_subsets = {}
    trainer: L.Trainer = instantiate(cfg.trainer, callbacks=[run], logger=False)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(mixture, "random", SimpleNamespace(Random=lambda seed: Script(order)))
        trainer.fit(build_module(cfg), instantiate(cfg.data, _convert_="all"))
    return run


def configure(run: Run, overrides: list[str]) -> DictConfig:
    """The configuration of `train.py` for a recorded run."""
    config = run.expected["config"]
    register_resolvers()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(
            "train",
            [
                "experiment=paper_exact",
                "data=sparkles_dialogue",
                "data.train_transform.train=false",  # as recorded
                "data.num_workers=0",
                f"data.steps={config['iters_per_epoch'] // run.batches_per_step}",
                f"trainer.max_epochs={config['max_epoch']}",
                f"trainer.accumulate_grad_batches={run.batches_per_step}",
                "trainer.accelerator=cpu",
                "trainer.deterministic=false",  # a setting of the whole process, which other tests run in
                "++trainer.enable_checkpointing=false",
                "++trainer.enable_progress_bar=false",
                f"module.optimizer.lr={config['init_lr']}",
                f"module.optimizer.weight_decay={config['weight_decay']}",
                *(f"module.scheduler.{key}={config[key]}" for key in ("min_lr", "warmup_lr", "warmup_steps")),
                *overrides,
            ],
        )


def test_each_step_is_taken_with_the_rate_of_the_original(run: Run) -> None:
    expected = run.expected["lr_per_iteration_per_group"]
    assert len(run.rates) == len(expected)
    # Where gradients accumulate, only the rate of a step's last batch is put to use.
    last = slice(run.batches_per_step - 1, None, run.batches_per_step)
    for ours, theirs in zip(run.rates[last], expected[last], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-12)


def test_each_batch_has_the_loss_of_the_original(run: Run) -> None:
    assert run.losses == pytest.approx(run.expected["loss_per_iteration"], rel=1e-5)


def test_each_step_leads_to_the_weights_of_the_original(run: Run, assert_within: AssertWithin) -> None:
    assert len(run.weights) == run.expected["optimizer_steps"]
    for name, ours in OURS.items():
        theirs = run.tensors[f"{run.name}/{name}"]
        for step, weights in enumerate(run.weights):
            assert_within(5e-5, weights[ours], theirs[step])


def test_parameter_groups_are_those_of_the_original(run: Run) -> None:
    groups = run.optimizer["param_groups"]
    expected = run.expected["param_groups"]
    assert [group["params"] for group in groups] == [[0], [1]]
    assert [group["params"] for group in expected] == [[name] for name in OURS]
    for ours, theirs in zip(groups, expected, strict=True):
        for key in theirs.keys() - {"params"}:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-12), key


def test_moments_end_as_those_of_the_original(run: Run, assert_within: AssertWithin) -> None:
    for place, state in run.optimizer["state"].items():
        for moment in ("exp_avg", "exp_avg_sq"):
            assert_within(2e-5, state[moment], run.tensors[f"{run.name}/state_{place}_{moment}"])


# `step_lr` is another schedule, which nothing of SparklesChat uses.
@pytest.mark.parametrize("name", ["paper", "warmup_longer_than_epoch", "no_warmup", "no_warmup_lr_given"])
def test_schedule_has_the_rates_of_the_original(name: str, records: Callable[[str], Any]) -> None:
    recorded = records("functions")["lr"][name]
    config, values = recorded["config"], recorded["values"]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config["init_lr"])
    scheduler = linear_warmup_cosine(
        optimizer,
        min_lr=config["min_lr"],
        warmup_lr=config.get("warmup_start_lr", config["init_lr"]),
        warmup_steps=config.get("warmup_steps", 0),
        epoch_steps=config["iters_per_epoch"],
        epochs=config["max_epoch"],
        counted_from="start",
        warmup_restarts=True,
    )
    rates = []
    for _ in range(config["max_epoch"] * config["iters_per_epoch"]):
        rates += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    ours = [rates[value["epoch"] * config["iters_per_epoch"] + value["step"]] for value in values]
    assert ours == pytest.approx([value["lr"] for value in values], rel=1e-12)


def test_per_batch_mixing_draws_the_subsets_of_the_original(records: Callable[[str], Any]) -> None:
    for case in records("functions")["dataset_mixing"].values():
        ratios = case["ratios"] or [1] * (max(case["draws"]) + 1)  # none given: all alike
        names = [str(place) for place in range(len(ratios))]
        drawn = Mixture(
            sizes=dict.fromkeys(names, 9),
            ratios=dict(zip(names, ratios, strict=True)),
            batch_size=2,
            mix="per_batch",
            seed=case["python_random_seed"],
        )
        draws = [int(drawn.batch_indices(step)[0].subset) for step in range(len(case["draws"]))]
        assert draws == case["draws"]
