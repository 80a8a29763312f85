import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sparkles.data.__main__ import main
from sparkles.prompt_format import image_reference

Run = Callable[..., None]


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    """Three dialogues of one turn, without pictures."""
    question = {"role": "user", "content": f"{image_reference(7)}?", "images": [{"image_id": 7}]}
    path = tmp_path / "annotations" / "set.json"
    path.parent.mkdir()
    path.write_text(json.dumps([{"dialogue": [question]}] * 3))
    return path


def test_a_page_is_written_where_it_is_asked_for(
    dialogues: Path, run_main: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pages" / "set.html"
    run_main(main, "view", f"path={dialogues}", f"out={out}", "num=2", "seed=1")
    assert out.read_text(encoding="utf-8").count("<article") == 2
    assert f"{out} (0.0 MB); open it in a browser" in capsys.readouterr().out


def test_the_folder_beside_the_annotations_has_the_pictures(
    tiny_world: Path, run_main: Run, tmp_path: Path
) -> None:
    cc = tiny_world / "SparklesDialogueCC/annotations/SparklesDialogueCC.json"
    out = tmp_path / "cc.html"
    run_main(main, "view", f"path={cc}", f"out={out}")
    page = out.read_text(encoding="utf-8")
    assert "url(data:image/webp;base64," in page
    assert "picture not found" not in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["path=no.json"], "no.json: no such file"),
        (["path={dialogues}", "images=nowhere"], "images=nowhere: no such folder; name the one"),
        (["path={dialogues}", "num=0"], "num=0: expected 1 or more dialogues, or num=null for all"),
        (["file={dialogues}"], "view: unknown key 'file'; it takes path, images, out, num, seed"),
    ],
)
def test_a_mistake_ends_with_what_to_do(
    dialogues: Path, run_main: Run, arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_main(main, "view", *(argument.format(dialogues=dialogues) for argument in arguments))
    assert message in str(exit_.value.code)


@pytest.mark.parametrize("arguments", [["--help"], ["view", "--help"], []])
def test_help_names_every_key(
    run_main: Run, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run_main(main, *arguments)
    said = capsys.readouterr().out
    assert all(f"{key}=" in said for key in ("path", "images", "out", "num", "seed"))


def test_ctrl_c_leaves_no_half_page(
    dialogues: Path, run_main: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **kwargs: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("sparkles.pages.dialogues.dialogue_page", stop)
    with pytest.raises(SystemExit) as exit_:
        run_main(main, "view", f"path={dialogues}", f"out={tmp_path / 'set.html'}")
    assert "stopped; no page was written" in str(exit_.value.code)
    assert not (tmp_path / "set.html").exists()
