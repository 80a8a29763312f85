"""One run: `python train.py [experiment=...] [overrides]` fine-tunes SparklesChat and measures it."""

import hydra
from omegaconf import DictConfig

from sparkles.config import friendly_exit


@friendly_exit
@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> None:
    from sparkles.launch import launch  # not before --help is answered

    launch(cfg)


if __name__ == "__main__":
    main()
