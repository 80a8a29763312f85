"""What examples/ tells a reader to do works."""

import json
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest

from examples import odd_one_out
from examples.odd_one_out import OddOneOut
from sparkles.data.annotations import AnnotationError
from sparkles.eval.__main__ import measure
from tests.scripted_server import Reply, ScriptedServer

EXAMPLES = Path(odd_one_out.__file__).parent


@pytest.fixture
def items(tmp_path: Path) -> Path:
    """Three items about the same pictures, whose odd one is the second, the third and the first."""
    folder = tmp_path / "odd"
    folder.mkdir()
    for color in ("red", "green", "blue"):
        PIL.Image.new("RGB", (8, 8), color).save(folder / f"{color}.png")
    rows = [
        {"id": f"item {odd}", "images": ["red.png", "green.png", "blue.png"], "odd": odd} for odd in (2, 3, 1)
    ]
    (folder / "items.json").write_text(json.dumps(rows))
    return folder


def test_the_benchmark_of_the_example_runs_from_the_command_line(
    items: Path, run_main: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with ScriptedServer(lambda call: Reply(text="Therefore, the answer is IMAGE#2.")) as server:
        run_main(
            measure,
            *("--config-dir", str(EXAMPLES / "conf")),
            "benchmark=odd_one_out",
            f"benchmark.root={items}",
            "responder=openai",
            "responder.model=m",
            f"responder.client.base_url={server.base_url}",
            "data.prepare=null",
            f"run_dir={tmp_path / 'run'}",
        )
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["odd_one_out/accuracy"] == pytest.approx(1 / 3)
    assert [part["type"] for part in server.calls[0].body["messages"][0]["content"]].count("image_url") == 3


def test_a_record_without_an_odd_one_is_named(items: Path) -> None:
    path = items / "items.json"
    path.write_text(path.read_text().replace('"odd": 3', '"odd": 4'))
    with pytest.raises(AnnotationError, match="record 1: odd is 4, expected 1, 2 or 3"):
        OddOneOut(root=items).items()


def test_the_example_is_as_short_as_it_is_said_to_be() -> None:
    assert len(Path(odd_one_out.__file__).read_text().splitlines()) < 60
