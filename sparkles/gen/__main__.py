"""Make dialogue data: `python -m sparkles.gen gen=vg gen.model=... gen.source.path=...`.

`caption` in front describes a folder of pictures first; with the name of a command of `sparkles.gen.commands`, look at
data that exist.
"""

import json
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from sparkles.config import command, dispatch, terminated_as_by_ctrl_c
from sparkles.gen.commands import COMMANDS
from sparkles.types import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from sparkles.gen.leakage import LeakageReport
    from sparkles.gen.pipeline import Generated
    from sparkles.gen.recipes import Recipe
    from sparkles.gen.writers import Writer


class IncompleteError(InputError):
    """There are fewer dialogues than were asked for, or none. What there is was written."""


@command("gen")
def make(cfg: DictConfig) -> None:
    # Not before --help is answered.
    from contextlib import closing
    from pathlib import Path

    import rich
    from hydra.core.hydra_config import HydraConfig
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from sparkles.config import validate
    from sparkles.eval.files import write_json, write_text
    from sparkles.gen.pipeline import generate, ledger_record

    validate(cfg)
    recipe: Recipe = instantiate(cfg.gen.recipe, _convert_="all")
    recipe, leaks = _without_leaks(recipe, cfg)
    with closing(instantiate(cfg.gen.writer, _convert_="all")) as writer:
        if cfg.dry_run:
            rich.print(_prospect(recipe, writer))
            return
        folder = Path(HydraConfig.get().runtime.output_dir)
        write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        if leaks is not None:
            write_json(folder / "leakage.json", leaks)
        with terminated_as_by_ctrl_c():
            generated = generate(recipe, writer)
            writer.close()  # so that calls under way come back and are in the ledger
            ledger = ledger_record(generated, writer)
            write_json(folder / "ledger.json", ledger)
        if not generated.interrupted:  # what there is may be less than an earlier run has written
            _write(folder, generated, ledger, _origin(cfg) | {"leakage": leaks})
        rich.print(f"{_summary(generated)}; {writer.ledger.summary()}\nin {folder}")
    _check_complete(generated, folder)


@command("caption")
def caption(cfg: DictConfig) -> None:
    from pathlib import Path

    from hydra.core.hydra_config import HydraConfig

    from sparkles.config import validate
    from sparkles.gen.captioning import caption_folder
    from sparkles.launch import build_responder

    validate(cfg)
    out = Path(HydraConfig.get().runtime.output_dir) / "captions.jsonl"
    num = caption_folder(Path(cfg.folder), build_responder(cfg), out, question=cfg.question)
    print(
        f"{num} captions in {out}; to generate from them: gen.source.path={out} gen.source.images={cfg.folder}"
    )


def _without_leaks(recipe: "Recipe", cfg: DictConfig) -> "tuple[Recipe, dict[str, Any] | None]":
    """The recipe without candidates that evaluation sets show, and the record of what was left out.

    None: they were not compared.
    """
    from hydra.utils import instantiate

    if cfg.gen.get("leakage") is None:  # drawn scenes
        return recipe, None
    report: LeakageReport | None = instantiate(cfg.gen.leakage, _convert_="all")(recipe.candidates.images)
    if report is None:
        return recipe, None
    print(f"left out before anything is asked: {report}")
    return replace(recipe, candidates=recipe.candidates.without(report.found)), report.record()


def _prospect(recipe: "Recipe", writer: "Writer") -> str:
    from sparkles.gen.pipeline import first_round

    calls = first_round(recipe)
    return (
        f"{recipe.name}: {recipe.num_dialogues} dialogues take {len(calls)} calls if all are kept, at most "
        f"{recipe.calls_at_most}\n{writer.name}: {writer.estimate(map(recipe.assignment, calls))}"
    )


