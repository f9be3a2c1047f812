"""What more seeds would decide, from the spread between the pairs seen so far.

    python -m hypotheses.power 1 [--scale demo]

The deviation of a few differences is itself uncertain; so every number that follows from it comes with the range that its
95 % interval (chi-squared) gives.
"""

import math
from pathlib import Path

from hypotheses import report
from hypotheses.errors import UserError, one_line
from hypotheses.experiment import Experiment
from hypotheses.report import Section, wording
from hypotheses.verdict import POWER, Difference, detectable, seeds_for

CONFIDENCE = 0.95  # of the interval of a deviation


def spread(c: Difference) -> tuple[float, float]:
    """The chi-squared interval of the deviation of a contrast's differences."""
    from scipy import stats

    tails = (1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2
    low, high = (c.sd * math.sqrt((c.n - 1) / float(stats.chi2.ppf(tail, c.n - 1))) for tail in tails)
    return low, high


def table(hypothesis: Experiment, s: Section) -> tuple[list[str], list[list[str]]]:
    """Columns, and a row for each registered contrast: its deviation, what each planned look can decide, and the seeds that the
    registered margin needs. All is in points of the task's metric, for a true difference of 0."""
    columns = ["task", "contrast", "n", "deviation of a pair"]
    columns += [f"smallest margin, {look} seeds" for look in hypothesis.looks] + ["registered", "seeds for it"]
    rows = []
    for bed in s.verdict.beds:
        margin = bed.margin
        for c in bed.contrasts:
            low, high = spread(c)
            row = [bed.task, f"{c.treatment}, {c.control}", str(c.n), f"{c.sd:.2f} ({low:.2f} to {high:.2f})"]
            for look in hypothesis.looks:
                unit = detectable(look, c.alpha)
                row.append(f"{unit * c.sd:.2f} ({unit * low:.2f} to {unit * high:.2f})")
            need = [seeds_for(margin / sd, c.alpha) if sd else 2 for sd in (c.sd, low, high)]
            most, least, worst = ("over 1000" if n is None else str(n) for n in need)
            rows.append([*row, f"{margin:.3g}", f"{most} ({least} to {worst})"])
    return columns, rows


def explain(hypothesis: Experiment) -> str:
    """What the numbers of the table mean."""
    shown = (
        "a true gain of that size is shown (at alpha; under Holm over several pairs the first step asks for somewhat more), or one "
        "of 0 is bounded below it,"
        if hypothesis.gains
        else "a true difference of 0 is shown to be no loss of that size"
    )
    return (
        f"Smallest margin: {shown} with power {POWER:g}, one-sided alpha {hypothesis.alpha:g} at each planned look. In brackets: what "
        f"the {100 * CONFIDENCE:g} % interval of the deviation gives. A margin is chosen for what matters, and before the runs; if "
        "it needs more seeds than you have, the answer is that the question cannot be decided with them."
    )


def write(hypothesis: Experiment, results: Path, scale: str) -> str:
    """The table as text for a terminal. Raises UserError where there is nothing to learn a spread from."""
    s = report.section(hypothesis, results, scale)
    columns, rows = table(hypothesis, s)
    if not rows:
        raise UserError(
            f"hypothesis {hypothesis.hypothesis} has fewer than two pairs of runs at {scale} scale in {results}: the spread between "
            f"them is not known yet; type {wording.command(s)} first"
        )
    lines = [f"hypothesis {hypothesis.hypothesis} at {scale} scale, {hypothesis.unit} of each task's metric", ""]
    for row in rows:
        width = max(map(len, columns))
        lines += [f"  {name.ljust(width)}  {value}" for name, value in zip(columns, row, strict=True)] + [""]
    return "\n".join([*lines, explain(hypothesis)])


def main(arguments: list[str] | None = None) -> None:
    about = "What more seeds would decide, from the spread seen so far; of the demo, unless another scale is named."
    hypothesis, results, scale = report.read_arguments("power", about, arguments)
    if hypothesis is None:
        raise UserError("say which hypothesis: make power HYP=1")
    print(write(hypothesis, results, scale or "demo"))


if __name__ == "__main__":
    with one_line():
        main()
