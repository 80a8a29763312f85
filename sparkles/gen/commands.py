"""What `python -m sparkles.gen COMMAND key=value ...` does with data sets that exist; docstrings are the help texts.

Data sets are read here and handed to the rest of `sparkles.gen`, which does not know `sparkles.data`. Each function
imports what it needs when it is called, so that --help is answered at once.
"""

import json as json_format
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table

from sparkles.types import InputError

if TYPE_CHECKING:
    from rich.status import Status

    from sparkles.gen.assess import Assessment
    from sparkles.gen.leakage import EvaluationSet, HasImages, LeakageReport
    from sparkles.gen.recipes import Filter
    from sparkles.types import Dialogue

IMAGE_PATTERNS = ("{image_id}.jpg", "{image_id}.png", "VG_100K/{image_id}.jpg", "VG_100K_2/{image_id}.jpg")
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
    judge: str | None = None,
    min_quality: float = 5,
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
    judge=MODEL         behind OPENAI_BASE_URL, rates quality and safety: out/assessments.jsonl
    min_quality=5       of 10, by that judge
    """
    from sparkles.data.annotations import read_dialogues, write_dialogues
    from sparkles.eval.files import write_json, write_text
    from sparkles.gen.assess import Acceptable
    from sparkles.gen.card import write_card
    from sparkles.gen.filters import GivesAway, LongAnswers, NearDuplicate, UniquePair, apply
    from sparkles.prompt_format import strip_tags

    folder, name = Path(out), Path(path).name
    if folder.resolve() == Path(path).resolve().parent:
        raise InputError(f"out={out} is where {name} lies, which would be overwritten; give another folder")
    dialogues = read_dialogues(path)
    filters: dict[str, Filter] = {}
    report = None
    if evaluation is not None:
        report = _look_for_leaks(dialogues, ids, Path(evaluation), image_data, images)
        filters["leakage"] = report.objection
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
    if judge is not None:  # is asked about those alone that the others let pass
        gone = {one.index for one in removed}
        places = [index for index in range(len(dialogues)) if index not in gone]
        filters["judge"] = Acceptable(_assess(judge, kept, folder), min_quality=min_quality)
        kept, refused = apply({"judge": filters["judge"]}, kept)
        removed += [replace(one, index=places[one.index]) for one in refused]
    counts = Counter(one.filter for one in removed)

    folder.mkdir(parents=True, exist_ok=True)
    write_dialogues(folder / name, kept)
    lines = (
        {
            "record": one.index,
            "filter": one.filter,
            "reason": one.reason,
            "question": strip_tags(one.dialogue.messages[0].content),
        }
        for one in removed
    )
    write_text(
        folder / "removed.jsonl",
        "".join(json_format.dumps(line, ensure_ascii=False) + "\n" for line in lines),
    )
    write_card(
        folder,
        {
            "name": folder.resolve().name,
            "source": {"file": name, "dialogues": len(dialogues)},
            "counts": {"dialogues": len(kept), "removed by filters": len(removed)},
            "filters": {name: f"{counts[name]} removed" for name in filters},
            **({} if report is None else {"leakage": report.record()}),
        },
    )
    if report is not None:
        write_json(folder / "leakage.json", report.record())
    table = Table(title=f"{len(kept):,} of {len(dialogues):,} dialogues kept", show_header=False)
    for name in filters:
        table.add_row(name, f"{counts[name]:,} removed")
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
    out=FILE             the training file
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
    found = {}
    if evaluation is not None:
        leaks = _look_for_leaks(samples, ids, Path(evaluation), image_data, images)
        samples, found = [sample for sample in samples if not leaks.objection(sample)], leaks.record()
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_samples(out, samples)
    print(
        f"{out}: {len(samples):,} samples of {reading.num_records:,} records; {len(reading.problems):,} records could "
        f"not be read, {len(reading.values) - len(samples):,} samples show pictures of evaluation sets"
        f"{'' if evaluation else ', which were not looked for (evaluation=FOLDER)'}"
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


def _assess(model: str, dialogues: "Sequence[Dialogue]", folder: Path) -> "dict[Dialogue, Assessment]":
    """What a judge says of each dialogue; its replies are in judge.jsonl, so that none is asked for twice."""
    from sparkles.eval.files import write_text
    from sparkles.gen.assess import LLMAssessor
    from sparkles.journal import Journal
    from sparkles.llm_client import LLMClient

    folder.mkdir(parents=True, exist_ok=True)
    with (
        _status(f"asking {model}"),
        Journal(folder / "judge.jsonl") as journal,
        LLMClient(journal=journal) as client,
    ):
        assessments = dict(
            zip(dialogues, LLMAssessor(model=model, client=client).assess(dialogues), strict=True)
        )
        print(client.ledger.summary())
    lines = (
        json_format.dumps({"question": one.messages[0].content} | asdict(found), ensure_ascii=False)
        for one, found in assessments.items()
    )
    write_text(folder / "assessments.jsonl", "".join(line + "\n" for line in lines))
    return assessments


def _look_for_leaks(
    records: "Sequence[HasImages]", ids: Ids, evaluation: Path, image_data: str | None, images: str | None
) -> "LeakageReport":
    """Compare with the evaluation sets, by hash too where the folder of the records' images is given."""
    from sparkles.data.images import ImageFolder, MissingImageError
    from sparkles.gen.leakage import Leakage, read_coco_ids

    folder = ImageFolder(Path(images or "."), IMAGE_PATTERNS)

    def find_file(image_id: int | str) -> Path | None:
        try:
            return folder.find(image_id) if images is not None else None
        except MissingImageError:
            return None

    with _status("looking for pictures of the evaluation sets"):
        return Leakage(
            evaluation_sets=_evaluation_sets(evaluation),
            coco_ids=read_coco_ids(Path(image_data)) if image_data is not None else {},
        ).look(records, ids, find_file)


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
        raise InputError(f"evaluation={folder}: no folder {', '.join(name for name, _, _ in kinds)} in it")
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
