"""Look at data: `python -m sparkles.data view path=...`."""

import inspect
import sys
from pathlib import Path

from sparkles.config import dispatch
from sparkles.types import InputError


def view(
    path: str, images: str | None = None, out: str | None = None, num: int | None = 500, seed: int = 0
) -> None:
    """Write a page that shows the dialogues of a file with their pictures between the words.

    path=FILE        a dialogue file, the annotations of SparklesEval, or a per-turn training file
    images=FOLDER    of its pictures; default: the folder images beside that of the file, where there is one
    out=FILE.html    open it in any browser, it needs no network; default: the file's name in the current folder
    num=500 seed=0   so many dialogues on the page, drawn by this seed; num=null for all. Figures are of the whole file
    """
    from sparkles.eval.files import write_text  # not before --help is answered
    from sparkles.pages.dialogues import dialogue_page

    source = Path(path)
    folder = Path(images) if images else source.absolute().parent.with_name("images")
    if images and not folder.is_dir():
        raise InputError(
            f"images={images}: no such folder; name the one that holds the pictures, or leave it out"
        )
    if num is not None and num < 1:
        raise InputError(f"num={num}: expected 1 or more dialogues, or num=null for all")
    page = dialogue_page(source, folder if folder.is_dir() else None, num=num, seed=seed, progress=True)
    target = Path(out or f"{source.stem}.html")
    write_text(target, page)
    print(f"{target} ({target.stat().st_size / 1e6:.1f} MB); open it in a browser")


def usage() -> None:
    print(f"python -m sparkles.data view key=value ...\n\n{inspect.getdoc(view)}")


def main() -> None:
    try:
        dispatch("sparkles.data", [view], otherwise=usage)
    except KeyboardInterrupt:
        sys.exit("\nstopped; no page was written, the same command makes it anew")


if __name__ == "__main__":
    main()
