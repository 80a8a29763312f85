"""Talk to a model, on a page or in the terminal, or let programs do so: `python -m sparkles.serve`."""

import logging
import os
import sys
from asyncio import CancelledError
from collections.abc import Callable
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from sparkles.config import command
from sparkles.types import InputError

if TYPE_CHECKING:
    from contextlib import ExitStack
    from socket import socket

    from starlette.types import ASGIApp

    from sparkles.serve.engine import Engine
    from sparkles.serve.terminal.speakers import Speaker

USAGE = """usage: python -m sparkles.serve COMMAND [overrides]

  chat   a web page; pictures are dropped, pasted or chosen between the words
  tui    chat in the terminal; pictures go between words as @path
  api    an OpenAI-compatible endpoint: /v1/models, /v1/chat/completions

`python -m sparkles.serve COMMAND --help` prints the configuration."""

MAX_CONNECTIONS = 1_000
PAGE_PATIENCE = 3


@command("tui", leaves_files=False)
def tui(cfg: DictConfig) -> None:
    # Not before --help is answered.
    from contextlib import ExitStack

    from hydra.utils import instantiate
    from rich.console import Console
    from rich.markup import escape

    from sparkles.config import validate
    from sparkles.serve.terminal.line_input import LineInput
    from sparkles.serve.terminal.talk import PATHS_AFTER, WORDS, Talk, run

    validate(cfg)
    console = Console(highlight=False)
    read = LineInput(console, WORDS, PATHS_AFTER) if cfg.message is None else None
    with ExitStack() as opened:
        talk = Talk(
            _speaker(cfg, opened),
            console,
            sampling=instantiate(cfg.sampling),
            name=cfg.name,
            fixed=_is_whole(cfg),
            aside=Console(highlight=False, stderr=True) if read is None else None,
        )
        if read is None:
            sys.exit(0 if talk.ask(cfg.message) else 1)
        model = f"weights: {cfg.checkpoint}" if cfg.responder is None else f"answers: {cfg.name}"
        about = cfg.get("about", "") if cfg.responder is None else ""
        hints = [f"[dim]{escape(hint.strip())}[/]" for hint in (model, about) if hint]
        run(talk, read, hints=hints)


def _is_whole(cfg: DictConfig) -> bool:
    """Whether answers come whole, and as they were configured."""
    return cfg.responder is not None or cfg.engine is None


def _speaker(cfg: DictConfig, opened: "ExitStack") -> "Speaker":
    """Who answers in the terminal, until `opened` is closed."""
    from contextlib import closing

    from hydra.utils import instantiate

    from sparkles.launch import build_responder
    from sparkles.serve.conversation import Chat
    from sparkles.serve.terminal.speakers import LiveAnswers, WholeAnswers

    if _is_whole(cfg):
        return WholeAnswers(build_responder(cfg))
    if others := ", ".join(f"generation.{key}" for key in cfg.generation if key != "max_new_tokens"):
        raise InputError(
            f"{others} would not be heeded; set sampling.temperature, top_p, beams or seed instead, or engine=null "
            "for answers by transformers' generate, which come whole"
        )
    engine = opened.enter_context(closing(_engine(cfg)))
    return LiveAnswers(Chat(engine, limits=instantiate(cfg.limits)))


@command("chat", leaves_files=False)
def chat(cfg: DictConfig) -> None:
    from hydra.utils import instantiate

    from sparkles.config import validate
    from sparkles.gen.extras import needs

    with needs("serve"):
        from sparkles.serve.conversation import Chat
        from sparkles.serve.feedback import Feedback
        from sparkles.serve.page.app import build_page
        from sparkles.serve.starters import read_examples

    validate(cfg)
    password = _secret(cfg.host, cfg.password, "SPARKLES_PASSWORD")
    examples = read_examples(cfg.examples) if cfg.examples else []
    engine = _engine(cfg)
    visitors = instantiate(cfg.visitors)
    page = build_page(
        Chat(engine, limits=instantiate(cfg.limits), moderation=instantiate(cfg.moderation)),
        name=cfg.name,
        defaults=instantiate(cfg.sampling),
        visitors=visitors,
        feedback=Feedback(cfg.feedback, model=cfg.name) if cfg.feedback else None,
        examples=examples,
        about=cfg.get("about", ""),  # of those in conf/model that have something to say
        password=password,
    )
    print(f"{cfg.name} at http://{cfg.host}:{cfg.port}; Ctrl-C stops the answers, and ends it", flush=True)
    _serve(page, engine, cfg, patience=PAGE_PATIENCE, at_end=visitors.stop)