def _origin(cfg: DictConfig) -> dict[str, object]:
    """Where the data come from, for the data card."""
    from omegaconf import OmegaConf

    gen = OmegaConf.to_container(cfg.gen, resolve=True)
    assert isinstance(gen, dict)
    writer, recipe = gen["writer"], gen["recipe"]
    sampling = {
        key: writer[key]
        for key in ("mode", "max_tokens", "temperature", "top_p", "structured")
        if key in writer
    }
    asked = {"replies": str(recipe["replies"]), "candidates": recipe["candidates"]["size"]}
    return {
        "source": recipe["candidates"]["images"],
        "settings": {"seed": cfg.seed} | asked | sampling,
        "filters": {
            name: {key: value for key, value in node.items() if key != "_partial_"}
            for name, node in recipe["filters"].items()
        },
    }


def _write(folder: "Path", generated: "Generated", ledger: dict[str, Any], origin: dict[str, object]) -> None:
    """Dialogue file, training files, page, rejects and data card."""
    from sparkles.data.annotations import write_training_files
    from sparkles.eval.files import write_text
    from sparkles.gen.card import FILE_NAME, write_card
    from sparkles.pages.dialogues import dialogue_page

    recipe = generated.recipe
    rejects = (json.dumps(asdict(reject), ensure_ascii=False) + "\n" for reject in generated.rejects)
    write_text(folder / "rejects.jsonl", "".join(rejects))
    files: list[Path] = []
    if generated.num_kept:
        files = write_training_files(folder / "annotations", recipe.name, generated.dialogues)
        shown = [image for dialogue in generated.dialogues for image in dialogue.images]
        images = {image.path.parent for image in shown if image.path is not None}
        page = dialogue_page(files[0], images.pop() if len(images) == 1 else None, num=500, seed=0)
        write_text(folder / "view.html", page)
    facts = {
        "name": recipe.name,
        "model": {"asked": ledger["writer"], "answered": ledger["models"]},
        "prompts": {"sha256": ledger["prompt_sha256"]},
        "counts": {name: ledger[name] for name in ("wanted", "kept", "calls", "replies")},
        "rejects": ledger["rejected"],
        "cost": {name: ledger[name] for name in ("dollars", "input_tokens", "output_tokens", "unknown_cost")},
        "files": [path.name for path in files],
    }
    write_card(folder / FILE_NAME, facts | origin)


def _summary(generated: "Generated") -> str:
    recipe = generated.recipe
    reasons = ", ".join(f"{count} {reason}" for reason, count in generated.reasons.most_common())
    return (
        f"{recipe.name}: {generated.num_kept} of {recipe.num_dialogues} dialogues from {sum(generated.asked)} calls; "
        f"{len(generated.rejects)} rejected{f': {reasons}' if reasons else ''}"
    )


def _check_complete(generated: "Generated", folder: "Path") -> None:
    """Raise IncompleteError, and say what to do, where there is less than was asked for."""
    recipe = generated.recipe
    if generated.interrupted:
        raise IncompleteError(
            f"stopped at {generated.num_kept} of {recipe.num_dialogues} dialogues; {folder / 'ledger.json'} tells the "
            f"cost so far, {folder / 'journal'} has every reply: the same command goes on there, or collects a batch"
        )
    if generated.failures:
        last = generated.failures[-1]
        raise IncompleteError(
            f"{len(generated.failures)} calls have no reply ({last.reason}: {last.message}); "
            "the same command asks for these alone"
        )
    if not generated.num_kept:
        raise IncompleteError(
            f"no dialogue was kept: all {sum(generated.asked)} replies were rejected; {folder / 'rejects.jsonl'} has "
            "each with its reason. Try another model or gen.prompt_file"
        )
    if generated.num_kept < recipe.num_dialogues:
        why = (
            "the calls are used up; with a larger gen.recipe.max_calls the same command goes on"
            if sum(generated.asked) >= recipe.calls_at_most
            else "the candidates are used up; give a source with more captions"
        )
        raise IncompleteError(f"{generated.num_kept} of {recipe.num_dialogues} dialogues: {why}")


def main() -> None:
    if sys.argv[1:2] == ["caption"]:  # composes a config of its own
        del sys.argv[1]
        caption()
        return
    try:
        dispatch("sparkles.gen", COMMANDS, otherwise=make)
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on without asking anything twice")


if __name__ == "__main__":
    main()
