import pytest

from sparkles.gen import original
from sparkles.gen.tagging import ImageId, TaggingError, mentioned_ids, tag_images

TAG = "<Img><ImageHere></Img>"


@pytest.mark.parametrize(
    ("content", "ids", "expected", "order"),
    [
        ("IMAGE#7 and IMAGE#7 again.", [7], f"IMAGE#7{TAG} and IMAGE#7 again.", (7,)),
        ("IMAGE#12, then IMAGE#1.", [1, 12], f"IMAGE#12{TAG}, then IMAGE#1{TAG}.", (12, 1)),
        ("IMAGE#112 IMAGE#12 IMAGE#1", [12, 1], f"IMAGE#112 IMAGE#12{TAG} IMAGE#1{TAG}", (12, 1)),
        ("7 apples in IMAGE#7", [7], f"7 apples in IMAGE#7{TAG}", (7,)),
        ("In 57 ways, IMAGE#7.", [7], f"In 57 ways, IMAGE#7{TAG}.", (7,)),
        ("MYIMAGE#7 or IMAGE#7_x or IMAGE#7's", [7], f"MYIMAGE#7 or IMAGE#7_x or IMAGE#7{TAG}'s", (7,)),
        ("image 7 is IMAGE#7", [7], f"image 7 is IMAGE#7{TAG}", (7,)),
        ("What does image 7 show, #7?", [7], f"What does image 7{TAG} show, #7?", (7,)),
        ("Is Image #7 like #8?", [8, 7], f"Is Image #7{TAG} like #8{TAG}?", (7, 8)),
        ("image#7, please", [7], f"image#7{TAG}, please", (7,)),
        ("IMAGE#7 twice IMAGE#7", [7, 7], f"IMAGE#7{TAG} twice IMAGE#7", (7,)),
        (f"IMAGE#7 or rather IMAGE#7{TAG}?", [7], f"IMAGE#7{TAG} or rather IMAGE#7?", (7,)),
        (
            "IMAGE#cat-2 and IMAGE#cat",
            ["cat", "cat-2"],
            f"IMAGE#cat-2{TAG} and IMAGE#cat{TAG}",
            ("cat-2", "cat"),
        ),
        ("IMAGE#a.b", ["a.b"], f"IMAGE#a.b{TAG}", ("a.b",)),
        ("Nothing to see.", [], "Nothing to see.", ()),
    ],
)
def test_each_image_is_tagged_at_its_first_mention(
    content: str, ids: list[ImageId], expected: str, order: tuple[ImageId, ...]
) -> None:
    assert tag_images(content, ids) == (expected, order)


@pytest.mark.parametrize(
    "content", ["No image.", "IMAGE#12", "IMAGE#7th", "IMAGE#7_x", "7 apples", "IMAGE#axb", ""]
)
def test_an_image_that_is_not_mentioned_is_named(content: str) -> None:
    with pytest.raises(TaggingError, match=r"no mention of 7, a\.b; expected IMAGE#7 in "):
        tag_images(content, [7, "a.b"])


def test_mentions_are_found_in_order() -> None:
    assert mentioned_ids("IMAGE#3 next to image#1, 2 of them, IMAGE#22", [1, 2, 3]) == (3, 1)


@pytest.mark.parametrize(
    ("content", "ids", "tagged", "order"),
    [
        ("7 apples in IMAGE#7", [7], f"7{TAG} apples in IMAGE#7", [7]),  # no word boundary on the left
        ("IMAGE#112 IMAGE#12", [12], f"IMAGE#112{TAG} IMAGE#12", [12]),
        ("IMAGE#7 and no more", [7, 7], f"IMAGE#7{TAG}{TAG} and no more", [7]),  # two tags, one image
        ("IMAGE#7", [7, 8], f"IMAGE#7{TAG}", None),
        ("IMAGE#12, IMAGE#1", [1, 12], f"IMAGE#12{TAG}, IMAGE#1{TAG}", [12, 1]),
    ],
)
def test_what_the_original_does(
    content: str, ids: list[ImageId], tagged: str, order: list[ImageId] | None
) -> None:
    assert original.append_tags(content, ids) == tagged
    assert original.ids_by_tag(tagged, ids) == order
