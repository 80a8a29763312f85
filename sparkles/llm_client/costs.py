"""What calls cost: prices from the configuration, a ledger that holds a budget, an estimate beforehand."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sparkles.journal import written_records
from sparkles.llm_client.outcomes import Usage
from sparkles.llm_client.requests import Request
from sparkles.types import InputError

BYTES_PER_TOKEN = 4
"""Of English text, for an estimate; a bound takes 1."""
TOKENS_PER_MESSAGE = 16
"""Generous, for what chat templates put around each."""


class BudgetError(InputError):
    """A budget that cannot be held."""


class OverBudget(Exception):
    """The next call might exceed the budget."""


@dataclass(frozen=True, kw_only=True)
class Price:
    """Dollars per million tokens, and what a picture counts."""

    input: float
    output: float
    cached_input: float | None = None
    """For input that the provider had kept; None: the price of other input."""
    image_tokens: int = 1_600
    """Upper bound for one picture. Providers differ widely: look it up for the model."""

    def cost(self, usage: Usage) -> float:
        """Dollars.

        >>> round(Price(input=2.5, output=10).cost(Usage(input_tokens=2_000, output_tokens=500)), 6)
        0.01
        """
        cached = self.input if self.cached_input is None else self.cached_input
        fresh_tokens = usage.input_tokens - usage.cached_tokens
        dollars = fresh_tokens * self.input + usage.cached_tokens * cached + usage.output_tokens * self.output
        return dollars / 1e6


@dataclass
class Ledger:
    """Adds up what replies cost, and lets a call begin only while the budget holds, whatever it may cost.

    A call reserves the most that it can cost, and waits where only the reservations of other calls are in its way.

    Args:
        prices: by the name that a model is asked for.
        budget_usd: limit on all that this ledger has seen, replies of earlier runs included, and on `elsewhere`.
        elsewhere: dollars that others spend of the same budget, asked for before each call.

    Raises:
        BudgetError: the budget is not positive.
    """

    prices: Mapping[str, Price]
    budget_usd: float | None = None
    calls: int = 0
    """Replies that came, in this run and in earlier ones."""
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float = 0.0
    """Of the replies whose price and tokens are known."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Replies of unknown cost, by why it is unknown."""
    lost: int = 0
    """Calls whose reply did not arrive, but which the provider may have made and charged."""
    lost_dollars: float = 0.0
    """The most that those may have cost."""
    elsewhere: Callable[[], float] = lambda: 0.0

    def __post_init__(self) -> None:
        if self.budget_usd is not None and self.budget_usd <= 0:
            raise BudgetError(f"budget_usd must be more than 0, got {self.budget_usd}; null sets no limit")
        self._reserved: list[float] = []
        self._changed = asyncio.Event()

    def check_price(self, model: str) -> None:
        """Raise BudgetError where a budget could not be held, for want of the model's price."""
        if self.budget_usd is not None and model not in self.prices:
            raise BudgetError(
                f"budget_usd={self.budget_usd} cannot be held: no price for {model!r}; add it to prices "
                f"(dollars per million tokens: input, output), which has {', '.join(self.prices) or 'none'}"
            )

    def bound(self, request: Request) -> float:
        """The most that a call can cost, in dollars; 0 where the price is unknown."""
        price = self.prices.get(request.model)
        return price.cost(_tokens(request, price, bytes_per_token=1)) if price else 0.0

    async def reserve(self, request: Request) -> float:
        """Set aside what a call may cost, once the budget has room. Each must be settled.

        Raises:
            OverBudget: it has not, and no call is under way that could leave some.
        """
        self.check_price(request.model)
        bound = self.bound(request)
        while self.budget_usd is not None and self._committed + sum(self._reserved) + bound > self.budget_usd:
            if not self._reserved:
                raise OverBudget(
                    f"a call that may cost ${bound:.4f} could exceed budget_usd={self.budget_usd}: {self.summary()}"
                )
            await self._changed.wait()
        self._reserved.append(bound)
        return bound

    def settle(self, reserved: float, *, lost: bool = False) -> None:
        """Release a reservation, after the reply was charged or the call has failed."""
        self._reserved.remove(reserved)
        if lost:
            self.lost += 1
            self.lost_dollars += reserved
        self._changed.set()  # wakes those who wait now
        self._changed = asyncio.Event()

    def charge(self, model: str, usage: Usage | None, *, bound: float = 0.0) -> None:
        """Book a reply; where its cost is unknown, the budget is charged with `bound`."""
        self.calls += 1
        if usage is not None:
            self.input_tokens += usage.input_tokens
            self.output_tokens += usage.output_tokens
        if usage is None:
            self.unknown["the endpoint did not tell the tokens"] += 1
            self.lost_dollars += bound
        elif (dollars := self.cost(model, usage)) is None:
            self.unknown[f"no price for {model!r}"] += 1
        else:
            self.dollars += dollars

    def cost(self, model: str, usage: Usage | None) -> float | None:
        """What a reply cost; None where its price or its tokens are unknown."""
        return None if usage is None or model not in self.prices else self.prices[model].cost(usage)

    def summary(self) -> str:
        """The state in a line.

        >>> Ledger({}).summary()
        '0 replies, 0 input and 0 output tokens, $0.0000'
        """
        parts = [
            f"{self.calls} replies, {self.input_tokens} input and {self.output_tokens} output tokens, "
            f"${self.dollars:.4f}",
            *(f"{count} replies of unknown cost ({why})" for why, count in self.unknown.items()),
        ]
        if self.lost:
            parts.append(f"{self.lost} replies that did not arrive but may be charged")
        if self.lost_dollars:
            parts.append(f"up to ${self.lost_dollars:.4f} more for these")
        if elsewhere := self.elsewhere():
            parts.append(f"${elsewhere:.4f} in the other journals of the folder")
        return "; ".join(parts)

    @property
    def _committed(self) -> float:
        return self.dollars + self.lost_dollars + self.elsewhere()


