"""A run from its configuration: build the parts, fit, then measure; or only say what it would need.

With a `responder`, a model behind an endpoint is measured, and none is built here.
"""

import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import rich
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.fabric.plugins import TorchCheckpointIO
from omegaconf import DictConfig, OmegaConf
from rich.markup import escape

from sparkles.config import terminated_as_by_ctrl_c, validate
from sparkles.data.datamodule import SparklesDataModule
from sparkles.data.features import FeatureCache
from sparkles.data.files import write_whole
from sparkles.dry_run import dry_run
from sparkles.eval.asking import Asking
from sparkles.eval.benchmark import Benchmark
from sparkles.eval.environment import write_environment
from sparkles.eval.files import file_hash, write_text
from sparkles.eval.responders import ModelResponder
from sparkles.eval.run import IncompleteError, evaluate, read_all
from sparkles.eval.table import Headline, benchmarks_of, read_metrics, title_of
from sparkles.models.lightning_module import SparklesModule
from sparkles.types import InputError, Judge, Responder


def launch(cfg: DictConfig) -> None:
    """Fit (unless `fit=false`) and run the benchmarks; with `dry_run=true`, print what that would need."""
    with terminated_as_by_ctrl_c():
        _launch(cfg)


def _launch(cfg: DictConfig) -> None:
    _silence_chatter()
    if cfg.get("responder") is not None:
        _measure_endpoint(cfg)
        return
    if cfg.dry_run:
        dry_run(cfg)
        return
    validate(cfg)
    _check_ranges(cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)

    run_dir = Path(HydraConfig.get().runtime.output_dir)
    datamodule: SparklesDataModule = instantiate(cfg.data, _convert_="all")
    module = build_module(cfg)
    if datamodule.feature_cache is not None and (cfg.fit or module.encoder_hash is not None):
        _keep_features(cfg, module, datamodule, datamodule.feature_cache)
    # An experiment may hold settings of a callback that was not chosen; null takes one away.
    chosen = [callback for callback in cfg.callbacks.values() if callback and "_target_" in callback]
    callbacks = [instantiate(callback, _convert_="all") for callback in chosen]
    loggers = [instantiate(logger) for logger in (cfg.logger or {}).values() if logger]
    trainer: L.Trainer = instantiate(
        cfg.trainer, callbacks=[*callbacks, RunRecord(cfg, run_dir)], logger=loggers
    )
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpoints()
    with _tracking_ends():
        if cfg.fit:
            trainer.fit(module, datamodule, ckpt_path=cfg.resume_from, weights_only=True)
        trainer.validate(module, datamodule, verbose=False)
    if trainer.is_global_zero:
        _print_results(run_dir, cfg.name)


def build_module(cfg: DictConfig) -> SparklesModule:
    """What trains and what is trained: the parts `module` and `model` of a config."""
    module: SparklesModule = instantiate(cfg.module, _convert_="all")(
        model=instantiate(cfg.model, _convert_="all")
    )
    return module


def build_responder(cfg: DictConfig) -> Responder:
    """Who answers outside of a benchmark: the endpoint of `cfg.responder`, or the model with `cfg.generation`."""
    if cfg.get("responder") is not None:
        endpoint: Responder = instantiate(cfg.responder, _convert_="all")
        return endpoint
    datamodule: SparklesDataModule = instantiate(cfg.data, _convert_="all")
    return ModelResponder(
        model=build_module(cfg).model,
        encoder=datamodule.encoder,
        transform=datamodule.eval_transform,
        generation=cfg.generation,
        name=cfg.name,
    )


def _check_ranges(cfg: DictConfig) -> None:
    """Raise InputError for numbers that a library would take ill later, or in silence."""
    if not 0 <= cfg.seed < 2**32:
        raise InputError(f"seed={cfg.seed}, expected at least 0 and less than 2**32")
    if (batches := cfg.trainer.get("accumulate_grad_batches", 1)) < 1:
        raise InputError(f"trainer.accumulate_grad_batches={batches}, expected 1 or more")


def _keep_features(
    cfg: DictConfig, module: SparklesModule, datamodule: SparklesDataModule, folder: str | Path
) -> None:
    """Let batches bring the features of images that are in `folder`, and the module put the others there.

    Raises:
        InputError: the Q-Former's part learns, so that its features change.
    """
    if module.encoder_hash is None:
        raise InputError(
            "data.feature_cache keeps what frozen parts make of an image, but model.qformer is trainable; "
            "set data.feature_cache=null"
        )
    part = module.model.qformer
    shape = part.num_query_tokens, part.hidden_size
    # How the parts compute is not all in their weights: numbers of heads, precision.
    settings = {
        name: {key: value for key, value in cfg.model[name].items() if key != "checkpoint"}
        for name in ("vision", "qformer")
    }
    made_by = repr((module.encoder_hash, settings, cfg.trainer.get("precision")))
    cache = FeatureCache(folder, encoder_hash=made_by, shape=shape)
    datamodule.use_features(cache)
    module.feature_store = cache


