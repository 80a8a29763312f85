"""What `python -m sparkles.gen COMMAND key=value ...` does with data sets that exist; docstrings are the help texts.

Data sets are read here and handed to the rest of `sparkles.gen`, which does not know `sparkles.data`. Each function
imports what it needs when it is called, so that --help is answered at once.
"""

import json as json_format
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table

from sparkles.types import InputError

if TYPE_CHECKING:
    from rich.status import Status

    from sparkles.gen.assess import Assessment, Assessor
    from sparkles.gen.filters import Removed
    from sparkles.gen.leakage import EvaluationSet, HasImages, LeakageReport
    from sparkles.gen.recipes import Filter
    from sparkles.llm_client import Price
    from sparkles.types import Dialogue, Image

VG_PATTERNS = ("VG_100K/{image_id}.jpg", "VG_100K_2/{image_id}.jpg")
"""Where Visual Genome's own folders have a picture."""
SOURCES: Mapping[str, tuple[str, Literal["vg", "coco", "other"]]] = {
    "llava_detail": ("LLaVA_detail_23k", "coco"),
    "llava_reasoning": ("LLaVA_complex_reasoning_77k", "coco"),
    "svit": ("SVIT_detail_description", "vg"),
    "cc_sbu_align": ("cc_sbu_align", "other"),
}
"""Published data by the file in conf/data/subset/ that says how it is read, and whose ids it has."""

Verbs = Literal["auto", "parser", "rules"]
Ids = Literal["vg", "coco", "other"]


def stats(
    path: str,
    other: str | None = None,
    out: str = "runs/statistics",
    formats: Sequence[Literal["png", "svg"]] = ("png", "svg"),
    page: bool = True,
    verbs: Verbs = "auto",
    json: bool | str = False,
) -> None:
    """Count and draw one data set, or two side by side: Table 2, Figures 4 and 9.

    path=A.json      a dialogue file, such as data/scenes/SparklesDialogueVG/annotations/SparklesDialogueVG.json
    other=B.json     another one
    out=FOLDER       for root_verbs, root_verbs_by_images, answer_words and lengths, and statistics.html
    formats=png      this one only; formats=png formats=svg, both, is the default
    page=false       no HTML page
    verbs=parser     root verbs by spaCy and benepar, or fail; rules: by word order; auto: the parser if installed
    json=true|FILE   print the numbers as JSON, or write them, instead of the table
    """
    from sparkles.data.annotations import read_dialogues
    from sparkles.gen.figures import draw, write_page
    from sparkles.gen.statistics import summarize
    from sparkles.gen.verbs import find_pairs_by

    paths = [Path(one) for one in (path, other) if one is not None]
    find = find_pairs_by(verbs)
    with _status("counting"):
        statistics = [summarize(one.stem, read_dialogues(one), find) for one in paths]
    with _status("drawing"):
        written = draw(statistics, Path(out), formats)
        if page:
            written.append(Path(out) / "statistics.html")
            write_page(statistics, written[-1])
    if json:
        _print_json([one.record() for one in statistics], json)
        return
    table = Table(title=f"root verbs by {find.name}")
    table.add_column("")
    for one in statistics:
        table.add_column(one.name, justify="right")
    for key in (tables := [one.table() for one in statistics])[0]:
        table.add_row(
            key,
            *(f"{found[key]:,}" if isinstance(found[key], int) else f"{found[key]:,.1f}" for found in tables),
        )
    Console().print(table)
    print(f"{out}: {', '.join(one.name for one in written)}")


