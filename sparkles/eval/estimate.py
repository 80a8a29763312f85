"""What a measurement over an endpoint would cost, told before anything is asked."""

from collections.abc import Sequence

from sparkles.eval.benchmark import Benchmark, Item
from sparkles.eval.endpoint import EndpointResponder
from sparkles.eval.llm_judge import EnsembleJudge, LLMJudge
from sparkles.types import Dialogue, Judge, Message, Prompt, Responder

_UNKNOWN_LENGTH = 500
"""Tokens of an answer that none of our endpoints gives: a recorded one, say."""


def estimates(benchmarks: Sequence[Benchmark], responder: Responder, judge: Judge | None) -> list[str]:
    """A line for the answers and for the verdicts of each benchmark, every answer taken as long as allowed.

    Of a second turn nobody knows beforehand whether the journal has it, because it follows the first answer.
    """
    lines = []
    for benchmark in benchmarks:
        if not isinstance(responder, EndpointResponder):
            lines.append(f"{benchmark.name}, answers of {responder.name}: nothing is paid for them")
            lines += verdict_estimates(benchmark, judge, _UNKNOWN_LENGTH)
            continue
        prompts = [
            Prompt(messages=dialogue.messages[:end], item_id=dialogue.dialogue_id)
            for dialogue in _dialogues(benchmark, responder.max_tokens)
            for end in range(1, len(dialogue.messages), 2)
        ]
        lines.append(f"{benchmark.name}, answers of {responder.model}: {responder.estimate(prompts)}")
        lines += verdict_estimates(benchmark, judge, responder.max_tokens)
    return lines


def verdict_estimates(benchmark: Benchmark, judge: Judge | None, max_tokens: int) -> list[str]:
    """A line for the verdicts of each model that `judge` asks on one benchmark, if they are needed there.

    Args:
        max_tokens: of an answer that is to be judged.
    """
    if not benchmark.scorer.needs_judge:
        return []
    judges = judge.judges if isinstance(judge, EnsembleJudge) else (judge,)
    asked = [one for one in judges if isinstance(one, LLMJudge)]
    dialogues = _dialogues(benchmark, max_tokens) if asked else []
    return [f"{benchmark.name}, verdicts of {one.model}: {one.estimate(dialogues)}" for one in asked]


def _dialogues(benchmark: Benchmark, max_tokens: int) -> list[Dialogue]:
    """The items with answers of `max_tokens` tokens."""
    return [_longest(item, max_tokens) for item in benchmark.items()]


def _longest(item: Item, max_tokens: int) -> Dialogue:
    answer = Message(role="assistant", content="one " * max_tokens)
    messages = tuple(message for question in item.questions for message in (question, answer))
    return Dialogue(messages=messages, dialogue_id=item.item_id)
