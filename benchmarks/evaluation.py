"""What each technique buys when nano answers benchmarks, against one prompt at a time.

    python benchmarks/evaluation.py [threads=2] [repeats=5] [num=40]

Each line of output is a JSON object. The first way is the original's: one prompt at a time, with transformers' own
decoding, and each picture encoded whenever it is asked about. Each further way adds one technique. All ways answer the
same questions of BISON, NLVR2 and SparklesEval (both turns) one after the other in every repeat, so that what else the
machine does falls on all of them; figures are medians, and `same_answers` counts those that equal the first way's.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
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
from sparkles.eval.asking import ask
from sparkles.eval.benchmark import Benchmark
from sparkles.eval.responders import ModelResponder
from sparkles.launch import build_module
from sparkles.models.decoding import greedy_options
from sparkles.models.lightning_module import SparklesModule

MakeResponder = Callable[[], ModelResponder]


class Decoding(nn.Module):
    """SparklesChat without some of what its `generate` does."""

    def __init__(self, module: SparklesModule, *, leaving: bool) -> None:
        super().__init__()
        self.chat = module.model
        self.language = module.model.language
        self.leaving = leaving

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        return self.chat.encode_images(pixel_values)

    def generate(self, batch: Mapping[str, Tensor], **generation: Any) -> Tensor:
        options = greedy_options(self.language, generation, shared=0) if self.leaving else {}
        return self.language.generate(
            inputs_embeds=self.chat.embed(
                batch["input_ids"], batch["pixel_values"], batch.get("image_features")
            ),
            attention_mask=batch["attention_mask"],
            **options,
            **generation,
        )


def ways(cfg: DictConfig, folder: Path) -> dict[str, MakeResponder]:
    """By name, what makes a responder that has seen nothing yet."""
    datamodule = instantiate(cfg.data, _convert_="all")
    datamodule.prepare_data()
    module = build_module(cfg)
    part = module.model.qformer
    shape = part.num_query_tokens, part.hidden_size

    def make(model: nn.Module, batch_size: int, *, keeps: bool = False) -> MakeResponder:
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

    plain, leaving = Decoding(module, leaving=False), Decoding(module, leaving=True)
    return {
        "one prompt at a time": make(plain, 1),
        "+ batches of 50, sorted by length": make(plain, 50),
        "+ rows that have ended leave, keys and values stay in place": make(leaving, 50),
        "+ batches of 100": make(leaving, 100),
        "+ what all prompts begin with is read once": make(module.model, 100),
        "+ features of pictures cached": make(module.model, 100, keeps=True),
    }


def measure(threads: int = 2, repeats: int = 5, num: int = 40, data_root: Path = Path("data/scenes")) -> None:
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
        makers = ways(cfg, Path(folder))
        suite = [(benchmark.items(), benchmark.scorer) for benchmark in benchmarks]
        seconds: dict[str, list[float]] = {name: [] for name in makers}
        said: dict[str, list[str]] = {}
        for repeat in range(repeats + 1):
            for name, make in makers.items():
                start, responder = time.perf_counter(), make()
                asked = [one for items, scorer in suite for one in ask(items, responder, scorer)]
                if repeat:
                    seconds[name].append(time.perf_counter() - start)
                said[name] = [one["response"] for item in asked for one in item.tries]
    first = next(iter(makers))
    slowest, num_prompts = statistics.median(seconds[first]), len(said[first])
    for name, times in seconds.items():
        print_line(
            "nano answers of BISON, NLVR2 and SparklesEval",
            name,
            **speed(times, slowest, amount=num_prompts, unit="prompts"),
            same_answers=f"{sum(map(str.__eq__, said[name], said[first]))} of {num_prompts}",
            threads=threads,
            repeats=repeats,
            torch=torch.__version__,
        )


if __name__ == "__main__":
    call("evaluation.py", measure, sys.argv[1:])
