"""What answers prompts: here a model in this process, over anything that is asked like SparklesChat.

B prompts of a batch, T tokens of the longest, S new tokens, V vocabulary.
"""

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sparkles.data.collate import pad_batch
from sparkles.data.encoding import Encoded, Encoder, Tokenizer
from sparkles.data.features import FeatureCache
from sparkles.data.images import ImageTransform
from sparkles.eval.answers import conclusion
from sparkles.eval.image_features import ImageFeatures
from sparkles.eval.likelihood import ChatModel, contest, ending_log_probs
from sparkles.types import InputError, Prompt, Response

FIRST_BATCH_SIZE, LARGEST_BATCH_SIZE = 100, 800
"""What `auto` begins with, and where it ends on a device that says when its memory is full."""

SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 0.9}
"""How answers are drawn where `generation` does not say: as in the original."""

_WARPERS: Mapping[str, Callable[[Any], LogitsProcessor]] = {
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
}
"""In the order in which transformers applies them."""


class StopStrings(StoppingCriteria):
    """Ends each row at the first of some strings, however tokens divide it.

    The `stop_strings` of transformers do the same for its own tokenizers only.
    """

    def __init__(self, strings: Sequence[str], tokenizer: Tokenizer) -> None:
        self.strings = tuple(strings)
        self.tokenizer = tokenizer
        # A token may be as little as a byte, and the first that is decoded may lose its leading space.
        self.num_tokens = 1 + max((len(string.encode()) for string in strings), default=0)
        self._may_end = cache(self._holds_an_end)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """int64[B, S] -> bool[B]"""
        rows = input_ids[:, -self.num_tokens :].tolist()
        ended = [self._may_end(row[-1]) and self._has_ended(row) for row in rows]
        return torch.tensor(ended, device=input_ids.device)

    def _has_ended(self, token_ids: list[int]) -> bool:
        ending = self.tokenizer.decode(token_ids)
        return any(string in ending for string in self.strings)

    def _holds_an_end(self, token_id: int) -> bool:
        """Whether a string may end in this token, which by itself may be part of a character, or a space left out."""
        text = self.tokenizer.decode([token_id])
        unclear = not text or "\N{REPLACEMENT CHARACTER}" in text
        return unclear or any(string[-1] in text for string in self.strings)


