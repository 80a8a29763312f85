from pathlib import Path

import PIL.Image
import pytest

from sparkles.data.images import load_image
from sparkles.eval.benchmark import BenchmarkError
from sparkles.eval.nlvr import NLVR


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One statement of a split called extra, about a red, a green and a blue box."""
    picture = PIL.Image.new("RGBA", (400, 100), "lightgrey")
    for left, color in zip((0, 150, 300), ("red", "lime", "blue"), strict=True):
        picture.paste(PIL.Image.new("RGBA", (100, 100), color), (left, 0))
    (tmp_path / "images").mkdir()
    picture.save(tmp_path / "images" / "extra-5-1-0.png")
    (tmp_path / "extra.json").write_text(
        '{"sentence": "One box is red.", "label": "true", "identifier": "5-1"}\n'
    )
    return tmp_path


def test_the_three_boxes_are_three_images(root: Path) -> None:
    [item] = NLVR(root=root).items()
    assert (item.item_id, item.label) == ("5-1", "TRUE")
    assert [image.image_id for image in item.images] == [1, 2, 3]
    colors = [load_image(image).getcolors() for image in item.images]
    assert colors == [[(10_000, (255, 0, 0))], [(10_000, (0, 255, 0))], [(10_000, (0, 0, 255))]]


def test_a_split_is_chosen_where_there_are_several(root: Path) -> None:
    (root / "other.json").write_text("")
    with pytest.raises(BenchmarkError, match=r"holds 2 JSON files \(extra, other\).* set split="):
        NLVR(root=root).items()
    assert len(NLVR(root=root, split="extra").items()) == 1


def test_a_folder_without_a_split_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"holds 0 JSON files \(none\), expected one <split>\.json"):
        NLVR(root=tmp_path).items()


def test_the_published_development_split_loads(shared_dir: Path) -> None:
    root = shared_dir / "data" / "nlvr" / "dev"
    if not root.is_dir():
        pytest.skip(f"{root} is absent")
    items = NLVR(root=root).items()
    assert len(items) == 989
    assert sum(item.label == "TRUE" for item in items) == 547
    for item in items[:5]:
        pictures = [load_image(image) for image in item.images]
        assert [(picture.size, picture.mode) for picture in pictures] == [((100, 100), "RGB")] * 3
        for picture in pictures:  # boxes are light grey, the gaps between them darker
            assert (128, 128, 128) not in {color for _, color in picture.getcolors() or []}
