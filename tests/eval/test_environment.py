import json
import subprocess
from pathlib import Path

import torch

from sparkles.eval.environment import EndpointRecord, add_endpoints, add_hashes, git_state, write_environment


def test_versions_seed_and_hashes_are_recorded(tmp_path: Path) -> None:
    path = write_environment(tmp_path, {"seed": 3}, {"base weights": "abc"})
    value = json.loads(path.read_text())
    assert value["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"python", "sparkles", "transformers", "timm", "lightning", "hydra-core"} <= value[
        "versions"
    ].keys()
    assert (value["seed"], value["hashes"]) == (3, {"base weights": "abc"})


def test_hashes_are_added_to_those_there(tmp_path: Path) -> None:
    write_environment(tmp_path, {"seed": 3}, {"base weights": "abc"})
    add_hashes(tmp_path, {"bison/prompt": "def"})
    value = json.loads((tmp_path / "environment.json").read_text())
    assert value["hashes"] == {"base weights": "abc", "bison/prompt": "def"}
    assert value["seed"] == 3


class Asker:
    """A responder or judge over an endpoint that has answered with these versions."""

    def __init__(self, model: str, *answered_by: str) -> None:
        self.endpoints = [EndpointRecord(url="http://host/v1", model=model, answered_by=list(answered_by))]


def test_who_was_asked_where_is_added(tmp_path: Path) -> None:
    add_endpoints(tmp_path, responder=object(), judge=None)
    assert not (tmp_path / "environment.json").exists()
    write_environment(tmp_path, {"seed": 3}, {})
    add_endpoints(tmp_path, responder=Asker("m", "m-0613"), judge=object())
    value = json.loads((tmp_path / "environment.json").read_text())
    asked = {"url": "http://host/v1", "model": "m", "answered_by": ["m-0613"]}
    assert (value["endpoints"], value["seed"]) == ({"responder": [asked]}, 3)


def test_a_changed_checkout_is_dirty(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init")
    assert git_state(tmp_path) is None
    git("commit", "--allow-empty", "-m", "first")
    clean = git_state(tmp_path)
    assert clean is not None
    assert clean["dirty"] is False
    (tmp_path / "new").touch()
    assert git_state(tmp_path) == clean | {"dirty": True}
