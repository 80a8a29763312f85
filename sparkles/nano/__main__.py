"""Make the weights that ship with the miniature: `python -m sparkles.nano`."""

from omegaconf import DictConfig

from sparkles.config import command


@command("pretrain")
def main(cfg: DictConfig) -> None:
    from sparkles.nano.pretrain import make_weights  # not before --help is answered

    make_weights(cfg)


if __name__ == "__main__":
    main()
