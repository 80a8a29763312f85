"""The calls themselves, over the `openai` package."""

import asyncio
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count, islice
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import openai
from aiolimiter import AsyncLimiter
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from sparkles.journal import Journal
from sparkles.llm_client.costs import (
    Estimate,
    Ledger,
    OtherJournals,
    OverBudget,
    Price,
    estimate,
    rate_tokens,
)
from sparkles.llm_client.outcomes import Completion, Failure, Outcome, usage_of
from sparkles.llm_client.replies import CallError, read_error, read_moderation, read_reply, refuses
from sparkles.llm_client.requests import ModerationRequest, Request, RequestError
from sparkles.types import InputError

logger = logging.getLogger(__name__)
_SHORTEST_KEY = 12
"""Shorter ones, such as EMPTY, are what local servers are given, and words that a reply may hold."""
_OPENAI = "https://api.openai.com/v1"
"""Where `openai` asks if it is not told."""
_NOT_THE_ENDPOINT = {"request", "budget", "interrupted"}
"""Reasons for a failure that say nothing of the endpoint."""

OnOutcome = Callable[[int, Outcome], None]
"""Told of each request, by its index, as soon as its outcome is known; for progress bars."""


class ClientError(InputError):
    """Settings with which no endpoint can be asked."""


@dataclass(frozen=True)
class _Dialect:
    """What an endpoint understands of a model's settings, as its refusals have taught."""

    limit_name: str = "max_tokens"
    structured: bool = True


