"""The pipeline against a server that is not ours: `transformers serve` with a tiny model that talks nonsense."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sparkles.gen.__main__ import make
from tests.transformers_server import NEEDS_SERVER, save_model, transformers_server

pytestmark = NEEDS_SERVER


def test_every_reply_of_random_weights_is_rejected_and_counted(
    run_main: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    captions = tmp_path / "captions.csv"
    captions.write_text("image_id,caption\n" + "".join(f"{n},picture {n}\n" for n in range(101, 161)))
    model = save_model(tmp_path / "model", sees=False)
    with transformers_server(tmp_path) as base_url, pytest.raises(SystemExit) as exit_:
        run_main(
            make,
            "gen=vg",
            "gen.num_dialogues=3",
            f"run_dir={tmp_path}/run",
            f"gen.model={model}",
            f"gen.source.path={captions}",
            f"gen.writer.client.base_url={base_url}",
            "gen.writer.max_tokens=40",
        )
    assert exit_.value.code == 1
    assert "no dialogue was kept" in capsys.readouterr().err
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())
    rejects = (tmp_path / "run" / "rejects.jsonl").read_text().splitlines()
    assert ledger["kept"] == 0
    assert sum(ledger["rejected"].values()) == len(rejects) == ledger["calls"] > 0
