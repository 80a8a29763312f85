"""The benchmark of the full size, at a tiny one: the same code, and the same formulas as a dry run."""

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _answers
import full_size
import pytest
import torch
from _answers import Answering
from _steps import BATCH_SIZE, FOUR_GROUPS, STEPS, TRAINING, Training, Way, Work, packed
from _texts import CC, MOST_TOKENS, VG, Writer
from full_size import SIZES, build
from hydra import compose, initialize_config_dir
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sparkles.config import CONFIG_DIR, register_resolvers
from sparkles.dry_run import Lengths, build_on_meta, measure_work, without_weights
from sparkles.models.arithmetic import training_flops
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.types import IGNORE_INDEX, IMAGE_TOKEN_ID

REPOSITORY = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
WITHOUT_HYDRA = """
import runpy, sys
for name in ("hydra", "omegaconf", "lightning", "openai", "sentencepiece"):
    sys.modules[name] = None
sys.argv = ["benchmarks/full_size.py", "size=tiny"]
sys.path[:0] = ["benchmarks", "."]
runpy.run_path("benchmarks/full_size.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def tiny() -> Iterator[SparklesChat]:
    torch.manual_seed(0)
    yield build(SIZES["tiny"], CPU)
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def writer(tiny: SparklesChat) -> Writer:
    return Writer(
        num_query_tokens=tiny.qformer.num_query_tokens,
        vocabulary=tiny.language.config.vocab_size,
        shortened_to=SIZES["tiny"].texts_shortened_to,
    )


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in module.named_parameters()}


def told(output: str) -> dict[str, list[dict[str, Any]]]:
    """The lines, by what they measure."""
    lines = defaultdict(list)
    for text in output.splitlines():
        line = json.loads(text)
        assert line.keys() >= {"what", "config", "figure", "unit", "versions", "device", "command"}
        lines[line["what"]].append(line)
    return lines


def test_one_call_measures_everything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(full_size, "compile_layers", lambda language, backend: None)  # takes long
    full_size.measure(size="tiny")
    output = capsys.readouterr()
    assert "failed:" not in output.err
    lines = told(output.out)
    training = lines["SparklesChat, training in batches of 8"]
    assert [line["config"] for line in training] == [
        *TRAINING,
        "+ layers compiled",
        "+ both turns in one pass",
        "single turns again, rows packed instead of groups",
    ]
    assert all(line["utilisation"] > 0 for line in training)
    assert len(lines["SparklesChat, answers of BISON, NLVR2 and SparklesEval"]) == 5
    assert len(lines["floor"]) == len(lines["a sample of SparklesDialogue"]) == 2


@pytest.mark.slow
def test_neither_hydra_nor_lightning_is_needed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HYDRA], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert "failed:" not in done.stderr
    assert len(told(done.stdout)["SparklesChat, training in batches of 8"]) == 3 + len(TRAINING)


def test_without_a_gpu_the_full_size_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    full_size.measure()
    output = capsys.readouterr()
    assert output.out == ""
    assert "no CUDA device" in output.err


def test_what_fails_or_has_no_time_does_not_stop_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("out of memory")

    full_size.Schedule(minutes=1).run(fail, "greedy technique")
    full_size.Schedule(minutes=-1).run(fail, "late technique")
    errors = capsys.readouterr().err
    assert "failed: greedy technique: RuntimeError: out of memory" in errors
    assert "no time left for: late technique" in errors


def test_arguments_that_it_does_not_take() -> None:
    with pytest.raises(SystemExit, match=r"takes size=7b\|tiny and minutes=8, got size=13b"):
        full_size.arguments(["size=13b"])


# --- the model and its formulas -------------------------------------------------------------------------------


def test_the_model_and_its_arithmetic_are_those_of_the_dry_run() -> None:
    register_resolvers()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = without_weights(compose("train", ["experiment=sparkleschat_7b"]))
    ours, theirs = build(SIZES["7b"], torch.device("meta")), build_on_meta(cfg)
    assert shapes(ours) == shapes(theirs)
    work = Work.of(full_sized(ours).sample, 2, ours)
    samples = [batch for batch, _ in work.steps]
    labels = sum(int((batch["labels"] != IGNORE_INDEX).sum()) for batch in samples)
    lengths = [int(length) for batch in samples for length in batch["attention_mask"].sum(1)]
    known = Lengths(
        mean_tokens=work.tokens / work.samples,
        most_tokens=max(lengths),
        mean_square_tokens=sum(length**2 for length in lengths) / work.samples,
        mean_labelled=labels / work.samples,
        mean_images=work.images / work.samples,
        source="",
    )
    assert (cfg.data.batch_size, cfg.data.steps) == (BATCH_SIZE, STEPS)
    assert len(work.steps) * measure_work(cfg, theirs, known).flops == pytest.approx(work.flops)


def full_sized(model: SparklesChat) -> Writer:
    return Writer(
        num_query_tokens=model.qformer.num_query_tokens, vocabulary=model.language.config.vocab_size
    )


def test_the_projection_alone_learns_and_frozen_weights_are_in_16_bit() -> None:
    model = build(SIZES["7b"], torch.device("meta"))
    learnt = {name: weight.dtype for name, weight in model.named_parameters() if weight.requires_grad}
    assert learnt == {f"projector.layers.0.{part}": torch.float32 for part in ("weight", "bias")}
    assert model.language.dtype == model.vision.backbone.patch_embed.proj.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("way", [*TRAINING.values(), packed], ids=[*TRAINING, "packed"])
def test_all_ways_learn_the_same(tiny: SparklesChat, writer: Writer, way: Way) -> None:
    torch.manual_seed(0)
    [(batch, counts)] = Work.of(writer.sample, 1, tiny).steps
    loss = way(tiny, batch, counts)
    if loss.item() > 50:  # the original's is summed
        loss = loss / (batch["labels"] != IGNORE_INDEX).sum()
    assert loss.item() == pytest.approx(FOUR_GROUPS(tiny, batch, counts).item(), rel=1e-2)


def test_needed_operations_are_what_torch_counts(tiny: SparklesChat) -> None:
    tokens = 96
    embeds = torch.randn(1, tokens, 32, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        tiny.language(inputs_embeds=embeds, use_cache=False).logits.sum().backward()
    counted = counter.get_flop_counts()["Global"]
    products = sum(flops for operation, flops in counted.items() if "attention" not in str(operation))
    needed = training_flops(tiny.language, tokens=tokens, square_tokens=0, labelled=tokens)
    assert products == pytest.approx(needed, rel=0.05)


# --- texts ----------------------------------------------------------------------------------------------------


def test_samples_are_about_as_long_as_the_published_means(tiny: SparklesChat) -> None:
    writer = Writer(num_query_tokens=32, vocabulary=32_001)
    samples = [writer.sample() for _ in range(1_000)]
    labels = [sum(label != IGNORE_INDEX for label in one.labels or ()) for one in samples]
    words = (CC.answer_words + VG.answer_words) / 2
    assert sum(labels) / len(labels) == pytest.approx(4 / 3 * words, rel=0.05)
    assert max(len(one.input_ids) for one in samples) <= MOST_TOKENS
    shown = [len(one.images) for one in samples]
    assert (min(shown), max(shown)) == (1, 4)
    # First turns 2 (CC) and 2.5 (VG) images on average, second turns one more, 2:1.
    assert sum(shown) / len(shown) == pytest.approx(2.25 + 1 / 3, rel=0.05)
    assert all(one.input_ids.count(IMAGE_TOKEN_ID) == 32 * len(one.images) for one in samples)


def test_prompts_begin_alike_and_wait_for_their_answers(writer: Writer) -> None:
    bison, nlvr2, sparkles_eval = writer.benchmarks(3)
    items = [*bison, *nlvr2, *sparkles_eval]
    assert [len(item) for item in items] == [1] * 6 + [2] * 3
    assert len({tuple(question.prompt.input_ids[:3]) for item in items for question in item}) == 1
    for first, second in sparkles_eval:
        assert first.prompt.labels is None
        said = len(first.prompt.input_ids) + first.length
        assert second.prompt.input_ids[: len(first.prompt.input_ids)] == first.prompt.input_ids
        assert len(second.prompt.input_ids) > said
        assert len(second.prompt.images) == len(first.prompt.images) + 1


# --- answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3, 50])
def test_all_items_are_answered_at_their_lengths_however_many_at_a_time(
    tiny: SparklesChat, writer: Writer, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = _answers.Desk.write

    def watched(desk: _answers.Desk) -> list[_answers.Answer]:
        answers = write(desk)
        written.extend(len(answer.token_ids) for answer in answers)
        return answers

    monkeypatch.setattr(_answers.Desk, "write", watched)
    benchmarks = writer.benchmarks(2)
    with torch.inference_mode():
        Answering(tiny, CPU, 1.0).refilled(rows, benchmarks)
    assert sorted(written) == sorted(one.length for items in benchmarks for item in items for one in item)


def test_a_wrong_length_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"answers of \[1, 2\] tokens, expected \[3, 2\]"):
        _answers.check([1, 2], [3, 2])


def test_a_profile_tells_all_of_a_step(
    tiny: SparklesChat, writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    Training(tiny, CPU, peak=1e9).tell_profile("a way", FOUR_GROUPS, Work.of(writer.sample, 1, tiny))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["config"] for line in lines] == ["attention", "matrix products", "copies", "other"]
    assert all(line["figure"] > 0 for line in lines)
