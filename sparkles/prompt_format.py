"""The only place where tags, roles, separators and the system message are spelled.

Trained weights and released data files depend on these strings to the letter. `MINIGPT4` is the format of the
paper (Table 1 and appendix B); another language model's chat template is another `PromptFormat` value, given as
data in `conf/prompt_format/`.

Training text:   ###Human: <question>###Assistant: <answer>###
Inference text:  <system>###Human: <question>###Assistant:
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from sparkles.types import Image, InputError, Message

IMAGE_START, IMAGE_PLACEHOLDER, IMAGE_END = "<Img>", "<ImageHere>", "</Img>"
IMAGE_TAG = f"{IMAGE_START}{IMAGE_PLACEHOLDER}{IMAGE_END}"
SYSTEM_MESSAGE = (
    "Give the following image: <Img>ImageContent</Img>. "
    "You will be able to see the image once I provide it to you. Please answer my questions."
)
_REFERENCE = re.compile(rf"IMAGE#(\w+){re.escape(IMAGE_TAG)}")
_LAST_MENTION = re.compile(r"IMAGE#(\w+)$")
_SHOWN = re.compile(rf"(?:IMAGE#\w+)?{re.escape(IMAGE_TAG)}")


class PromptFormatError(InputError):
    """A text does not follow the prompt format, or its tags do not match its images."""


def image_mention(image_id: int | str) -> str:
    """How text speaks of an image: `IMAGE#7`."""
    return f"IMAGE#{image_id}"


def image_reference(image_id: int | str) -> str:
    """How text shows an image for the first time: `IMAGE#7<Img><ImageHere></Img>`."""
    return image_mention(image_id) + IMAGE_TAG


def referenced_ids(content: str) -> list[str]:
    """Ids of the tagged references in order.

    >>> referenced_ids("Compare IMAGE#7<Img><ImageHere></Img> with IMAGE#12<Img><ImageHere></Img>, not IMAGE#3.")
    ['7', '12']
    """
    return _REFERENCE.findall(content)


def trailing_id(text: str) -> str:
    """Id of the mention at the end of a text, behind which a tag shows the image; "" if there is none.

    >>> trailing_id("Compare IMAGE#7"), trailing_id("Compare it with ")
    ('7', '')
    """
    found = _LAST_MENTION.search(text)
    return found[1] if found else ""


def strip_tags(text: str) -> str:
    """The text without image tags, for readers who see captions instead of pixels.

    >>> strip_tags("What does IMAGE#7<Img><ImageHere></Img> show?")
    'What does IMAGE#7 show?'
    """
    return text.replace(IMAGE_TAG, "")


def images_first(content: str) -> str:
    """The text with its images in front of it, which still mentions them; the paper places them between the words.

    >>> images_first("Compare IMAGE#7<Img><ImageHere></Img> with IMAGE#12<Img><ImageHere></Img>.")
    'IMAGE#7<Img><ImageHere></Img> IMAGE#12<Img><ImageHere></Img> Compare IMAGE#7 with IMAGE#12.'
    >>> images_first("Say briefly what <Img><ImageHere></Img> shows.")
    '<Img><ImageHere></Img> Say briefly what  shows.'
    """
    return " ".join([*_SHOWN.findall(content), strip_tags(content).strip()])


def check_tags(content: str, images: Sequence[Image], where: str) -> None:
    """Raise PromptFormatError unless `content` holds one tag for each of `images`."""
    found = content.count(IMAGE_PLACEHOLDER)
    if found != len(images):
        ids = ", ".join(str(image.image_id) for image in images) or "none"
        raise PromptFormatError(
            f"{where}: {found} image tags in the text but {len(images)} images ({ids}); "
            f"expected one {IMAGE_TAG} for each image, in order. Text: {content[:120]!r}"
        )


def check_message(message: Message, where: str) -> None:
    """Raise PromptFormatError unless the message holds one tag for each of its images, if it is a user's, or none."""
    if message.role == "assistant" and (message.images or IMAGE_PLACEHOLDER in message.content):
        raise PromptFormatError(
            f"{where}: an assistant message shows an image, but only the user's may; move the tag to a user message "
            f"and let the answer mention the image as {image_mention(7)}. Text: {message.content[:120]!r}"
        )
    check_tags(message.content, message.images, where)


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """The strings around system, user and assistant messages, and where a generation ends."""

    name: str
    system_message: str
    """Put in front at inference; the original's training text has none."""
    system_prefix: str = ""
    system_suffix: str = ""
    user_prefix: str
    user_suffix: str = ""
    assistant_prefix: str
    """Ends the prompt at inference, without a trailing space."""
    answer_prefix: str = ""
    """Between `assistant_prefix` and a known answer."""
    answer_suffix: str = ""
    """Behind an answer that is followed by another turn."""
    end_of_answer: str
    """Trained at the end of the last answer; generation stops at it."""
    add_bos: bool = True

    def render_prompt(self, messages: Sequence[Message], *, system: bool) -> str:
        """Text up to the point where the assistant is to speak.

        Raises:
            PromptFormatError: the messages do not alternate, do not end with the user's, miss a tag, or show an
                image in an answer.

        >>> MINIGPT4.render_prompt([Message(role="user", content="Hi?")], system=False)
        '###Human: Hi?###Assistant:'
        """
        self._check_order(messages)
        text = self.system_prefix + self.system_message + self.system_suffix if system else ""
        for index, message in enumerate(messages):
            check_message(message, f"message {index}")
            if message.role == "user":
                text += self.user_prefix + message.content + self.user_suffix + self.assistant_prefix
            else:
                text += self.answer_prefix + message.content + self.answer_suffix
        return text

    def render_answer(self, answer: str) -> str:
        """What follows the prompt in training; loss is on all of it.

        >>> MINIGPT4.render_answer("Two cats.")
        ' Two cats.###'
        """
        return self.answer_prefix + answer + self.end_of_answer

    def parse_prompt(self, text: str, images: Sequence[Image] = ()) -> tuple[Message, ...]:
        """The messages of a rendered prompt; the reverse of `render_prompt` without a system message.

        Raises:
            PromptFormatError: the text is not in this format, holds another number of tags than `images`, or shows
                an image in an answer.

        >>> [m.content for m in MINIGPT4.parse_prompt("###Human: a?###Assistant: b.###Human: c?###Assistant: ")]
        ['a?', 'b.', 'c?']
        """
        check_tags(text, images, "prompt")
        messages: list[Message] = []
        position, remaining = 0, list(images)
        while position < len(text):
            match = self._turn.match(text, position)
            if match is None:
                raise PromptFormatError(
                    f"not in the prompt format {self.name!r} at character {position}: "
                    f"got {text[position : position + 60]!r}, "
                    f"expected {self.user_prefix!r} ... {self.assistant_prefix!r}"
                )
            question, answer = match.groups()
            count = question.count(IMAGE_PLACEHOLDER)
            messages.append(Message(role="user", content=question, images=tuple(remaining[:count])))
            del remaining[:count]
            if answer is not None:
                messages.append(Message(role="assistant", content=answer))
                check_message(messages[-1], f"message {len(messages) - 1}")
            position = match.end()
        if not messages or messages[-1].role != "user":
            raise PromptFormatError(f"a prompt ends with a user message, got {text[-60:]!r}")
        return tuple(messages)

    @cached_property
    def _turn(self) -> re.Pattern[str]:
        """A question, and its answer unless the text ends before it."""
        question_part = (
            f"{re.escape(self.user_prefix)}(.*?){re.escape(self.user_suffix + self.assistant_prefix)}"
        )
        answered = f"(.+?){re.escape(self.answer_suffix)}(?={re.escape(self.user_prefix)})"
        return re.compile(
            f"{question_part}(?:(?:{re.escape(self.answer_prefix)})?(?:{answered}|$))", re.DOTALL
        )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.end_of_answer,)

    def _check_order(self, messages: Sequence[Message]) -> None:
        expected = ["user", "assistant"] * (len(messages) // 2 + 1)
        roles = [message.role for message in messages]
        if not roles or len(roles) % 2 == 0 or roles != expected[: len(roles)]:
            raise PromptFormatError(f"messages must alternate and end with user, got roles {roles}")


MINIGPT4 = PromptFormat(
    name="minigpt4",
    system_message=SYSTEM_MESSAGE,
    user_prefix="###Human: ",
    assistant_prefix="###Assistant:",
    answer_prefix=" ",
    end_of_answer="###",
)