class LLMClient:
    """Asks an OpenAI-compatible endpoint, many calls at a time, and loses no reply.

    A reply is journalled before anything else happens with it, and a request whose reply the journal holds is not
    made again. What goes wrong with one call is its `Failure` and does not touch the others. An instance belongs to
    the event loop that first uses it; `complete_all` keeps one for callers that have none.

    The key is read from the environment when a call is made. It is no attribute, and is blotted out wherever an
    endpoint repeats it.

    Args:
        base_url: default: OPENAI_BASE_URL, else OpenAI's own.
        key_variable: name of the environment variable with the key; a local server needs none.
        journal: opened by the caller, who also closes it. Without one, nothing is kept and nothing looked up.
        prices: by model. A model without a price costs an unknown sum, which is said.
        budget_usd: limit on what the journal's replies and the new ones cost together, those of other clients whose
            journals lie in the same folder included.
        concurrency: calls under way at a time, those that wait to try again included.
        requests_per_minute: evenly spaced; null leaves it to the endpoint's HTTP 429.
        tokens_per_minute: of input, about, and of the replies' limits.
        timeout: seconds for one call as a whole.
        attempts: calls for one request, the first included.
        first_wait: bound on the random wait before the second attempt, in seconds; it doubles with each attempt.
        longest_wait: bound on that bound. An endpoint that asks for more (Retry-After) is not asked again.
        aliases: patterns of names by which the asked model may answer, besides its own with a version.
        failures_in_row: so many failed requests without a reply in between end the run: the endpoint is down.
        grace: seconds that calls under way have to come back after Ctrl-C.

    Raises:
        ClientError: a setting that cannot work.
    """

    def __init__(
        self,
        *,
        base_url: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        journal: Journal | None = None,
        prices: Mapping[str, Price] | None = None,
        budget_usd: float | None = None,
        concurrency: int = 8,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        timeout: float = 120.0,
        attempts: int = 6,
        first_wait: float = 1.0,
        longest_wait: float = 120.0,
        aliases: Sequence[str] = (),
        failures_in_row: int = 25,
        grace: float = 10.0,
    ) -> None:
        counts = {"concurrency": concurrency, "attempts": attempts, "failures_in_row": failures_in_row}
        for name, value in counts.items():
            if value < 1:
                raise ClientError(f"{name} must be at least 1, got {value}")
        if not key_variable.isidentifier():
            raise ClientError(
                "key_variable names an environment variable, such as OPENAI_API_KEY; not the key"
            )
        self.base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        self.key_variable = key_variable
        if self.base_url and "@" in urlsplit(self.base_url).netloc:
            raise ClientError(f"the endpoint's URL holds a user or password; put the key into {key_variable}")
        self.journal = journal
        self.ledger = Ledger(dict(prices or {}), budget_usd)
        if journal is not None:
            self.ledger.elsewhere = OtherJournals(journal.path).dollars
        self.concurrency = concurrency
        self.timeout = timeout
        self.attempts = attempts
        self.longest_wait = longest_wait
        self.aliases = tuple(aliases)
        self.failures_in_row = failures_in_row
        self.grace = grace
        self._back_off = wait_random_exponential(multiplier=first_wait, max=longest_wait)
        self._slots = asyncio.Semaphore(concurrency)
        self._request_rate = AsyncLimiter(1, 60 / requests_per_minute) if requests_per_minute else None
        self._token_rate = AsyncLimiter(tokens_per_minute, 60) if tokens_per_minute else None
        self._dialects: defaultdict[str, _Dialect] = defaultdict(_Dialect)
        self._asking: dict[str, asyncio.Event] = {}
        self._failed_in_row = 0
        self._stopped: Failure | None = None
        for record in journal.values() if journal is not None else ():
            if "asked_model" in record:  # the journal's owner may keep other things there
                self.ledger.charge(record["asked_model"], usage_of(record), bound=record.get("bound", 0.0))

    def complete_all(self, requests: Iterable[Request], on_outcome: OnOutcome | None = None) -> list[Outcome]:
        """`complete_many` for callers that are not asynchronous."""
        return self._runner.run(self.complete_many(requests, on_outcome))

    async def complete_many(
        self, requests: Iterable[Request], on_outcome: OnOutcome | None = None
    ) -> list[Outcome]:
        """The outcome of each request, in order. Requests are taken as calls become free, so they may be made lazily.

        Interrupted, it starts nothing new, waits `grace` seconds for the calls under way, and says how to go on.
        """
        outcomes: dict[int, Outcome] = {}
        under_way: dict[asyncio.Task[Outcome], int] = {}
        waiting = enumerate(requests)
        try:
            while True:
                for index, request in islice(waiting, self.concurrency - len(under_way)):
                    under_way[asyncio.create_task(self.complete(request))] = index
                if not under_way:
                    return [outcomes[index] for index in range(len(outcomes))]
                done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    index = under_way.pop(task)
                    outcomes[index] = task.result()
                    if on_outcome is not None:
                        on_outcome(index, outcomes[index])
        except BaseException as error:
            await self._wind_up(under_way)
            if isinstance(error, asyncio.CancelledError):
                logger.warning(
                    "interrupted: %s",
                    "without a journal, the replies are gone"
                    if self.journal is None
                    else f"{self.journal.path} holds {len(self.journal)} replies; the same command asks for the rest",
                )
            raise

    async def complete(self, request: Request) -> Outcome:
        """The reply to one request: the journal's, or the endpoint's.

        Raises:
            ClientError: there is no key for the endpoint.
            BudgetError: there is a budget, but no price for the model.
            OSError: the journal cannot be written.
        """
        try:
            key = request.key
        except RequestError as error:
            return Failure(reason="request", message=str(error))
        while (asking := self._asking.get(key)) is not None:  # the same request, made twice
            await asking.wait()
        if self.journal is not None and key in self.journal:
            return Completion.from_record(self.journal[key])
        if self._stopped is not None:
            return replace(self._stopped, tries=0, seconds=0.0)
        self._asking[key] = answered = asyncio.Event()
        try:
            async with self._slots:
                outcome = await self._ask(request, key)
        finally:
            del self._asking[key]
            answered.set()
        self._watch(outcome)
        return outcome

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """What these would cost beyond what the journal holds. Asks nobody and needs no key.

        Raises:
            RequestError: a picture cannot be read.
        """
        different = {request.key: request for request in requests}
        new = {key: request for key, request in different.items() if key not in (self.journal or {})}
        return estimate(new, len(different) - len(new), self.ledger.prices)

    def close(self) -> None:
        """End what `complete_all` has opened; `aclose` for asynchronous callers."""
        self._runner.run(self.aclose())
        self._runner.close()

    async def aclose(self) -> None:
        if "_endpoint" in vars(self):
            await self._endpoint.close()
            del self._endpoint

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def url(self) -> str:
        """Where calls go; without a query, which may hold a key."""
        return urlsplit(self.base_url or _OPENAI)._replace(query="", fragment="").geturl()

    @cached_property
    def _runner(self) -> asyncio.Runner:
        """One event loop for every `complete_all`, so that connections and rate limits outlast a batch."""
        return asyncio.Runner()

    @cached_property
    def _endpoint(self) -> openai.AsyncOpenAI:
        key = os.environ.get(self.key_variable)
        if not key and self.base_url is None:
            raise ClientError(
                f"no key: set the environment variable {self.key_variable}, "
                "or OPENAI_BASE_URL to the address of a server that needs none"
            )
        quiet_transport()
        return openai.AsyncOpenAI(
            api_key=key or "none", base_url=self.base_url, timeout=self.timeout, max_retries=0
        )

    async def _wind_up(self, under_way: Collection[asyncio.Task[Outcome]]) -> None:
        """Let calls come back, for a while, and start no others."""
        if not under_way:
            return
        before = self._stopped
        self._stopped = Failure(reason="interrupted", message="the run was interrupted")
        _, late = await asyncio.wait(under_way, timeout=self.grace)
        for task in late:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        self._stopped = before

    async def _ask(self, request: Request, key: str) -> Outcome:
        """Call until there is a reply, or no reason left to hope for one."""
        start, tries = time.perf_counter(), 0
        retrying = AsyncRetrying(
            retry=retry_if_exception(self._is_worth_another),
            wait=self._wait,
            stop=stop_after_attempt(self.attempts),
            before_sleep=lambda state: self._keep_rejected(key, request, _error_of(state)),
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    tries = attempt.retry_state.attempt_number
                    reply = await self._call(request, tries)
        except CallError as error:
            if error.reply is None or error.reason == "wrong_model":
                self._keep_rejected(key, request, error)
                return self._failure(error, tries, time.perf_counter() - start)
            reply = error.reply
        self._keep(key, request, reply)
        return reply

    async def _call(self, request: Request, tries: int) -> Completion:
        """One call within rate limits and budget, charged.

        Raises:
            CallError: it gave nothing to use.
        """
        try:
            reserved = await self.ledger.reserve(request)
        except OverBudget as error:
            raise CallError("budget", str(error)) from error
        lost = False
        try:
            if self._request_rate is not None:
                await self._request_rate.acquire()
            if self._token_rate is not None:
                await self._token_rate.acquire(min(rate_tokens(request), self._token_rate.max_rate))
            if self._stopped is not None:  # while this call waited
                raise CallError(self._stopped.reason, self._stopped.message)
            lost = True  # which a cancelled call stays
            reply = await self._answer(request, tries)
            self.ledger.charge(request.model, reply.usage, bound=reserved)
            lost = False
            return reply
        except CallError as error:
            if error.reply is not None:
                self.ledger.charge(request.model, error.reply.usage, bound=reserved)
            lost = error.charged
            raise
        finally:
            self.ledger.settle(reserved, lost=lost)

    async def _answer(self, request: Request, tries: int) -> Completion:
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self.timeout):  # of the whole; httpx only knows one of each read
                body, structured = await self._post(request)
        except (openai.OpenAIError, RequestError, TimeoutError) as error:
            raise read_error(error) from error
        read = read_moderation if isinstance(request, ModerationRequest) else read_reply
        return read(
            self._blot(body),
            asked_model=request.model,
            aliases=self.aliases,
            structured=structured,
            seconds=round(time.perf_counter() - start, 3),
            tries=tries,
        )

    async def _post(self, request: Request) -> tuple[str, bool]:
        """The body of the reply, and whether it was held to the request's schema.

        A setting that the endpoint turns down is left out, or spelled as it asks, from then on.
        """
        while True:
            dialect = self._dialects[request.model]
            structured = dialect.structured and request.schema is not None
            payload = request.payload(limit_name=dialect.limit_name, structured=structured)
            try:
                raw = await self._resource(request).with_raw_response.create(**payload)
            except openai.APIStatusError as error:
                if structured and refuses(error, "response_format", "json_schema"):
                    learnt = replace(dialect, structured=False)
                elif dialect.limit_name == "max_tokens" and refuses(error, "max_completion_tokens"):
                    learnt = replace(dialect, limit_name="max_completion_tokens")
                else:
                    raise
                logger.info("%s: %s; from now on %s", request.model, self._blot(error.message), learnt)
                self._dialects[request.model] = learnt
            else:
                return raw.http_response.text, structured

    def _resource(self, request: Request) -> Any:
        """Where a request goes."""
        moderation = isinstance(request, ModerationRequest)
        return self._endpoint.moderations if moderation else self._endpoint.chat.completions

    def _is_worth_another(self, error: BaseException) -> bool:
        return (
            isinstance(error, CallError)
            and error.retry
            and error.retry_after <= self.longest_wait
            and self._stopped is None
        )

    def _wait(self, state: RetryCallState) -> float:
        """Seconds before the next attempt: what the endpoint asks for, and the back-off on top.

        Without the latter, all that were told the same time would come back at once.
        """
        return _error_of(state).retry_after + self._back_off(state)

    def _failure(self, error: CallError, tries: int, seconds: float) -> Failure:
        message = self._blot(error.message)
        if error.retry_after > self.longest_wait:
            message += f"; it asks to wait {error.retry_after:.0f} s, longest_wait is {self.longest_wait:.0f}"
        failure = Failure(reason=error.reason, message=message, tries=tries, seconds=round(seconds, 3))
        if error.stops_all:
            self._stopped = failure
        return failure

    def _watch(self, outcome: Outcome) -> None:
        """Stop asking an endpoint that no longer answers."""
        if isinstance(outcome, Completion):
            self._failed_in_row = 0
        elif outcome.reason not in _NOT_THE_ENDPOINT:
            self._failed_in_row += 1
            if self._failed_in_row >= self.failures_in_row and self._stopped is None:
                message = f"{self._failed_in_row} requests in a row failed, the last so: {outcome.message}"
                self._stopped = replace(outcome, message=message)

    def _keep(self, key: str, request: Request, reply: Completion) -> None:
        if self.journal is not None:
            dollars, bound = self.ledger.cost(request.model, reply.usage), self.ledger.bound(request)
            self.journal.put(key, reply.to_record(request.model, dollars, bound=bound))

    def _keep_rejected(self, key: str, request: Request, error: CallError) -> None:
        """Keep a reply that was paid for but is no answer, for the ledger and for whoever wants to know."""
        if self.journal is not None and error.reply is not None:
            names = (f"{key}/rejected/{number}" for number in count(1))
            self._keep(next(name for name in names if name not in self.journal), request, error.reply)

    def _blot(self, text: str) -> str:
        """The text without the key, should the endpoint repeat it."""
        key = os.environ.get(self.key_variable, "")
        return text.replace(key, "***") if len(key) >= _SHORTEST_KEY else text


def quiet_transport() -> None:
    """Without this there is a line for each call, in every program that logs at level INFO."""
    logging.getLogger("httpx2").setLevel(logging.WARNING)


def _error_of(state: RetryCallState) -> CallError:
    """Why an attempt is to be repeated."""
    error = state.outcome.exception() if state.outcome is not None else None
    assert isinstance(error, CallError)
    return error
