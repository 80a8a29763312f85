"""What is to be generated: the paper's recipes are values of `Recipe`, in conf/gen/."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from sparkles.gen import original
from sparkles.gen.candidates import Candidates, Demonstrations, Shape, shape_of
from sparkles.gen.parsing import Parsed, Reason, Rejected, parse_reply
from sparkles.types import Dialogue, Image, InputError

DEFAULT_CALLS = 3
"""Times the calls that would do if every dialogue were kept."""


class Call(NamedTuple):
    """Which call it is. What it asks follows from this, whatever else is asked."""

    kind: int
    """Which of the recipe's `replies`."""
    number: int
    """Among those of its kind, from 0."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What one reply is to be made of."""

    candidates: tuple[Image, ...]
    demonstrations: tuple[Dialogue, ...]
    shapes: tuple[Shape, ...]
    """Of the dialogues that are wanted, in order."""


class Filter(Protocol):
    """Says what is wrong with a well-formed dialogue. It may remember those that it has let pass."""

    def __call__(self, dialogue: Dialogue, /) -> str:
        """The reason to reject it; "" to keep it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A data set to be.

    Raises:
        InputError: the settings contradict each other.
    """

    name: str
    """Begins the names of the files."""
    replies: Sequence[Sequence[Sequence[int]]]
    """The kinds of replies: the dialogues of each, and how many images each turn of those brings.

    [[[1, 1], [2, 1], [3, 1]]] is SparklesDialogueCC: three dialogues in every reply. [[[2, 1]], [[3, 1]]] is
    SparklesDialogueVG: one in a reply, and as many with two as with three images in the first turn.
    """
    num_dialogues: int
    """To be kept, evenly divided among the kinds of replies."""
    candidates: Candidates
    demonstrations: Demonstrations | None = None
    filters: Mapping[str, Filter] = field(default_factory=dict)
    """Applied in order to dialogues in the order of their calls; their names are the reasons that are counted."""
    max_calls: int | None = None
    """None: three times the calls that would do if every dialogue were kept."""
    numbered: bool = False
    """Give dialogues an `evaluation_id`, from 1, as evaluation sets have it."""
    original_parsing: bool = False
    """Read replies as the published code did, defects included."""

    def __post_init__(self) -> None:
        if self.num_dialogues < len(self.replies) or not self.replies:
            raise InputError(
                f"recipe.num_dialogues is {self.num_dialogues}, expected at least one for each of the "
                f"{len(self.replies)} kinds of replies"
            )
        for shape in (shape for kind in range(len(self.replies)) for shape in self.shapes(kind)):
            if not shape or shape[0] < 1 or min(shape) < 0:
                raise InputError(
                    f"recipe.replies holds {list(shape)}; a dialogue is a list of the images of each turn, "
                    "one or more in the first, such as [2, 1]"
                )
            if sum(shape) > self.candidates.size:
                raise InputError(
                    f"a dialogue of {sum(shape)} images ({list(shape)}) cannot be chosen from "
                    f"{self.candidates.size} candidates; set gen.recipe.candidates.size"
                )
        if self.demonstrations is not None:
            self.demonstrations.check(
                [shape for kind in range(len(self.replies)) for shape in self.shapes(kind)]
            )

    @property
    def calls_at_most(self) -> int:
        if self.max_calls is not None:
            return self.max_calls
        per_kind = self.num_dialogues / len(self.replies)
        return round(DEFAULT_CALLS * sum(per_kind / len(dialogues) for dialogues in self.replies))

    def shapes(self, kind: int) -> tuple[Shape, ...]:
        return tuple(map(tuple, self.replies[kind]))

    def wanted(self, kind: int) -> int:
        """Dialogues to keep of a kind of reply.

        The first kinds get what cannot be divided evenly.
        """
        share, rest = divmod(self.num_dialogues, len(self.replies))
        return share + (kind < rest)

    def calls_left(self, kind: int, asked: int) -> int:
        """Calls of a kind for which there still are candidates."""
        return (self.candidates.num_draws - kind - 1) // len(self.replies) + 1 - asked

    def assignment(self, call: Call) -> Assignment:
        """What a call asks. Kinds take turns at the draws: more calls of one leave those of others as they are."""
        number = call.number * len(self.replies) + call.kind
        shapes = self.shapes(call.kind)
        return Assignment(
            candidates=self.candidates.draw(number),
            demonstrations=self.demonstrations.draw(shapes, number) if self.demonstrations else (),
            shapes=shapes,
        )

    def read(self, reply: str, assignment: Assignment) -> Parsed:
        """The dialogues of a reply that are of a wanted shape, and the rest with reasons."""
        if self.original_parsing:
            return original.parse_reply(reply, assignment.candidates, num_dialogues=len(assignment.shapes))
        turns = {len(shape) for shape in assignment.shapes}
        parsed = parse_reply(
            reply,
            assignment.candidates,
            num_turns=turns.pop() if len(turns) == 1 else None,
            images_in_later_turns=None,
        )
        fitting = [dialogue for dialogue in parsed.dialogues if shape_of(dialogue) in assignment.shapes]
        others = [dialogue for dialogue in parsed.dialogues if shape_of(dialogue) not in assignment.shapes]
        wanted = " or ".join(map(str, map(list, assignment.shapes)))
        misshapen = [
            Rejected(
                reason=Reason.NUM_IMAGES,
                detail=f"images by turn: {list(shape_of(dialogue))}, expected {wanted}",
                text=spelled(dialogue),
            )
            for dialogue in others
        ]
        return Parsed(dialogues=tuple(fitting), rejected=(*parsed.rejected, *misshapen))


def spelled(dialogue: Dialogue) -> str:
    """A dialogue for readers of the rejects."""
    return "\n".join(f"{message.role}: {message.content}" for message in dialogue.messages)
