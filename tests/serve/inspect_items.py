"""Asks an endpoint by inspect_ai, a program that is not ours, which takes the endpoint from the environment.

    SPARKLES_BASE_URL=... SPARKLES_API_KEY=... python inspect_items.py items.json logs

`items.json` holds a list of items, each a list of parts, `{"text": ...}` or `{"image": path}`. Prints the answers as a
JSON list.
"""

import json
import sys
from pathlib import Path


def main(items: str, logs: str) -> None:
    # Here, because the tests' own interpreter may not have it.
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ChatMessageUser, ContentImage, ContentText
    from inspect_ai.solver import generate

    samples = []
    for index, item in enumerate(json.loads(Path(items).read_text())):
        parts = [ContentText(text=one["text"]) if "text" in one else ContentImage(**one) for one in item]
        samples.append(Sample(id=index, input=[ChatMessageUser(content=parts)]))
    task = Task(dataset=samples, solver=generate())
    [log] = eval(task, model="openai-api/sparkles/SparklesChat", display="none", log_dir=logs)
    print(json.dumps([sample.output.completion for sample in log.samples or []]))


if __name__ == "__main__":
    main(*sys.argv[1:])
