"""A run from its configuration: build the parts, fit, then measure."""

from pathlib import Path

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sparkles.config import validate
from sparkles.data.datamodule import SparklesDataModule
from sparkles.eval.environment import add_hashes, write_environment
from sparkles.eval.files import file_hash
from sparkles.models.lightning_module import SparklesModule


def launch(cfg: DictConfig) -> Path:
    """Fit (unless `fit=false`), run the benchmarks, and return the run directory that holds what they wrote."""
    validate(cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)

    datamodule: SparklesDataModule = instantiate(cfg.data, _convert_="all")
    module: SparklesModule = instantiate(cfg.model, _convert_="all")
    callbacks = [instantiate(callback, _convert_="all") for callback in cfg.callbacks.values()]
    loggers = [instantiate(logger) for logger in (cfg.logger or {}).values()]
    trainer: L.Trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=loggers)

    run_dir = Path(HydraConfig.get().runtime.output_dir)
    if trainer.is_global_zero:
        OmegaConf.save(cfg, run_dir / "config.yaml", resolve=True)
        write_environment(run_dir, cfg, module.frozen_hashes)

    if cfg.fit:
        trainer.fit(module, datamodule, ckpt_path=cfg.resume_from, weights_only=True)
        if trainer.is_global_zero:
            add_hashes(run_dir, {f"data/{name}": file_hash(path) for name, path in datamodule.files().items()})
    trainer.validate(module, datamodule)
    return run_dir
