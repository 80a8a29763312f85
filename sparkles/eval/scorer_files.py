"""Predictions in the form that a benchmark's own scorer reads, beside ours."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from sparkles.eval.benchmark import Benchmark, Prediction
from sparkles.eval.files import write_text


@runtime_checkable
class ScoredElsewhere(Protocol):
    """A benchmark whose authors publish a scorer."""

    @property
    def name(self) -> str: ...

    def scorer_file(self, predictions: Sequence[Prediction]) -> tuple[str, str] | None:
        """Suffix and text of what that scorer reads; None where these items are not known to it."""
        ...


def write_scorer_file(benchmark: Benchmark, predictions: Sequence[Prediction], folder: Path) -> Path | None:
    """Write `<benchmark><suffix>` into `folder`, and return it; None if the benchmark has no such file."""
    if not isinstance(benchmark, ScoredElsewhere) or (file := benchmark.scorer_file(predictions)) is None:
        return None
    suffix, text = file
    path = folder / f"{benchmark.name}{suffix}"
    write_text(path, text)
    return path
