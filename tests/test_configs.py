"""Every file of conf/ composes, and every constructor it names would take what it says."""

from collections.abc import Collection, Iterator
from typing import get_args

import pytest
import transformers
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from tokenizers import Tokenizer, models

from sparkles.config import CONFIG_DIR, register_resolvers, validate
from sparkles.prompt_format import MINIGPT4, PromptFormat, image_reference
from sparkles.tables.spec import Size, TableSpec, read_table, table_names
from sparkles.types import Image, InputError, Message

COMMANDS = sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))
ROWS_OF_TABLE_3 = ("minigpt4", "minigpt4_star", "descriptions", "reasoning", "sparkleschat")
ENDPOINT_RECIPES = ("cc", "vg", "eval")
NEEDED = {
    **{f"gen={recipe}": ["gen.model=some", "gen.source.path=somewhere"] for recipe in ENDPOINT_RECIPES},
    "benchmark=nlvr": ["benchmark.root=somewhere"],
    **{f"model/qformer={part}": ["model=modern"] for part in ("resampler", "pooling")},
    **{f"experiment={row}_7b": ["data_root=somewhere"] for row in ROWS_OF_TABLE_3},
    "judge=llm": ["judge.model=some"],
    "judge=ensemble": ["judge.judges.first.model=some", "judge.judges.second.model=other"],
    "responder=openai": ["responder.model=some"],
    "responder=recorded": ["responder.run=somewhere"],
    "llm_client@judge.client=default": ["judge=llm", "judge.model=some"],
}
"""What an option leaves for the user to say."""
WHERE = {"data/subset": "data/subset@data.subsets", "llm_client": "llm_client@judge.client"}
"""How an option of a group is chosen that stands under another name in the config."""
COMPOSED_BY = {"gen": "gen", "serving": "api"}
"""Which command has a group, where that is not `eval`."""
PARTS = {"gen/base.yaml"}
"""What others build on; no option by itself."""
TABLES = [(name, size) for name in table_names() for size in get_args(Size)]


def options() -> Iterator[str]:
    """Each file of each group, as its override: `experiment=minigpt4`."""
    for path in sorted(CONFIG_DIR.rglob("*/*.yaml")):
        group = path.parent.relative_to(CONFIG_DIR).as_posix()
        if not group.startswith(("hydra/", "table")) and path.relative_to(CONFIG_DIR).as_posix() not in PARTS:
            yield f"{WHERE.get(group, group)}={path.stem}"


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    register_resolvers()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        yield


def composed(command: str, *overrides: str, monkeypatch: pytest.MonkeyPatch) -> DictConfig:
    """The config as the command's function gets it: without its `hydra` node, which `${hydra:...}` still reads."""
    cfg = compose(command, [*overrides, "hydra.runtime.output_dir=runs/x"], return_hydra_config=True)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", cfg.copy())
    with open_dict(cfg):
        del cfg.hydra
    return cfg


