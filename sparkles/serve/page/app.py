"""The web page of the chat: gradio around a component of our own, whose HTML, CSS and JavaScript lie beside this file.

The browser holds no state but a secret, what is on the screen and the question that is being written, or on its way.
It sends questions as lists of parts, and gets whole conversations (`view.view`), pictures as data URLs;
nothing touches the disk.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import gradio as gr
from fastapi import FastAPI
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sparkles.serve.conversation import Chat, Visitors
from sparkles.serve.feedback import Feedback
from sparkles.serve.gate import Gate
from sparkles.serve.limits import Limits
from sparkles.serve.page.handlers import Handlers
from sparkles.serve.question import Sampling
from sparkles.serve.starters import Example

USER = "sparkles"
_HERE = Path(__file__).parent
_SCRIPTS = "history.js", "editor.js", "moving.js", "undo.js", "sending.js", "show.js"
_NOT_KEPT = "Conversations are kept in the server's memory alone, and forgotten when it ends."
_KEPT = (
    f"{_NOT_KEPT} Answers that you rate or flag are written to its disk, with the conversation up to there and its "
    "pictures."
)
_ROUTES = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|login|login_check|(assets|static)/.*|gradio_api/(app_id|queue/(join|data)))/?"
)
"""What the page asks for. The rest of gradio's is shut: it takes and reads files, fetches URLs, edits the program."""


def build_page(
    chat: Chat,
    *,
    name: str,
    defaults: Sampling,
    visitors: Visitors,
    examples: Sequence[Example] = (),
    feedback: Feedback | None = None,
    about: str = "",
    password: str | None = None,
) -> FastAPI:
    """The application, for uvicorn or any other ASGI server.

    Args:
        name: of the model.
        defaults: of the settings.
        feedback: keeps what users say of answers; without it they are not asked.
        about: what the model can talk about, as plain text.
        password: of the user "sparkles". Without one, only requests to this machine by its own name are heard.
    """
    handlers = Handlers(chat, name=name, visitors=visitors, examples=examples, feedback=feedback)
    blocks = _blocks(handlers, defaults=defaults, about=about)
    blocks.queue(default_concurrency_limit=None)  # the engine says how many are answered at a time
    app = FastAPI(openapi_url=None)
    app.add_middleware(_Routes)
    app.add_middleware(Gate, engine=chat.engine, limits=chat.limits, any_host=password is not None)
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        auth=None if password is None else (USER, password),
        css=_read("page.css"),
        theme=_theme(),
        footer_links=[],
        run_history=False,  # in the browser's own storage
        show_error=False,
        ssr_mode=False,
    )


def _blocks(handlers: Handlers, *, defaults: Sampling, about: str) -> gr.Blocks:
    with gr.Blocks(title=handlers.name, analytics_enabled=False) as blocks:
        secret = gr.Textbox(visible=False)  # whose place the browser fills
        with gr.Sidebar(label="Conversations and settings"):
            new = gr.Button("New conversation", variant="primary")
            key = gr.Radio(label="Conversations")
            with gr.Row():
                delete = gr.Button("Delete this one", size="sm", min_width=100)
                clear = gr.Button("Delete all", size="sm", min_width=100)
            with gr.Accordion("Settings", open=False):
                settings = _settings(defaults, handlers.chat.limits)
            with gr.Accordion("Save this conversation", open=False):
                save_zip = gr.Button("As a training dialogue (.zip)", size="sm")
                save_html = gr.Button("As a web page (.html)", size="sm")
            gr.Markdown(_KEPT if handlers.feedback else _NOT_KEPT)
        chat = _chat_box(handlers, about)

        visit, shown = [secret, key], [chat, key]
        by_visitor = f"(_, ...others) => [{_read('visitor.js')}, ...others]"
        for event, handler, inputs, outputs, js in (
            (blocks.load, handlers.arrive, secret, shown, by_visitor),
            (new.click, handlers.new, secret, shown, by_visitor),
            (key.input, handlers.open, visit, shown, by_visitor),
            (delete.click, handlers.delete, visit, shown, _if_confirmed("Forget this conversation?")),
            (clear.click, handlers.clear, visit, shown, _if_confirmed("Forget all conversations?")),
            (save_zip.click, handlers.save_zip, visit, shown, by_visitor),
            (save_html.click, handlers.save_html, visit, shown, by_visitor),
            (chat.ask, handlers.ask, [secret, *settings], shown, by_visitor),
            (chat.retry, handlers.retry, [secret, *settings], shown, by_visitor),
            (chat.example, handlers.example, [secret, *settings], shown, by_visitor),
            (chat.stop, handlers.stop, secret, None, by_visitor),
            (chat.look, handlers.look, secret, shown, by_visitor),
            (chat.edit, handlers.edit, secret, shown, by_visitor),
            (chat.rate, handlers.rate, secret, shown, by_visitor),
        ):
            # What gradio would show is also read out: "common.complete", after each. It would refuse a key that it does
            # not know; a page may be older than the server, which the handlers say. And it would drop what comes while
            # it tidies up after the one before of its kind.
            listening = event(
                handler,
                inputs,
                outputs,
                js=js,
                show_progress="hidden",
                preprocess=False,
                trigger_mode="multiple",
            )
            if handler == handlers.ask:
                failed = "() => dispatchEvent(new Event('sparkles-failure'))"
                listening.failure(None, js=failed, show_progress="hidden")
    return blocks


def _if_confirmed(question: str) -> str:
    """Without the key unless the user says yes."""
    return f"(_, key) => [{_read('visitor.js')}, confirm({json.dumps(question)}) ? key : null]"


def _theme() -> gr.themes.Base:
    fonts = "system-ui", "sans-serif"  # gradio's own come from elsewhere
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=fonts, font_mono=fonts)
    # Gradio's are too pale to be read by everyone: less than 4.5:1.
    return theme.set(
        body_text_color_subdued="*neutral_600",
        block_info_text_color="*neutral_600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )


def _settings(defaults: Sampling, limits: Limits) -> list[gr.components.Component]:
    return [
        gr.Slider(0, 2, defaults.temperature, step=0.05, label="Temperature", info="0: the likeliest words"),
        gr.Slider(0.05, 1, defaults.top_p, step=0.05, label="Top p", info="draws from the likeliest only"),
        gr.Slider(1, limits.beams, defaults.beams, step=1, label="Beams", info="more: at temperature 0"),
        gr.Slider(1, limits.tokens, defaults.max_tokens, step=1, label="Longest answer", info="in tokens"),
        gr.Number(defaults.seed or 0, precision=0, minimum=0, label="Seed", info="0: another each time"),
    ]


def _chat_box(handlers: Handlers, about: str) -> gr.HTML:
    # The templates are constant: gradio would run what users write in them.
    return gr.HTML(
        html_template=_read("chat.html"),
        css_template=_read("chat.css"),
        js_on_load="\n".join(map(_read, _SCRIPTS)),
        apply_default_css=False,
        name=handlers.name,
        about=about,
        examples=[
            {"title": one.title, "pictures": [part["picture"] for part in parts if "picture" in part]}
            for one in handlers.examples
            for parts in one.questions[:1]
        ],
        rated=handlers.feedback is not None,
    )


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


class _Routes:
    """An ASGI middleware that lets requests pass for what the page needs."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _ROUTES.fullmatch(scope["path"]):
            await PlainTextResponse("not found", 404)(scope, receive, send)
        else:
            await self.app(scope, receive, send)
