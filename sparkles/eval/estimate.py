"""What a measurement over an endpoint would cost, told before anything is asked."""

from collections.abc import Sequence

from sparkles.eval.benchmark import Benchmark, Item
from sparkles.eval.endpoint import EndpointResponder
from sparkles.eval.llm_judge import EnsembleJudge, LLMJudge
from sparkles.types import Dialogue, Judge, Message, Prompt


def estimates(
    benchmarks: Sequence[Benchmark], responder: EndpointResponder, judge: Judge | None
) -> list[str]:
    """A line for the answers and for the verdicts of each benchmark, every answer taken as long as allowed.

    Of a second turn nobody knows beforehand whether the journal has it, because it follows the first answer.
    """
    judges = judge.judges if isinstance(judge, EnsembleJudge) else (judge,)
    lines = []
    for benchmark in benchmarks:
        dialogues = [_longest(item, responder.max_tokens) for item in benchmark.items()]
        prompts = [
            Prompt(messages=dialogue.messages[:end], item_id=dialogue.dialogue_id)
            for dialogue in dialogues
            for end in range(1, len(dialogue.messages), 2)
        ]
        lines.append(f"{benchmark.name}, answers of {responder.model}: {responder.estimate(prompts)}")
        if benchmark.scorer.needs_judge:
            lines += [
                f"{benchmark.name}, verdicts of {one.model}: {one.estimate(dialogues)}"
                for one in judges
                if isinstance(one, LLMJudge)
            ]
    return lines


def _longest(item: Item, max_tokens: int) -> Dialogue:
    """The dialogue with answers of `max_tokens` tokens."""
    answer = Message(role="assistant", content="one " * max_tokens)
    messages = tuple(message for question in item.questions for message in (question, answer))
    return Dialogue(messages=messages, dialogue_id=item.item_id)
