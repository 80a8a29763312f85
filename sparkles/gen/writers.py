"""Who writes dialogues: a model behind an endpoint, call by call or by the provider's batches; or a stand-in."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

from sparkles.gen.prompting import SCHEMA, DialoguePrompt
from sparkles.gen.recipes import Assignment
from sparkles.journal import Journal
from sparkles.llm_client import ChatMessage, Ledger, LLMClient, OnOutcome, Request
from sparkles.llm_client.batch import BatchClient


class Writer(Protocol):
    """Makes a reply, JSON in text, of each assignment."""

    name: str
    prompt_hash: str
    """sha256 of the prompt's text; "" where there is none."""

    @property
    def ledger(self) -> Ledger:
        """What replies have cost, of earlier runs included."""
        ...

    def write(self, assignments: Iterable[Assignment], on_outcome: OnOutcome) -> None:
        """Ask for a reply to each, in any order, and tell of each as it comes."""
        ...

    def estimate(self, assignments: Iterable[Assignment]) -> str:
        """What that would cost, in words. Asks nobody."""
        ...

    def close(self) -> None: ...


class EndpointWriter:
    """A model behind an OpenAI-compatible endpoint.

    Args:
        client: LLMClient with all its settings but the journal.
        journal: file that keeps every reply, so that none is asked for twice. A batch's jobs are kept beside it.
        prompt_file: see `sparkles.gen.prompting`; None: our own.
        mode: `batch` hands the calls over to the provider's batch API, which takes hours and commonly half the price.
        poll_seconds: between two looks at a batch.
        batches: ids of batches to collect first, made by a run whose folder is gone.
        system: the paper's.
        temperature: the paper's; None leaves it to the endpoint, as some models require.
        structured: hold replies to a JSON schema, where the endpoint can.
    """

    def __init__(
        self,
        *,
        model: str,
        client: Callable[..., LLMClient],
        journal: Path,
        prompt_file: Path | None = None,
        mode: Literal["calls", "batch"] = "calls",
        poll_seconds: float = 60.0,
        batches: Sequence[str] = (),
        system: str = "You are a helpful assistant.",
        max_tokens: int = 2048,
        temperature: float | None = 1.0,
        top_p: float | None = 1.0,
        structured: bool = True,
    ) -> None:
        self.name = model
        self.prompt = DialoguePrompt(prompt_file)
        self.prompt_hash = self.prompt.hash
        self.mode = mode
        self.poll_seconds = poll_seconds
        self.batches = batches
        self.system = system
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.top_p = top_p
        self.structured = structured
        self._journal = Path(journal)
        self._make_client = client
        self._opened = ExitStack()

    @property
    def ledger(self) -> Ledger:
        return self._client.ledger

    def write(self, assignments: Iterable[Assignment], on_outcome: OnOutcome) -> None:
        """See `Writer`.

        Raises:
            ClientError: there is no key for the endpoint.
            BudgetError: there is a budget, but no price for the model.
        """
        requests = map(self._request, assignments)
        if self.mode == "calls":
            self._client.complete_all(requests, on_outcome)
        else:
            jobs = self._journal.with_name("batches.jsonl")
            BatchClient(
                self._client, jobs=jobs, poll_seconds=self.poll_seconds, made_before=self.batches
            ).complete_all(requests, on_outcome)

    def estimate(self, assignments: Iterable[Assignment]) -> str:
        requests = map(self._request, assignments)
        # Leaves no journal where there was none.
        client = self._client if self._journal.is_file() else self._make_client()
        return str(client.estimate(requests))

    def close(self) -> None:
        self._opened.close()

    @cached_property
    def _client(self) -> LLMClient:
        journal = self._opened.enter_context(Journal(self._journal))
        return self._opened.enter_context(self._make_client(journal=journal))

    def _request(self, assignment: Assignment) -> Request:
        return Request(
            model=self.name,
            messages=(
                ChatMessage("system", (self.system,)),
                ChatMessage("user", (self.prompt.fill(assignment),)),
            ),
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            schema=SCHEMA if self.structured else None,
        )
