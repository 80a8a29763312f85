"""What each technique buys when nano answers benchmarks, against one prompt at a time.

    python benchmarks/evaluation.py [threads=2] [repeats=5] [num=100]

Each line of output is a JSON object. The first way is the original's: one prompt at a time, by transformers' own
decoding. Each further way adds one technique. All ways answer the same questions of BISON, NLVR2 and SparklesEval (both
turns) one after the other in every repeat, so that what else the machine does falls on all of them; figures are
medians, and `same_answers` counts those that equal the first way's. The last line says where the time of the last way
goes: into torch's operators by kind, and into all else (Python, tokenizer, files).
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from _line import print_line, speed
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor, nn

from sparkles.config import CONFIG_DIR, call, register_resolvers
from sparkles.data.features import FeatureCache
from sparkles.eval.asking import Asked, ask
from sparkles.eval.benchmark import Benchmark, Item, Scorer
from sparkles.eval.courses import follow
from sparkles.eval.responders import ModelResponder
from sparkles.launch import build_module
from sparkles.models.decoding import RunningBatch
from sparkles.models.sparkles_chat import SparklesChat

BATCH_SIZE = 256
KINDS = {
    "attention": ("scaled_dot_product",),
    "matrix_products": ("mm", "convolution"),
    "memory": ("copy", "cat", "index", "fill", "zero", "empty"),
}
"""Of operators, by parts of their names; any other counts as elementwise."""


class InBatches(nn.Module):
    """SparklesChat, with no other way to answer than a batch by transformers' `generate`."""

    def __init__(self, chat: SparklesChat) -> None:
        super().__init__()
        self.chat = chat

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        return self.chat.encode_images(pixel_values)

    def generate(self, batch: Mapping[str, Tensor], **generation: Any) -> Tensor:
        return self.chat.generate(batch, **generation)


class Forgetful(InBatches):
    """SparklesChat, which reads each prompt from its beginning."""

    def __init__(self, chat: SparklesChat) -> None:
        super().__init__(chat)
        self.language = chat.language

    def running_batch(self, features: Callable[[Sequence[int]], Tensor]) -> RunningBatch:
        return self.chat.running_batch(features, remembered_bytes=0)


@dataclass(frozen=True)
class Way:
    """How benchmarks are answered."""

    responder: Callable[[], ModelResponder]
    """Makes one that has seen nothing yet."""
    together: bool = False
    """All benchmarks at the same time."""

    def answer(self, suite: Sequence[Sequence[tuple[Item, Scorer]]]) -> list[str]:
        """Everything that is said to the benchmarks' items, in their order."""
        responder = self.responder()
        said = []
        for items in [list(chain(*suite))] if self.together else suite:
            # As `sparkles.eval.run` has them: what takes longest begins first.
            order = sorted(range(len(items)), key=lambda index: -len(items[index][0].questions))
            courses = [ask(*items[index]) for index in order]
            followed = follow(courses, responder, at_once=len(courses))
            asked: dict[int, Asked] = {order[place]: one for place, one in followed}
            said += [one["response"] for index in range(len(courses)) for one in asked[index].tries]
        return said


def ways(cfg: DictConfig, folder: Path) -> dict[str, Way]:
    """By name, each with one technique more than the last."""
    datamodule = instantiate(cfg.data, _convert_="all")
    datamodule.prepare_data()
    module = build_module(cfg)
    part = module.model.qformer
    shape = part.num_query_tokens, part.hidden_size

    def make(
        model: nn.Module, batch_size: int = BATCH_SIZE, *, keeps: bool = False
    ) -> Callable[[], ModelResponder]:
        def responder() -> ModelResponder:
            features = (
                FeatureCache(folder, encoder_hash=str(module.encoder_hash), shape=shape) if keeps else None
            )
            return ModelResponder(
                model=model,  # type: ignore[arg-type]  # as a responder uses it
                encoder=datamodule.encoder,
                transform=datamodule.eval_transform,
                generation=cfg.callbacks.benchmarks.generation,
                features=features,
                batch_size=batch_size,
            )

        return responder

    return {
        "one prompt at a time": Way(make(InBatches(module.model), 1)),
        f"+ batches of {BATCH_SIZE}, sorted by length": Way(make(InBatches(module.model))),
        "+ where an answer ends the next begins": Way(make(Forgetful(module.model))),
        "+ what was read once is not read again": Way(make(module.model)),
        "+ all benchmarks together": Way(make(module.model), together=True),
        "+ features of pictures cached": Way(make(module.model, keeps=True), together=True),
    }


def time_by_kind(way: Way, suite: Sequence[Sequence[tuple[Item, Scorer]]]) -> dict[str, float]:
    """Seconds of one run by kind of operator, and those spent outside of all operators."""
    with torch.profiler.profile() as profile:
        start = time.perf_counter()
        way.answer(suite)
        whole = time.perf_counter() - start
    seconds = dict.fromkeys((*KINDS, "elementwise"), 0.0)
    for one in profile.key_averages():
        kinds = [kind for kind, names in KINDS.items() if any(name in one.key for name in names)]
        seconds[kinds[0] if kinds else "elementwise"] += one.self_cpu_time_total / 1e6
    return {
        name: round(value, 3) for name, value in (seconds | {"else": whole - sum(seconds.values())}).items()
    }


def measure(
    threads: int = 2, repeats: int = 5, num: int = 100, data_root: Path = Path("data/scenes")
) -> None:
    """Time answers to three benchmarks at nano size, one technique after the other.

    Args:
        threads: of torch.
        repeats: of which the median is taken; one more goes before them, and fills the cache of features.
        num: items of each benchmark.
        data_root: of the scenes world, which is drawn if it is not there.
    """
    torch.set_num_threads(threads)
    register_resolvers()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("eval", [f"data_root={data_root}", f"benchmark.num={num}"])
    benchmarks: list[Benchmark] = list(instantiate(cfg.benchmark.suite, _convert_="all").values())
    with tempfile.TemporaryDirectory() as folder, Console(stderr=True).status("measuring"):
        compared = ways(cfg, Path(folder))  # before the items, which it draws if they are not there
        suite = [[(item, benchmark.scorer) for item in benchmark.items()] for benchmark in benchmarks]
        seconds: dict[str, list[float]] = {name: [] for name in compared}
        said: dict[str, list[str]] = {}
        for repeat in range(repeats + 1):
            for name, way in compared.items():
                start = time.perf_counter()
                said[name] = way.answer(suite)
                if repeat:
                    seconds[name].append(time.perf_counter() - start)
        parts = time_by_kind(list(compared.values())[-1], suite)
    first = next(iter(compared))
    slowest, num_prompts = statistics.median(seconds[first]), len(said[first])
    for name, times in seconds.items():
        print_line(
            "nano answers of BISON, NLVR2 and SparklesEval",
            name,
            **speed(times, slowest, amount=num_prompts, unit="prompts"),
            same_answers=f"{sum(map(str.__eq__, said[name], said[first]))} of {num_prompts}",
            threads=threads,
            repeats=repeats,
        )
    whole = sum(parts.values())
    print_line(
        "where the time goes, under a profiler, which lengthens all but attention and matrix products",
        list(compared)[-1],
        figure=round(whole, 3),
        unit="s",
        **{name: f"{value / whole:.0%}" for name, value in parts.items()},
        threads=threads,
    )


if __name__ == "__main__":
    call("evaluation.py", measure, sys.argv[1:])
