"""A wrong config is refused before anything is built, with every mistake named."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from sparkles import config
from sparkles.config import ConfigError, explain, validate
from sparkles.types import InputError


@dataclass(frozen=True, kw_only=True)
class Subset:
    annotations: Path
    ratio: float = 1.0


class Part:
    def __init__(self, width: int) -> None: ...


class Net:
    def __init__(
        self,
        *,
        num_tokens: int,
        part: Part | None = None,
        name: str = "net",
        dropout: float | None = 0.0,
        widths: tuple[int, ...] = (),
        size: tuple[int, int] = (8, 8),
        mode: Literal["per_sample", "per_batch"] = "per_sample",
        subsets: Mapping[str, Subset] | None = None,
        words: Sequence[str] = (),
        optimizer: Callable[..., Any] | None = None,
        legacy: int = None,  # type: ignore[assignment]  # noqa: RUF013 - as some libraries annotate
    ) -> None:
        raise AssertionError("validate builds nothing")


def any_options(first: int, **options: Any) -> None: ...


def problems(**model: Any) -> list[str]:
    cfg = OmegaConf.create({"model": {"_target_": f"{__name__}.Net", **model}, "seed": 1})
    try:
        validate(cfg)
    except ConfigError as error:
        return str(error).split("\n  ")[1:]
    return []


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_tokens": 4},
        {"num_tokens": 4, "dropout": None, "name": "x", "legacy": None},
        {"num_tokens": 4, "dropout": 1, "widths": [1, 2], "size": [3, 4], "mode": "per_batch"},
        {"num_tokens": "${seed}", "words": ["a", "b"], "widths": []},
        {"num_tokens": 4, "part": {"_target_": f"{__name__}.Part", "width": 3}},
        {"num_tokens": 4, "subsets": {"cc": {"_target_": f"{__name__}.Subset", "annotations": "cc.json"}}},
        {"num_tokens": 4, "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1e-3}},
        {"_partial_": True},
        {"num_tokens": 4, "part": {"_target_": f"{__name__}.Part", "_args_": [3]}},
        {"num_tokens": 4, "part": {"_target_": f"{__name__}.any_options", "first": 1, "anything": "goes"}},
        {"num_tokens": 4, "part": {"_target_": "builtins.dict", "no": "signature"}},
    ],
)
def test_a_right_config_passes(arguments: dict[str, Any]) -> None:
    assert problems(**arguments) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"num_tokens": "abc"}, "model.num_tokens: expected int, got 'abc'"),
        ({"num_tokens": True}, "model.num_tokens: expected int, got True"),
        ({"num_tokens": 4, "part": 7}, "model.part: expected Part | None, got 7"),
        ({"num_tokens": 4, "name": None}, "model.name: expected str, got None"),
        ({"num_tokens": 4, "dropout": "none"}, "model.dropout: expected float | None, got 'none'"),
        ({"num_tokens": 4, "widths": [1, "b"]}, "model.widths: expected tuple[int, ...], got [1, 'b']"),
        ({"num_tokens": 4, "size": [1, 2, 3]}, "model.size: expected tuple[int, int], got [1, 2, 3]"),
        ({"num_tokens": 4, "mode": "batch"}, "model.mode: expected one of 'per_sample', 'per_batch', got"),
        ({"num_tokens": 4, "words": "one"}, "model.words: expected Sequence[str], got 'one'"),
        ({"num_tokens": 4, "optimizer": "adam"}, "model.optimizer: expected Callable[..., Any] | None, got"),
        ({"num_tokens": 4, "subsets": {"cc": 3}}, "model.subsets: expected"),
        ({"num_tokens": "???"}, "model.num_tokens: no value yet; set model.num_tokens=..."),
        ({}, f"model: {__name__}.Net needs num_tokens; set model.num_tokens=..."),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(arguments: dict[str, Any], expected: str) -> None:
    [problem] = problems(**arguments)
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("argument", "advice"),
    [("num_token", "did you mean num_tokens?"), ("zzz", "it takes num_tokens, part, name, dropout, widths,")],
)
def test_an_unknown_argument_comes_with_close_matches_or_all(argument: str, advice: str) -> None:
    [problem] = problems(num_tokens=4, **{argument: 5})
    assert problem.startswith(f"model.{argument}: {__name__}.Net has no such argument; {advice}")


def test_every_problem_is_reported_at_once() -> None:
    wrong_part = {"_target_": f"{__name__}.Part", "width": "wide"}
    found = problems(num_tokens=None, nonsense=1, part=wrong_part)
    assert {problem.split(":")[0] for problem in found} == {
        "model.num_tokens",
        "model.nonsense",
        "model.part.width",
    }


def test_targets_inside_lists_and_mappings_are_checked() -> None:
    cfg = OmegaConf.create({"parts": [{"a": {"_target_": f"{__name__}.Part", "width": "x"}}]})
    with pytest.raises(ConfigError, match=r"parts\[0\]\.a\.width: expected int, got 'x'"):
        validate(cfg)


def test_a_target_that_cannot_be_imported_is_named() -> None:
    cfg = OmegaConf.create({"model": {"_target_": "sparkles.config.Nothing"}})
    with pytest.raises(ConfigError, match=r"model\._target_: cannot import 'sparkles\.config\.Nothing'"):
        validate(cfg)


def test_an_interpolation_without_a_value_names_the_key_to_set() -> None:
    cfg = OmegaConf.create({"model": {"root": "${root}"}, "root": "???"})
    with pytest.raises(ConfigError, match=r"^root: no value yet; set root=\.\.\.$"):
        validate(cfg)


def test_a_broken_interpolation_is_named() -> None:
    cfg = OmegaConf.create({"model": {"width": "${data.width}"}})
    with pytest.raises(
        ConfigError, match=r"cannot be resolved: .*'data\.width' not found\s+full_key: model\.width"
    ):
        validate(cfg)


@pytest.fixture
def config_dir(tmp_path: Path) -> Path:
    write(tmp_path / "train.yaml", "defaults: [_self_, data: nano, {experiment: null}]\nseed: 1\n")
    write(tmp_path / "data/nano.yaml", "batch_size: 8\nnum_workers: 0\n")
    write(tmp_path / "experiment/minigpt4.yaml", "# @package _global_\nseed: 2\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.batchsize=4", "unknown override 'data.batchsize': the config has no such key"),
        ("data.batchsize=4", "did you mean data.batch_size?"),
        ("batch_size=4", "did you mean data.batch_size?"),
        ("experimnt=minigpt4", "did you mean experiment?"),
        ("dta.batch_size=4", "unknown override 'dta'"),
        ("zzz=1", "no such group. `--cfg job` prints every key"),
    ],
)
def test_an_unknown_override_comes_with_close_matches(config_dir: Path, override: str, expected: str) -> None:
    with (
        initialize_config_dir(str(config_dir), version_base="1.3"),
        pytest.raises(ConfigCompositionException) as caught,
    ):
        compose("train", overrides=[override])
    assert expected in explain(caught.value, config_dir)


@pytest.mark.parametrize("error", [None, ValueError("no"), ConfigCompositionException("no")])
def test_other_errors_are_left_alone(error: BaseException | None) -> None:
    assert explain(error) == ""


@pytest.fixture
def run_command(
    config_dir: Path,
    run_main: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """Runs a command that has to fail; what the terminal shows of that."""

    def run(task: Callable[[DictConfig], None], *overrides: str) -> str:
        monkeypatch.setattr(config, "CONFIG_DIR", config_dir)
        with pytest.raises(SystemExit) as exit_:
            run_main(config.command("train")(task), f"hydra.run.dir={config_dir}/run", *overrides)
        assert exit_.value.code not in (0, None)
        return f"{capsys.readouterr().err}{exit_.value.code}"

    return run


def seed_everything(seed: int) -> None: ...


def check_seed(cfg: DictConfig) -> None:
    validate(OmegaConf.create({"_target_": f"{__name__}.seed_everything", "seed": cfg.seed}))


def raise_error(error: BaseException) -> Callable[[DictConfig], None]:
    def task(cfg: DictConfig) -> None:
        raise error

    return task


class Picky:
    def __init__(self, error: str) -> None:
        raise {"mistake": InputError("three feet; expected two"), "bug": KeyError("feet")}[error]


@pytest.mark.parametrize(
    ("task", "override", "expected"),
    [
        (check_seed, "seeed=3", "did you mean seed?"),
        (check_seed, "seed=x", "seed: expected int, got 'x'"),
        (raise_error(InputError("two left feet")), "seed=1", "two left feet"),
        (raise_error(FileNotFoundError(2, "No such file", "a.json")), "seed=1", "No such file: 'a.json'"),
        (raise_error(KeyboardInterrupt()), "seed=1", "stopped; what was finished"),
    ],
)
def test_a_mistake_ends_a_command_with_a_message(
    run_command: Callable[..., str], task: Callable[[DictConfig], None], override: str, expected: str
) -> None:
    shown = run_command(task, override)
    assert expected in shown
    assert "Traceback" not in shown


def test_a_command_that_leaves_no_files_points_to_none(
    config_dir: Path, run_main: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "CONFIG_DIR", config_dir)
    task = config.command("train", leaves_files=False)(raise_error(KeyboardInterrupt()))
    with pytest.raises(SystemExit) as exit_:
        run_main(task, f"hydra.run.dir={config_dir}/run")
    assert str(exit_.value.code).strip() == "stopped"


def unread(buffering: int = 1) -> TextIO:
    """An output of which nobody reads the other end."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", buffering=buffering)


