"""The upper bound of the miniature: its language model with each image's true facts as words in the image slots."""

import json
import random
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from rich.progress import track
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparkles.data.collate import pad_batch
from sparkles.data.encoding import Encoded, Encoder
from sparkles.eval.answers import parse_choice
from sparkles.nano.corpus import question, slot_words
from sparkles.nano.dataset import CAPTIONS
from sparkles.nano.language import BISON_KINDS, STATEMENTS, caption, parse_caption
from sparkles.nano.pretrain_language import MAX_WORDS_PER_SLOT, SLOTS_PER_IMAGE, embed_with_words, word_ids
from sparkles.prompt_format import MINIGPT4, image_mention
from sparkles.types import Image, Message, Prompt, Responder, Response


class TextReference:
    """A Responder that reads the images' captions in place of their pixels.

    Where an item says nothing of a picture, the `captions.json` of its data set does.
    """

    name = "text reference"

    def __init__(
        self,
        language: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 50,
        max_new_tokens: int = 220,
    ) -> None:
        self.language = language.eval()
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens
        self.encoder = Encoder(
            tokenizer=tokenizer,  # type: ignore[arg-type]  # its `decode` takes batches too
            prompt_format=MINIGPT4,
            num_query_tokens=SLOTS_PER_IMAGE,
            max_length=1024,
        )

    @torch.inference_mode()
    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        """Answer each prompt.

        Raises:
            ValueError: an image has no caption of the scenes world.
        """
        responses: list[Response] = []
        for start in range(0, len(prompts), self.batch_size):
            responses += self._respond_batch(prompts[start : start + self.batch_size])
        return responses

    def _respond_batch(self, prompts: Sequence[Prompt]) -> list[Response]:
        began = time.perf_counter()
        encoded = [self.encoder.encode_prompt(prompt) for prompt in prompts]
        batch = pad_batch(
            [Encoded(input_ids=one.input_ids, labels=None, images=()) for one in encoded],
            [],
            pad_token_id=self.encoder.pad_token_id,
            side="left",
        )
        scenes = [parse_caption(_caption(image)) for one in encoded for image in one.images]
        slots = [word_ids(words, self.tokenizer) for scene in scenes for words in slot_words(scene)]
        batch["slots"] = torch.tensor(slots, dtype=torch.long).view(-1, MAX_WORDS_PER_SLOT)
        new_ids = self.language.generate(
            inputs_embeds=embed_with_words(batch, self.language.get_input_embeddings()),
            attention_mask=batch["attention_mask"],
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            stop_strings=list(MINIGPT4.stop_strings),
            tokenizer=self.tokenizer,
            pad_token_id=self.encoder.pad_token_id,
        )
        seconds = (time.perf_counter() - began) / len(prompts)
        texts = self.tokenizer.batch_decode(new_ids, skip_special_tokens=True)
        stop = MINIGPT4.end_of_answer
        return [
            Response(text=text.partition(stop)[0].strip(), seconds=seconds, truncated=stop not in text)
            for text in texts
        ]


def _caption(image: Image) -> str:
    if image.caption or image.path is None:
        return image.caption
    return _captions(image.path.parents[1] / CAPTIONS).get(image.path.name, "")


@cache
def _captions(path: Path) -> dict[str, str]:
    """Caption by file name; none where the file does not exist."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def accuracy_by_kind(responder: Responder, *, num: int, seed: int = 0) -> Mapping[str, float]:
    """Share of right answers on `num` unseen questions of every BISON kind and statement type, in percent."""
    accuracies = {}
    for kind in track([*BISON_KINDS, *STATEMENTS], description="text reference"):
        rng = random.Random(f"{seed}/{kind}")
        conversations = [question(kind, rng, "eval") for _ in range(num)]
        prompts, labels = [], []
        for conversation in conversations:
            asked, said = conversation.messages
            images = tuple(
                Image(image_id=image.image_id, caption=caption(scene))
                for image, scene in zip(asked.images, conversation.scenes, strict=True)
            )
            prompts.append(Prompt(messages=(Message(role="user", content=asked.content, images=images),)))
            labels.append(said.content)
        options = [image_mention(1), image_mention(2)] if kind in BISON_KINDS else ["TRUE", "FALSE"]
        right = [
            parse_choice(response.text, options) == parse_choice(label, options)
            for response, label in zip(responder.respond(prompts), labels, strict=True)
        ]
        accuracies[kind] = 100 * sum(right) / num
    return accuracies
