from pathlib import Path

import PIL.Image
import pytest


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with 1.png, red and twice as wide as high, 2.png, blue, and 3.png, the same as 2.png."""
    folder = tmp_path / "images"
    folder.mkdir()
    PIL.Image.new("RGB", (1200, 600), "red").save(folder / "1.png")
    for name in "23":
        PIL.Image.new("RGB", (60, 60), "blue").save(folder / f"{name}.png")
    return folder
