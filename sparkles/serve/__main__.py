"""Talk to a model: `python -m sparkles.serve tui`, or let programs do so: `python -m sparkles.serve api`."""

import os
import sys

from omegaconf import DictConfig

from sparkles.config import command

USAGE = """usage: python -m sparkles.serve COMMAND [overrides]

  tui    chat in the terminal; pictures go between words as @path
  api    an OpenAI-compatible endpoint: /v1/models, /v1/chat/completions

`python -m sparkles.serve COMMAND --help` prints the configuration."""

MAX_CONNECTIONS = 1_000


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


@command("api")
def api(cfg: DictConfig) -> None:
    from contextlib import closing

    from hydra.utils import instantiate

    from sparkles.config import validate
    from sparkles.gen.extras import needs
    from sparkles.launch import build_module
    from sparkles.types import InputError

    with needs("api"):
        import uvicorn

        from sparkles.serve.api import build_app
        from sparkles.serve.gate import LOOPBACK

    validate(cfg)
    api_key = cfg.api_key or os.environ.get("SPARKLES_API_KEY")
    if cfg.host not in LOOPBACK and not api_key:
        raise InputError(
            f"host={cfg.host} would open the server to the network; expected an API key then: set SPARKLES_API_KEY in "
            f"the environment, or leave host at {LOOPBACK[1]}"
        )
    datamodule = instantiate(cfg.data, _convert_="all")
    engine = instantiate(cfg.engine)(
        model=build_module(cfg).model, encoder=datamodule.encoder, transform=datamodule.eval_transform
    )
    app = build_app(
        engine,
        name=cfg.name,
        defaults=instantiate(cfg.sampling),
        limits=instantiate(cfg.limits),
        api_key=api_key,
        image_urls=cfg.image_urls,
        moderation=instantiate(cfg.moderation),
    )
    with closing(engine):
        print(
            f"{cfg.name} at http://{cfg.host}:{cfg.port}/v1; Ctrl-C ends it when those who wait have their answers"
        )
        uvicorn.run(
            app,
            host=cfg.host,
            port=cfg.port,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=round(engine.seconds),
            server_header=False,
        )


COMMANDS = {"tui": tui, "api": api}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(USAGE if sys.argv[1:2] not in (["-h"], ["--help"]) else print(USAGE))
    COMMANDS[sys.argv.pop(1)]()


if __name__ == "__main__":
    main()
