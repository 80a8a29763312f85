"""Pages as a parser and as a browser see them, and words that would like to run in them."""

import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

HOSTILE = (
    "<script>document.documentElement.dataset.owned = 1</script>"
    "</script></style></textarea>-->"
    "<img src=x onerror='document.documentElement.dataset.owned = 2'>"
    '" onmouseover="document.documentElement.dataset.owned = 3" \' autofocus x=\''
    "</article></div></main><h1>{{ 7 * 7 }} <b"
    "\u202edetrevni\u200f &lt;i&gt; \ud800 \x00"
)
"""Scripts, ends of everything, quotes, an unclosed tag, marks that turn the direction, half of a character."""


class Page(HTMLParser):
    """A page as a parser sees it: fails on an end tag that does not close the last open element."""

    VOID = frozenset({"meta", "img", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.shown = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID and tag not in ("rect", "line"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in ("rect", "line") or self._open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.shown += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        """The attributes of every such element; `class_` has to be among its classes."""
        name = attributes.pop("class_", None)
        return [
            found
            for kind, found in self.tags
            if kind == tag
            and (name is None or name in (found.get("class") or "").split())
            and all(found.get(key.replace("_", "-")) == value for key, value in attributes.items())
        ]


def find_chromium() -> str:
    """The program; skips the test where there is none."""
    names = "chromium", "chromium-browser", "google-chrome"
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f"no Chromium on this machine: none of {', '.join(names)}")
    return program


def browse(path: Path) -> str:
    """The document as Chromium has it when all scripts have run; skips the test where there is no Chromium."""
    program = find_chromium()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = [
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(f"--user-data-dir={profile}", "--window-size=1280,1500", "--dump-dom"),
        ]
        command = [program, *flags, path.resolve().as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout
