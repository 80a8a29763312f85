"""Measure a model that exists: `python -m sparkles.eval checkpoint=... benchmark=[bison,nlvr2]`.

With the name of a command of `sparkles.eval.commands` in front, look at runs that exist.
"""

from omegaconf import DictConfig

from sparkles.config import command, dispatch
from sparkles.eval.commands import COMMANDS


@command("eval")
def measure(cfg: DictConfig) -> None:
    from sparkles.launch import launch  # not before --help is answered

    launch(cfg)


def main() -> None:
    dispatch("sparkles.eval", COMMANDS, otherwise=measure)


if __name__ == "__main__":
    main()
