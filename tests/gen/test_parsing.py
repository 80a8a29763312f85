import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkles.gen import original
from sparkles.gen.parsing import Parsed, Reason, parse_reply
from sparkles.types import Dialogue, Image, Message

TAG = "<Img><ImageHere></Img>"
POOL = [Image(image_id=image_id, caption=f"caption {image_id}") for image_id in (1, 12, 112, 7)]
FENCE = "```"


def user(content: str, *ids: object, **more: object) -> dict[str, Any]:
    return {"role": "user", "image_ids": list(ids), "content": content, **more}


def assistant(content: str, **more: object) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


FIRST = [user("See IMAGE#1?", 1), assistant("Yes."), user("And IMAGE#7?", 7), assistant("No.")]
SECOND = [
    user("Compare IMAGE#12 with IMAGE#112.", 112, 12),
    assistant("Both are red."),
    user("Is IMAGE#1 like IMAGE#12?", 1),
    assistant("It is."),
]


def with_message(index: int, message: dict[str, Any]) -> list[dict[str, Any]]:
    return [*FIRST[:index], message, *FIRST[index + 1 :]]


def parse(dialogues: object, **options: Any) -> Parsed:
    return parse_reply(json.dumps(dialogues), POOL, **options)


def spelled(dialogue: Dialogue) -> list[tuple[str, list[int | str]]]:
    return [
        (message.content.replace(TAG, "*"), [image.image_id for image in message.images])
        for message in dialogue.messages
    ]


FIRST_READ = [("See IMAGE#1*?", [1]), ("Yes.", []), ("And IMAGE#7*?", [7]), ("No.", [])]
SECOND_READ = [
    ("Compare IMAGE#12* with IMAGE#112*.", [12, 112]),
    ("Both are red.", []),
    ("Is IMAGE#1* like IMAGE#12?", [1]),
    ("It is.", []),
]


def test_a_dialogue_has_roles_tags_and_captions() -> None:
    [dialogue] = parse([SECOND]).dialogues
    assert dialogue.messages[0] == Message(
        role="user",
        content=f"Compare IMAGE#12{TAG} with IMAGE#112{TAG}.",
        images=(Image(image_id=12, caption="caption 12"), Image(image_id=112, caption="caption 112")),
    )
    assert [message.role for message in dialogue.messages] == ["user", "assistant"] * 2


BOTH = json.dumps([FIRST, SECOND])


@pytest.mark.parametrize(
    "reply",
    [
        BOTH,
        json.dumps([FIRST, SECOND], indent=2),
        f"Here you are:\n{FENCE}json\n{BOTH}\n{FENCE}\nHope {{this}} helps [a bit]!",
        f"{FENCE}json\n{json.dumps(FIRST)}\n{FENCE}\nand\n{FENCE}json\n{json.dumps(SECOND)}\n{FENCE}",
        str([FIRST, SECOND]),
        f"Dialogue 1:\n{FIRST}\nDialogue 2:\n{SECOND}",
        "\n".join(map(str, FIRST)) + "\n\nSecond:\n" + "\n".join(map(str, SECOND)),
        f"1. {json.dumps(FIRST)}\n2. {json.dumps(SECOND)}",
        BOTH.replace("}]", "},],"),
        json.dumps({"dialogues": [{"dialogue": FIRST, "note": {"n": 1}}, {"dialogue": SECOND}]}),
        json.dumps({"Dialogue 1": FIRST, "Dialogue 2": SECOND}),
        BOTH.replace('"content"', '"caption"'),
        json.dumps(
            [[dict(reversed(message.items())) for message in dialogue] for dialogue in (FIRST, SECOND)]
        ),
        BOTH.replace('"role": "user", ', ""),
        BOTH.replace('"assistant"', '"gpt"').replace('"user"', '"Human"'),
        BOTH.replace("[1]", '"1"').replace("[112, 12]", '"112, IMAGE#12"'),
        BOTH.replace("[1]", '["1"]').replace("[7]", "[7, 7]"),
        BOTH.replace('"image_ids": [7], ', ""),
        BOTH.replace('"image_ids": [7]', '"image_ids": []'),
        BOTH.replace('"role"', "role"),
        BOTH.replace("IMAGE#7", f"IMAGE#7{TAG}").replace("Yes.", f" Yes{TAG}.<ImageHere> "),
    ],
)
def test_both_dialogues_are_read_however_they_are_written(reply: str) -> None:
    parsed = parse_reply(reply, POOL)
    assert [spelled(dialogue) for dialogue in parsed.dialogues] == [FIRST_READ, SECOND_READ]
    assert parsed.rejected == ()


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("'The dog's tail, it's \"big\".'", "The dog's tail, it's \"big\"."),
        (r"'It\'s a \"quoted\" {braced} thing'", 'It\'s a "quoted" {braced} thing'),
        ('"He said "hi", then left."', 'He said "hi", then left.'),
        ("'a set {'x'} of [one], it says'", "a set {'x'} of [one], it says"),
        ('"one\nline, \\u00e4 \\ud83d\\ude00 \\n \\d"', "one\nline, ä 😀 \n \\d"),
        ("'They are the dogs''", "They are the dogs'"),
    ],
)
def test_quotes_braces_and_escapes_within_a_text_are_kept(written: str, text: str) -> None:
    reply = str([SECOND, FIRST]).replace("'Yes.'", written)
    assert [spelled(dialogue)[1] for dialogue in parse_reply(reply, POOL).dialogues] == [
        ("Both are red.", []),
        (text, []),
    ]


