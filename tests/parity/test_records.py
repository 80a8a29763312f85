"""Every recorded value is compared by some test, or listed here with the reason why not."""

import json
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from safetensors import safe_open

USED = {
    "conftest": [
        "*.pth",
        "llama/*",
        "meta.json/dims/img",
        "meta.json/dims/patch",
        "meta.json/dims/vit_*",
        "meta.json/dims/qf_*",
        "meta.json/dims/num_query",
        "meta.json/dims/llama_hidden",
        "meta.json/media_*_id",
    ],
    "test_preprocess": [
        "images/*",
        "preprocess.json/eval/*/mode",
        "preprocess.json/eval/*/size_wh",
        "preprocess.json/eval/*/rgb_sha256",
        "preprocess.json/train/*/torch_seed",
        "preprocess.json/train/*/crop_top_left_height_width",
        "preprocess.json/train/*/scale",
        "preprocess.json/eval_224/*",
        "preprocess.safetensors/eval*/*",
        "preprocess.safetensors/train_seed*/*",
    ],
    "test_tokenizer": [
        "tokenizer_table.json/texts/*/text",
        "tokenizer_table.json/texts/*/input_ids",
        "tokenizer_table.json/texts/*/input_ids_no_special",
        "tokenizer_table.json/texts/*/decode",
        "tokenizer_table.json/labels/*",
        "tokenizer_table.json/is_train_false/text",
        "tokenizer_table.json/is_train_false/input_ids",
    ],
    "test_samples": [
        "annotations.json/*/uniform_question",
        "annotations.json/*/instruction",
        "annotations.json/*/answer",
        "annotations.json/*/fix_answer",
        "annotations.json/*/image_id",
        "samples.safetensors/*/input_ids",
        "samples.safetensors/*/attention_mask",
        "samples.safetensors/*/labels",
        "samples.safetensors/*/inputs_embeds",
        "samples.safetensors/*/pixel_values",
        "samples.json/*/error",
        "samples.json/*/max_length",
        "meta.json/collater_with_different_image_counts",
        "meta.json/pad_token_id",
    ],
    "test_vision": [
        "layers.safetensors/vit_*",
        "samples.safetensors/*/vit_out",
        "samples.safetensors/*/ln_vision_out",
        "preprocess.safetensors/alt_res/*",
        "preprocess.json/alt_res/*",
        "meta.json/eva_vit_unexpected_keys",
    ],
    "test_qformer": ["layers.safetensors/qformer_hidden_*", "samples.safetensors/*/qformer_out"],
    "test_model": [
        "layers.safetensors/llama_hidden_*",
        "samples.safetensors/*/proj_out",
        "samples.safetensors/*/inputs_embeds",
        "samples.safetensors/*/logits",
        "samples.safetensors/*/logits_last8",
        "samples.safetensors/*/loss",
        "samples.safetensors/*/grad_llama_proj_*",
        "samples.json/*/kind",
        "samples.json/*/case",
        "samples.json/*/members",
        "state_dict_keys.json/*",
        "meta.json/eps/*",
        "meta.json/trainable",
        "meta.json/vit_mlp_hidden",
        "meta.json/llama_vocab_size",
    ],
    "test_training": [
        "train.json/*",
        "train.safetensors/*",
        "functions.json/lr/paper/*",
        "functions.json/lr/warmup_longer_than_epoch/*",
        "functions.json/lr/no_warmup*/*",
        "functions.json/dataset_mixing/*",
    ],
    "test_inference": [
        "inference.safetensors/*",
        "inference.json/chats/*/images",
        "inference.json/chats/*/messages_after",
        "inference.json/chats/*/prompt",
        "inference.json/chats/*/segment_ids",
        "inference.json/chats/*/raw_generated_ids",
        "inference.json/chats/*/output_token",
        "inference.json/chats/*/output_text",
        "inference.json/chats/*/warning_label",
        "inference.json/chats/*_margin",
        "inference.json/chats/*/max_length",
        "inference.json/chats/*/max_new_tokens",
        "inference.json/chats/*/do_sample",
        "inference.json/stop/*",
        "inference.json/beam/*",
        "inference.json/sampling/*",
        "inference.json/answer_postprocess/*/output_t*",
        "inference.json/answer_postprocess/*/error",
        "inference.json/get_prompt/*",
        "inference.json/mismatch/*",
        "inference.json/system_message",
        "inference.json/roles",
        "inference.json/sep",
    ],
    "test_functions": [
        "functions.json/extract_answer/*",
        "functions.json/extract_all_scores/*",
        "functions.json/calculate_score/*",
        "functions.json/image_id_to_item/*",
        "functions.json/parse_response_to_dialogue/*",
        "functions.json/append_and_check_image_tag/*",
        "functions.json/format_SparklesDialogue/*",
        "functions.json/evaluation/bison/*",
        "functions.json/evaluation/nlvr2/*",
        "functions.json/evaluation/sparkleseval_turn*",
        "functions.json/evaluation/llm_as_judge/input/*",
        "functions.json/evaluation/llm_as_judge/calls/*/prompt",
        "functions.json/evaluation/llm_as_judge/replies",
        "functions.json/evaluation/llm_as_judge/result/*",
    ],
}
"""What each module of this folder compares: patterns of keys. A `*` matches any text."""