def print_words(cfg: DictConfig) -> None:
    print("many", "words")


def print_words_richly(cfg: DictConfig) -> None:
    Console().print("many words")


@pytest.mark.parametrize("buffering", [1, -1], ids=["line by line", "at the end"])
@pytest.mark.parametrize(
    ("task", "option"), [(print_words, "seed=1"), (print_words_richly, "seed=1"), (print_words, "--help")]
)
def test_a_command_whose_output_nobody_reads_ends_without_a_word(
    run_command: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    task: Callable[[DictConfig], None],
    option: str,
    buffering: int,
) -> None:
    output = unread(buffering)
    monkeypatch.setattr(sys, "stdout", output)
    assert run_command(task, option) == "141"
    output.close()  # which Python does at its end, and complains if it cannot


def test_a_dispatched_task_whose_output_nobody_reads_ends_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["", "report", "run=a"])
    monkeypatch.setattr(sys, "stdout", unread())
    with pytest.raises(SystemExit) as exit_:
        config.dispatch("program", [report], otherwise=lambda: None)
    assert exit_.value.code == 141


def test_another_pipe_that_breaks_is_told(run_command: Callable[..., str]) -> None:
    assert "no worker" in run_command(raise_error(BrokenPipeError(32, "no worker")))


def test_a_bug_ends_a_command_with_a_traceback(run_command: Callable[..., str]) -> None:
    shown = run_command(raise_error(ValueError("two left feet")))
    assert "Traceback" in shown
    assert "ValueError: two left feet" in shown


