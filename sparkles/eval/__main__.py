"""Measure a model that exists: `python -m sparkles.eval checkpoint=... benchmark=[bison,nlvr2]`.

With the name of a command of `sparkles.eval.commands` in front, look at runs that exist.
"""

import inspect
import sys

from omegaconf import DictConfig

from sparkles.config import call, command
from sparkles.eval.commands import COMMANDS
from sparkles.types import InputError


@command("eval")
def measure(cfg: DictConfig) -> None:
    from sparkles.launch import launch  # not before --help is answered

    launch(cfg)


def main() -> None:
    tasks = {task.__name__: task for task in COMMANDS}
    name, *arguments = sys.argv[1:] or [""]
    if name not in tasks:
        # What is no `key=value` and no option can only be meant for a command.
        if name and "=" not in name and not name.startswith("-"):
            sys.exit(
                f"unknown command {name!r}; expected {', '.join(tasks)}, or key=value to measure a model"
            )
        measure()
    elif {"-h", "--help"} & set(arguments):
        print(f"python -m sparkles.eval {name} key=value ...\n\n{inspect.getdoc(tasks[name])}")
    else:
        try:
            call(name, tasks[name], arguments)
        except (InputError, OSError) as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
