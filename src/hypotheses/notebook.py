"""What the notebooks share: where the records are, and how what the report draws is shown in a cell. They judge and draw nothing themselves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypotheses.config import ROOT, compose
from hypotheses.experiment import Experiment
from hypotheses.report.tables import Table

REFERENCE = ROOT / "results" / "reference"


def find(hypothesis: Experiment, overrides: Sequence[str] = ()) -> Path:
    """The folder of results of a hypothesis: the one that the report would read with these overrides (paths.results=FOLDER) if it has
    runs of it, or if no runs of it are committed, else the committed one; says in words which."""
    results, number = Path(compose(list(overrides))["paths"]["results"]), hypothesis.hypothesis
    if has_runs(hypothesis, results):
        print(f"Records of {results}.")
        return results
    none = f"Not every arm of hypothesis {number} has a run in {results}"
    own = f"make sweep HYP={number}"
    if has_runs(hypothesis, REFERENCE):
        print(f"{none}: these are the committed runs of {REFERENCE}. For runs of your own: {own}")
        return REFERENCE
    print(f"{none}, and none are committed either: {own}")
    return results


def has_runs(hypothesis: Experiment, results: Path) -> bool:
    """Whether every registered arm of a task of a hypothesis, at one of its scales, has a record: hypotheses share some of their arms."""
    return any(
        all(next((results / "records" / scale / task / arm).glob("seed_*.json"), None) for arm in arms.registered())
        for scale, arms in hypothesis.scales.items()
        for task in hypothesis.tasks
    )


def draw(figures: dict[str, tuple[str, str]]) -> None:
    """Figures of the report, each an SVG under what it shows."""
    from IPython.display import SVG, Markdown, display

    for title, svg in figures.values():
        display(Markdown(f"**{title}**"), SVG(svg))


def frame(table: Table) -> Any:
    """A table of the report as a DataFrame."""
    import pandas as pd

    return pd.DataFrame(table.rows, columns=table.columns)
