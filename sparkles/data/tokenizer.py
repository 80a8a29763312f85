"""Tokenizers and chat templates from the folder of a language model."""

import json
import re
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

from sparkles.data.encoding import EncodingError, Tokenizer
from sparkles.prompt_format import PromptFormat, PromptFormatError
from sparkles.types import Message


class SentencePieceTokenizer:
    """LLaMA's tokenizer with the ids and the decoding that the original's weights were trained with.

    Today's `transformers` differs from the release of that time in both. Here special tokens are found in the text
    first, and sentencepiece reads what lies between them, each part as a text of its own.

    Args:
        model_file: the folder's `tokenizer.model`.
        added_tokens: further special tokens with their ids; white space beside them is dropped.
    """

    pad_token_id: int | None = None

    def __init__(self, model_file: str | Path, added_tokens: Mapping[str, int] | None = None) -> None:
        self._model = SentencePieceProcessor(model_file=str(model_file))
        self.bos_token_id: int | None = self._model.bos_id()
        self.eos_token_id: int | None = self._model.eos_id()
        control_ids = (self._model.unk_id(), self._model.bos_id(), self._model.eos_id())
        self._controls: dict[int, str] = {i: self._model.id_to_piece(i) for i in control_ids}
        self._added = {token_id: token for token, token_id in (added_tokens or {}).items()}
        self._special_ids = {token: token_id for token_id, token in (self._controls | self._added).items()}
        longest_first = sorted(self._special_ids, key=len, reverse=True)
        self._specials = re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        """{"input_ids": ids of each text}; `add_special_tokens` puts BOS in front."""
        start = [self._model.bos_id()] if add_special_tokens else []
        return {"input_ids": [start + self._encode(one) for one in text]}

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """The text of some ids; an id that no token has, such as a spare row of the model, is `<unk>`."""
        size = self._model.get_piece_size()
        known = [i if i < size or i in self._added else self._model.unk_id() for i in token_ids]
        if skip_special_tokens:
            known = [i for i in known if i not in self._controls]
        texts: list[str] = []
        for is_added, run in groupby(known, key=self._added.__contains__):
            ids = list(run)
            texts += [self._added[i] for i in ids] if is_added else [self._spell(ids)]
        return " ".join(texts)

    def _encode(self, text: str) -> list[int]:
        parts = self._specials.split(text)  # text, special token, text, ..., special token, text
        for place in range(1, len(parts), 2):
            if self._special_ids[parts[place]] in self._added:
                parts[place - 1] = parts[place - 1].rstrip()
                parts[place + 1] = parts[place + 1].lstrip()
        token_ids: list[int] = []
        for place, part in enumerate(parts):
            token_ids += [self._special_ids[part]] if place % 2 else self._model.encode(part)
        return token_ids

    def _spell(self, token_ids: list[int]) -> str:
        """Text without added tokens. In front of words that a control token ends stands a space."""
        text = ""
        words: list[int] = []
        for token_id in token_ids:
            if token_id in self._controls:
                text += (" " + self._model.decode(words) if words else "") + self._controls[token_id]
                words = []
            else:
                words.append(token_id)
        return text + self._model.decode(words)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a folder or hub repository.

    A folder with LLaMA's `tokenizer.model` gets a `SentencePieceTokenizer`, unless its configuration asks for the
    newer behaviour (`legacy: false` beside a `tokenizer.json`). Any other is left to `transformers`.

    Raises:
        EncodingError: there is no tokenizer that could be loaded.
    """
    folder = Path(path)
    config = _read_json(folder / "tokenizer_config.json")
    is_llama = str(config.get("tokenizer_class", "LlamaTokenizer")).lower().startswith("llamatokenizer")
    is_newer = (folder / "tokenizer.json").is_file() and config.get("legacy") is False
    if (folder / "tokenizer.model").is_file() and is_llama and not is_newer:
        return SentencePieceTokenizer(folder / "tokenizer.model", _read_json(folder / "added_tokens.json"))
    return _from_transformers(path)


def chat_template_format(path: str | Path, *, system_message: str = "") -> PromptFormat:
    """The prompt format that the chat template of a tokenizer spells.

    Args:
        path: the tokenizer's folder or hub repository.
        system_message: empty for the template's own, if it has one.

    Raises:
        PromptFormatError: there is no template, or it does more than put strings around messages.
    """
    tokenizer = _from_transformers(path)
    if not getattr(tokenizer, "chat_template", None):
        raise PromptFormatError(f"{path}: the tokenizer has no chat template; choose a prompt_format")
    asked, said, then = (
        Message(role="user", content="@asked@"),
        Message(role="assistant", content="@said@"),
        Message(role="user", content="@then@"),
    )

    def render(*messages: Message) -> str:
        system = [{"role": "system", "content": system_message}] if system_message else []
        turns = [{"role": message.role, "content": message.content} for message in messages]
        prompt_is_open = messages[-1].role == "user"
        return str(
            tokenizer.apply_chat_template(
                system + turns, tokenize=False, add_generation_prompt=prompt_is_open
            )
        )

    bos = tokenizer.bos_token or ""
    try:
        whole, closed = render(asked, said, then), render(asked, said)
    except TemplateError as error:
        raise PromptFormatError(
            f"{path}: the chat template refuses a dialogue of two turns ({error}); if it knows no system message, set "
            "prompt_format.system_message=''"
        ) from error
    text = whole.removeprefix(bos)
    head, _, rest = text.partition(asked.content)
    before_answer, _, rest = rest.partition(said.content)
    between_turns, _, assistant_prefix = rest.partition(then.content)
    answer_suffix = closed.rpartition(said.content)[2]
    user_prefix = between_turns.removeprefix(answer_suffix)
    system_prefix, _, system_suffix = head.removesuffix(user_prefix).partition(system_message or "\0")
    prompt_format = PromptFormat(
        name=f"chat template of {Path(path).name}",
        system_message=system_message,
        system_prefix=system_prefix,
        system_suffix=system_suffix,
        user_prefix=user_prefix,
        assistant_prefix=assistant_prefix,
        answer_prefix=before_answer.removeprefix(assistant_prefix),
        answer_suffix=answer_suffix,
        end_of_answer=answer_suffix.strip(),
        add_bos=bool(bos) and whole.startswith(bos),
    )
    if prompt_format.render_prompt([asked, said, then], system=True) != text or not answer_suffix.strip():
        raise PromptFormatError(
            f"{path}: the chat template does more than put strings around messages, or does not end an answer; it "
            f"renders {whole!r}. Spell the format as conf/prompt_format/chatml.yaml does"
        )
    return prompt_format


def _from_transformers(path: str | Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise EncodingError(
            f"{path}: no tokenizer could be loaded; expected a folder with tokenizer.model or tokenizer.json, or "
            f"the name of a hub repository within reach ({error})"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