@pytest.mark.parametrize("command", COMMANDS)
def test_the_config_of_each_command_fits_the_code(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    validate(composed(command, monkeypatch=monkeypatch))


@pytest.mark.parametrize("option", list(options()))
def test_each_option_fits_the_code(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = COMPOSED_BY.get(option.partition("=")[0], "eval")
    validate(composed(command, option, *NEEDED.get(option, []), monkeypatch=monkeypatch))


def commands_of(spec: TableSpec) -> set[tuple[str, ...]]:
    """Config and overrides of all that a table runs: its rows and what prepares them."""
    chosen = (
        [f"benchmark=[{','.join(spec.benchmarks)}]", f"benchmark.num={spec.num}"] if spec.benchmarks else []
    )
    return {(spec.config, *chosen, *row.overrides) for row in spec.rows} | {
        (module.removeprefix("sparkles."), *arguments)
        for row in spec.rows
        for module, *arguments in row.prepare
    }


def said_by_the_user(overrides: Collection[str], size: Size) -> list[str]:
    """What a row leaves to the command line."""
    judged = "judge=llm" in overrides and not any(one.startswith("judge.model=") for one in overrides)
    return ["judge.model=some"] * judged + ["data_root=somewhere"] * (size == "7b")


@pytest.mark.parametrize(("table", "size"), TABLES)
def test_each_row_of_each_table_fits_the_code(
    table: str, size: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = []
    for command, *overrides in sorted(commands_of(read_table(table, size))):
        try:
            needed = said_by_the_user(overrides, size)
            validate(composed(command, *overrides, *needed, monkeypatch=monkeypatch))
        except (InputError, HydraException) as error:
            problems.append(f"{command} {' '.join(overrides)}: {error}")
    assert not problems, "\n".join(problems)


def test_options_are_found() -> None:
    assert {"experiment=minigpt4", "benchmark=nlvr", "data/subset@data.subsets=vg_turn1"} <= set(options())


def test_each_row_of_table_3_is_an_experiment_at_both_sizes() -> None:
    assert {f"experiment={row}{size}" for row in ROWS_OF_TABLE_3 for size in ("", "_7b")} <= set(options())


def test_the_full_size_recipe_is_that_of_the_paper() -> None:
    cfg = compose("train", ["experiment=sparkleschat_7b"])
    optimizer, scheduler = cfg.module.optimizer, cfg.module.scheduler
    assert (cfg.data.steps, cfg.trainer.max_epochs) == (1500, 1)
    assert (cfg.data.batch_size, cfg.trainer.accumulate_grad_batches) == (8, 1)
    assert (optimizer.lr, optimizer.weight_decay, list(optimizer.betas)) == (3e-5, 0.05, [0.9, 0.999])
    assert (scheduler.warmup_steps, scheduler.warmup_lr, scheduler.min_lr) == (400, 1e-6, 1e-5)
    assert (cfg.trainer.devices, cfg.trainer.gradient_clip_val) == ("auto", None)

    def share(of: str) -> float:
        return sum(spec.ratio for spec in cfg.data.subsets.values() if of in spec.name)

    assert share("CC") == share("VG") == (share("turn1") + share("turn2")) / 2
    assert share("turn1") == 2 * share("turn2")


def test_paper_exact_is_laid_over_the_full_size_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ("experiment=[sparkleschat_7b,paper_exact]", "data_root=somewhere")
    cfg = composed("train", *overrides, monkeypatch=monkeypatch)
    validate(cfg)
    assert (cfg.model.vision.depth, cfg.data.mix) == (39, "per_batch")
    # The original's files of second turns weigh 1, all others 2.
    assert {name: spec.ratio for name, spec in cfg.data.subsets.items()} == {
        name: 1 if "turn2" in name else 2 for name in cfg.data.subsets
    }


@pytest.mark.parametrize("row", [row for row in ROWS_OF_TABLE_3 if row != "sparkleschat"])
def test_a_full_size_baseline_differs_from_the_recipe_in_name_and_data_alone(row: str) -> None:
    baseline, recipe = (compose("train", [f"experiment={name}_7b"]) for name in (row, "sparkleschat"))
    assert baseline.name == compose("train", [f"experiment={row}"]).name
    assert (baseline.fit, recipe.fit) == (row != "minigpt4", True)
    for cfg in (baseline, recipe):
        OmegaConf.set_struct(cfg, False)
        del cfg["name"], cfg["fit"], cfg.data["subsets"]
    assert OmegaConf.to_container(baseline, resolve=False) == OmegaConf.to_container(recipe, resolve=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_starts_with_its_own_examples(command: str) -> None:
    help_ = compose(command, return_hydra_config=True).hydra.help
    assert f"  {help_.app_name} " in help_.header.replace("\n", " \n")


def prompt_format(option: str) -> PromptFormat:
    loaded = instantiate(compose("train", [f"prompt_format={option}"]).prompt_format)
    assert isinstance(loaded, PromptFormat)
    return loaded


def test_the_minigpt4_option_is_the_format_of_the_code() -> None:
    assert prompt_format("minigpt4") == MINIGPT4


def test_the_chatml_option_renders_as_a_chatml_template() -> None:
    chatml = prompt_format("chatml")
    question = Message(role="user", content=f"What is {image_reference(7)}?", images=(Image(image_id=7),))
    messages = [question, Message(role="assistant", content="A cat."), Message(role="user", content="Sure?")]

    spoken = [Message(role="system", content=chatml.system_message), *messages]  # type: ignore[arg-type]
    assert chatml.render_prompt(messages, system=True) == render_chatml(spoken, open_end=True)

    answered = [*messages, Message(role="assistant", content="Yes.")]
    ours = chatml.render_prompt(messages, system=False) + chatml.render_answer("Yes.")
    assert ours == render_chatml(answered, open_end=False).removesuffix("\n")


def render_chatml(messages: list[Message], *, open_end: bool) -> str:
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    tokenizer.chat_template = (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    conversation = [{"role": message.role, "content": message.content} for message in messages]
    text = tokenizer.apply_chat_template(conversation, add_generation_prompt=open_end, tokenize=False)
    assert isinstance(text, str)
    return text
