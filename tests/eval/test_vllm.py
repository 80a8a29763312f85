"""The responder that leaves the language model to vLLM, with a stand-in for vLLM that generates with transformers."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from transformers import AutoModelForCausalLM, StoppingCriteriaList

from sparkles.config import CONFIG_DIR, register_resolvers
from sparkles.data.encoding import Encoder
from sparkles.data.images import ImageTransform
from sparkles.data.tokenizer import load_tokenizer
from sparkles.eval.__main__ import measure
from sparkles.eval.asking import ask
from sparkles.eval.choosing import StopStrings
from sparkles.eval.courses import Conversing, follow
from sparkles.eval.responders import ModelResponder
from sparkles.eval.sparkles_eval import SparklesEval
from sparkles.eval.vllm import Engine, VLLMResponder
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.prompt_format import image_reference
from sparkles.types import Image, InputError, Message, Prompt, Responder


class RequestOutputKind(Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass(kw_only=True)
class SamplingParams:
    """vLLM's, as far as it concerns us; a greedy one has temperature 0."""

    max_tokens: int | None = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    skip_special_tokens: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE


@dataclass(kw_only=True)
class AsyncEngineArgs:
    """vLLM's, as far as it concerns us."""

    model: str
    dtype: str = "auto"
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    enable_prompt_embeds: bool = False
    max_model_len: int | None = None


@dataclass
class AsyncLLMEngine:
    """Answers with the weights in the folder, and only in the event loop in which it was first asked."""

    arguments: AsyncEngineArgs
    asked: dict[str, SamplingParams] = field(default_factory=dict)
    most_under_way: int = 0
    is_shut_down: bool = False

    def __post_init__(self) -> None:
        self.language = AutoModelForCausalLM.from_pretrained(self.arguments.model, dtype=self.arguments.dtype)
        self.tokenizer = load_tokenizer(self.arguments.model)
        self.under_way = 0
        self.loop: asyncio.AbstractEventLoop | None = None

    async def generate(
        self, prompt: dict[str, Any], sampling_params: SamplingParams, request_id: str
    ) -> AsyncIterator[SimpleNamespace]:
        assert self.arguments.enable_prompt_embeds
        self.loop = self.loop or asyncio.get_running_loop()
        assert asyncio.get_running_loop() is self.loop
        assert request_id not in self.asked
        embeds = prompt["prompt_embeds"]
        assert embeds.ndim == 2
        assert embeds.device.type == "cpu"
        assert not embeds.requires_grad
        self.asked[request_id] = sampling_params
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        for _ in range(3):
            await asyncio.sleep(0)
        token_ids, ended = self.say(embeds, sampling_params)
        self.under_way -= 1
        yield SimpleNamespace(
            outputs=[SimpleNamespace(token_ids=token_ids, finish_reason="stop" if ended else "length")],
            finished=True,
        )

    def say(self, embeds: Tensor, params: SamplingParams) -> tuple[tuple[int, ...], bool]:
        assert params.output_kind is RequestOutputKind.FINAL_ONLY
        assert isinstance(params.stop, list)
        assert params.stop_token_ids is not None
        stop = StopStrings(params.stop, self.tokenizer)
        is_greedy = params.temperature == 0
        assert params.seed is None or params.seed < 2**63, "as it is kept on the GPU"
        torch.manual_seed(params.seed or 0)
        new_ids = self.language.generate(
            inputs_embeds=embeds[None],
            attention_mask=torch.ones(1, len(embeds), dtype=torch.int64),
            max_new_tokens=params.max_tokens,
            do_sample=not is_greedy,
            stopping_criteria=StoppingCriteriaList([stop]),
            eos_token_id=params.stop_token_ids,
            pad_token_id=0,
            **({} if is_greedy else {"temperature": params.temperature, "top_k": params.top_k}),
        )[0].tolist()
        return tuple(new_ids), new_ids[-1] in params.stop_token_ids or stop.end(new_ids)

    def shutdown(self) -> None:
        self.is_shut_down = True


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[AsyncLLMEngine]:
    """A vLLM to import; the engines that it has made."""
    made: list[AsyncLLMEngine] = []

    def from_engine_args(engine_args: AsyncEngineArgs) -> AsyncLLMEngine:
        made.append(AsyncLLMEngine(engine_args))
        return made[-1]

    vllm, sampling_params = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    vllm.__spec__ = SimpleNamespace(name="vllm")  # type: ignore[assignment]
    vars(vllm).update(
        AsyncEngineArgs=AsyncEngineArgs,
        AsyncLLMEngine=SimpleNamespace(from_engine_args=from_engine_args),
        SamplingParams=SamplingParams,
    )
    vars(sampling_params).update(RequestOutputKind=RequestOutputKind)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", sampling_params)
    return made


