"""Many clients at once: nothing is lost, and nobody gets another's answer."""

from collections.abc import Callable

import pytest

from benchmarks.serving import ask_all, payload
from sparkles.types import Prompt
from tests.serve.conftest import MAX_TOKENS, Nano


@pytest.mark.parametrize(("clients", "requests"), [(8, 16), pytest.param(32, 640, marks=pytest.mark.slow)])
def test_each_of_many_clients_gets_the_answer_that_it_gets_alone(
    base_url: str, nano: Nano, prompts: Callable[[int], list[Prompt]], clients: int, requests: int
) -> None:
    asked = prompts(requests)
    payloads = [payload(prompt, max_tokens=MAX_TOKENS) for prompt in asked]
    alone = [text for text, _ in ask_all(base_url, payloads, clients=1)]
    together = [text for text, _ in ask_all(base_url, payloads, clients=clients)]
    assert None not in together
    assert len(set(alone)) > requests / 2, "answers must tell whose pictures they are about"
    assert together == alone
