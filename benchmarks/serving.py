"""How many requests the endpoint answers in a second: 32 clients at once against one alone.

    python benchmarks/serving.py [clients=32] [requests=640] [alone=64] [rounds=3] [threads=1]

Prints one JSON object. The server is `python -m sparkles.serve api` with the nano model, in a process of its own; the
clients are the `openai` package's, each asking again as soon as it has its answer, on the same cores as the server:
`client_ms` is their time on a core, for a request. Requests show one to four images in equal shares. In each round one
client asks `alone` requests, then many ask these and others, none of which was asked in the rounds before, so that a
machine whose speed changes is slow for both. Told are the medians of the rounds. `lost` counts requests without an
answer, and `mixed_up` those that got another answer among the others than alone.
"""

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import openai
from _line import print_line
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from sparkles.config import CONFIG_DIR, call, register_resolvers
from sparkles.data.datamodule import SparklesDataModule
from sparkles.llm_client import Request, chat_messages
from sparkles.types import Prompt

MODEL = "SparklesChat"
IMAGES = (1, 2, 3, 4)
Payload = dict[str, Any]
Answer = tuple[str | None, float]
"""What was said, and after how many seconds; None if nothing was."""


def payload(prompt: Prompt, *, max_tokens: int = 220) -> Payload:
    """The body of a request for one greedy answer."""
    return Request(model=MODEL, messages=chat_messages(prompt.messages), max_tokens=max_tokens).payload()


def ask_all(base_url: str, payloads: Sequence[Payload], *, clients: int) -> list[Answer]:
    """Ask them in order with so many clients, each of which has one request under way; their answers in that order."""
    answers: list[Answer] = [(None, 0.0)] * len(payloads)
    waiting = iter(enumerate(payloads))

    async def work(client: openai.AsyncOpenAI) -> None:
        for index, body in waiting:
            start = time.perf_counter()
            try:
                completion = await client.chat.completions.create(**body)
            except openai.OpenAIError as error:
                print(f"request {index}: {error}", file=sys.stderr)
                continue
            answers[index] = (completion.choices[0].message.content, time.perf_counter() - start)

    async def work_all() -> None:
        # One object, but a connection for each request under way.
        async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
            await asyncio.gather(*(work(client) for _ in range(clients)))

    asyncio.run(work_all())
    return answers


def dialogues(number: int, data_root: Path) -> list[Prompt]:
    """First and second turns of the scenes world's dialogues, with one to four images by turns."""
    register_resolvers()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("train", [f"data_root={data_root}"])
    datamodule: SparklesDataModule = instantiate(cfg.data, _convert_="all")
    with redirect_stdout(sys.stderr):
        datamodule.prepare_data()
        datamodule.setup("fit")
    asked = [sample.prompt.messages for samples in datamodule._train_samples.values() for sample in samples]
    prompts = [Prompt(messages=turns) for messages in asked for turns in (messages[:1], messages)]
    by_images = [cycle([one for one in prompts if len(one.images) == count]) for count in IMAGES]
    return [next(kind) for kind in islice(cycle(by_images), number)]


@contextmanager
def server(threads: int) -> Iterator[str]:
    """`python -m sparkles.serve api` on a free port; its base URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sparkles.serve", "api", f"port={port}"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    base_url = f"http://127.0.0.1:{port}/v1"
    client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
    try:
        while True:
            try:
                client.models.list()
                break
            except openai.APIConnectionError:
                if process.poll() is not None:
                    raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}") from None
                time.sleep(0.2)
        yield base_url
    finally:
        process.terminate()
        process.wait()


@dataclass(frozen=True, kw_only=True)
class Round:
    """The same requests from one client and, with others, from many."""

    singly: Sequence[Answer]
    together: Sequence[Answer]
    one_client: float
    """Requests a second."""
    many_clients: float
    client_ms: float

    @property
    def lost(self) -> int:
        return sum(text is None for text, _ in [*self.singly, *self.together])

    @property
    def mixed_up(self) -> int:
        return sum(one[0] != other[0] for one, other in zip(self.singly, self.together, strict=False))


def ask_round(base_url: str, payloads: Sequence[Payload], *, alone: int, clients: int) -> Round:
    """One client asks the first `alone` of them, then many ask all."""
    start = time.perf_counter()
    singly = ask_all(base_url, payloads[:alone], clients=1)
    one_client = alone / (time.perf_counter() - start)
    start, start_on_core = time.perf_counter(), time.process_time()
    together = ask_all(base_url, payloads, clients=clients)
    return Round(
        singly=singly,
        together=together,
        one_client=one_client,
        many_clients=len(payloads) / (time.perf_counter() - start),
        client_ms=1000 * (time.process_time() - start_on_core) / len(payloads),
    )


def measure(
    clients: int = 32,
    requests: int = 640,
    alone: int = 64,
    rounds: int = 3,
    threads: int = 1,
    data_root: Path = Path("data/scenes"),
) -> None:
    """Time one client and many against the same server, by turns.

    Args:
        requests: of all clients together, in a round.
        alone: of one client, in a round.
        threads: of torch, for each of the two that read prompts and write answers.
        data_root: of the scenes world, which is drawn if it is not there.
    """
    payloads = [payload(prompt) for prompt in dialogues(4 + rounds * requests, data_root)]
    with server(threads) as base_url:
        ask_all(base_url, payloads[:4], clients=1)  # what is done once is done
        told = [
            ask_round(base_url, payloads[start : start + requests], alone=alone, clients=clients)
            for start in range(4, len(payloads), requests)
        ]
    ratios = [one.many_clients / one.one_client for one in told]
    seconds = sorted(seconds for one in told for _, seconds in one.together)
    print_line(
        "endpoint, nano, one to four images a request",
        f"{clients} clients",
        figure=round(statistics.median(one.many_clients for one in told), 1),
        unit="requests/s",
        one_client=round(statistics.median(one.one_client for one in told), 2),
        ratio=round(statistics.median(ratios), 2),
        ratios=[round(min(ratios), 2), round(max(ratios), 2)],
        requests=rounds * requests,
        lost=sum(one.lost for one in told),
        mixed_up=sum(one.mixed_up for one in told),
        seconds_alone=round(statistics.median(seconds for one in told for _, seconds in one.singly), 3),
        seconds_median=round(statistics.median(seconds), 3),
        seconds_p95=round(seconds[int(0.95 * len(seconds))], 3),
        client_ms=round(statistics.median(one.client_ms for one in told), 1),
        threads=threads,
    )


if __name__ == "__main__":
    call("serving.py", measure, sys.argv[1:])
