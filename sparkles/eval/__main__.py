"""Measure a model that exists: `python -m sparkles.eval checkpoint=... benchmark=[bison,nlvr2]`."""

from omegaconf import DictConfig

from sparkles.config import command


@command("eval")
def main(cfg: DictConfig) -> None:
    from sparkles.launch import launch  # not before --help is answered

    launch(cfg)


if __name__ == "__main__":
    main()