@pytest.mark.parametrize(
    ("error", "shown", "hidden"),
    [
        ("mistake", "three feet; expected two", "Traceback"),
        ("bug", "KeyError: 'feet'", "InstantiationException"),
    ],
)
def test_what_instantiate_wraps_is_told_as_it_was_raised(
    run_command: Callable[..., str], error: str, shown: str, hidden: str
) -> None:
    def task(cfg: DictConfig) -> None:
        instantiate({"_target_": f"{__name__}.Picky", "error": error})

    told = run_command(task)
    assert shown in told
    assert hidden not in told


def test_a_traceback_from_a_worker_is_cut_to_the_message(run_command: Callable[..., str]) -> None:
    error = InputError(
        f"Caught InputError. Traceback:\n  File x\n{InputError.__module__}.InputError: no such file"
    )
    error.add_note("in sample 3")
    shown = run_command(raise_error(error))
    assert "no such file\nin sample 3" in shown
    assert "File x" not in shown


def report(
    run: Sequence[str], num: int | None = None, name: str | None = None, json: bool | str = False
) -> None:
    print(run, num, name, json)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (["run=a", "run=b=c"], "['a', 'b=c'] None None False"),
        (["run=1", "num=3", "name=3", "json=true"], "['1'] 3 3 True"),
        (["run=a", "num=null", "name=###", "json=out.json"], "['a'] None ### out.json"),
    ],
)
def test_a_function_is_called_with_pairs(
    pairs: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config.call("report", report, pairs)
    assert capsys.readouterr().out == f"{expected}\n"


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["run"], "report: expected key=value, got 'run'"),
        (["rnu=a"], "report: unknown key 'rnu'; it takes run, num, name, json"),
        (["runs=a"], r"report: unknown key 'runs'; did you mean run\?"),
        (["run=a", "num=few"], r"report: num=few; expected int \| None"),
        (["num=3"], r"report: missing run; give run=\.\.\."),
    ],
)
def test_pairs_that_a_function_does_not_take_are_refused(pairs: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config.call("report", report, pairs)