class SeededNoise(LogitsProcessor):
    """Makes the token with the largest score a draw from the softmax of the scores, by adding Gumbel noise.

    Each row draws from a generator of its own, so neither the other rows nor the device change what it draws.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """float[B, V] -> float32[B, V]"""
        rows = [
            torch.empty(scores.shape[1]).exponential_(generator=generator) for generator in self.generators
        ]
        return scores.float() - torch.stack(rows).log().to(scores.device)

    def keep_rows(self, rows: Tensor) -> None:
        """The others have ended; see `sparkles.models.decoding`."""
        self.generators = [self.generators[row] for row in rows.tolist()]


class ModelResponder:
    """Answers in batches of prompts of about the same length, and gives the responses in the prompts' order.

    Up to the rounding of sums, a response depends neither on the batch size nor on the other prompts: where answers are
    drawn (`do_sample`, or a second try), each prompt draws by a seed of its item, turn and try.

    Args:
        generation: keyword arguments of transformers' `generate`; `max_new_tokens` is required. Of those that say how
            to sample it may have temperature, top_k, top_p and min_p.
        features: what frozen parts have made of pictures, which then are not encoded again; see `ImageFeatures`.
        batch_size: prompts at a time, half as many for as long as the device's memory does not suffice. `auto` finds
            out on a CUDA device how many fit.
        original_answer_text: take the answer out of what was generated as the original does: the end token is
            spelled in it, and all up to the last `Assistant:` that the model repeats is left out.
        seed: of sampled answers.
        name: who answers. A hash of weights and settings is appended, so that an answer on disk is taken up only
            by the very same responder.
    """

    def __init__(
        self,
        *,
        model: ChatModel,
        encoder: Encoder,
        transform: ImageTransform,
        generation: Mapping[str, Any],
        features: FeatureCache | None = None,
        batch_size: int | Literal["auto"] = "auto",
        original_answer_text: bool = False,
        seed: int = 0,
        name: str = "SparklesChat",
    ) -> None:
        if "max_new_tokens" not in generation:
            raise InputError(f"generation={dict(generation)} sets no limit; add max_new_tokens")
        if batch_size != "auto" and batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        assert isinstance(model, nn.Module)
        self.model = model
        self.encoder = encoder
        self.transform = transform
        self._images = ImageFeatures(model, transform, features)
        self.batch_size = FIRST_BATCH_SIZE if batch_size == "auto" else batch_size
        may_grow = batch_size == "auto" and self._device.type == "cuda"
        self._largest = LARGEST_BATCH_SIZE if may_grow else self.batch_size
        self.original_answer_text = original_answer_text
        self.seed = seed
        self.generation = {"do_sample": False, **generation}
        self._warpers = _warpers(self.generation)
        self.stop_strings = encoder.prompt_format.stop_strings
        self._option_encoder = Encoder(
            tokenizer=encoder.tokenizer,
            prompt_format=encoder.prompt_format,
            num_query_tokens=encoder.num_query_tokens,
            max_length=encoder.max_prompt_length + self.generation["max_new_tokens"],
            system_in_training=True,
            image_placement=encoder.image_placement,
        )
        settings = (
            encoder.prompt_format,
            (encoder.max_prompt_length, encoder.cut_anywhere, encoder.image_placement),
            transform.settings,
            original_answer_text,
            self.generation,
            seed,
            features is not None,
        )
        self.name = f"{name}@{_fingerprint(model, repr(settings))}"

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        """Answer each prompt, in order.

        Raises:
            InputError: not even one prompt fits into the device's memory.
        """
        encoded = [self.encoder.encode_prompt(prompt) for prompt in prompts]
        ways = defaultdict(list)
        for index in sorted(range(len(prompts)), key=lambda index: -len(encoded[index].input_ids)):
            prompt = prompts[index]
            ways[len(prompt.options), self._is_sampled(prompt)].append(index)
        responses: dict[int, Response] = {}
        with torch.inference_mode(), _evaluating(self.model):
            for waiting in ways.values():
                while waiting:
                    batch = waiting[: self.batch_size]
                    answers = self._try_batch([prompts[i] for i in batch], [encoded[i] for i in batch])
                    if answers is None:
                        self._shrink(batch_size=len(batch))
                        continue
                    responses |= zip(batch, answers, strict=True)
                    waiting = waiting[len(batch) :]
                    self.batch_size = min(2 * self.batch_size, self._largest)
        return [responses[i] for i in range(len(prompts))]

    def _try_batch(self, prompts: Sequence[Prompt], encoded: Sequence[Encoded]) -> list[Response] | None:
        """The responses; None if the device's memory does not suffice."""
        start = time.perf_counter()
        try:
            answers = self._choose(prompts) if prompts[0].options else self._speak(prompts, encoded)
        except torch.cuda.OutOfMemoryError:
            return None
        seconds = (time.perf_counter() - start) / len(prompts)
        return [replace(answer, seconds=seconds) for answer in answers]

    def _shrink(self, *, batch_size: int) -> None:
        if batch_size == 1:
            raise InputError(
                "one prompt alone does not fit into the device's memory; lower max_new_tokens, load the language model "
                "in fewer bits (model.language.dtype, model.language.quantization) or take a larger device"
            )
        self.batch_size = self._largest = batch_size // 2
        torch.cuda.empty_cache()

    def _speak(self, prompts: Sequence[Prompt], encoded: Sequence[Encoded]) -> list[Response]:
        generation = self.generation
        if self._is_sampled(prompts[0]):
            # transformers would draw all rows from one generator.
            noise = SeededNoise([self._seed(prompt) for prompt in prompts])
            generation = {name: value for name, value in generation.items() if name not in _WARPERS} | {
                "do_sample": False,
                "logits_processor": LogitsProcessorList([*self._warpers, noise]),
            }
        new_ids = self.model.generate(
            self._batch(encoded),
            pad_token_id=self.encoder.pad_token_id,
            stopping_criteria=StoppingCriteriaList([StopStrings(self.stop_strings, self.encoder.tokenizer)]),
            **generation,
        )
        return [self._response(row) for row in new_ids.tolist()]

    def _choose(self, prompts: Sequence[Prompt]) -> list[Response]:
        contests = [contest(prompt, self._option_encoder) for prompt in prompts]
        batch = self._batch([one.context for one in contests])
        found = ending_log_probs(self.model, batch, [one.endings for one in contests]).tolist()
        responses = []
        for prompt, values in zip(prompts, found, strict=True):
            log_probs = dict(zip(prompt.options, values, strict=True))
            best = max(prompt.options, key=log_probs.__getitem__)
            responses.append(Response(text=conclusion(best), log_probs=log_probs))
        return responses

    def _batch(self, encoded: Sequence[Encoded]) -> dict[str, Tensor]:
        images = [image for one in encoded for image in one.images]
        batch = pad_batch(encoded, [None] * len(images), pad_token_id=self.encoder.pad_token_id, side="left")
        if images:
            batch["image_features"] = self._images.of(images, self._device)
        return {name: tensor.to(self._device) for name, tensor in batch.items()}

    def _is_sampled(self, prompt: Prompt) -> bool:
        return self.generation["do_sample"] or prompt.try_number > 1

    def _seed(self, prompt: Prompt) -> int:
        drawn = (self.seed, prompt.item_id, len(prompt.messages), prompt.try_number)
        return int.from_bytes(hashlib.sha256(repr(drawn).encode()).digest()[:8])

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def _response(self, token_ids: list[int]) -> Response:
        """The text in front of the stop string or the end token."""
        tokenizer = self.encoder.tokenizer
        eos = tokenizer.eos_token_id
        ended = False
        if eos is not None and eos in token_ids:
            token_ids = token_ids[: token_ids.index(eos) + self.original_answer_text]
            ended = True
        spelled = tokenizer.decode(token_ids)
        ended = ended or any(stop in spelled for stop in self.stop_strings)  # which may be a special token
        text = spelled
        if not self.original_answer_text:
            text = tokenizer.decode(token_ids, skip_special_tokens=True)
        for stop in self.stop_strings:
            text = text.partition(stop)[0]
        if self.original_answer_text:
            prompt_format = self.encoder.prompt_format
            role = prompt_format.assistant_prefix.removeprefix(prompt_format.end_of_answer)
            text = text.rpartition(role)[2]
        return Response(text=text.strip(), truncated=not ended)


def _warpers(generation: Mapping[str, Any]) -> list[LogitsProcessor]:
    """What transformers would do to the scores before it draws.

    Raises:
        InputError: it cannot be done with a generator for each row, or with such a value.
    """
    others = {"num_beams", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"} & generation.keys()
    if generation["do_sample"] and others:
        raise InputError(
            f"generation: {', '.join(sorted(others))} cannot be combined with do_sample=true here, where each item "
            f"draws by its own seed; it takes {', '.join(_WARPERS)}"
        )
    settings = SAMPLING | dict(generation)
    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    try:
        return [
            warper(settings[name])
            for name, warper in _WARPERS.items()
            if settings.get(name) is not None and settings[name] != off.get(name)
        ]
    except ValueError as error:
        raise InputError(f"generation: {error}") from error


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _fingerprint(model: nn.Module, settings: str) -> str:
    """Short hash of settings and weights. Of frozen tensors, which may be large, only the beginning is read."""
    digest = hashlib.sha256(settings.encode())
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, tensor in model.state_dict().items():
        values = tensor.flatten() if name in trainable else tensor.flatten()[:1_024]
        digest.update(name.encode() + values.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
