"""Models behind an OpenAI-compatible endpoint: their calls, journalled in the run folder, and their answers."""

import hashlib
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

from sparkles.journal import Journal
from sparkles.llm_client import Completion, Estimate, LLMClient, Outcome, Request, chat_messages
from sparkles.types import Prompt, Response

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
            closing = weakref.finalize(self, opened.pop_all().close)
        closing.atexit = (
            False  # the system closes files and connections; an event loop cannot be run any more
        )
        return client


class EndpointResponder:
    """Answers with a model behind an endpoint, which sees each picture at its place in the text.

    A refusal is an answer. A call that failed is none: its `Response` says so in `failure`.

    Args:
        client: see `MakeClient`.
        journal: file that keeps every reply; None keeps none.
        captions: show captions in place of the pictures: the text-only reference, the paper's row of GPT-4.
        system: a system message.
        temperature: None leaves it to the endpoint, as some models require.
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
        """
        outcomes = self._endpoint.ask([self._request(prompt) for prompt in prompts])
        return [_response(outcome) for outcome in outcomes]

    def estimate(self, prompts: Sequence[Prompt]) -> Estimate:
        """What `respond` would cost."""
        return self._endpoint.estimate(map(self._request, prompts))

    def _request(self, prompt: Prompt) -> Request:
        return Request(
            model=self.model,
            messages=chat_messages(prompt.messages, system=self.system, captions=self.captions),
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
        )


def _response(outcome: Outcome) -> Response:
    if not isinstance(outcome, Completion):
        return Response(text="", seconds=outcome.seconds, failure=f"{outcome.reason}: {outcome.message}")
    return Response(
        text=outcome.text.strip(), seconds=outcome.seconds, truncated=outcome.finish_reason == "length"
    )
