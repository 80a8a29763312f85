"""The endpoint, asked by the openai client."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import openai
import PIL.Image
import pytest
from openai.types.chat import ChatCompletion

from sparkles.eval.endpoint import EndpointResponder
from sparkles.llm_client import LLMClient
from sparkles.prompt_format import image_reference
from sparkles.serve.api import build_app
from sparkles.serve.engine import Engine
from sparkles.serve.limits import Limits
from sparkles.serve.question import Question, Sampling
from sparkles.types import Image, Message, Prompt
from tests.serve.conftest import MAX_TOKENS, MODEL, EndlessText, Nano, data_url
from tests.serve.running_server import RunningServer

DESCRIBE = "Describe {} briefly."


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def picture(path: Path) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(path), "detail": "high"}}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


@pytest.fixture
def ask(client: openai.OpenAI) -> Callable[..., Any]:
    def ask(*messages: dict[str, Any], **options: Any) -> Any:
        return client.chat.completions.create(model=MODEL, messages=list(messages), **options)  # type: ignore[arg-type]

    return ask


@pytest.fixture
def serve(engine: Engine) -> Callable[..., RunningServer]:
    def serve(engine: Engine = engine, **options: Any) -> RunningServer:
        return RunningServer(
            build_app(engine, name=MODEL, **{"defaults": Sampling(max_tokens=MAX_TOKENS), **options})
        )

    return serve


@pytest.fixture
def described(nano: Nano, scenes: Callable[[int], list[Path]]) -> str:
    """What the model says to `DESCRIBE` of the first scene."""
    image = Image(image_id=1, path=scenes(1)[0])
    asked = Message(role="user", content=DESCRIBE.format(image_reference(1)), images=(image,))
    return nano.responder.respond([Prompt(messages=(asked,))])[0].text


def clients_for(server: RunningServer, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=server.base_url, api_key=key, max_retries=0)


# --- answers


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "sparkles"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.models.retrieve("other")


def test_pictures_are_seen_between_the_words(
    ask: Callable[..., ChatCompletion], scenes: Callable[[int], list[Path]], described: str, nano: Nano
) -> None:
    file = scenes(1)[0]
    completion = ask(user(text("Describe "), picture(file), text(" briefly.")))
    [choice] = completion.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == (
        "assistant",
        described,
        "stop",
    )
    asked = Message(role="user", content=DESCRIBE.format(image_reference(1)), images=(Image(image_id=1),))
    prompt_tokens = len(nano.encoder.encode_prompt(Prompt(messages=(asked,))).input_ids)
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == prompt_tokens
    assert completion.usage.total_tokens == prompt_tokens + completion.usage.completion_tokens
    assert 5 < completion.usage.completion_tokens <= MAX_TOKENS


def test_our_own_client_gets_the_responders_answers(
    base_url: str, nano: Nano, prompts: Callable[[int], list[Prompt]]
) -> None:
    asked = prompts(10)
    client = partial(LLMClient, base_url=base_url, attempts=1, concurrency=10)
    endpoint = EndpointResponder(model=MODEL, client=client, max_tokens=MAX_TOKENS)
    found, expected = endpoint.respond(asked), nano.responder.respond(asked)
    assert [one.failure for one in found] == [""] * 10
    assert [(one.text, one.truncated) for one in found] == [(one.text, one.truncated) for one in expected]


def test_a_stream_is_the_answer_in_pieces(
    ask: Callable[..., Any], scenes: Callable[[int], list[Path]], described: str
) -> None:
    asked = user(text("Describe "), picture(scenes(1)[0]), text(" briefly."))
    chunks = list(ask(asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(pieces) == described
    assert sum(map(bool, pieces)) > 3
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 3
    assert len({chunk.id for chunk in chunks}) == 1


def test_choices_are_drawn_by_the_seed_and_streamed_alike(
    ask: Callable[..., Any], scenes: Callable[[int], list[Path]]
) -> None:
    asked = user(picture(scenes(1)[0]), text("Describe it."))
    drawn = {"n": 3, "seed": 11, "temperature": 2.0, "max_completion_tokens": 40}
    whole = [choice.message.content for choice in ask(asked, **drawn).choices]
    assert len(set(whole)) == 3
    assert [choice.message.content for choice in ask(asked, **drawn).choices] == whole
    pieces = ["", "", ""]
    for chunk in ask(asked, stream=True, **drawn):
        for choice in chunk.choices:
            pieces[choice.index] += choice.delta.content or ""
    assert pieces == whole


def test_an_answer_stops_where_it_is_told_to(
    ask: Callable[..., ChatCompletion], scenes: Callable[[int], list[Path]], described: str
) -> None:
    asked = user(text("Describe "), picture(scenes(1)[0]), text(" briefly."))
    word = described.split()[2]
    stopped, short = ask(asked, stop=[word, "never"]).choices[0], ask(asked, max_tokens=2).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (described.partition(word)[0].strip(), "stop")
    assert short.finish_reason == "length"
    assert described.startswith(short.message.content or "?")


def test_log_probabilities_are_told_for_each_token(
    ask: Callable[..., Any], scenes: Callable[[int], list[Path]]
) -> None:
    asked = user(picture(scenes(1)[0]), text("Describe it."))
    choice = ask(asked, logprobs=True, top_logprobs=2).choices[0]
    tokens = choice.logprobs.content
    assert "".join(token.token for token in tokens).strip() == choice.message.content
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)
    assert b"".join(bytes(token.bytes) for token in tokens).decode().strip() == choice.message.content
    streamed = [
        token
        for chunk in ask(asked, logprobs=True, top_logprobs=2, stream=True)
        for one in chunk.choices
        if one.logprobs is not None
        for token in one.logprobs.content
    ]
    assert streamed == tokens


def test_instructions_stand_behind_the_houses(
    ask: Callable[..., ChatCompletion], nano: Nano, scenes: Callable[[int], list[Path]]
) -> None:
    asked = user(picture(scenes(1)[0]), text("Describe it."))
    told = ask(
        {"role": "system", "content": "Be brief, "}, {"role": "developer", "content": "please."}, asked
    )
    plain = ask(asked)
    assert told.usage is not None
    assert plain.usage is not None
    assert told.usage.prompt_tokens > plain.usage.prompt_tokens


def test_a_conversation_goes_on_over_turns(
    ask: Callable[..., ChatCompletion], nano: Nano, scenes: Callable[[int], list[Path]]
) -> None:
    one, other = (Image(image_id=name, path=path) for name, path in enumerate(scenes(2), start=1))
    messages = (
        Message(role="user", content=f"Describe {image_reference(1)}.", images=(one,)),
        Message(role="assistant", content="It has a red star."),
        Message(role="user", content=f"And {image_reference(2)}?", images=(other,)),
    )
    completion = ask(
        user(text("Describe"), picture(scenes(2)[0]), text(".")),
        {"role": "assistant", "content": "It has a red star."},
        user(text("And"), picture(scenes(2)[1]), text("?")),
    )
    assert (
        completion.choices[0].message.content == nano.responder.respond([Prompt(messages=messages)])[0].text
    )


# --- refusals


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ({"max_tokens": 100_000}, None, "at most 1024"),
        ({"n": 9}, None, "at most 8 choices"),
        ({"stop": ["a"] * 5}, None, "up to 4 strings"),
        ({"temperature": 3.0}, None, "temperature: Input should be less than or equal to 2"),
        ({"top_logprobs": 2}, None, "needs logprobs"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            "unsupported_parameter",
            "tools cannot",
        ),
        ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format cannot"),
    ],
)
def test_what_cannot_be_done_is_said(
    ask: Callable[..., Any], options: dict[str, Any], code: str | None, says: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=says) as refused:
        ask({"role": "user", "content": "Hi"}, **options)
    assert refused.value.code == code
    assert refused.value.type == "invalid_request_error"


@pytest.mark.parametrize("options", [{"temperature": 0.7}, {"logprobs": True}])
def test_what_does_not_go_with_the_servers_own_settings_is_said(
    serve: Callable[..., RunningServer], options: dict[str, Any]
) -> None:
    with serve(defaults=Sampling(max_tokens=8, beams=2)) as server:
        completions = clients_for(server).chat.completions
        with pytest.raises(openai.BadRequestError, match="more than one beam needs temperature 0"):
            completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}], **options)


def test_what_asks_for_nothing_special_is_ignored(ask: Callable[..., ChatCompletion]) -> None:
    options = {"user": "me", "presence_penalty": 0, "response_format": {"type": "text"}, "store": False}
    assert ask({"role": "user", "content": "Hi"}, **options).choices[0].message.content


@pytest.mark.parametrize("words", ["a star " * 1_000, "a star " * 100_000])
def test_a_conversation_that_does_not_fit_is_refused_as_a_whole(ask: Callable[..., Any], words: str) -> None:
    earlier = [{"role": "user", "content": words}, {"role": "assistant", "content": "Yes."}]
    with pytest.raises(openai.BadRequestError, match="but this model reads 1024") as refused:
        ask(*earlier, {"role": "user", "content": "And now?"})
    assert refused.value.code == "context_length_exceeded"


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "Hi"}])
    assert refused.value.code == "model_not_found"


# --- keys, places, moderation


def test_a_key_is_asked_for_and_never_logged(
    serve: Callable[..., RunningServer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with serve(api_key="s3cret-k3y") as server:
        assert list(clients_for(server, "s3cret-k3y").models.list())
        for wrong in ("s3cret", "s3cret-k3y2", "ß"):
            with pytest.raises((openai.AuthenticationError, UnicodeEncodeError)) as refused:
                clients_for(server, wrong).models.list()
            if isinstance(refused.value, openai.AuthenticationError):
                assert refused.value.code == "invalid_api_key"
    assert not any("s3cret" in record.getMessage() for record in caplog.records if "uvicorn" in record.name)


def test_without_a_place_a_client_is_told_when_to_come_again(
    nano: Nano, serve: Callable[..., RunningServer]
) -> None:
    engine = nano.engine(max_batch_size=1, max_waiting=0)
    with serve(engine) as server, engine.place():
        with pytest.raises(openai.RateLimitError) as refused:
            clients_for(server).chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "Hi"}]
            )
        assert refused.value.response.headers["retry-after"] == "1"
        assert refused.value.code == "queue_full"
        assert list(clients_for(server).models.list())
    engine.close()


def test_questions_and_answers_can_be_moderated(
    serve: Callable[..., RunningServer], scenes: Callable[[int], list[Path]], described: str
) -> None:
    judged: list[tuple[str, int]] = []

    def moderation(words: str, pictures: Sequence[PIL.Image.Image]) -> str:
        judged.append((words, len(pictures)))
        return "no stars, please" if "star" in words or words == described else ""

    asked = user(text("Describe "), picture(scenes(1)[0]), text(" briefly."))
    with serve(moderation=moderation) as server:
        completions = clients_for(server).chat.completions
        [choice] = completions.create(model=MODEL, messages=[asked]).choices  # type: ignore[list-item]
        assert (choice.message.content, choice.finish_reason) == ("", "content_filter")
        chunks = completions.create(model=MODEL, messages=[asked], stream=True)  # type: ignore[list-item]
        streamed = [one for chunk in chunks for one in chunk.choices]
        assert "".join(one.delta.content or "" for one in streamed) == ""
        assert streamed[-1].finish_reason == "content_filter"
        with pytest.raises(openai.BadRequestError, match="no stars, please") as refused:
            completions.create(model=MODEL, messages=[{"role": "user", "content": "A star?"}])
        assert refused.value.code == "content_filter"
    assert [number for words, number in judged if "briefly" in words] == [1, 1]


# --- coming and going


def test_a_client_that_goes_away_stops_its_answer(
    nano: Nano, serve: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparkles.serve.engine.AnswerText", EndlessText)
    engine = nano.engine(max_batch_size=1, seconds=60.0)
    hi = {"role": "user", "content": "Hi"}
    with serve(engine, limits=Limits(tokens=100_000)) as server:
        completions = clients_for(server).with_options(timeout=20.0).chat.completions
        stream = completions.create(model=MODEL, messages=[hi], stream=True, max_tokens=100_000)  # type: ignore[call-overload]
        next(iter(stream))
        stream.close()
        with pytest.raises(openai.APITimeoutError):
            clients_for(server).with_options(timeout=0.3).chat.completions.create(
                model=MODEL,
                messages=[hi],
                max_tokens=100_000,  # type: ignore[list-item]
            )
        # Both have left the only row.
        answer = completions.create(model=MODEL, messages=[hi], max_tokens=3)  # type: ignore[list-item]
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3
    engine.close()


def test_requests_in_flight_end_before_the_server_does(
    serve: Callable[..., RunningServer], scenes: Callable[[int], list[Path]], described: str
) -> None:
    asked = user(text("Describe "), picture(scenes(1)[0]), text(" briefly."))
    found: list[str] = []
    with serve() as server:
        stream = clients_for(server).chat.completions.create(model=MODEL, messages=[asked], stream=True)  # type: ignore[list-item]
        chunks = iter(stream)
        next(chunks)

        def read() -> None:
            found.extend(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)

        reading = threading.Thread(target=read)
        server.stop()
        reading.start()
    reading.join()
    assert "".join(found) == described


def test_nothing_of_a_bug_reaches_the_client(
    nano: Nano, serve: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> Question:
        raise KeyError("secret detail")

    monkeypatch.setattr("sparkles.serve.reading.RequestReader.read", bug)
    with serve() as server, pytest.raises(openai.InternalServerError, match="its log says why") as failed:
        clients_for(server).chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}])
    assert "secret" not in failed.value.response.text
