"""Talk to a model: `python -m sparkles.serve tui`."""

import sys

from omegaconf import DictConfig

from sparkles.config import command

USAGE = """usage: python -m sparkles.serve tui [overrides]

  tui    chat in the terminal; pictures go between words as @path

`python -m sparkles.serve tui --help` prints the configuration."""


@command("serve")
def tui(cfg: DictConfig) -> None:
    # Not before --help is answered.
    from rich.console import Console

    from sparkles.config import validate
    from sparkles.launch import build_responder
    from sparkles.serve.tui import Conversation, chat, show_answer

    validate(cfg)
    responder = build_responder(cfg)
    console = Console()
    if cfg.message is not None:
        sys.exit(0 if show_answer(Conversation(responder), cfg.message, console) else 1)
    chat(responder, console, hints=[f"[dim]weights: {cfg.checkpoint}[/]"])


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] != "tui":
        sys.exit(USAGE if sys.argv[1:2] not in (["-h"], ["--help"]) else print(USAGE))
    del sys.argv[1]
    tui()


if __name__ == "__main__":
    main()
