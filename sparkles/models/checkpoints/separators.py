"""Which text ends an answer: the language model was taught one, the prompt format is configured with one.

A frozen language model cannot learn another separator, and nothing crashes where they differ: answers run on or
break off. Vicuna v0, which MiniGPT-4's projections were trained on, ends with `###`; from v1.1 on it is `</s>`.

What tells the separator of a folder, in this order: `end_of_answer` in its `config.json`, where `merge-delta`
writes it and a user may; the name of a Vicuna release (`vicuna-7b-v1.5`); the chat template of its tokenizer, which
has to hold the separator. Nothing else does: the weights and vocabularies of LLaMA and of Vicuna v1.1 have the same
shapes, and the row that v0 adds is found in unrelated models, too. A renamed folder without a chat template is
therefore taken as it is.
"""

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from omegaconf import OmegaConf
from transformers import PreTrainedModel

from sparkles.config import CONFIG_DIR
from sparkles.prompt_format import PromptFormat, PromptFormatError

CONFIG_KEY = "end_of_answer"
VICUNA_V0, VICUNA_V1 = "###", "</s>"
_VICUNA_VERSION = re.compile(r"vicuna[-_].*v(\d+)", re.IGNORECASE)


def vicuna_separator(name: str) -> str | None:
    """The separator of a Vicuna release, of its weights or its delta, by the name of the folder or repository.

    >>> vicuna_separator("lmsys/vicuna-7b-delta-v0"), vicuna_separator("models/vicuna-13b-v1.5-16k/")
    ('###', '</s>')
    >>> vicuna_separator("vicuna-7b-v0/llama") is None
    True
    """
    match = _VICUNA_VERSION.search(Path(name).name)
    if match is None:
        return None
    return VICUNA_V0 if match.group(1) == "0" else VICUNA_V1


def check_separator(language: PreTrainedModel, prompt_format: PromptFormat) -> None:
    """Refuse a prompt format whose end of an answer is known to be another than the language model's.

    Raises:
        PromptFormatError: names both, what tells the model's, and the settings that would fit.
    """
    end, name = prompt_format.end_of_answer, source_of(language)
    template = _chat_template(language)
    if taught := getattr(language.config, CONFIG_KEY, None):
        source = f"{CONFIG_KEY} in its config.json"
    elif taught := vicuna_separator(name):
        source = "the name of that Vicuna release"
    elif template and end.strip() not in template:
        source = "its chat template, which has no such text"
    else:
        return
    if taught == end:
        return
    fitting = [
        option for option, text in _separators().items() if (text == taught if taught else text in template)
    ]
    options = " or ".join(f"prompt_format={option}" for option in fitting)
    raise PromptFormatError(
        f"the prompt format {prompt_format.name!r} ends an answer with {end!r}, but {name} was trained to end one "
        f"with {repr(taught) if taught else 'another text'} (told by {source}). "
        f"Set {options or 'a prompt_format of its own (see conf/prompt_format)'}, or set model.language.path to a "
        f"model trained with {end!r}; MiniGPT-4's and SparklesChat's released projections belong to Vicuna v0. "
        "module.allow_other_prompt_format=true goes on regardless"
    )


def source_of(language: PreTrainedModel) -> str:
    """The folder or hub repository that `language` was loaded from; "" for none."""
    return language.config.name_or_path or ""


def file_of(language: PreTrainedModel, name: str) -> Path | None:
    """A file next to the weights of `language`: in their folder, or in the cache of the hub."""
    source = source_of(language)
    if not source:
        return None
    if Path(source).is_dir():
        path = Path(source, name)
        return path if path.is_file() else None
    cached = try_to_load_from_cache(source, name)
    return Path(cached) if isinstance(cached, str) else None


def _chat_template(language: PreTrainedModel) -> str:
    """The template's text with the end-of-sequence token spelled out; "" where the tokenizer has none."""
    path = file_of(language, "tokenizer_config.json")
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path else {}
    separate = file_of(language, "chat_template.jinja")
    template = (
        separate.read_text(encoding="utf-8") if separate else json.dumps(config.get("chat_template", ""))
    )
    end = config.get("eos_token") or ""
    return template.replace("eos_token", end["content"] if isinstance(end, dict) else end).strip('"')


def _separators() -> dict[str, str]:
    """End of an answer of each prompt format that ships."""
    paths = sorted((CONFIG_DIR / "prompt_format").glob("*.yaml"))
    return {path.stem: OmegaConf.select(OmegaConf.load(path), "end_of_answer", default="") for path in paths}
