"""The shape of a table's dashboard in Weights & Biases: which panels, of which metrics, of which runs.

Runs get there with `logger=wandb`, one for each row and seed: its group is the table, its name the row.
"""

import json
from dataclasses import asdict, dataclass
from typing import Literal

from sparkles.tables.spec import TableSpec, read_table
from sparkles.types import InputError

_SCORES = {"sparkles_eval": "overall"}
"""The metric that a benchmark is judged by, where that is not the accuracy."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One plot."""

    kind: Literal["bars", "curves"]
    metric: str
    """As a run logs it."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """Panels under a heading."""

    name: str
    panels: tuple[Panel, ...]


def sections_of(spec: TableSpec) -> list[Section]:
    """Results as bars, a bar for each row with its seeds together; training as curves."""
    metrics = spec.columns or [f"{name}/{_SCORES.get(name, 'accuracy')}" for name in spec.benchmarks]
    curves = ("train/loss", "val/loss", "lr")
    return [
        Section(name="Results", panels=tuple(Panel(kind="bars", metric=metric) for metric in metrics)),
        Section(name="Training", panels=tuple(Panel(kind="curves", metric=metric) for metric in curves)),
    ]


def dashboard(
    table: str,
    *,
    size: str = "nano",
    project: str = "sparkles",
    entity: str | None = None,
    dry_run: bool = False,
) -> None:
    """Create the dashboard of a table in W&B: its panels, for the runs that `logger=wandb` has sent.

      python -m sparkles.tables table=table4 logger=wandb
      python -m sparkles.tables dashboard table=table4 entity=NAME
      python -m sparkles.tables dashboard table=table4 dry_run=true       print the panels as JSON; nothing is sent

    table, size   as of the table
    project       that the runs are in, see conf/logger/wandb.yaml
    entity        user or team that owns it; needs an account (wandb login)

    Needs wandb-workspaces: pip install 'sparkles[wandb]'.
    """
    spec = read_table(table, size)
    sections = sections_of(spec)
    if dry_run:
        print(json.dumps({"runs": {"group": table}, "sections": [asdict(one) for one in sections]}, indent=2))
        return
    if entity is None:
        raise InputError(
            "the dashboard needs an owner in W&B; set entity=NAME, or dry_run=true to see its panels"
        )
    try:
        import wandb_workspaces.reports.v2 as parts
        from wandb_workspaces import expr, workspaces
    except ImportError as error:
        raise InputError(f"pip install 'sparkles[wandb]' brings what makes dashboards ({error})") from error

    def plot(panel: Panel) -> object:
        if panel.kind == "bars":
            return parts.BarPlot(
                title=panel.metric, metrics=[panel.metric], groupby="name", groupby_aggfunc="mean"
            )
        return parts.LinePlot(title=panel.metric, x="Step", y=[panel.metric], groupby="name")

    created = workspaces.Workspace(
        entity=entity,
        project=project,
        name=spec.title,
        sections=[
            workspaces.Section(name=one.name, panels=[plot(panel) for panel in one.panels], is_open=True)
            for one in sections
        ],
        runset_settings=workspaces.RunsetSettings(filters=[expr.Metric("Group") == table]),
    ).save()
    print(created.url)
