"""What answers prompts: here a model in this process, over anything that is asked like SparklesChat.

B prompts of a batch, T tokens of the longest, S new tokens, V vocabulary.
"""

import hashlib
import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList, StoppingCriteriaList

from sparkles.data.collate import pad_batch
from sparkles.data.encoding import Encoded, Encoder
from sparkles.data.features import FeatureCache
from sparkles.data.images import ImageTransform
from sparkles.eval.answers import conclusion
from sparkles.eval.choosing import WARPERS, SeededNoise, StopStrings, warpers
from sparkles.eval.courses import Course, Ended, go_on, in_rounds, once
from sparkles.eval.image_features import ImageFeatures
from sparkles.eval.likelihood import ChatModel, contest, ending_log_probs
from sparkles.eval.refilling import Answer, Desk, Refillable, bytes_of_a_token, heeds
from sparkles.types import IMAGE_TOKEN_ID, InputError, Prompt, Response

T = TypeVar("T")

log = logging.getLogger(__name__)

FIRST_BATCH_SIZE, LARGEST_BATCH_SIZE = 100, 800
"""What `auto` begins with, and where it ends on a device that says when its memory is full."""
_MOST_ON_CPU, _BYTES_ON_CPU, _TOKENS = 256, 2**31, 1_024
"""A CPU does not say so: as many prompts of so many tokens as these bytes hold keys and values of."""
_READ_AHEAD = 4
"""Batches of prompts that are split into tokens before they are due."""


