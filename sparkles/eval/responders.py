"""What answers prompts: here a model in this process, over anything that has SparklesChat's `generate`.

B prompts of a batch, T tokens of the longest, S new tokens.
"""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from transformers import StoppingCriteria, StoppingCriteriaList

from sparkles.data.collate import pad_batch
from sparkles.data.encoding import Encoded, Encoder, Tokenizer
from sparkles.data.images import ImageTransform, load_image
from sparkles.types import InputError, Prompt, Response


class GeneratingModel(Protocol):
    """SparklesChat, as far as a responder needs it. It is also a `torch.nn.Module`."""

    def generate(self, batch: Mapping[str, torch.Tensor], **generation: Any) -> torch.Tensor:
        """New token ids int64[B, S] of a left-padded batch."""
        ...


class StopStrings(StoppingCriteria):
    """Ends each row at the first of some strings, however tokens divide it.

    The `stop_strings` of transformers do the same for its own tokenizers only.
    """

    def __init__(self, strings: Sequence[str], tokenizer: Tokenizer) -> None:
        self.strings = tuple(strings)
        self.tokenizer = tokenizer
        # A token may be as little as a byte, and the first that is decoded may lose its leading space.
        self.num_tokens = 1 + max((len(string.encode()) for string in strings), default=0)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """int64[B, S] -> bool[B]"""
        endings = [self.tokenizer.decode(row) for row in input_ids[:, -self.num_tokens :].tolist()]
        ended = [any(string in ending for string in self.strings) for ending in endings]
        return torch.tensor(ended, device=input_ids.device)


class ModelResponder:
    """Answers in batches of prompts of about the same length, and gives the responses in the prompts' order.

    With greedy decoding (`generation={"do_sample": False, ...}`) a response depends neither on the batch size nor on
    the other prompts.

    Args:
        generation: keyword arguments of transformers' `generate`; `max_new_tokens` is required.
        original_answer_text: take the answer out of what was generated as the original does: the end token is
            spelled in it, and all up to the last `Assistant:` that the model repeats is left out.
        blank_images: replace every picture by the mean colour, to see what a model scores without looking.
        name: who answers. A hash of weights and settings is appended, so that an answer on disk is taken up only
            by the very same responder.
    """

    def __init__(
        self,
        *,
        model: GeneratingModel,
        encoder: Encoder,
        transform: ImageTransform,
        generation: Mapping[str, Any],
        batch_size: int = 16,
        original_answer_text: bool = False,
        blank_images: bool = False,
        name: str = "SparklesChat",
    ) -> None:
        if "max_new_tokens" not in generation:
            raise InputError(f"generation={dict(generation)} sets no limit; add max_new_tokens")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        assert isinstance(model, nn.Module)
        self.model = model
        self.encoder = encoder
        self.transform = transform
        self.batch_size = batch_size
        self.blank_images = blank_images
        self.original_answer_text = original_answer_text
        self.generation = dict(generation)
        self.stop_strings = encoder.prompt_format.stop_strings
        # vars: the transform's steps, whose repr holds sizes, means and deviations
        settings = (
            encoder.prompt_format,
            (encoder.max_prompt_length, encoder.cut_anywhere),
            vars(transform),
            blank_images,
            original_answer_text,
            self.generation,
        )
        self.name = f"{name}@{_fingerprint(model, repr(settings))}"

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        encoded = [self.encoder.encode_prompt(prompt) for prompt in prompts]
        longest_first = sorted(range(len(encoded)), key=lambda i: -len(encoded[i].input_ids))
        responses: dict[int, Response] = {}
        with torch.inference_mode(), _evaluating(self.model):
            for start in range(0, len(encoded), self.batch_size):
                indices = longest_first[start : start + self.batch_size]
                answers = self._respond_batch([encoded[i] for i in indices])
                responses |= zip(indices, answers, strict=True)
        return [responses[i] for i in range(len(prompts))]

    def _respond_batch(self, encoded: Sequence[Encoded]) -> list[Response]:
        start = time.perf_counter()
        pixels = [self.transform(load_image(image)) for one in encoded for image in one.images]
        batch = pad_batch(encoded, pixels, pad_token_id=self.encoder.pad_token_id, side="left")
        if self.blank_images:
            batch["pixel_values"] = torch.zeros_like(
                batch["pixel_values"]
            )  # zero is the mean after normalisation
        device = next(self.model.parameters()).device
        new_ids = self.model.generate(
            {name: tensor.to(device) for name, tensor in batch.items()},
            pad_token_id=self.encoder.pad_token_id,
            stopping_criteria=StoppingCriteriaList([StopStrings(self.stop_strings, self.encoder.tokenizer)]),
            **self.generation,
        )
        seconds = (time.perf_counter() - start) / len(encoded)
        return [self._response(row, seconds) for row in new_ids.tolist()]

    def _response(self, token_ids: list[int], seconds: float) -> Response:
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
        return Response(text=text.strip(), seconds=seconds, truncated=not ended)


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
