"""What the notebooks share: where the records are, and how what the report draws is shown in a cell. They judge and draw nothing themselves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypotheses.config import ROOT, compose
from hypotheses.experiment import Experiment
from hypotheses.report.tables import Table

REFERENCE = ROOT / "results" / "reference"


def find(hypothesis: Experiment, overrides: Sequence[str] = ()) -> Path:
    """The folder of results of a hypothesis: the one that the report would read with these overrides (paths.results=FOLDER) if it has a
    record, else the committed one; says in words which."""
    results = Path(compose(list(overrides))["paths"]["results"])
    places = [(scale, task) for scale in hypothesis.scales for task in hypothesis.tasks]
    if any(next((results / "records" / scale / task).glob("*/seed_*.json"), None) for scale, task in places):
        print(f"Records of {results}.")
        return results
    print(
        f"No run of hypothesis {hypothesis.hypothesis} in {results}: these are the committed runs of {REFERENCE}. "
        f"For runs of your own: make sweep HYP={hypothesis.hypothesis}"
    )
    return REFERENCE


def draw(figures: dict[str, tuple[str, str]]) -> None:
    """Figures of the report, each an SVG under what it shows."""
    from IPython.display import SVG, Markdown, display

    for title, svg in figures.values():
        display(Markdown(f"**{title}**"), SVG(svg))


def frame(table: Table) -> Any:
    """A table of the report as a DataFrame."""
    import pandas as pd

    return pd.DataFrame(table.rows, columns=table.columns)