class ModelResponder:
    """Answers many prompts at a time: where one answer ends, the next begins.

    Where `generation` asks for more than to take or draw the likeliest tokens (beams, say), or the model cannot have
    its rows exchanged, prompts of about the same length are answered in batches by transformers' `generate`.

    Up to the rounding of sums, a response depends neither on the batch size nor on the other prompts: where answers are
    drawn (`do_sample`, or a second try), each prompt draws by a seed of its item, turn and try.

    Args:
        generation: keyword arguments of transformers' `generate`; `max_new_tokens` is required. Of those that say how
            to sample it may have temperature, top_k, top_p and min_p.
        features: what frozen parts have made of pictures, which then are not encoded again; see `ImageFeatures`.
        batch_size: prompts at a time, half as many for as long as the device's memory does not suffice. `auto` finds
            out on a CUDA device how many fit, and takes on a CPU what 2 GiB hold of a model of this size.
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
        self.batch_size = self._first_batch_size() if batch_size == "auto" else batch_size
        may_grow = batch_size == "auto" and self._device.type == "cuda"
        self._largest = LARGEST_BATCH_SIZE if may_grow else self.batch_size
        self.original_answer_text = original_answer_text
        self.seed = seed
        self.generation = {"do_sample": False, **generation}
        self._warpers = warpers(self.generation)
        self._stop = StopStrings(encoder.prompt_format.stop_strings, encoder.tokenizer)
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
        self.name = f"{name}@{fingerprint(model, repr(settings))}"

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        """Answer each prompt, in order.

        Raises:
            InputError: not even one prompt fits into the device's memory.
        """
        if self._desk is None:
            return self._in_batches(prompts)
        found = dict(self.converse([once(prompt) for prompt in prompts]))
        return [found[index] for index in range(len(prompts))]

    def converse(self, courses: Sequence[Course[T]]) -> Iterator[tuple[int, T]]:
        """See `Conversing`. Courses begin in order, as many at a time as answers are written."""
        desk = self._desk
        if desk is None:
            yield from in_rounds(courses, self._in_batches, at_once=_READ_AHEAD * self.batch_size)
            return
        with _evaluating(self.model):  # here, since to set the mode takes longer than a step of a small model
            yield from self._refill(desk, courses)

    def _refill(self, desk: Desk, courses: Sequence[Course[T]]) -> Iterator[tuple[int, T]]:
        desk.clear()
        to_begin = iter(range(len(courses)))
        apart: list[tuple[int, Prompt]] = []  # which are answered in batches
        answered = self._begin(to_begin)
        while answered or apart or desk.is_busy:
            for index, answer, response in answered:
                match go_on(courses[index], response):
                    case Ended(value):
                        yield index, value
                    case Prompt() as prompt if prompt.options:
                        apart.append((index, prompt))
                    case Prompt() as prompt:
                        encoded = self.encoder.encode_prompt(prompt)
                        if encoded.hides_slots:
                            apart.append((index, prompt))
                        else:
                            desk.ask(self._to_write(index, prompt, encoded), behind=answer)
            answered = []
            if desk.is_busy:
                with torch.inference_mode():
                    written = desk.write()
                answered = [(one.index, one, self._response(one.token_ids, one.seconds)) for one in written]
            elif apart:
                responses = self._in_batches([prompt for _, prompt in apart])
                answered = [(index, None, one) for (index, _), one in zip(apart, responses, strict=True)]
                apart = []
            if desk.num_waiting < desk.most_rows:
                answered += self._begin(to_begin)

    def _begin(self, to_begin: Iterator[int]) -> list[tuple[int, Answer | None, Response | None]]:
        return [(index, None, None) for index in islice(to_begin, _READ_AHEAD * self.batch_size)]

    def _first_batch_size(self) -> int:
        if self._device.type == "cuda" or not isinstance(self.model, Refillable):
            return FIRST_BATCH_SIZE
        fit = _BYTES_ON_CPU // (_TOKENS * bytes_of_a_token(self.model.language))
        return min(max(1, fit), _MOST_ON_CPU)

    @cached_property
    def _desk(self) -> Desk | None:
        """Where answers are written; None where they are to be generated in batches."""
        if not isinstance(self.model, Refillable) or not heeds(self.model.language, self.generation):
            return None
        try:
            return Desk(
                self.model,
                lambda numbers: self._images.of_numbers(numbers, self._device),
                generation=self.generation,
                warpers=self._warpers,
                stop=self._stop,
                most_rows=self.batch_size,
                may_grow_to=self._largest,
            )
        except InputError as error:
            log.info("answers are generated in batches, each as long as its longest: %s", error)
            return None

    def _to_write(self, index: int, prompt: Prompt, encoded: Encoded) -> Answer:
        pictures = iter(
            number
            for number in self._images.numbers(encoded.images)
            for _ in range(self.encoder.num_query_tokens)
        )
        numbers = [
            next(pictures) if token_id == IMAGE_TOKEN_ID else token_id for token_id in encoded.input_ids
        ]
        return Answer(
            index=index,
            numbers=numbers,
            seed=seed_of(self.seed, prompt) if self._is_sampled(prompt) else None,
        )

    def _in_batches(self, prompts: Sequence[Prompt]) -> list[Response]:
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
            noise = SeededNoise(
                [torch.Generator().manual_seed(seed_of(self.seed, prompt)) for prompt in prompts]
            )
            generation = {name: value for name, value in generation.items() if name not in WARPERS} | {
                "do_sample": False,
                "logits_processor": LogitsProcessorList([*self._warpers, noise]),
            }
        new_ids = self.model.generate(
            self._batch(encoded),
            pad_token_id=self.encoder.pad_token_id,
            stopping_criteria=StoppingCriteriaList([self._stop]),
            **generation,
        )
        return [self._response(row, 0.0) for row in new_ids.tolist()]

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

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def _response(self, token_ids: list[int], seconds: float) -> Response:
        answer = read_answer(token_ids, self.encoder, original=self.original_answer_text)
        return replace(answer, seconds=seconds)


def read_answer(token_ids: list[int], encoder: Encoder, *, original: bool = False) -> Response:
    """The text in front of the stop string or the end token.

    Args:
        original: see `ModelResponder`.
    """
    tokenizer, prompt_format = encoder.tokenizer, encoder.prompt_format
    eos = tokenizer.eos_token_id
    ended = False
    if eos is not None and eos in token_ids:
        token_ids = token_ids[: token_ids.index(eos) + original]
        ended = True
    spelled = tokenizer.decode(token_ids)
    ended = ended or any(
        stop in spelled for stop in prompt_format.stop_strings
    )  # which may be a special token
    text = spelled if original else tokenizer.decode(token_ids, skip_special_tokens=True)
    for stop in prompt_format.stop_strings:
        text = text.partition(stop)[0]
    if original:
        text = text.rpartition(prompt_format.assistant_prefix.removeprefix(prompt_format.end_of_answer))[2]
    return Response(text=text.strip(), truncated=not ended)


def seed_of(seed: int, prompt: Prompt) -> int:
    """For the answer to a prompt, where a run has this seed: 64 bits."""
    drawn = (seed, prompt.item_id, len(prompt.messages), prompt.try_number)
    return int.from_bytes(hashlib.sha256(repr(drawn).encode()).digest()[:8])


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def fingerprint(model: nn.Module, settings: str) -> str:
    """Short hash of settings and weights. Of frozen tensors, which may be large, only the beginning is read."""
    digest = hashlib.sha256(settings.encode())
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, tensor in model.state_dict().items():
        values = tensor.flatten() if name in trainable else tensor.flatten()[:1_024]
        digest.update(name.encode() + values.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