def _measure_endpoint(cfg: DictConfig) -> None:
    """Run the benchmarks on `cfg.responder`; with `dry_run=true`, print calls, tokens and cost.

    Raises:
        ConfigError: the config does not fit the code.
        IncompleteError: the endpoint did not answer everything.
    """
    validate(cfg)
    asking: Asking = instantiate(cfg.eval)
    responder = instantiate(cfg.responder, _convert_="all")
    benchmarks: list[Benchmark] = list(instantiate(cfg.benchmark.suite, _convert_="all").values())
    judge: Judge | None = instantiate(cfg.judge, _convert_="all")
    if cfg.dry_run:
        from sparkles.eval.estimate import estimates  # imports the client of endpoints, which few runs need

        for line in estimates(benchmarks, responder, judge):
            rich.print(line)
        return
    if cfg.data.get("prepare"):
        instantiate(cfg.data.prepare)()
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    read_all(benchmarks, judge, asking)
    used = ["name", "seed", "dry_run", "run_dir", "data_root", "responder", "benchmark", "judge", "eval"]
    # Before keys are left out that others refer to.
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    record = OmegaConf.create({key: resolved[key] for key in used})
    write_text(run_dir / "config.yaml", OmegaConf.to_yaml(record))
    write_environment(
        run_dir, cfg, getattr(responder, "frozen_hashes", {})
    )  # of a model whose weights are here
    try:
        evaluate(benchmarks, responder, judge, run_dir, asking=asking)
    except IncompleteError:
        _print_results(run_dir, cfg.name)
        raise
    _print_results(run_dir, cfg.name)


@contextmanager
def _tracking_ends() -> Iterator[None]:
    """End W&B's run with ours, as a failure if it is one: the next run in this process is not the same."""
    try:
        yield
    except BaseException:
        _finish_wandb(exit_code=1)
        raise
    _finish_wandb(exit_code=0)


def _finish_wandb(*, exit_code: int) -> None:
    if (wandb := sys.modules.get("wandb")) is not None:  # an extra, imported by its logger
        wandb.finish(exit_code=exit_code)


class WholeCheckpoints(TorchCheckpointIO):
    """Puts checkpoints in place by renaming them, within their folder.

    Lightning's own come from the system's folder for temporary files: where that is another file system, they are
    copied over the one before, which is lost if the disk is full or the process is killed.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        file = io.BytesIO()
        torch.save(checkpoint, file)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, file.getvalue())


class RunRecord(L.Callback):
    """Writes `config.yaml` and `environment.json` once a run has read its input and is about to begin.

    So a run that cannot start replaces nothing in a folder that holds an earlier one. A run that does start moves
    what it is to replace to `superseded/<number>/`: records that differ, and, if it trains anew, also the results
    of the model that was trained there before. (Predictions are sorted by `sparkles.eval.run`, line by line.)
    """

    def __init__(self, cfg: DictConfig, run_dir: Path) -> None:
        self.cfg = cfg
        self.run_dir = run_dir
        self.written = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.datamodule.check_validation()  # type: ignore[attr-defined]  # rather than behind all the training
        self._write(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer, pl_module)

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.written or not trainer.is_global_zero:
            return
        self.written = True
        config = OmegaConf.to_yaml(self.cfg, resolve=True)
        path = self.run_dir / "config.yaml"
        if self.cfg.fit and self.cfg.resume_from is None:
            results = ("metrics.json", "report.html", "steps", "checkpoints")
            self._set_aside(path.name, "environment.json", *results)
        elif path.is_file() and path.read_text(encoding="utf-8") != config:
            self._set_aside(path.name, "environment.json")
        write_text(path, config)
        data: Mapping[str, Path] = trainer.datamodule.files() if self.cfg.fit else {}  # type: ignore[attr-defined]
        hashes = {f"data/{name}": file_hash(file) for name, file in data.items()}
        write_environment(self.run_dir, self.cfg, {**pl_module.frozen_hashes, **hashes})  # type: ignore[dict-item]

    def _set_aside(self, *names: str) -> None:
        earlier = [self.run_dir / name for name in names if (self.run_dir / name).exists()]
        if earlier:
            shelf = self.run_dir / "superseded"
            numbers = [int(path.name) for path in shelf.glob("*") if path.name.isdecimal()]
            folder = shelf / str(1 + max(numbers, default=0))
            folder.mkdir(parents=True)
            for path in earlier:
                path.rename(folder / path.name)


def _print_results(run_dir: Path, name: str) -> None:
    metrics = read_metrics(run_dir)
    headlines = {title_of(key): Headline.read(metrics, key) for key in benchmarks_of(metrics)}
    shown = [f"  {title} {headline.told}" for title, headline in headlines.items() if headline]
    rich.print(
        "\n".join([f"{name}:" if shown else f"{name}: nothing measured", *map(escape, shown)]),
        f"\nin {run_dir}" + ("/report.html" if shown else ""),
        sep="",
    )


def _silence_chatter() -> None:
    """Drop what libraries say in every run although it is said already, is not about the run, or is meant so."""
    # Lightning prints its own log lines, and hands them on to Hydra, which prints them and writes them to a file.
    logging.getLogger("lightning").handlers.clear()
    # An advertisement.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)
    # Between Lightning and torch; a user can do nothing about it.
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    # It was meant to be: a run goes on there, or RunRecord is about to set the old one aside.
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    # The frozen parts are in eval mode on purpose.
    warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode at the start of training")


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "try installing [litlogger]" not in record.getMessage()