def filter(
    path: str,
    out: str,
    min_words: int = 0,
    gives_away: bool = True,
    unique_pairs: bool = False,
    rouge: float | None = 0.7,
    verbs: Verbs = "auto",
    evaluation: str | None = None,
    ids: Ids = "other",
    image_data: str | None = None,
    images: str | None = None,
    moderation: str | None = None,
    judge: str | None = None,
    min_quality: float = 5,
    input_price: float | None = None,
    output_price: float | None = None,
    budget_usd: float | None = None,
    concurrency: int = 8,
) -> None:
    """Leave out dialogues, and say of each why: out/removed.jsonl, out/leakage.json and a data card.

    path=A.json         a dialogue file
    out=FOLDER          for the rest under the same name
    min_words=100       words that each answer must have
    gives_away=false    keep questions that tell what a picture shows
    unique_pairs=true   only the first dialogue with a root verb and object; verbs= as for stats
    rouge=0.7           highest ROUGE-L of a first question with one before; null for any
    evaluation=FOLDER   with BISON, NLVR2 and SparklesEval as the original has them; leave out their pictures
    ids=vg|coco         what the image ids of the dialogues are, to compare them with those sets'
    image_data=FILE     image_data.json of Visual Genome, which knows the COCO id of a picture
    images=FOLDER       of the dialogues' pictures, to compare them by perceptual hash too
    moderation=MODEL    of the provider's moderation endpoint, such as omni-moderation-latest (OpenAI takes nothing for
                        it); leave out what it flags: out/moderations.jsonl
    judge=MODEL         rates quality and safety: out/assessments.jsonl
    min_quality=5       of 10, by that judge
    input_price=2.5     of the judge, in dollars per million tokens; output_price=10
    budget_usd=5        ask no more before it costs more; needs these prices
    concurrency=8       calls at a time

    Both are asked at OPENAI_BASE_URL with OPENAI_API_KEY, about what the filters before them let pass, and about
    nothing twice: the same command goes on where one was stopped.
    """
    from sparkles.data.annotations import read_dialogues
    from sparkles.gen.assess import Acceptable
    from sparkles.gen.filters import GivesAway, LongAnswers, NearDuplicate, UniquePair, apply

    folder, name = Path(out), Path(path).name
    if folder.resolve() == Path(path).resolve().parent:
        raise InputError(f"out={out} is where {name} lies, which would be overwritten; give another folder")
    assessors = list(_assessors(moderation, judge, input_price, output_price))
    dialogues = read_dialogues(path)
    filters: dict[str, Filter] = {}
    leaks = look_for_leaks(
        images_of(dialogues), evaluation=evaluation, ids=ids, image_data=image_data, images=images
    )
    if leaks is not None:
        filters["leakage"] = leaks.objection
    if min_words:
        filters["long_answers"] = LongAnswers(min_words=min_words)
    if gives_away:
        filters["gives_away"] = GivesAway()
    if unique_pairs:
        filters["unique_pair"] = UniquePair(verbs=verbs)
    if rouge is not None:
        filters["near_duplicate"] = NearDuplicate(threshold=rouge)
    with _status("filtering"):
        kept, removed = apply(filters, dialogues)
    failures: list[str] = []
    ask = partial(_assess, folder=folder, budget_usd=budget_usd, concurrency=concurrency)
    for column, assessor, prices in assessors:  # asked about those alone that the others let pass
        found = ask(column, assessor, kept, prices=prices)
        failures += [one.problem for one in found.values() if one.failed]
        filters[column] = Acceptable(found, min_quality=min_quality if column == "judge" else None)
        gone = {one.index for one in removed}
        places = [index for index in range(len(dialogues)) if index not in gone]
        kept, refused = apply({column: filters[column]}, kept)
        removed += [replace(one, index=places[one.index]) for one in refused]
    _write_filtered(folder, path, kept, removed, filters, leaks)
    if failures:
        raise InputError(
            f"{len(failures)} calls have no reply ({failures[-1]}); their dialogues are left out as not assessed, "
            "and the same command asks about these alone"
        )


def _write_filtered(
    folder: Path,
    path: str,
    kept: "Sequence[Dialogue]",
    removed: "Sequence[Removed]",
    filters: "Mapping[str, Filter]",
    leaks: "LeakageReport | None",
) -> None:
    """The rest of the dialogues, what was removed and why, and the data card; print the counts."""
    from sparkles.data.annotations import write_dialogues
    from sparkles.eval.files import write_json
    from sparkles.gen.card import FILE_NAME, write_card
    from sparkles.prompt_format import strip_tags

    name, counts = Path(path).name, Counter(one.filter for one in removed)
    folder.mkdir(parents=True, exist_ok=True)
    write_dialogues(folder / name, kept)
    _write_lines(
        folder / "removed.jsonl",
        (
            {
                "record": one.index,
                "filter": one.filter,
                "reason": one.reason,
                "question": strip_tags(one.dialogue.messages[0].content),
            }
            for one in removed
        ),
    )
    facts: dict[str, Any] = {
        "name": folder.resolve().name,
        "source": {"file": name, "dialogues": len(kept) + len(removed)},
        "counts": {"dialogues": len(kept), "removed by filters": len(removed)},
        "filters": {one: f"{counts[one]} removed" for one in filters},
    }
    if leaks is not None:
        facts["leakage"] = leaks.record()
        write_json(folder / "leakage.json", facts["leakage"])
    write_card(folder / FILE_NAME, facts)
    title = f"{len(kept):,} of {len(kept) + len(removed):,} dialogues kept"
    table = Table(title=title, show_header=False)
    for one in filters:
        table.add_row(one, f"{counts[one]:,} removed")
    Console().print(table)
    print(f"{folder}: what was removed and why is in removed.jsonl")