class OtherJournals:
    """What the replies in the other journals of a folder cost; these are read on as they grow.

    So responder and judge, which keep a journal each, share one budget.
    """

    def __init__(self, own: Path) -> None:
        self._own = own
        self._bytes_read: Counter[Path] = Counter()
        self._dollars = 0.0

    def dollars(self) -> float:
        for path in self._own.parent.glob("*.jsonl"):
            if path != self._own:
                for _, record, end in written_records(path, self._bytes_read[path]):
                    self._bytes_read[path] = end
                    if "asked_model" in record:  # the journal's owner may keep other things there
                        # Unknown costs count as the most that they can be, where that is known.
                        self._dollars += record.get("dollars") or record.get("bound") or 0.0
        return self._dollars


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What requests would cost, before any is made."""

    calls: int
    journalled: int
    """Requests that are answered already and cost nothing more."""
    input_tokens: int
    """About 4 bytes of text each, and the price's `image_tokens` for a picture."""
    output_tokens: int
    """If every reply is as long as allowed."""
    dollars: float | None
    """With those tokens; None where a price is unknown."""
    unpriced: tuple[str, ...] = ()
    """Models without a price."""

    def __str__(self) -> str:
        cost = (
            f"unknown, no price for {', '.join(self.unpriced)}"
            if self.dollars is None
            else f"about ${self.dollars:.2f} if every reply is as long as allowed"
        )
        return (
            f"{self.calls} calls ({self.journalled} more are in the journal), about {self.input_tokens} input tokens, "
            f"at most {self.output_tokens} output tokens; cost {cost}"
        )


def estimate(requests: Mapping[str, Request], journalled: int, prices: Mapping[str, Price]) -> Estimate:
    """Sum over different requests, by key, that are still to be made."""
    usages = [(request.model, _tokens(request, prices.get(request.model))) for request in requests.values()]
    unpriced = sorted({model for model, _ in usages} - set(prices))
    return Estimate(
        calls=len(usages),
        journalled=journalled,
        input_tokens=sum(usage.input_tokens for _, usage in usages),
        output_tokens=sum(usage.output_tokens for _, usage in usages),
        dollars=None if unpriced else sum(prices[model].cost(usage) for model, usage in usages),
        unpriced=tuple(unpriced),
    )


def rate_tokens(request: Request) -> int:
    """Tokens that count against a limit per minute when the call begins, about as providers count."""
    usage = _tokens(request, None)
    return usage.input_tokens + usage.output_tokens


def _tokens(request: Request, price: Price | None, bytes_per_token: int = BYTES_PER_TOKEN) -> Usage:
    image_tokens = price.image_tokens if price else Price.image_tokens
    return Usage(
        input_tokens=request.text_bytes // bytes_per_token
        + TOKENS_PER_MESSAGE * len(request.messages)
        + image_tokens * len(request.images),
        output_tokens=request.max_tokens,
    )
