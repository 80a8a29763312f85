"""Models behind an OpenAI-compatible endpoint: their calls, journalled in the run folder, and their answers."""

import hashlib
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from threading import Thread

from sparkles.eval.environment import EndpointRecord
from sparkles.journal import Journal, written_records
from sparkles.llm_client import Completion, Estimate, LLMClient, Outcome, Request, chat_messages
from sparkles.types import InputError, Prompt, Response

MakeClient = Callable[..., LLMClient]
"""LLMClient with all its settings but the journal: `functools.partial(LLMClient, base_url=...)`."""


class Endpoint:
    """A client that opens itself and its journal when it is first asked, and closes both when it is no longer used.

    Not before, because a journal has one owner, and every process of a distributed run builds what its config names,
    though only the first asks.
    """

    def __init__(self, client: MakeClient, journal: str | Path | None) -> None:
        self._make_client = client
        self._path = Path(journal) if journal else None

    def ask(self, requests: Iterable[Request]) -> list[Outcome]:
        """The outcome of each request, in order."""
        return self._client.complete_all(requests)

    def description(self, model: str) -> EndpointRecord:
        """Where `model` is asked, and with which versions it has answered, as far as the journal knows."""
        kept = written_records(self._path) if self._path is not None and self._path.is_file() else ()
        answered_by = {
            record["model"]
            for key, record, _ in kept
            if "asked_model" in record and record["asked_model"] == model and "/rejected/" not in key
        }
        return {"url": self._make_client().url, "model": model, "answered_by": sorted(answered_by - {""})}

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """What these would cost. Asks nobody and leaves no file where there was none."""
        if self._path is not None and self._path.is_file():
            return self._client.estimate(requests)
        return self._make_client().estimate(requests)

    @cached_property
    def _client(self) -> LLMClient:
        with ExitStack() as opened:
            journal = opened.enter_context(Journal(self._path)) if self._path is not None else None
            client = opened.enter_context(self._make_client(journal=journal))
            closing = weakref.finalize(self, _close, opened.pop_all())
        closing.atexit = (
            False  # the system closes files and connections; an event loop cannot be run any more
        )
        return client


def _close(opened: ExitStack) -> None:
    """In a thread of its own: the garbage may be collected while the event loop of another client runs in this one."""
    thread = Thread(target=opened.close)
    thread.start()
    thread.join()


class EndpointResponder:
    """Answers with a model behind an endpoint, which sees each picture at its place in the text.

    A refusal is an answer. A call that failed is none: its `Response` says so in `failure`.

    Greedy answers (`temperature=0`) belong to the question: items that ask the same share one. Sampled answers belong
    to the item and its try. Tries behind the first are always sampled, at temperature 1 if the first was greedy.

    Args:
        client: see `MakeClient`.
        journal: file that keeps every reply; None keeps none.
        captions: show captions in place of the pictures: the text-only reference, the paper's row of GPT-4.
        system: a system message.
        temperature: None leaves it to the endpoint, as some models require.
        seed: of the run; where answers are sampled, the endpoint gets one that is made of it for each item and try.
    """

    def __init__(
        self,
        *,
        model: str,
        client: MakeClient,
        journal: str | Path | None = None,
        captions: bool = False,
        system: str = "",
        max_tokens: int = 1_000,
        temperature: float | None = 0.0,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> None:
        self.model = model
        self.captions = captions
        self.system = system
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.top_p = top_p
        self.seed = seed
        self._endpoint = Endpoint(client, journal)
        settings = repr((captions, system, max_tokens, temperature, top_p, seed))
        self.name = f"{model}@{hashlib.sha256(settings.encode()).hexdigest()[:12]}"

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        """Answer each prompt, in order.

        Raises:
            RequestError: an image has no caption to stand in its place.
            ClientError: there is no key for the endpoint.
            BudgetError: there is a budget, but no price for the model.
            InputError: options are to be scored, which endpoints cannot.
        """
        outcomes = self._endpoint.ask([self._request(prompt) for prompt in prompts])
        return [_response(outcome) for outcome in outcomes]

    def estimate(self, prompts: Sequence[Prompt]) -> Estimate:
        """What `respond` would cost."""
        return self._endpoint.estimate(map(self._request, prompts))

    @property
    def endpoints(self) -> list[EndpointRecord]:
        """For `environment.json`."""
        return [self._endpoint.description(self.model)]

    def _request(self, prompt: Prompt) -> Request:
        if prompt.options:
            raise InputError(
                f"{self.model} is behind an endpoint, which gives no log-probabilities of options; leave out "
                "eval.mode=likelihood, or measure a model of this process"
            )
        temperature = 1.0 if self.temperature == 0 and prompt.try_number > 1 else self.temperature
        drawn = temperature != 0  # None is the endpoint's own, which is seldom 0
        return Request(
            model=self.model,
            messages=chat_messages(prompt.messages, system=self.system, captions=self.captions),
            max_tokens=self.max_tokens,
            temperature=temperature,
            top_p=self.top_p,
            seed=_item_seed(self.seed, prompt) if drawn and self.seed is not None else self.seed,
            try_number=prompt.try_number,
            draw_for=prompt.item_id if drawn else "",
        )


def _item_seed(seed: int, prompt: Prompt) -> int:
    """31 bits, which every endpoint takes. Turns of one item need no other: what is asked differs."""
    digest = hashlib.sha256(repr((seed, prompt.item_id, prompt.try_number)).encode()).digest()
    return int.from_bytes(digest[:4]) >> 1


def _response(outcome: Outcome) -> Response:
    if not isinstance(outcome, Completion):
        return Response(text="", seconds=outcome.seconds, failure=f"{outcome.reason}: {outcome.message}")
    return Response(
        text=outcome.text.strip(),
        seconds=outcome.seconds,
        truncated=outcome.finish_reason == "length",
        refused=outcome.finish_reason in ("refusal", "content_filter"),
    )