@pytest.fixture
def make(
    engines: list[AsyncLLMEngine], model: SparklesChat, encoder: Encoder, tmp_path: Path
) -> Callable[..., VLLMResponder]:
    for part in (model.language, encoder.tokenizer):
        part.save_pretrained(tmp_path / "language")  # type: ignore[attr-defined]
    transform = ImageTransform(image_size=model.vision.image_size)

    def make(engine: dict[str, Any] | None = None, **options: Any) -> VLLMResponder:
        return VLLMResponder(
            **{
                "engine": Engine(path=str(tmp_path / "language"), **(engine or {})),
                "model": model,
                "module": lambda model: SimpleNamespace(model=model, frozen_hashes={}),
                "data": SimpleNamespace(encoder=encoder, eval_transform=transform),
                "generation": {"max_new_tokens": 12},
            }
            | options
        )

    return make


@pytest.fixture
def prompts(pictures: Path) -> list[Prompt]:
    red, green = pictures / "red.png", pictures / "green.png"
    shown = [(red,), (green, red), (), (red, red), (green,), ()]
    return [asked("Why? " * (1 + number), *files) for number, files in enumerate([*shown, *shown])]


def asked(text: str, *paths: Path, **about: Any) -> Prompt:
    images = tuple(Image(image_id=number, path=path) for number, path in enumerate(paths, start=1))
    content = " ".join([text, *(image_reference(image.image_id) for image in images)])
    return Prompt(messages=(Message(role="user", content=content, images=images),), **about)


# --- answers --------------------------------------------------------------------------------------------------


def test_answers_are_those_of_the_model_in_this_process(
    make: Callable[..., VLLMResponder], make_responder: Callable[..., ModelResponder], prompts: list[Prompt]
) -> None:
    ours = make().respond(prompts)
    theirs = make_responder(generation={"max_new_tokens": 12}).respond(prompts)
    assert [one.text for one in ours] == [one.text for one in theirs]
    assert [one.truncated for one in ours] == [one.truncated for one in theirs]
    assert len({one.text for one in ours}) > 3, "a test of order needs answers that differ"
    assert all(one.seconds > 0 for one in ours)


def test_one_engine_answers_many_prompts_at_once_call_after_call(
    make: Callable[..., VLLMResponder], engines: list[AsyncLLMEngine], prompts: list[Prompt]
) -> None:
    responder = make(at_once=4)
    first = responder.respond(prompts)
    assert [one.text for one in responder.respond(prompts[::-1])] == [one.text for one in first[::-1]]
    [engine] = engines
    assert engine.most_under_way == 4
    assert len(engine.asked) == 2 * len(prompts)
    assert responder.respond([]) == []


def test_a_second_turn_is_asked_as_soon_as_the_first_is_answered(
    make: Callable[..., VLLMResponder],
    make_responder: Callable[..., ModelResponder],
    dialogues: SparklesEval,
) -> None:
    responder = make()
    assert isinstance(responder, Conversing)
    assert isinstance(responder, Responder)

    def transcripts(one: Responder) -> dict[int, list[str]]:
        courses = [ask(item, dialogues.scorer) for item in dialogues.items()]
        ended = follow(courses, one, at_once=8)
        return {index: [said.content for said in asked.messages] for index, asked in ended}

    assert transcripts(responder) == transcripts(make_responder(generation={"max_new_tokens": 12}))


def test_what_goes_wrong_with_one_prompt_ends_the_call_and_not_the_next(
    make: Callable[..., VLLMResponder], prompts: list[Prompt]
) -> None:
    responder = make()
    with pytest.raises(InputError, match=r"the last turn alone needs"):
        responder.respond([*prompts, asked("Long? " * 200)])
    assert len(responder.respond(prompts)) == len(prompts)


def test_likelihoods_are_not_to_be_had(make: Callable[..., VLLMResponder]) -> None:
    with pytest.raises(InputError, match=r"eval\.mode=likelihood .* set eval\.mode=generate"):
        make().respond([asked("Which?", options=("A", "B"))])


# --- what vLLM is told ----------------------------------------------------------------------------------------


def told(engines: list[AsyncLLMEngine]) -> list[SamplingParams]:
    return [params for engine in engines for params in engine.asked.values()]


