import pytest

from sparkles.eval import original
from sparkles.eval.answers import parse_choice

TRUTH = ("TRUE", "FALSE")
IMAGES = ("IMAGE#1", "IMAGE#2")

DIFFERENT_FROM_THE_ORIGINAL = [
    ("Therefore, it cannot be true and is FALSE.", TRUTH, None, "FALSE"),
    ("Therefore, the claim is not false.", TRUTH, "FALSE", "TRUE"),  # turns only "not <first>" around
    ("Therefore, the answer is untrue.", TRUTH, "TRUE", None),  # finds an option within a word
    ("Therefore, IMAGE#2 is not the best match.", IMAGES, "IMAGE#2", "IMAGE#1"),
    ("Therefore, IMAGE#12 fits.", IMAGES, "IMAGE#1", None),
    ("Therefore, the answer is IMAGE 2.", IMAGES, None, "IMAGE#2"),
    ("Therefore, the answer is not IMAGE#2.", IMAGES, "IMAGE#2", "IMAGE#1"),
    ("Therefore, the answer is TRUE and not FALSE.", TRUTH, None, "TRUE"),
    ("Therefore, not not true.", TRUTH, "FALSE", "TRUE"),
    ("Therefore, the answer is\nimage#1, not image#2.", IMAGES, None, "IMAGE#1"),
]


