"""The provider's batch API: calls handed over in a file, replies fetched hours later, commonly at half the price.

A batch is made once, whenever the program dies: it is noted before it is asked for, its name goes with it, and a run
that finds a note without an id looks for the name among the provider's batches. Replies go into the client's journal.
Where the notes are lost, the ids that the provider lists do as well: a call carries the key of its request.
"""

import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import count, islice
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import openai
from openai.types import Batch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from sparkles.journal import Journal
from sparkles.llm_client.client import ClientError, LLMClient, OnOutcome, quiet_transport
from sparkles.llm_client.outcomes import Completion, Failure, Outcome
from sparkles.llm_client.replies import CallError, read_error, read_reply
from sparkles.llm_client.requests import Request

logger = logging.getLogger(__name__)
_PATH: Final = "/v1/chat/completions"
_LARGEST = 50_000
"""Calls in a batch, as OpenAI has it."""
_LIMIT_NAME = "max_completion_tokens"
_ENDED = {"completed", "failed", "expired", "cancelled"}
_NAME = "sparkles"
"""Where a batch's metadata say its name."""


class BatchClient:
    """Asks by batches what `client` would ask call by call, with its endpoint, key, journal, prices and budget.

    Prices are the client's: give those of batches. What the budget has no room for is not asked.

    Args:
        client: has a journal.
        jobs: file that notes the batches; a run that was interrupted collects theirs first.
        poll_seconds: between two looks at a batch.
        made_before: ids of batches that `jobs` does not know, to be collected first.
    """

    def __init__(
        self, client: LLMClient, *, jobs: Path, poll_seconds: float = 60.0, made_before: Sequence[str] = ()
    ) -> None:
        if client.journal is None:
            raise ClientError("batches need a journal, where their replies are collected")
        self.client = client
        self.replies = client.journal
        self.jobs = Path(jobs)
        self.poll_seconds = poll_seconds
        self.made_before = tuple(made_before)

    def complete_all(self, requests: Iterable[Request], on_outcome: OnOutcome | None = None) -> list[Outcome]:
        """The outcome of each request, in order: the journal's, or a batch's.

        Raises:
            ClientError: the endpoint has no batches, does not take this one, or there is no key.
            BudgetError: there is a budget, but no price for the model.
        """
        requests = list(requests)
        by_key = {request.key: request for request in requests}
        failures: dict[str, Failure] = {}
        with Journal(self.jobs) as jobs, self._endpoint() as endpoint:
            known = {job.get("batch") for job in jobs.values()}
            for batch in [batch for batch in self.made_before if batch not in known]:
                jobs.put(batch, _job(requests) | {"state": "made", "batch": batch})
            for name in [name for name, job in jobs.items() if job["state"] != "collected"]:
                failures |= self._collect(endpoint, jobs, name, by_key)
            waiting = self._affordable(by_key, failures)
            while chunk := dict(islice(waiting, _LARGEST)):
                failures |= self._collect(endpoint, jobs, self._submit(endpoint, jobs, chunk), by_key)
        outcomes = [self._outcome(request.key, failures) for request in requests]
        if on_outcome is not None:
            for index, outcome in enumerate(outcomes):
                on_outcome(index, outcome)
        return outcomes

    def _outcome(self, key: str, failures: Mapping[str, Failure]) -> Outcome:
        if key in self.replies:
            return Completion.from_record(self.replies[key])
        return failures.get(key, Failure(reason="server_error", message="the batch has no reply to it"))

    def _affordable(
        self, requests: Mapping[str, Request], failures: dict[str, Failure]
    ) -> Iterator[tuple[str, Request]]:
        """The unanswered requests that the budget has room for; the others become failures."""
        ledger = self.client.ledger
        committed = ledger.dollars + ledger.lost_dollars + ledger.elsewhere()
        for key, request in requests.items():
            if key in self.replies:
                continue
            ledger.check_price(request.model)
            committed += ledger.bound(request)
            if ledger.budget_usd is not None and committed > ledger.budget_usd:
                message = f"the batch could exceed budget_usd={ledger.budget_usd}: {ledger.summary()}"
                failures[key] = Failure(reason="budget", message=message)
            else:
                yield key, request

    def _submit(self, endpoint: openai.OpenAI, jobs: Journal, requests: Mapping[str, Request]) -> str:
        """Hand calls over; the batch's name."""
        job, name = _job(requests.values()), uuid4().hex
        lines = (
            json.dumps(
                {
                    "custom_id": key,
                    "method": "POST",
                    "url": _PATH,
                    "body": request.payload(limit_name=_LIMIT_NAME),
                }
            )
            for key, request in requests.items()
        )
        file = endpoint.files.create(
            file=(f"{name}.jsonl", "\n".join(lines).encode("ascii")), purpose="batch"
        )
        jobs.put(name, job)
        batch = endpoint.batches.create(
            input_file_id=file.id,
            endpoint=_PATH,
            completion_window="24h",
            metadata={_NAME: name},
        )
        jobs.put(name, job | {"state": "made", "batch": batch.id})
        logger.info("batch %s: %d calls", batch.id, len(requests))
        return name

    def _collect(
        self, endpoint: openai.OpenAI, jobs: Journal, name: str, requests: Mapping[str, Request]
    ) -> dict[str, Failure]:
        """Wait for a batch and put its replies into the journal; its failures by key."""
        job = jobs[name]
        batch = self._find(endpoint, name, job)
        failures: dict[str, Failure] = {}
        if batch is not None:
            batch = self._wait(endpoint, batch)
            for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
                # Not splitlines, which also breaks at the line separators that a reply may hold.
                for line in filter(str.strip, endpoint.files.content(file_id).text.split("\n")):
                    try:
                        failures |= self._take(json.loads(line), job, batch.id, requests)
                    except (ValueError, TypeError, KeyError, AttributeError) as error:
                        logger.warning(
                            "batch %s: a line cannot be read and is passed over (%s: %s): %.200s",
                            batch.id,
                            type(error).__name__,
                            error,
                            line,
                        )
            if batch.status != "completed":
                problems = [error.message for error in (batch.errors and batch.errors.data) or []]
                logger.warning("batch %s has %s: %s", batch.id, batch.status, "; ".join(map(str, problems)))
        jobs.put(name, job | {"state": "collected"})
        return failures

    def _find(self, endpoint: openai.OpenAI, name: str, job: Mapping[str, Any]) -> Batch | None:
        """The batch of a note, None if the program died before it was made."""
        if "batch" in job:
            return endpoint.batches.retrieve(job["batch"])
        return next(
            (batch for batch in endpoint.batches.list() if (batch.metadata or {}).get(_NAME) == name), None
        )

    def _wait(self, endpoint: openai.OpenAI, batch: Batch) -> Batch:
        """Look at the batch until it has ended, and show how far it is."""
        columns = (
            TextColumn("batch {task.description}"),
            BarColumn(20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            _Age(),
        )
        said = ""
        try:
            with Progress(*columns) as bar:
                task = bar.add_task(batch.id, total=None, state=batch.status, since=batch.created_at)
                while True:
                    num_done, num_failed, total = _counts(batch)
                    state = f"{batch.status}, {num_done} done, {num_failed} failed"
                    bar.update(task, completed=num_done + num_failed, total=total, state=state)
                    if state != said and not bar.console.is_terminal:  # where no bar is drawn
                        logger.info("batch %s: %s of %s", batch.id, state, total or "?")
                        said = state
                    if batch.status in _ENDED:
                        return batch
                    time.sleep(self.poll_seconds)
                    batch = endpoint.batches.retrieve(batch.id)
        except KeyboardInterrupt:
            logger.warning("batch %s goes on at the provider; the same command collects it", batch.id)
            raise

    def _take(
        self, line: Mapping[str, Any], job: Mapping[str, Any], batch_id: str, requests: Mapping[str, Request]
    ) -> dict[str, Failure]:
        """Journal one reply, or say why there is none."""
        key, answer = line["custom_id"], line.get("response") or {}
        if key in self.replies:  # collected before the program died
            return {}
        if answer.get("status_code") != 200:
            reason = (answer.get("body") or {}).get("error") or line.get("error") or {}
            return {key: Failure(reason="server_error", message=str(reason.get("message", "no reply")))}
        try:
            reply = read_reply(
                json.dumps(answer["body"]),
                asked_model=job["model"],
                aliases=self.client.aliases,
                structured=job["structured"],
                seconds=0.0,
                tries=1,
            )
        except CallError as error:
            if error.reply is None or error.reason == "wrong_model":
                if error.reply is not None:
                    self._keep_rejected(key, error.reply, job["model"], batch_id, requests.get(key))
                return {key: Failure(reason=error.reason, message=error.message)}
            reply = error.reply
        self._keep(key, reply, job["model"], requests.get(key))
        return {}

    def _keep(self, name: str, reply: Completion, model: str, request: Request | None, **more: str) -> None:
        """Journal a reply and charge it; `request` None where this run does not ask it."""
        ledger = self.client.ledger
        bound = ledger.bound(request) if request is not None else 0.0
        record = reply.to_record(model, ledger.cost(model, reply.usage), bound=bound)
        self.replies.put(name, record | more)
        ledger.charge(model, reply.usage, bound=bound)

    def _keep_rejected(
        self, key: str, reply: Completion, model: str, batch_id: str, request: Request | None
    ) -> None:
        """Keep a reply that was paid for but is no answer; once, though its batch may be collected twice."""
        names = (f"{key}/rejected/{number}" for number in count(1))
        for name in names:
            if name not in self.replies:
                self._keep(name, reply, model, request, batch=batch_id)
                return
            if self.replies[name].get("batch") == batch_id:
                return

    @contextmanager
    def _endpoint(self) -> Iterator[openai.OpenAI]:
        """The endpoint; its errors become the user's, with what to do."""
        key = os.environ.get(self.client.key_variable)
        if not key and self.client.base_url is None:
            raise ClientError(f"no key: set the environment variable {self.client.key_variable}")
        quiet_transport()
        try:
            with openai.OpenAI(
                api_key=key or "none",
                base_url=self.client.base_url,
                timeout=self.client.timeout,
                max_retries=self.client.attempts - 1,
            ) as endpoint:
                yield endpoint
        except openai.OpenAIError as error:
            read = read_error(error)
            raise ClientError(
                f"batches: {read.reason}: {read.message}; the same command goes on from here. "
                "If the endpoint has no batch API, use mode=calls"
            ) from error


class _Age(ProgressColumn):
    """How long ago the provider was given the batch, by this run or by one before."""

    def render(self, task: Task) -> Text:
        return Text(str(timedelta(seconds=max(0, int(time.time() - task.fields["since"])))))


def _counts(batch: Batch) -> tuple[int, int, int | None]:
    """Calls that were answered, that failed, and all, as far as the provider tells."""
    counts = batch.request_counts
    return (counts.completed, counts.failed, counts.total or None) if counts else (0, 0, None)


def _job(requests: Iterable[Request]) -> dict[str, Any]:
    """What is noted of a batch before it is made.

    Raises:
        ClientError: it asks several models.
    """
    requests = list(requests)
    models = {request.model for request in requests}
    if len(models) > 1:
        raise ClientError(f"a batch is of one model, got {', '.join(sorted(models))}; ask for each by itself")
    structured = any(request.schema is not None for request in requests)
    return {"state": "noted", "model": models.pop(), "structured": structured}
