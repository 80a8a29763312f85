"""`environment.json`: what a run's numbers depend on besides its configuration."""

import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, TypedDict, runtime_checkable

import torch

import sparkles
from sparkles.eval.files import read_json, write_json

PACKAGES = ("torch", "torchvision", "transformers", "timm", "lightning", "hydra-core")


class EndpointRecord(TypedDict):
    """A model behind an endpoint."""

    url: str
    """Without credentials."""
    model: str
    answered_by: list[str]
    """Names with versions, as the endpoint gave them."""


@runtime_checkable
class AsksEndpoints(Protocol):
    """A responder or a judge over an endpoint, or a judge over several."""

    @property
    def endpoints(self) -> Sequence[EndpointRecord]: ...


def write_environment(run_dir: Path, cfg: Mapping[str, Any], hashes: Mapping[str, str]) -> Path:
    """Write versions, machine, git revision, `cfg["seed"]` and `hashes` (name to sha256); returns the file."""
    path = Path(run_dir) / "environment.json"
    value = {
        "versions": {"sparkles": sparkles.__version__, "python": platform.python_version(), **_versions()},
        "platform": platform.platform(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["cpu"],
        "git": git_state(Path(__file__).parent),
        "seed": cfg.get("seed"),
        "hashes": dict(hashes),
    }
    write_json(path, value)
    return path


def add_hashes(run_dir: Path, hashes: Mapping[str, str]) -> None:
    """Add to the hashes of `environment.json`, which is made where it does not exist."""
    path = Path(run_dir) / "environment.json"
    value = read_json(path)
    value["hashes"] = value.get("hashes", {}) | dict(hashes)
    write_json(path, value)


def add_endpoints(run_dir: Path, **askers: object) -> None:
    """Add to `environment.json` who was asked where, by role, for those of `askers` that ask an endpoint."""
    endpoints = {
        role: list(asker.endpoints) for role, asker in askers.items() if isinstance(asker, AsksEndpoints)
    }
    if endpoints:
        path = Path(run_dir) / "environment.json"
        write_json(path, read_json(path) | {"endpoints": endpoints})


def git_state(folder: Path) -> dict[str, str | bool] | None:
    """{"revision", "dirty"} of the checkout that holds `folder`; None outside of one or before its first commit."""
    try:
        revision = _git(folder, "rev-parse", "HEAD").strip()
        return {"revision": revision, "dirty": bool(_git(folder, "status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions
