"""`python -m tests.serve.browser.screenshots` writes the README's pictures, docs/chat.png and docs/chat_phone.png."""

from playwright.sync_api import sync_playwright

from tests.browser import find_chromium
from tests.serve.browser.chat_page import ChatPage
from tests.serve.browser.command import REPOSITORY, running_chat

PICTURE = REPOSITORY / "sparkles" / "serve" / "examples" / "where-1.png"


def main() -> None:
    with running_chat() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        for name, width, height in (("chat", 1280, 900), ("chat_phone", 390, 844)):
            context = browser.new_context(viewport={"width": width, "height": height})
            chat = ChatPage(context.new_page()).open(address)
            chat.page.get_by_role("list", name="Examples").get_by_role("button").first.click()
            chat.expect(chat.turns).to_have_count(2)
            chat.ended()
            chat.write("Which has more triangles, the second picture or ", PICTURE, "?")
            if name == "chat":  # on a phone it would cover most of it
                chat.page.get_by_role("button", name="IMAGE#2", exact=True).last.hover()
            chat.page.screenshot(path=REPOSITORY / "docs" / f"{name}.png")
            context.close()
        browser.close()


if __name__ == "__main__":
    main()