@command("api", leaves_files=False)
def api(cfg: DictConfig) -> None:
    from hydra.utils import instantiate

    from sparkles.config import validate
    from sparkles.gen.extras import needs

    with needs("api"):
        from sparkles.serve.api import build_app

    validate(cfg)
    api_key = _secret(cfg.host, cfg.api_key, "SPARKLES_API_KEY")
    engine = _engine(cfg)
    app = build_app(
        engine,
        name=cfg.name,
        defaults=instantiate(cfg.sampling),
        limits=instantiate(cfg.limits),
        api_key=api_key,
        image_urls=cfg.image_urls,
        moderation=instantiate(cfg.moderation),
    )
    print(
        f"{cfg.name} at http://{cfg.host}:{cfg.port}/v1; Ctrl-C ends it when those who wait have their answers, "
        "a second one at once",
        flush=True,
    )
    _serve(app, engine, cfg, patience=round(engine.seconds))


def _secret(host: str, given: str | None, variable: str) -> str | None:
    """What lets users in; without any, the server is for this machine alone."""
    from sparkles.serve.gate import LOOPBACK

    secret = given or os.environ.get(variable)
    if host not in LOOPBACK and not secret:
        raise InputError(
            f"host={host} would open the server to the network; expected a secret then: set {variable} in the "
            f"environment, or leave host at {LOOPBACK[1]}"
        )
    return secret


def _engine(cfg: DictConfig) -> "Engine":
    """What computes the answers, for the model of `cfg`."""
    import torch
    from hydra.utils import instantiate

    from sparkles.launch import build_module

    if threads := cfg.threads or ("OMP_NUM_THREADS" not in os.environ and max(1, (os.cpu_count() or 1) // 2)):
        torch.set_num_threads(threads)
    datamodule = instantiate(cfg.data, _convert_="all")
    engine: Engine = instantiate(cfg.engine)(
        model=build_module(cfg).model, encoder=datamodule.encoder, transform=datamodule.eval_transform
    )
    return engine


def _serve(
    app: "ASGIApp",
    engine: "Engine",
    cfg: DictConfig,
    *,
    patience: int,
    at_end: Callable[[], None] = lambda: None,
) -> None:
    """Until Ctrl-C; then call `at_end`, and wait for requests in flight, for so many seconds."""
    from contextlib import closing, suppress

    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: "list[socket] | None" = None) -> None:
            logging.getLogger("uvicorn.error").addFilter(_is_no_cancellation)
            at_end()
            await super().shutdown(sockets)
            if self.force_exit:  # left out then, and complained of by whoever waits for it
                await self.lifespan.shutdown()

    server = Server(
        uvicorn.Config(
            app,
            host=cfg.host,
            port=cfg.port,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=patience,
            server_header=False,
        )
    )
    with closing(engine), suppress(KeyboardInterrupt):  # again, when all is over
        server.run()


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """For the log of a server that ends: requests that it cancels itself are no news."""
    return not (record.exc_info and isinstance(record.exc_info[1], CancelledError))


COMMANDS = {"chat": chat, "tui": tui, "api": api}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(USAGE if sys.argv[1:2] not in (["-h"], ["--help"]) else print(USAGE))
    COMMANDS[sys.argv.pop(1)]()


if __name__ == "__main__":
    main()