@given(
    st.lists(st.text().filter(lambda text: text.strip() and TAG not in text), min_size=2, max_size=2),
    st.booleans(),
)
def test_any_text_survives_json(texts: list[str], ascii_only: bool) -> None:
    answers = [f"{text.strip()}." for text in texts]
    messages = [FIRST[0], assistant(answers[0]), FIRST[2], assistant(answers[1])]
    if any(answer.endswith("...") for answer in answers):
        return
    [dialogue] = parse_reply(json.dumps([messages], ensure_ascii=ascii_only), POOL).dialogues
    assert [message.content for message in dialogue.messages[1::2]] == answers


@given(st.text(alphabet="[]{}\"'\\:,. \nabroleconti", max_size=200))
def test_no_reply_is_dropped_in_silence(reply: str) -> None:
    parsed = parse_reply(reply, POOL)
    assert parsed.dialogues or parsed.rejected


@pytest.mark.parametrize("length", range(len(json.dumps(FIRST)) // 7, len(json.dumps(FIRST)), 11))
@pytest.mark.parametrize("spell", [json.dumps, str])
def test_a_reply_that_ends_early_never_makes_a_dialogue(spell: Any, length: int) -> None:
    whole = spell(FIRST)
    parsed = parse_reply(f"{spell(SECOND)}\n{whole[:length]}", POOL)
    assert [spelled(dialogue) for dialogue in parsed.dialogues] == [SECOND_READ]
    [rejected] = parsed.rejected
    assert rejected.reason in (Reason.CUT_OFF, Reason.NUM_MESSAGES)


@pytest.mark.parametrize(
    ("dialogue", "reason", "detail"),
    [
        (FIRST[:3], Reason.NUM_MESSAGES, "3 messages, expected 4"),
        (FIRST + SECOND, Reason.NUM_MESSAGES, "8 messages, expected 4"),
        ([FIRST[1], *FIRST[:3]], Reason.ROLES, "message 0 is of the assistant, expected the user"),
        (with_message(1, assistant(" ")), Reason.TEXT, "message 1 is ''"),
        (with_message(3, assistant("And so on ...")), Reason.TEXT, "message 3 is 'And so on ...'"),
        (with_message(3, assistant("Well…")), Reason.TEXT, "message 3 is 'Well…'"),
        (
            with_message(3, {"role": "assistant", "text": "No."}),
            Reason.UNREADABLE,
            "message 3 has no content, but role, text",
        ),
        (
            with_message(1, assistant(["No."])),
            Reason.UNREADABLE,
            "message 1 has no content, but role, content",
        ),
        (
            with_message(0, user("See IMAGE#9?", 9)),
            Reason.UNKNOWN_IMAGE,
            "message 0 shows 9, expected of 1, 12",
        ),
        (with_message(2, user("And it?", 7)), Reason.NOT_MENTIONED, "message 2: no mention of 7; expected"),
        (with_message(0, user("See it?")), Reason.NUM_IMAGES, "the first message shows no image"),
        (with_message(2, user("And IMAGE#1?")), Reason.NUM_IMAGES, "[0] images in later turns, expected 1"),
        (
            with_message(2, user("And IMAGE#7 or IMAGE#12?", 7, 12)),
            Reason.NUM_IMAGES,
            "[2] images in later turns, expected 1 each",
        ),
    ],
)
def test_a_rejected_dialogue_keeps_its_reason_and_text(
    dialogue: list[dict[str, Any]], reason: Reason, detail: str
) -> None:
    parsed = parse_reply(json.dumps([SECOND, dialogue], ensure_ascii=False), POOL)
    assert [spelled(dialogue) for dialogue in parsed.dialogues] == [SECOND_READ]
    [rejected] = parsed.rejected
    assert rejected.reason == reason
    assert rejected.detail.startswith(detail)
    assert rejected.text == json.dumps(dialogue, ensure_ascii=False)[1:-1]


@pytest.mark.parametrize(
    "reply", ["", "Sorry, I cannot do that.", "42", "[]", '{"error": "busy"}', "[" * 100_000]
)
def test_a_reply_without_a_dialogue_is_rejected_whole(reply: str) -> None:
    [rejected] = parse_reply(reply, POOL).rejected
    assert (rejected.reason, rejected.text) == (Reason.NO_DIALOGUE, reply)


def test_what_cannot_be_read_is_rejected_on_its_own() -> None:
    deep = '{"role": "user", "content": "See IMAGE#1?", "image_ids": ' + "[" * 100_000 + "}"
    assert [rejected.reason for rejected in parse_reply(deep, POOL).rejected] == [Reason.UNREADABLE]
    nested = [user("See IMAGE#1?", 1, meta={"a": {}})]
    for dialogues in ([nested, FIRST], [FIRST, nested]):
        parsed = parse(dialogues)
        assert [spelled(dialogue) for dialogue in parsed.dialogues] == [FIRST_READ]
        assert [rejected.reason for rejected in parsed.rejected] == [Reason.UNREADABLE]


def test_an_image_may_have_any_id() -> None:
    message = {"role": "user", "image_ids": 0, "content": "See IMAGE#0 and IMAGE#a-1?"}
    for ids, shown in ((0, [0]), ("0, a-1", [0, "a-1"]), ([], [0, "a-1"]), (None, [0, "a-1"])):
        pool = [Image(image_id=0), Image(image_id="a-1"), *POOL]
        dialogue = [message | {"image_ids": ids}, *FIRST[1:]]
        [read] = parse_reply(json.dumps(dialogue), pool).dialogues
        assert [image.image_id for image in read.messages[0].images] == shown


def test_turns_and_images_can_be_left_free() -> None:
    three_turns = [*FIRST, user("And IMAGE#12 and IMAGE#112?", 12, 112), assistant("Both.")]
    [rejected] = parse([three_turns]).rejected
    assert rejected.reason == Reason.NUM_MESSAGES
    [rejected] = parse([three_turns], num_turns=3).rejected
    assert rejected.reason == Reason.NUM_IMAGES
    [dialogue] = parse([three_turns], num_turns=None, images_in_later_turns=None).dialogues
    assert [len(message.images) for message in dialogue.messages] == [1, 0, 1, 0, 2, 0]
    assert parse([FIRST[:3]], num_turns=None).rejected[0].detail == "3 messages, expected an even number"


def test_where_the_original_keeps_bad_dialogues() -> None:
    two_later = [*FIRST[:2], user("And IMAGE#7 or IMAGE#12?", 7, 12), FIRST[3]]
    reply = json.dumps([two_later, two_later])
    kept = original.parse_reply(reply, POOL)
    assert (len(kept.dialogues), len(kept.rejected)) == (1, 1)  # does not check the first of a reply
    assert parse_reply(reply, POOL).dialogues == ()

    [untagged] = original.parse_reply(json.dumps([with_message(0, user("See IMAGE#1?"))]), POOL).dialogues
    assert spelled(untagged)[0] == ("See IMAGE#1?", [])


def test_where_the_original_loses_good_dialogues() -> None:
    odd = json.dumps([with_message(0, user("See IMAGE#x?", "x")), SECOND])
    [rejected] = original.parse_reply(odd, POOL).rejected
    assert rejected.detail.startswith("ValueError")
    assert [spelled(dialogue) for dialogue in parse_reply(odd, POOL).dialogues] == [SECOND_READ]

    for wrapped in (
        json.dumps({"dialogues": [FIRST]}),
        str([with_message(1, assistant("Yes.", image_ids=[1]))]),
    ):
        assert original.parse_reply(wrapped, POOL).dialogues == ()
        assert [spelled(dialogue) for dialogue in parse_reply(wrapped, POOL).dialogues] == [FIRST_READ]


def test_where_the_original_damages_texts() -> None:
    for answer in ("a {braced} thing", "it's so"):
        reply = str([with_message(1, assistant(answer))])
        [damaged] = original.parse_reply(reply, POOL).dialogues
        [whole] = parse_reply(reply, POOL).dialogues
        assert whole.messages[1].content == answer
        if "{" in answer:
            assert damaged.messages[1].content == "a {braced"