def convert(
    source: Literal["llava_detail", "llava_reasoning", "svit", "cc_sbu_align"],
    path: str,
    out: str,
    evaluation: str | None = None,
    image_data: str | None = None,
    images: str | None = None,
    skip_bad: bool = False,
    json: bool | str = False,
) -> None:
    """Write published data of single images as a training file of the original, to train baselines on.

    source=llava_detail  detail_23k.json of LLaVA; llava_reasoning: its complex_reasoning_77k.json; svit:
                         detail_description.json of SVIT; cc_sbu_align: filter_cap.json of MiniGPT-4
    path=FILE            as published
    out=FILE             the training file; its data card lies beside it under the same name with the ending .md
    evaluation=FOLDER    with BISON, NLVR2 and SparklesEval as the original has them; leave out their pictures
    image_data=FILE      image_data.json of Visual Genome, which knows the COCO id of a picture
    images=FOLDER        of the pictures, to compare them by perceptual hash too
    skip_bad=true        leave out records that cannot be read, and say so
    json=true|FILE       print what was found of the evaluation sets as JSON, or write it
    """
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from sparkles.config import CONFIG_DIR
    from sparkles.data.annotations import AnnotationError, read_file, report, write_samples
    from sparkles.eval.files import file_hash
    from sparkles.gen.card import write_card

    name, ids = SOURCES[source]
    subset: Any = OmegaConf.load(CONFIG_DIR / "data" / "subset" / f"{name}.yaml")
    reader = instantiate(subset[name].reader)
    with _status(f"reading {path}"):
        reading = read_file(Path(path), reader.parse)
    if reading.problems:
        if not skip_bad:
            raise AnnotationError(f"{report([reading])}\nskip_bad=true leaves out such records")
        print(report([reading]))
    samples = reading.values
    leaks = look_for_leaks(
        images_of(samples), evaluation=evaluation, ids=ids, image_data=image_data, images=images
    )
    if leaks is not None:
        samples = [sample for sample in samples if not leaks.objection(sample)]
    found = {} if leaks is None else leaks.record()
    target, num_leaks = Path(out), len(reading.values) - len(samples)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_samples(target, samples)
    card = write_card(
        target.with_suffix(".md"),
        {
            "name": target.stem,
            "description": f"{name} as a training file: single images, to train baselines on.",
            "source": {"file": Path(path).name, "sha256": file_hash(Path(path))},
            "model": "The questions and answers are the source's own.",
            "prompts": {},
            "settings": {"reader": type(reader).__name__, "seed": reader.seed},
            "counts": {"records": reading.num_records, "samples": len(samples)},
            "rejects": {"records that could not be read": len(reading.problems)},
            "filters": {} if leaks is None else {"leakage": f"{num_leaks} samples removed"},
            "cost": {},
            "leakage": found or None,
            "files": [target.name],
        },
    )
    leaked = (
        "pictures of evaluation sets were not looked for (evaluation=FOLDER)"
        if leaks is None
        else f"{num_leaks:,} samples show pictures of evaluation sets"
    )
    print(
        f"{out}: {len(samples):,} samples of {reading.num_records:,} records; {len(reading.problems):,} records could "
        f"not be read, {leaked}; data card: {card.name}"
    )
    if json:
        _print_json(found, json)


def pairs(path: str, verbs: Verbs = "auto") -> None:
    """How far the finder of root verbs and objects agrees with people.

    path=FILE.csv    with the columns question, verb and noun, such as tests/gen/verb_noun_pairs.csv
    verbs=rules      which finder, as for stats
    """
    from sparkles.gen.verbs import disagreements, find_pairs_by

    find = find_pairs_by(verbs)
    num, differ = disagreements(find, Path(path))
    table = Table(title=f"{find.name}: {num - len(differ)} of {num} questions as people have them")
    for column in ("question", "found", "expected"):
        table.add_column(column)
    for one in differ:
        table.add_row(one.question, " ".join(one.found or ("none",)), " ".join(one.expected or ("none",)))
    Console().print(table)


COMMANDS = (stats, filter, convert, pairs)


def _assessors(
    moderation: str | None, judge: str | None, input_price: float | None, output_price: float | None
) -> "Iterator[tuple[str, Assessor, dict[str, Price]]]":
    """Name, assessor and prices of each that is wanted; the cheaper first."""
    from sparkles.gen.assess import llm_assessor, moderator
    from sparkles.llm_client import Price

    if moderation:
        yield "moderation", moderator(moderation), {moderation: Price(input=0, output=0)}
    if judge:
        prices = {}
        if input_price is not None and output_price is not None:
            prices[judge] = Price(input=input_price, output=output_price)
        elif input_price != output_price:
            raise InputError("input_price and output_price: give both, in dollars per million tokens")
        yield "judge", llm_assessor(judge), prices


COLUMNS = {"moderation": "moderations.jsonl", "judge": "assessments.jsonl"}
"""Where what an assessor says of each dialogue is written, by the name of its filter."""


