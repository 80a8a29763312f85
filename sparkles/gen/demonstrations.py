"""Which dialogues are shown to a writer."""

import logging
from collections import Counter
from collections.abc import Sequence

from sparkles.gen.filters import demonstrations
from sparkles.types import Dialogue, InputError

logger = logging.getLogger(__name__)


def select(dialogues: Sequence[Dialogue], *, min_words: int = 100) -> list[Dialogue]:
    """Those that are fit to be shown, see `sparkles.gen.filters.demonstrations`; says how many are not.

    Raises:
        InputError: none is.
    """
    kept, removed = demonstrations(dialogues, min_words=min_words)
    reasons = ", ".join(
        f"{count} by {name}" for name, count in Counter(one.filter for one in removed).items()
    )
    logger.info("demonstrations: %d of %d; left out: %s", len(kept), len(dialogues), reasons or "none")
    if not kept:
        raise InputError(
            f"none of {len(dialogues)} dialogues is fit for a demonstration: left out {reasons}; "
            "lower gen.recipe.demonstrations.dialogues.min_words, or give a larger file in gen.demonstrations"
        )
    return kept
