"""One run: `python train.py [experiment=...] [overrides]` fine-tunes SparklesChat and measures it."""

from omegaconf import DictConfig

from sparkles.config import command


@command("train")
def main(cfg: DictConfig) -> None:
    from sparkles.launch import launch  # not before --help is answered

    launch(cfg)


if __name__ == "__main__":
    main()
