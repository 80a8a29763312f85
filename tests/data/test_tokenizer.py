import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sparkles.data.encoding import Encoder, EncodingError
from sparkles.data.tokenizer import SentencePieceTokenizer, chat_template_format, load_tokenizer
from sparkles.prompt_format import PromptFormat, PromptFormatError
from sparkles.types import IGNORE_INDEX, Message, Prompt, Sample

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def llama_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentencepiece model with LLaMA's settings, of single letters and bytes."""
    prefix = tmp_path_factory.mktemp("sentencepiece") / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a bc", "cab a", "b c"]),
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=270,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return prefix.with_suffix(".model")


@pytest.fixture
def make_folder(tmp_path: Path, llama_model: Path) -> Callable[..., Path]:
    """make_folder(**{"added_tokens.json": {...}}): a LLaMA folder with these further files."""

    def make(**files: object) -> Path:
        (tmp_path / "tokenizer.model").write_bytes(llama_model.read_bytes())
        for name, content in files.items():
            (tmp_path / name).write_text(json.dumps(content))
        return tmp_path

    return make


def fast_tokenizer(chat_template: str | None) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "?": 2, "hi": 3}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="?",
        chat_template=chat_template,
    )


def test_every_segment_is_a_text_of_its_own_and_decodes_to_itself(make_folder: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(make_folder())
    texts = ["a bc", " a", "", "b  \n", "É☃ "]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert [tokenizer.decode(one) for one in ids] == texts
    assert tokenizer(texts, add_special_tokens=True)["input_ids"] == [
        [tokenizer.bos_token_id, *one] for one in ids
    ]


def test_special_tokens_are_found_in_the_text(make_folder: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(make_folder())
    a, b = (ids for ids in tokenizer(["a", " b"], add_special_tokens=False)["input_ids"])
    [ids] = tokenizer(["a</s> b"], add_special_tokens=False)["input_ids"]
    assert ids == [*a, tokenizer.eos_token_id, *b]
    assert tokenizer.decode([*a, 2, *a], skip_special_tokens=True) == "a a"
    assert tokenizer.decode([tokenizer.bos_token_id, *a, 2]) == "<s> a</s>"


def test_added_tokens_swallow_the_white_space_beside_them(make_folder: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(make_folder(**{"added_tokens.json": {"<pad>": 1000}}))
    a, b = (ids for ids in tokenizer(["a", "b"], add_special_tokens=False)["input_ids"])
    [ids] = tokenizer(["a \n<pad>  b"], add_special_tokens=False)["input_ids"]
    assert ids == [*a, 1000, *b]
    assert tokenizer.decode(ids) == "a <pad> b"


def test_an_id_without_a_token_is_unknown(make_folder: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(make_folder())
    assert tokenizer.decode([1000]) == "<unk>"
    assert tokenizer.decode([1000], skip_special_tokens=True) == ""


@pytest.mark.parametrize(
    ("config", "has_json", "ours"),
    [
        (None, False, True),
        ({"tokenizer_class": "LlamaTokenizer"}, False, True),
        ({"tokenizer_class": "LLaMATokenizer"}, True, True),
        ({"tokenizer_class": "LlamaTokenizer", "legacy": False}, False, True),
        ({"tokenizer_class": "LlamaTokenizer", "legacy": False}, True, False),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, True, False),
    ],
)
def test_only_folders_of_the_older_llama_models_get_the_exact_tokenizer(
    make_folder: Callable[..., Path], config: dict[str, object] | None, has_json: bool, ours: bool
) -> None:
    folder = make_folder()
    if has_json:
        fast_tokenizer(None).save_pretrained(folder)
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert isinstance(load_tokenizer(folder), SentencePieceTokenizer) == ours


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        EncodingError, match=r"no tokenizer could be loaded; expected a folder with tokenizer\.model"
    ):
        load_tokenizer(tmp_path)


def test_the_end_token_ends_an_answer(make_folder: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(make_folder())
    prompt_format = PromptFormat(
        name="t", system_message="", user_prefix="a ", assistant_prefix="b", end_of_answer="</s>"
    )
    encoder = Encoder(tokenizer=tokenizer, prompt_format=prompt_format, num_query_tokens=1, max_length=50)
    prompt = Prompt(messages=(Message(role="user", content="c"),))
    labels = encoder.encode_sample(Sample(prompt=prompt, answer=" a")).labels or []
    assert [label for label in labels if label != IGNORE_INDEX][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("system_message", ["", "You see."])
@pytest.mark.parametrize("bos", ["", "{{ bos_token }}"])
def test_a_chat_template_becomes_a_prompt_format(tmp_path: Path, system_message: str, bos: str) -> None:
    fast_tokenizer(bos + CHATML).save_pretrained(tmp_path)
    prompt_format = chat_template_format(tmp_path, system_message=system_message)
    messages = [
        Message(role="user", content="a?"),
        Message(role="assistant", content="b."),
        Message(role="user", content="c?"),
    ]
    system = f"<|im_start|>system\n{system_message}<|im_end|>\n" if system_message else ""
    assert prompt_format.render_prompt(messages, system=True) == system + (
        "<|im_start|>user\na?<|im_end|>\n<|im_start|>assistant\nb.<|im_end|>\n"
        "<|im_start|>user\nc?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt_format.render_answer("d.") == "d.<|im_end|>"
    assert prompt_format.add_bos == bool(bos)


def test_a_system_message_of_the_template_itself_is_kept(tmp_path: Path) -> None:
    fast_tokenizer("<|im_start|>system\nBe kind.<|im_end|>\n" + CHATML).save_pretrained(tmp_path)
    messages = [Message(role="user", content="a?")]
    text = chat_template_format(tmp_path).render_prompt(messages, system=True)
    assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\na?")


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("message.content", "message.content ~ loop.index"),  # counts the messages
        CHATML.replace("<|im_end|>\n", ""),
    ],
)
def test_a_template_that_is_no_frame_around_messages_is_refused(tmp_path: Path, template: str) -> None:
    fast_tokenizer(template).save_pretrained(tmp_path)
    with pytest.raises(PromptFormatError, match="does more than put strings around messages"):
        chat_template_format(tmp_path)


def test_a_template_without_a_system_message_says_how_to_leave_it_out(tmp_path: Path) -> None:
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    fast_tokenizer(no_system + CHATML).save_pretrained(tmp_path)
    with pytest.raises(PromptFormatError, match=r"no system role.*set prompt_format\.system_message=''"):
        chat_template_format(tmp_path, system_message="You see.")
    assert chat_template_format(tmp_path).system_prefix == ""


def test_a_tokenizer_without_a_template_is_refused(tmp_path: Path) -> None:
    fast_tokenizer(None).save_pretrained(tmp_path)
    with pytest.raises(PromptFormatError, match="has no chat template; choose a prompt_format"):
        chat_template_format(tmp_path)
