"""The chat's page as its user has it: what can be seen, clicked and typed."""

import base64
import re
from pathlib import Path
from typing import Self

from playwright.sync_api import Locator, Page, expect


class ChatPage:
    """A page of one visitor."""

    expect = staticmethod(expect)

    def __init__(self, page: Page) -> None:
        self.page = page
        self.editor = page.get_by_role("textbox", name="Question with pictures between the words")
        self.said = page.locator(".said")
        """To those who cannot see what happens to the pictures in the editor."""
        self.turns = page.get_by_role("list", name="Conversation", exact=True).get_by_role("listitem")

    def open(self, address: str) -> Self:
        self.page.goto(address)
        expect(self.editor).to_be_visible()
        return self

    def write(self, *parts: str | Path) -> None:
        """Type words, and add pictures by the file button, one after the other."""
        self.editor.focus()
        for part in parts:
            if isinstance(part, str):
                self.page.keyboard.type(part)
            else:
                self.add(part)

    def add(self, *files: Path) -> None:
        before = self.chips.count()
        with self.page.expect_file_chooser() as chooser:
            self.page.get_by_role("button", name="Add pictures at the cursor").click()
        chooser.value.set_files(files)
        expect(self.chips).to_have_count(before + len(files))

    @property
    def chips(self) -> Locator:
        return self.editor.get_by_role("group", name=re.compile("^IMAGE#"))

    def ask(self, *parts: str | Path) -> str:
        """Write, send, and wait for the whole answer."""
        turns = self.turns.count()
        self.write(*parts)
        self.page.keyboard.press("Enter")
        expect(self.turns).to_have_count(turns + 1)
        return self.answer()

    def answer(self) -> str:
        """The last one, when it is complete."""
        self.ended()
        return str(self.turns.last.get_by_role("group", name="Answer").inner_text())

    def ended(self) -> None:
        expect(self.turns.last.get_by_role("group", name="Answer")).to_have_attribute("aria-busy", "false")
        expect(self.button("Send")).to_be_visible()

    def asked(self, index: int) -> str:
        """A question as the history shows it."""
        return str(self.turns.nth(index).get_by_role("group", name="You asked").inner_text())

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def unfold(self, name: str) -> None:
        """What the sidebar has folded up; its button is called by more than the name."""
        button = self.page.get_by_role("button", name=name)
        button.click()
        expect(button.locator("xpath=following-sibling::*").first).to_be_visible()
        # Gradio gives what has just appeared its first values once more, a frame later.
        self.page.evaluate(
            "() => new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))"
        )

    def drop(self, before: str, *files: Path) -> None:
        """As from a file manager, in front of a word in the editor."""
        x, y = self.point(before)
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        session = self.page.context.new_cdp_session(self.page)
        for kind in ("dragEnter", "dragOver", "drop"):
            session.send("Input.dispatchDragEvent", {"type": kind, "x": x, "y": y, "data": data})

    def drag(self, name: str, *points: tuple[float, float], drop: bool = True) -> None:
        """Take a picture in the editor with the mouse, over the points; let it go at the last, or not yet."""
        self.settled()
        mouse = self.page.mouse
        self.chip(name).locator("img").hover()
        mouse.down()
        for x, y in points:
            mouse.move(x, y, steps=3)
        if drop:
            mouse.up()

    def point(self, before: str) -> tuple[float, float]:
        """Where a word begins in the editor."""
        self.settled()
        x, y = self.editor.evaluate(
            """(editor, word) => {
                const walker = document.createTreeWalker(editor, NodeFilter.SHOW_TEXT);
                while (walker.nextNode() && !walker.currentNode.data.includes(word)) {}
                const range = document.createRange();
                const start = walker.currentNode.data.indexOf(word);
                range.setStart(walker.currentNode, start);
                range.setEnd(walker.currentNode, start + 1);
                const { left, top, height } = range.getBoundingClientRect();
                return [left + 1, top + height / 2];
            }""",
            before,
        )
        return x, y

    def settled(self) -> None:
        """The sidebar has come to rest, which opens after the page has come."""
        self.page.evaluate(
            """() => Promise.allSettled(
                document.getAnimations().filter((one) => one instanceof CSSTransition).map((one) => one.finished)
            )"""
        )

    def chip(self, name: str) -> Locator:
        """A picture in the editor."""
        return self.editor.get_by_role("group", name=re.compile(f"^{name}\\b"))

    def numbers(self) -> list[str]:
        """Of the pictures in the editor."""
        return re.findall(r"IMAGE#(\w+)", self.editor.inner_text())

    def tab_to(self, name: str) -> None:
        """Press Tab until something of this name has the focus."""
        for _ in range(80):
            self.page.keyboard.press("Tab")
            focused = self.page.evaluate(
                "document.activeElement.ariaLabel ?? document.activeElement.textContent.trim()"
            )
            if focused == name:
                return
        raise AssertionError(f"Tab does not lead to {name!r}")

    def copy(self, file: Path) -> None:
        """Into the clipboard."""
        self.page.evaluate(
            """async (content) => {
                const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
                const picture = new Blob([bytes], { type: "image/png" });
                await navigator.clipboard.write([new ClipboardItem({ "image/png": picture })]);
            }""",
            base64.b64encode(file.read_bytes()).decode(),
        )
