"""SparklesChat with its language model in vLLM, on as many GPUs as there are: `responder=vllm`, an extra.

Pictures are encoded here and put between the words; vLLM gets each prompt as embeddings, and batches the prompts as
answers come and go.

T tokens of a prompt, D_lm the width of the language model, S new tokens.
"""

import asyncio
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol, TypeVar
from uuid import uuid4

import torch
from torch import Tensor, nn

from sparkles.data.collate import pad_batch
from sparkles.data.encoding import Encoder
from sparkles.data.images import ImageTransform
from sparkles.eval.choosing import SAMPLING, WARPERS
from sparkles.eval.courses import Course, Ended, go_on, once
from sparkles.eval.image_features import ImageFeatures
from sparkles.eval.likelihood import ChatModel
from sparkles.eval.responders import fingerprint, read_answer, seed_of
from sparkles.types import InputError, Prompt, Response

T = TypeVar("T")

_NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "repetition_penalty": "repetition_penalty",
}
"""Settings of transformers' `generate`, as vLLM calls them."""
_HEEDED = ("do_sample", *_NAMES, *WARPERS)


class Completion(NamedTuple):
    """What vLLM said."""

    token_ids: list[int]
    """int[S], up to an end token or the end of a stop string."""
    reached_limit: bool


class Engine:
    """vLLM with one language model. It is started when it is first asked, in whose event loop it then lives.

    Args:
        path: folder or hub repository of the language model.
        dtype: of its weights.
        tensor_parallel: GPUs that share each copy of the model.
        data_parallel: copies, among which prompts are shared.
        gpu_memory: part of each GPU's memory that vLLM takes; the vision encoder needs some of the first one's.
        options: any other of vLLM's `AsyncEngineArgs`.

    Raises:
        InputError: vLLM is not installed.
    """

    def __init__(
        self,
        *,
        path: str,
        dtype: str = "auto",
        tensor_parallel: int = 1,
        data_parallel: int = 1,
        gpu_memory: float = 0.8,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if find_spec("vllm") is None:
            raise InputError(
                "responder=vllm: vLLM is not installed; expected the extra `vllm` (pip install 'sparkles[vllm]') on a "
                "machine with GPUs. responder=model goes without"
            )
        self.settings = {
            "model": path,
            "dtype": dtype,
            "tensor_parallel_size": tensor_parallel,
            "data_parallel_size": data_parallel,
            "gpu_memory_utilization": gpu_memory,
            **(options or {}),
        }

    async def complete(self, prompt_embeds: Tensor, sampling: Mapping[str, Any]) -> Completion:
        """Continue a prompt.

        Args:
            prompt_embeds: float[T, D_lm], in the processor's memory.
            sampling: arguments of vLLM's `SamplingParams`.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        outputs = self._vllm.generate(
            prompt={"prompt_embeds": prompt_embeds},
            sampling_params=SamplingParams(**sampling, output_kind=RequestOutputKind.FINAL_ONLY),
            request_id=uuid4().hex,
        )
        [output] = [one async for one in outputs]
        [said] = output.outputs
        return Completion(list(said.token_ids), said.finish_reason == "length")

    @cached_property
    def _vllm(self) -> Any:
        from vllm import AsyncEngineArgs, AsyncLLMEngine

        engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(**self.settings, enable_prompt_embeds=True))
        weakref.finalize(self, engine.shutdown)
        return engine


class Trained(Protocol):
    """`SparklesModule`: a model with the weights of a checkpoint."""

    model: ChatModel

    @property
    def frozen_hashes(self) -> Mapping[str, str]: ...


class Data(Protocol):
    """`SparklesDataModule`: how prompts and pictures are read."""

    @property
    def encoder(self) -> Encoder: ...

    @property
    def eval_transform(self) -> ImageTransform: ...


class VLLMResponder:
    """Answers as `ModelResponder` does, with the language model in vLLM.

    Args:
        engine: with the language model of `model`.
        model: SparklesChat. Of its language model only the word embeddings are used; it stays in the processor's
            memory, and what encodes pictures goes to `device`.
        module: gives it the projection of a checkpoint.
        generation: as for `ModelResponder`, without beams.
        at_once: prompts that vLLM is given at a time.
        device: `auto` is a GPU, if there is one.
        seed: of sampled answers.
        name: who answers; a hash of weights and settings is appended.

    Raises:
        InputError: `generation` has what vLLM is not told, or no limit.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        model: nn.Module,
        module: Callable[..., Trained],
        data: Data,
        generation: Mapping[str, Any],
        at_once: int = 512,
        device: str = "auto",
        seed: int = 0,
        name: str = "SparklesChat",
    ) -> None:
        if unknown := generation.keys() - set(_HEEDED):
            raise InputError(
                f"generation: {', '.join(sorted(unknown))} cannot be told to vLLM here; expected {', '.join(_HEEDED)}"
            )
        if "max_new_tokens" not in generation:
            raise InputError(f"generation={dict(generation)} sets no limit; add max_new_tokens")
        self.engine = engine
        self.encoder = data.encoder
        self.generation = {"do_sample": False, **generation}
        self.at_once = at_once
        self.seed = seed
        trained = module(model=model)
        self._model = trained.model
        self.frozen_hashes = trained.frozen_hashes
        settings = ("vllm", self.encoder.prompt_format, data.eval_transform.settings, self.generation, seed)
        self.name = f"{name}@{fingerprint(model, repr(settings))}"
        chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self._device = torch.device(chosen)
        for part in ("vision", "qformer"):
            model.get_submodule(part).to(self._device)
        self._images = ImageFeatures(self._model, data.eval_transform)
        self._under_way = 0
        self._loop = asyncio.new_event_loop()  # of all calls, as vLLM's own tasks live on between them
        weakref.finalize(self, self._loop.close)

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        """Answer each prompt, in order.

        Raises:
            InputError: a prompt has options to choose from.
        """
        found = dict(self.converse([once(prompt) for prompt in prompts]))
        return [found[index] for index in range(len(prompts))]

    def converse(self, courses: Sequence[Course[T]]) -> Iterator[tuple[int, T]]:
        """See `Conversing`. Between two results vLLM goes on, and its answers wait."""
        places = asyncio.Semaphore(self.at_once)
        waiting = {
            self._loop.create_task(self._follow(index, one, places)) for index, one in enumerate(courses)
        }
        try:
            while waiting:
                first = asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                ended, waiting = self._loop.run_until_complete(first)
                yield from (task.result() for task in ended)
        finally:
            for task in waiting:
                task.cancel()

    async def _follow(self, index: int, course: Course[T], places: asyncio.Semaphore) -> tuple[int, T]:
        async with places:
            step = go_on(course, None)
            while not isinstance(step, Ended):
                step = go_on(course, await self._answer(step))
        return index, step.value

    async def _answer(self, prompt: Prompt) -> Response:
        if prompt.options:
            raise InputError(
                "eval.mode=likelihood compares what the language model finds likely, which vLLM does not tell of "
                "embeddings; set eval.mode=generate, or responder=model"
            )
        start = time.perf_counter()
        self._under_way += 1
        said = await self.engine.complete(self._embed(prompt), self._sampling(prompt))
        seconds = (time.perf_counter() - start) / self._under_way  # its share, or about that
        self._under_way -= 1
        answer = read_answer(said.token_ids, self.encoder)
        return replace(answer, truncated=said.reached_limit, seconds=seconds)

    @torch.inference_mode()
    def _embed(self, prompt: Prompt) -> Tensor:
        """float[T, D_lm]"""
        encoded = self.encoder.encode_prompt(prompt)
        batch = pad_batch([encoded], [None] * len(encoded.images), pad_token_id=0, side="left")
        features = self._images.of(encoded.images, self._device).cpu() if encoded.images else None
        [embeds] = self._model.embed(batch["input_ids"], batch["pixel_values"], features)
        return embeds[encoded.visible]

    def _sampling(self, prompt: Prompt) -> dict[str, Any]:
        """Arguments of `SamplingParams`."""
        eos = self.encoder.tokenizer.eos_token_id
        chosen = {name: self.generation[ours] for ours, name in _NAMES.items() if ours in self.generation} | {
            "stop": list(self.encoder.prompt_format.stop_strings),
            "stop_token_ids": [] if eos is None else [eos],
            "skip_special_tokens": False,  # a stop string may be one
        }
        if not self.generation["do_sample"] and prompt.try_number == 1:
            return chosen | {"temperature": 0.0}
        said = {
            name: value for name, value in self.generation.items() if name in WARPERS and value is not None
        }
        # vLLM keeps seeds as int64.
        return chosen | SAMPLING | said | {"seed": seed_of(self.seed, prompt) >> 1}
