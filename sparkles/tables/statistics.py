"""A row of Table 2: the numbers of one data set in the place of those of a run."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sparkles.config import validate
from sparkles.data.annotations import read_dialogues
from sparkles.eval.files import write_json, write_text
from sparkles.gen.statistics import summarize
from sparkles.gen.verbs import find_pairs_by


def count(cfg: DictConfig) -> None:
    """Write `metrics.json` with `statistics/<column of Table 2>` for the dialogue file `cfg.path`.

    Raises:
        ConfigError: the config does not fit the code.
        AnnotationError: the file is missing or is none of dialogues.
    """
    validate(cfg)
    if cfg.data.prepare is not None:
        instantiate(cfg.data.prepare)()
    counted = summarize(cfg.name, read_dialogues(cfg.path), find_pairs_by(cfg.verbs))
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    metrics = {f"statistics/{name.replace(' ', '_')}": value for name, value in counted.table().items()}
    write_json(run_dir / "metrics.json", metrics)
    write_text(run_dir / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
