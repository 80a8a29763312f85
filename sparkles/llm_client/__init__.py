"""One client for every OpenAI-compatible endpoint: retries, rate limits, a journal, a budget.

`requests` says what is asked, `outcomes` what becomes of it, `costs` what it costs, `client` does the calls,
`replies` reads what endpoints send.
"""

from sparkles.llm_client.client import LLMClient, OnOutcome
from sparkles.llm_client.costs import BudgetError, Estimate, Ledger, Price
from sparkles.llm_client.outcomes import Completion, Failure, FailureReason, Outcome, Usage
from sparkles.llm_client.requests import ChatMessage, ModerationRequest, Request, RequestError, chat_messages

__all__ = [
    "BudgetError",
    "ChatMessage",
    "Completion",
    "Estimate",
    "Failure",
    "FailureReason",
    "LLMClient",
    "Ledger",
    "ModerationRequest",
    "OnOutcome",
    "Outcome",
    "Price",
    "Request",
    "RequestError",
    "Usage",
    "chat_messages",
]