@pytest.mark.parametrize(("text", "options", "by_the_original", "right"), DIFFERENT_FROM_THE_ORIGINAL)
def test_where_the_original_reads_an_answer_wrongly(
    text: str, options: tuple[str, str], by_the_original: str | None, right: str | None
) -> None:
    assert original.parse_choice(text, options) == by_the_original
    assert parse_choice(text, options) == right


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is TRUE.", None),
        ("Therefore, true or false, who knows.", None),
        ("Therefore, the answer is TRUE because the right one is false colour.", "TRUE"),
        ("therefore the answer (true or false) is: false", "FALSE"),
        ("Therefore, it is not true.", "FALSE"),
    ],
)
def test_what_the_original_reads_as_we_do(text: str, expected: str | None) -> None:
    assert original.parse_choice(text, TRUTH) == parse_choice(text, TRUTH) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is TRUE.", None),
        ("", None),
        ("It is true. Therefore", None),
        ("Therefore it is FALSE. On reflection, therefore, it is TRUE.", "TRUE"),
        ("THEREFORE: true", "TRUE"),
        ("Therefore, the answer (TRUE or FALSE) is __FALSE__.", "FALSE"),
        ("Therefore, the answer (true/false) is false.", "FALSE"),
        ("Therefore, the answer is \\boxed{TRUE}.", "TRUE"),
        ("Therefore, the answer is: 'TRUE'", "TRUE"),
        ("Therefore, it isn't true.", "FALSE"),
        ("Therefore, it isn’t actually false.", "TRUE"),
        ("Therefore, TRUE is not the answer.", "FALSE"),
        ("Therefore, the statement 'it is a true story' is FALSE.", "FALSE"),
        ("Therefore, I cannot say that it is true.", None),
        ("Therefore, I cannot tell for each, but the answer is TRUE.", "TRUE"),
        ("Therefore, it is neither true nor false.", None),
        ("Therefore, the answer is either true or false.", None),
        ("Therefore, the answer is trueish.", None),
        ("Therefore, the answer is TRUE, although the left one alone is false.", "TRUE"),
        ("Therefore, the statement is correct, so the answer is TRUE.", "TRUE"),
        ("Therefore, the answer is TRUE.\n\n", "TRUE"),
        ("Therefore, the answer is:\n\n**FALSE**", "FALSE"),
        ("**Therefore, the answer is TRUE.**", "TRUE"),
        ("Therefore, the answer is $\\boxed{\\text{FALSE}}$.", "FALSE"),
        ("Therefore, the answer is `TRUE`.", "TRUE"),
        ("Therefore, the answer is “TRUE”.", "TRUE"),
        ("Therefore, the answer is 'FALSE', not 'TRUE'.", "FALSE"),
        ("Therefore, the answer to the question is TRUE", "TRUE"),
        ("Therefore, it is not the case that it is not true.", "TRUE"),
        ('Therefore, the answer is "FALSE."', "FALSE"),
        ("Therefore, TRUE is the answer.", "TRUE"),
        ("Therefore the statement is false, as only one of them has a dog.", "FALSE"),
        ("Therefore, I would say that the statement is true.", "TRUE"),
        ("Therefore, the statement would be FALSE.", "FALSE"),
        ("Therefore, the statement can't be true.", "FALSE"),
        ("Therefore, the statement cannot possibly be false.", "TRUE"),
        ("Therefore, the statement is never true.", "FALSE"),
        ("Therefore, it is not the case that the statement is true.", "FALSE"),
        ("Therefore, the statement isn't quite true.", "FALSE"),
        ("Therefore, it is unclear whether the statement is true.", None),
        ("Therefore, I am not sure. The answer is TRUE.", "TRUE"),
        ("Therefore, it's impossible to say if it is true.", None),
        ("Therefore, the answer could be TRUE or FALSE.", None),
        ("Therefore, TRUE/FALSE.", None),
        ("Therefore, the statement is partly true and partly false.", None),
        ("Therefore, the answer is TRUE. Therefore, the answer is FALSE.", "FALSE"),
        ("Therefore, both images match. The statement is TRUE.", "TRUE"),
        ("Therefore, the truth is hard to see.", None),
        ("Therefore, it is falsely claimed.", None),
        ("Therefore, the answer is True\ufffd", "TRUE"),
        ("Therefore:\n- left: two dogs\n- right: one dog\nThe answer is FALSE.", "FALSE"),
        ("1. The left one is red. 2. The right one is red. Therefore, the answer is TRUE!!!", "TRUE"),
        ("Therefore, the answer is TRUE, since neither image shows a false colour.", "TRUE"),
        ("Therefore, the answer is not TRUE but FALSE.", "FALSE"),
        ("therefore,the answer is true.", "TRUE"),
        ("Therefore, <b>TRUE</b>.", "TRUE"),
        ("Therefore, the answer is (TRUE).", "TRUE"),
        ("Therefore, the answer is [FALSE].", "FALSE"),
        ("Therefore, the answer is T.", None),
        ("Therefore, yes.", None),
        ("Therefore, the statement is not only true, it is obvious.", "TRUE"),
        ("Therefore, it is not just the true one.", "TRUE"),
        ("Therefore, it isn't merely false.", "FALSE"),
    ],
)
def test_truth_is_read(text: str, expected: str | None) -> None:
    assert parse_choice(text, TRUTH) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("therefore , the answer is image # 2 .", "IMAGE#2"),
        ("Therefore, the answer is IMAGE#1<Img><ImageHere></Img>.", "IMAGE#1"),
        ("Therefore, the answer is IMAGE#21.", None),
        ("Therefore, MYIMAGE#1 it is.", None),
        ("Therefore, IMAGE#1 is not blurry, so the answer is IMAGE#1.", "IMAGE#1"),
        ("Therefore, the caption matches IMAGE#1, whereas IMAGE#2 does not match.", "IMAGE#1"),
        ("Therefore, the answer is not IMAGE#1 but IMAGE#2.", "IMAGE#2"),
        ("Therefore, the caption fits neither IMAGE#1 nor IMAGE#2.", None),
        ("Therefore, the answer is IMAGE#1 and IMAGE#2.", None),
        ("Therefore, the best match is IMAGE#2.", "IMAGE#2"),
        ("Therefore, I choose **IMAGE#1**.", "IMAGE#1"),
        ("Therefore, the answer is Image#2 (the one with the red kite).", "IMAGE#2"),
        (
            "Therefore, the answer is IMAGE#1<Img><ImageHere></Img>, not IMAGE#2<Img><ImageHere></Img>.",
            "IMAGE#1",
        ),
        ("Therefore, image 1 matches the caption.", "IMAGE#1"),
        ("Therefore, it is image#1 rather than image#2.", "IMAGE#1"),
        ("Therefore, between IMAGE#1 and IMAGE#2, the answer is IMAGE#2.", "IMAGE#2"),
        ("Therefore, both IMAGE#1 and IMAGE#2 match the caption.", None),
        ("Therefore, the first image.", None),
        ("Therefore, only IMAGE#2 shows a dog.", "IMAGE#2"),
        ("Therefore, IMAGE#1 does not match the caption.", "IMAGE#2"),
        ("Therefore, IMAGE#1 doesn't fit and IMAGE#2 does.", "IMAGE#2"),
        ("Therefore, the answer is \\textbf{IMAGE\\#2}.", "IMAGE#2"),
        ("Therefore, the answer is IMAGE\xa0#1.", "IMAGE#1"),
        ("Therefore, IMAGE#1 cannot be the one.", "IMAGE#2"),
        ("Therefore, the answer is IMAGE#3.", None),
        ("Therefore, the answer is IMAGE_2.", "IMAGE#2"),
        ("Therefore, the answer is image-1.", None),
        ("Therefore, IMAGE#1 will not match the caption.", "IMAGE#2"),
        ("Therefore, IMAGE#1 won't match the caption.", "IMAGE#2"),
        ("Therefore, IMAGE#2 would not be right.", "IMAGE#1"),
        ("Therefore, IMAGE#2 wouldn't be right.", "IMAGE#1"),
        ("Therefore, IMAGE#2 shouldn't be chosen.", "IMAGE#1"),
        ("Therefore, IMAGE#2 might not be right.", "IMAGE#1"),
        ("Therefore, if IMAGE#2 were not so dark, IMAGE#1 would be worse.", "IMAGE#1"),
        ("Therefore, IMAGE#1 fails to match the caption.", "IMAGE#2"),
        ("Therefore, IMAGE#1 would match the caption.", "IMAGE#1"),
        ("Therefore, it is not only IMAGE#1 that shows a dog.", "IMAGE#1"),
        ("Therefore, IMAGE#1 does not merely show a dog, it shows two.", "IMAGE#1"),
        ("Therefore, not only IMAGE#1 but also IMAGE#2 shows a dog.", None),
        ("Therefore, IMAGE#1 matches the caption better than IMAGE#2.", "IMAGE#1"),
        ("Therefore, IMAGE#1 is not better than IMAGE#2.", "IMAGE#2"),
        ("Therefore, rather than IMAGE#1, I choose IMAGE#2.", "IMAGE#2"),
    ],
)
def test_images_are_read(text: str, expected: str | None) -> None:
    assert parse_choice(text, IMAGES) == expected


def test_an_option_within_a_longer_one_is_not_named() -> None:
    options = ("at the top", "at the top-left", "at the bottom")
    assert parse_choice("Therefore, it is at the top-left.", options) == "at the top-left"
    assert parse_choice("Therefore, it is at the top.", options) == "at the top"
    assert parse_choice("Therefore, at the top-left is less than at the top.", options) is None


def test_not_one_of_three_options_decides_nothing() -> None:
    options = ("A", "B", "C")
    assert parse_choice("Therefore, it is not A.", options) is None
    assert parse_choice("Therefore, it is not A, it is C.", options) == "C"
