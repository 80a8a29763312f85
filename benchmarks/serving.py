"""How many requests the endpoint answers in a second: 32 clients at once against one alone.

    python benchmarks/serving.py [clients=32] [requests=640] [alone=64] [threads=1]

Prints one JSON object. The server is `python -m sparkles.serve api` with the nano model, in a process of its own; the
clients are the `openai` package's, each asking again as soon as it has its answer. Requests show one to four images in
equal shares. `lost` counts requests without an answer, and `mixed_up` those of the first `alone` requests that got
another answer among the others than alone.
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


def measure(
    clients: int = 32,
    requests: int = 640,
    alone: int = 64,
    threads: int = 1,
    data_root: Path = Path("data/scenes"),
) -> None:
    """Time one client, then many, against the same server.

    Args:
        clients: of the second time.
        requests: of the second time.
        alone: requests of the first time, the first of those of the second.
        threads: of torch; the server reads requests and writes answers in another.
        data_root: of the scenes world, which is drawn if it is not there.
    """
    payloads = [payload(prompt) for prompt in dialogues(requests, data_root)]
    with server(threads) as base_url:
        ask_all(base_url, payloads[:4], clients=1)  # what is done once is done
        start = time.perf_counter()
        singly = ask_all(base_url, payloads[:alone], clients=1)
        one_client = alone / (time.perf_counter() - start)
        start = time.perf_counter()
        together = ask_all(base_url, payloads, clients=clients)
        figure = requests / (time.perf_counter() - start)
    seconds = sorted(seconds for _, seconds in together)
    print_line(
        "endpoint, nano, one to four images a request",
        f"{clients} clients",
        figure=round(figure, 1),
        unit="requests/s",
        one_client=round(one_client, 2),
        ratio=round(figure / one_client, 2),
        requests=requests,
        lost=sum(text is None for text, _ in [*singly, *together]),
        mixed_up=sum(one[0] != other[0] for one, other in zip(singly, together, strict=False)),
        seconds_alone=round(statistics.median(seconds for _, seconds in singly), 3),
        seconds_median=round(statistics.median(seconds), 3),
        seconds_p95=round(seconds[int(0.95 * len(seconds))], 3),
        threads=threads,
    )


if __name__ == "__main__":
    call("serving.py", measure, sys.argv[1:])
