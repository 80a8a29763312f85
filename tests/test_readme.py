"""What README.md, CONTRIBUTING.md and the pages behind them tell a reader to run or open exists."""

import re
from collections.abc import Iterator
from os.path import normpath
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/*.md")),
]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("experiments/*/README.md"))
MADE_BY_RUNNING = ("runs/", "data/", ".venv/")
CODE = re.compile(r"```[^\n]*\n(.*?)```|`([^`\n]+)`", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s#]+)")
PATH = re.compile(r"(?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:py|md|toml|yaml)|Makefile|LICENSE")


def missing(text: str, root: Path, folder: str = ".") -> Iterator[str]:
    """Each target, module, config option and path that `text` names and `root` does not have.

    Args:
        folder: of the page, where its links start.
    """
    targets = set(re.findall(r"^([\w.-]+):(?!=)", (root / "Makefile").read_text(), re.MULTILINE))
    targets |= {path.stem for path in (root / "conf/table").glob("*.yaml")}  # which the Makefile reads
    snippets = [block or span for block, span in CODE.findall(text)]
    for snippet in snippets:
        for target in re.findall(r"\bmake ([\w.-]+)", snippet):
            if target not in targets:
                yield f"make {target}: the Makefile has {sorted(targets - {'.PHONY'})}"
        for module in re.findall(r"python -m (sparkles[\w.]*)", snippet):
            path = root / module.replace(".", "/")
            if not (path / "__main__.py").is_file() and not path.with_suffix(".py").is_file():
                yield f"python -m {module}: no such module"
        for group, option in re.findall(r"(?<![\w./])([a-z_/]+)=([\w/-]+)", snippet):
            folder = root / "conf" / group
            if folder.is_dir() and not (folder / f"{option}.yaml").is_file():
                yield f"{group}={option}: no conf/{group}/{option}.yaml"
    words = [word for snippet in snippets for word in snippet.split() if "=" not in word]
    links = [normpath(f"{folder}/{link}") for link in LINK.findall(text) if "://" not in link]
    for word in dict.fromkeys([*words, *links]):
        candidate = word.rstrip(".,;:").removeprefix("./")
        is_path = PATH.fullmatch(candidate) and not candidate.startswith(MADE_BY_RUNNING)
        if is_path and not (root / candidate).exists():
            yield f"{candidate}: no such file or folder"


@pytest.mark.parametrize("page", PAGES)
def test_what_the_page_names_exists(page: str) -> None:
    path = ROOT / page
    assert list(missing(path.read_text(encoding="utf-8"), ROOT, str(path.parent.relative_to(ROOT)))) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```\nmake dmeo\n```", "make dmeo: the Makefile has ['demo']"),
        ("`python -m sparkles.evil`", "python -m sparkles.evil: no such module"),
        ("`python train.py experiment=minigpt5`", "experiment=minigpt5: no conf/experiment/minigpt5.yaml"),
        ("read `sparkles/modles/vision.py`", "sparkles/modles/vision.py: no such file"),
        ("![a picture](docs/report.png)", "docs/report.png: no such file"),
    ],
)
def test_a_wrong_name_is_reported(tmp_path: Path, text: str, expected: str) -> None:
    make_house(tmp_path)
    [message] = missing(text, tmp_path)
    assert message.startswith(expected)


def test_right_names_and_other_words_pass(tmp_path: Path) -> None:
    make_house(tmp_path)
    text = """Run `make demo`, which writes `runs/demo/`; see `train.py`, [the site](https://example.org/a.py).
    ```
    python train.py experiment=minigpt4 run_dir=runs/mine data.batch_size=8 trainer.accelerator=cpu
    python -m sparkles.eval benchmark=[bison,nlvr2]
    ```
    Shapes are `[N, 3, H, W]`, tags `IMAGE#7<Img><ImageHere></Img>`, keys `<benchmark>/accuracy`."""
    assert list(missing(text, tmp_path)) == []


def make_house(root: Path) -> None:
    for file in ("train.py", "sparkles/eval/__main__.py", "conf/experiment/minigpt4.yaml"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    (root / "Makefile").write_text("PYTHON := python3\ndemo: ## run it\n\techo\n")