NOT_USED = {
    "*.md": "prose",
    "annotations.json/*/question": "overridden by `uniform_question`",
    "annotations.json/*/caption": "reaches no tensor",
    "functions.json/evaluation/llm_as_judge/calls/*/kwargs/*": "settings of the request, not of what is asked",
    "functions.json/evaluation/llm_as_judge/error": "null",
    "functions.json/lr/step_lr/*": "a schedule in steps, which no configuration of SparklesChat uses",
    "inference.json/answer_postprocess/*/generated": "with BOS in front, which today's `generate` does not return",
    "inference.json/ask/*": "a habit of the original's demo page; our messages carry their images",
    "inference.json/chats/*/user_text": "`messages_after` has the prompt with its tags",
    "inference.json/chats/*/num_beams": "1: without effect",
    "inference.json/chats/*/min_length": "1: without effect",
    "inference.json/chats/*/repetition_penalty": "1: without effect",
    "inference.json/chats/*/length_penalty": "1: without effect",
    "inference.json/chats/*/top_p": "of sampling, which was off",
    "inference.json/chats/*/temperature": "of sampling, which was off",
    "inference.json/default_stop_ids": "of the released tokenizer; ours stops at the string itself",
    "meta.json/dims/alt_img": "preprocess.json says it as well",
    "meta.json/dims/bert_vocab": "of word embeddings that the file lacks",
    "meta.json/dims/llama_[li]*": "llama/config.json says it as well",
    "meta.json/dims/llama_heads": "llama/config.json says it as well",
    "meta.json/dims/sp_vocab": "the tokenizer's file says it as well",
    "meta.json/patches_needed_to_run_the_original": "how it was recorded",
    "meta.json/seed": "of the random weights, which are in the files",
    "meta.json/set": "names the set",
    "meta.json/tokenizer_len": "the released vocabulary and two image tags; ours spells no image as a token",
    "meta.json/training_flags_after_model_train()/*": "ours keeps frozen parts in eval mode, and LLaMA has no dropout",
    "meta.json/versions/*": "of the libraries that were recorded with",
    "preprocess.json/eval/*/rgb_sum": "`rgb_sha256` says more",
    "preprocess.json/train/*/ratio": "the default of torchvision; another one would change the crop",
    "samples.json/*/first_label_*": "the labels say it",
    "samples.json/*/labels_not_masked": "the labels say it",
    "samples.json/*/loss": "the tensor of that name says it",
    "samples.json/*/num_labels": "the labels say it",
    "samples.json/*/shapes/*": "the tensors show them",
    "samples.json/*/tokens": "spelled ids, which are compared",
    "tokenizer_table.json/*/padding_side_after": "an argument of our padding, no state of the tokenizer",
    "tokenizer_table.json/texts/*/tokens": "spelled ids, which are compared",
}


def test_every_recorded_value_is_compared_or_listed_with_a_reason(golden: Path) -> None:
    used = [pattern for patterns in USED.values() for pattern in patterns]
    keys = set(keys_of(golden))
    assert keys
    neither = {key for key in keys if not matches(key, [*used, *NOT_USED])}
    assert not neither, "neither compared nor listed"
    both = {key for key in keys if matches(key, used) and matches(key, NOT_USED)}
    assert not both, "compared, but listed as not compared"


def test_the_modules_named_here_are_those_of_this_folder() -> None:
    modules = {path.stem for path in Path(__file__).parent.glob("*.py")}
    assert USED.keys() == modules - {Path(__file__).stem}
    assert all(USED.values())


def matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def keys_of(folder: Path) -> Iterator[str]:
    """`samples.json/turn1_1img/loss`, `train.safetensors/plain/llama_proj.weight`, `images/101.jpg`, ..."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.parent == folder and path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                yield from (f"{name}/{key}" for key in file.keys())  # noqa: SIM118  # it is no dict
        elif path.parent == folder and path.suffix == ".json":
            yield from leaves(json.loads(path.read_text(encoding="utf-8")), name)
        else:
            yield name


def leaves(node: object, path: str) -> Iterator[str]:
    """Paths of the values in JSON objects within objects; a list counts as one value, unless of objects.

    >>> sorted(set(leaves({"a": {"b": [1, 2], "c": [{"d": 1}, {"d": 2}]}}, "file.json")))
    ['file.json/a/b', 'file.json/a/c/[]/d']
    """
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{path}/{key}")
    elif isinstance(node, list) and any(isinstance(item, dict) for item in node):
        for item in node:
            yield from leaves(item, f"{path}/[]")
    else:
        yield path