def test_greedy_answers_end_at_the_stop_string_or_end_token(
    make: Callable[..., VLLMResponder], engines: list[AsyncLLMEngine]
) -> None:
    make().respond([asked("Well?")])
    assert told(engines) == [
        SamplingParams(
            max_tokens=12,
            temperature=0.0,
            stop=["###"],
            stop_token_ids=[2],
            skip_special_tokens=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
    ]


def test_a_draw_belongs_to_item_try_and_seed(
    make: Callable[..., VLLMResponder], engines: list[AsyncLLMEngine]
) -> None:
    sampled = {"max_new_tokens": 12, "do_sample": True, "temperature": 3.0, "top_k": None}
    first, other, retry = (
        asked("Well?", item_id="1"),
        asked("Well?", item_id="2"),
        asked("Well?", item_id="1", try_number=2),
    )
    make(generation=sampled).respond([first, other, retry, first])
    make(generation=sampled, seed=1).respond([first])
    seeds = [params.seed for params in told(engines)]
    assert seeds[0] == seeds[3]
    assert len(set(seeds)) == 4
    assert {(params.temperature, params.top_k, params.top_p) for params in told(engines)} == {(3.0, 50, 0.9)}


def test_only_later_tries_are_drawn_where_the_first_is_greedy(
    make: Callable[..., VLLMResponder], engines: list[AsyncLLMEngine]
) -> None:
    make().respond([asked("Well?", try_number=number) for number in (1, 2)])
    assert [params.temperature for params in told(engines)] == [0.0, 1.0]


def test_settings_of_the_engine_are_passed_on(
    make: Callable[..., VLLMResponder], engines: list[AsyncLLMEngine]
) -> None:
    options = {
        "tensor_parallel": 2,
        "data_parallel": 4,
        "gpu_memory": 0.5,
        "options": {"max_model_len": 2048},
    }
    make(engine=options).respond([asked("Well?")])
    arguments = engines[0].arguments
    assert (arguments.tensor_parallel_size, arguments.data_parallel_size) == (2, 4)
    assert (arguments.gpu_memory_utilization, arguments.max_model_len) == (0.5, 2048)


def test_the_engine_starts_with_the_first_question_and_ends_with_the_responder(
    make: Callable[..., VLLMResponder], engines: list[AsyncLLMEngine]
) -> None:
    responder = make()
    assert not engines
    responder.respond([asked("Well?")])
    assert not engines[0].is_shut_down
    del responder
    assert engines[0].is_shut_down


def test_the_name_tells_weights_and_settings_apart(make: Callable[..., VLLMResponder]) -> None:
    names = {
        make().name,
        make(seed=1).name,
        make(generation={"max_new_tokens": 13}).name,
        make(name="Other").name,
    }
    assert len(names) == 4
    assert make().name == make(at_once=3).name


# --- mistakes and configuration -------------------------------------------------------------------------------


def test_without_vllm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparkles.eval.vllm.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'sparkles\[vllm\]'.* responder=model goes without"):
        Engine(path="somewhere")


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        (
            {"max_new_tokens": 5, "num_beams": 3},
            "num_beams cannot be told to vLLM here; expected do_sample, max",
        ),
        ({"do_sample": True}, "sets no limit; add max_new_tokens"),
    ],
)
def test_generation_that_vllm_is_not_told(
    make: Callable[..., VLLMResponder], generation: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make(generation=generation)


def test_the_option_takes_the_model_data_and_generation_of_the_run() -> None:
    register_resolvers()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("eval", ["responder=vllm", "responder.engine.data_parallel=8", "checkpoint=mine.ckpt"])
    responder = resolved(cfg.responder)
    assert next(iter(responder)) == "_target_"
    assert list(responder)[1] == "engine", "what may be missing is told before weights are read"
    assert responder["engine"]["path"] == cfg.model.language.path
    assert responder["module"]["checkpoint"] == "mine.ckpt"
    assert (responder["model"], responder["data"]) == (resolved(cfg.model), resolved(cfg.data))
    assert responder["generation"] == resolved(cfg.callbacks.benchmarks.generation)


def resolved(cfg: DictConfig) -> Any:
    return OmegaConf.to_container(cfg, resolve=True)


def test_a_run_measures_the_model_that_it_would_without_vllm(
    engines: list[AsyncLLMEngine],
    run_main: Callable[..., None],
    tiny_run: list[str],
    tiny_world: Path,
    tmp_path: Path,
) -> None:
    options = [*tiny_run, f"data_root={tiny_world}", "benchmark=[bison]", "data.feature_cache=null"]
    for name, responder in (("plain", "model"), ("vllm", "vllm")):
        run_main(measure, *options, f"responder={responder}", f"run_dir={tmp_path / name}")
    assert len(engines) == 1
    plain, ours = (
        [json.loads(line)["tries"] for line in (tmp_path / name / "predictions/bison.jsonl").open()]
        for name in ("plain", "vllm")
    )
    assert len(ours) == 4
    assert [one["response"] for [one] in ours] == [one["response"] for [one] in plain]
    theirs, ours = (
        json.loads((tmp_path / name / "environment.json").read_text()) for name in ("plain", "vllm")
    )
    assert {"vision", "qformer", "language"} <= ours["hashes"].keys()
    assert ours["hashes"] == theirs["hashes"]