def _assess(
    name: str,
    assessor: "Assessor",
    dialogues: "Sequence[Dialogue]",
    *,
    folder: Path,
    prices: "Mapping[str, Price]",
    budget_usd: float | None,
    concurrency: int,
) -> "dict[Dialogue, Assessment]":
    """What a model says of each dialogue, and its column.

    Replies are in the journal `name`.jsonl, so that none is asked for twice; the journals of a folder share the budget.
    """
    from rich.progress import Progress

    from sparkles.journal import Journal
    from sparkles.llm_client import LLMClient

    folder.mkdir(parents=True, exist_ok=True)
    with (
        Progress(console=Console(stderr=True)) as bar,
        Journal(folder / f"{name}.jsonl") as journal,
        LLMClient(journal=journal, prices=prices, budget_usd=budget_usd, concurrency=concurrency) as client,
    ):
        task = bar.add_task(f"asking {assessor.model}", total=len(dialogues))
        found = assessor.assess(client, dialogues, lambda index, outcome: bar.advance(task))
        print(f"{assessor.model}: {client.ledger.summary()}")
    assessments = dict(zip(dialogues, found, strict=True))
    column = ({"question": one.messages[0].content} | asdict(said) for one, said in assessments.items())
    _write_lines(folder / COLUMNS[name], column)
    return assessments


def _write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    from sparkles.eval.files import write_text

    write_text(path, "".join(json_format.dumps(record, ensure_ascii=False) + "\n" for record in records))


def images_of(records: "Iterable[HasImages]") -> "Iterator[Image]":
    return (image for record in records for image in record.images)


def look_for_leaks(
    shown: "Iterable[Image]",
    *,
    evaluation: str | Path | None,
    ids: Ids = "other",
    image_data: str | Path | None = None,
    images: str | Path | None = None,
) -> "LeakageReport | None":
    """Compare pictures with the evaluation sets; None where no folder of these is given.

    Args:
        evaluation: has a folder for each of BISON, NLVR2 and SparklesEval, or for some of them.
        ids: whose ids the images have.
        image_data: `image_data.json` of Visual Genome.
        images: where files are looked for of images that name none. Those with a file are compared by hash too.

    Raises:
        InputError: none of the sets is in the folder, or a file is not what it should be.
    """
    from sparkles.data.images import IMAGE_PATTERNS, ImageFolder, MissingImageError
    from sparkles.gen.leakage import Leakage, read_coco_ids

    if evaluation is None:
        return None
    folder = None if images is None else ImageFolder(Path(images), (*IMAGE_PATTERNS, *VG_PATTERNS))

    def find_file(image: "Image") -> Path | None:
        if image.path is not None or folder is None:
            return image.path
        try:
            return folder.find(image.image_id)
        except MissingImageError:
            return None

    return Leakage(
        evaluation_sets=_evaluation_sets(Path(evaluation)),
        coco_ids=read_coco_ids(Path(image_data)) if image_data is not None else {},
    ).look(shown, ids, find_file)


def _evaluation_sets(folder: Path) -> "list[EvaluationSet]":
    """Those that the folder has, of BISON (COCO's pictures), NLVR2 (its own) and SparklesEval (Visual Genome's)."""
    from sparkles.data.annotations import read_dialogues
    from sparkles.eval.files import read_rows
    from sparkles.gen.leakage import EvaluationSet

    def bison_ids(path: Path) -> set[int]:
        rows = read_rows(path, ["image_candidates"])
        return {int(candidate["image_id"]) for row in rows for candidate in row["image_candidates"]}

    def dialogue_ids(path: Path) -> set[int]:
        found = {image.image_id for dialogue in read_dialogues(path) for image in dialogue.images}
        return {int(image_id) for image_id in found if str(image_id).isdecimal()}

    kinds: list[tuple[str, Ids, Callable[[Path], set[int]]]] = [
        ("BISON", "coco", bison_ids),
        ("NLVR2", "other", lambda path: set()),
        ("SparklesEval", "vg", dialogue_ids),
    ]
    sets = [
        EvaluationSet(
            name=name,
            ids=frozenset(
                image_id for path in (folder / name / "annotations").glob("*.json") for image_id in read(path)
            ),
            collection=collection,
            files=sorted((folder / name / "images").glob("*.*")),
        )
        for name, collection, read in kinds
        if (folder / name).is_dir()
    ]
    if not sets:
        names = ", ".join(name for name, _, _ in kinds)
        raise InputError(
            f"evaluation={folder}: "
            + (
                f"no folder {names} in it"
                if folder.is_dir()
                else f"no such folder; expected one with {names}"
            )
        )
    return sets


def _status(words: str) -> "Status":
    return Console(stderr=True).status(words)


def _print_json(value: object, where: bool | str) -> None:
    from sparkles.eval.files import write_text

    text = json_format.dumps(value, indent=2, ensure_ascii=False)
    if isinstance(where, str):
        write_text(Path(where), text + "\n")
    else:
        print(text)
