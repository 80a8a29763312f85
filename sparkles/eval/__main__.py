"""Measure a model that exists: `python -m sparkles.eval checkpoint=... benchmark=[bison,nlvr2]`."""

import hydra
from omegaconf import DictConfig

from sparkles.config import friendly_exit


@friendly_exit
@hydra.main(version_base="1.3", config_path="../../conf", config_name="eval")
def main(cfg: DictConfig) -> None:
    from sparkles.launch import launch  # not before --help is answered

    launch(cfg)


if __name__ == "__main__":
    main()
