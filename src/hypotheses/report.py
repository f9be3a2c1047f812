"""Records and a hypothesis -> results/hypothesis_<n>.md, .html, .csv and .svg. Only reads records; run twice, it writes
the same bytes.

    python -m hypotheses.report 1
"""

import argparse
import dataclasses
import io
import sys
from pathlib import Path
from typing import Any

from hypotheses import experiment, record, verdict
from hypotheses.config import compose
from hypotheses.errors import UserError, one_line
from hypotheses.experiment import Arms, Experiment
from hypotheses.verdict import Difference, Verdict

INK, QUIET, GOOD, BAD = "#1b1f24", "#8a919a", "#2b6cb0", "#c05621"


@dataclasses.dataclass(frozen=True)
class Section:
    """A hypothesis at one scale: its arms, records, verdict and figure."""

    scale: str
    arms: Arms
    runs: dict[tuple[str, int], record.Record]
    verdict: Verdict


def write(hypothesis: Experiment, results: Path, scale: str | None = None) -> str:
    """Write the report of every scale that has records; return what a terminal shows of `scale`, or of all."""
    name = f"hypothesis_{hypothesis.hypothesis}"
    sections = [
        s for s in (section(hypothesis, results, name) for name in hypothesis.scales) if s.runs or s.scale == scale
    ]
    sections = sections or [section(hypothesis, results, next(iter(hypothesis.scales)))]
    records = [s.runs[key] for s in sections for key in sorted(s.runs)]
    figures = {s.scale: figure(hypothesis, s) for s in sections}
    outputs = {
        f"{name}.md": markdown(hypothesis, sections),
        f"{name}.html": html(hypothesis, sections, figures),
        f"{name}.csv": record.table(records).to_csv(index=False, lineterminator="\n"),
    }
    for s in sections:
        outputs[f"{name}_{s.scale}.svg"] = figures[s.scale]
    for file, text in outputs.items():
        record.write_aside(results / file, text)
    shown = [s for s in sections if scale in (None, s.scale)]
    return "\n".join([*(terminal(hypothesis, s) for s in shown), f"\nreport: {results / name}.html and .md, .csv"])


def section(hypothesis: Experiment, results: Path, scale: str) -> Section:
    """Read the records of one scale, those of the registered arms and of the extra ones."""
    arms = hypothesis.scales[scale]
    runs, unregistered = {}, []
    for arm in arms.all():
        for file in sorted((results / "records" / scale / hypothesis.task / arm).glob("seed_*.json")):
            found = record.read(file)
            if not found["config"]["scale"]["verdict"]:
                continue
            seed = found["config"]["seed"]
            runs[arm, seed] = found
            asked = hypothesis.config(scale, arm, seed, [])
            for key, was, now in record.differences(found["config"], {k: asked[k] for k in record.IDENTITY}):
                unregistered.append(f"{found['address']}: {key} was {was}, registered is {now}")
    judged = verdict.judge(hypothesis, scale, runs, unregistered)
    runs = {key: found for key, found in runs.items() if key[1] in judged.seeds}
    return Section(scale, arms, runs, judged)


# ---- numbers as text, formatted once ---------------------------------------------------------------------------------


def interval(c: Difference) -> str:
    return f"{c.mean:+.2f} [{c.low:+.2f}, {c.high:+.2f}]"


def confidence(c: Difference) -> str:
    return f"{100 * (1 - 2 * c.alpha):g} %"


def headline(hypothesis: Experiment, s: Section) -> str:
    """The verdict in a sentence, with n, interval, unit, margin and scale."""
    v = s.verdict
    said = f"Hypothesis {hypothesis.hypothesis} at {s.scale} scale: {v.outcome.upper()}"
    if not v.contrasts:
        return f"{said} ({v.reason})"
    worst = min(v.contrasts, key=lambda c: c.low)
    return (
        f"{said}. Without the SSM {hypothesis.metric} changes by {worst.mean:+.2f} points "
        f"({confidence(worst)} interval {worst.low:+.2f} to {worst.high:+.2f}, n = {worst.n} seeds, "
        f"margin -{s.arms.margin:g}): {v.reason}"
    )


def arm_rows(hypothesis: Experiment, s: Section) -> list[list[str]]:
    """A row per arm: role, n, metric, difference to its control, parameters, MACs, seconds."""
    roles = {s.arms.control: "control", s.arms.negative_control: "negative control"}
    roles |= {arm: "treatment" for arm in s.arms.treatments}
    contrasts = {c.treatment: c for c in (*s.verdict.contrasts, *s.verdict.extra)}
    if s.verdict.assay:
        contrasts[s.verdict.assay.treatment] = s.verdict.assay
    rows = []
    for arm in s.arms.all():
        records = [r for (name, _), r in sorted(s.runs.items()) if name == arm]
        if not records:
            continue
        values = [r["metrics"][hypothesis.metric] for r in records]
        mean = sum(values) / len(values)
        spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else " (one run)"
        c = contrasts.get(arm)
        against = "" if not c or c.control == s.arms.control else f", control {c.control}"
        seeds = "" if not c or c.n == len(values) else f", n = {c.n}"
        seconds = sorted(r["seconds"] for r in records)
        rows.append(
            [
                arm,
                roles.get(arm, "extra"),
                str(len(records)),
                f"{mean:.2f}{spread}",
                f"{interval(c)}{seeds}{against}" if c else "",
                f"{records[0]['cost']['params']:,}",
                f"{records[0]['cost']['macs'] / 1e6:,.1f} M",
                f"{seconds[len(seconds) // 2]:.0f}",
            ]
        )
    return rows


ARM_COLUMNS = [
    "arm",
    "role",
    "n",
    "{metric}, mean (range)",
    "control - arm, points [interval]",
    "parameters",
    "MACs",
    "seconds a run, median",
]


def seed_rows(hypothesis: Experiment, s: Section) -> tuple[list[str], list[list[str]]]:
    """Columns and a row per seed: every arm's metric."""
    arms = [arm for arm in s.arms.all() if any(name == arm for name, _ in s.runs)]
    seeds = sorted({seed for _, seed in s.runs})
    rows = [
        [
            str(seed),
            *(f"{s.runs[a, seed]['metrics'][hypothesis.metric]:.2f}" if (a, seed) in s.runs else "-" for a in arms),
        ]
        for seed in seeds
    ]
    return ["seed", *arms], rows


def command(hypothesis: Experiment, s: Section) -> str:
    seeds = len(s.verdict.seeds)
    words = ["make sweep", f"HYP={hypothesis.hypothesis}"]
    words += [f"SCALE={s.scale}"] if s.scale != "demo" else []
    words += [f"SEEDS={seeds}"] if seeds != hypothesis.looks[0] else []
    return " ".join(words)


def provenance(s: Section) -> list[str]:
    """What the runs were made with; every distinct value is listed."""
    if not s.runs:
        return []

    def values(key: str) -> str:
        return ", ".join(sorted({str(r["provenance"][key]) for r in s.runs.values()}))

    packages = sorted({f"{k} {v}" for r in s.runs.values() for k, v in r["provenance"]["packages"].items()})
    dirty = any(r["provenance"]["dirty"] for r in s.runs.values())
    data = sorted({f"seed {seed} {r['data_fingerprint'][:12]}" for (_, seed), r in s.runs.items()})
    return [
        f"commit {values('commit')}{' with uncommitted changes' if dirty else ''}; training code {', '.join(sorted({r['provenance']['code'][:12] for r in s.runs.values()}))}",
        f"device {values('device')}, {values('threads')} thread(s) a run; Python {values('python')}; {', '.join(packages)}",
        f"data: {', '.join(data)}",
    ]


def terminal(hypothesis: Experiment, s: Section) -> str:
    """The table of arms, the gates and the verdict, for a terminal."""
    rows = [[r[0], r[2], r[3], r[4]] for r in arm_rows(hypothesis, s)]
    columns = [c.format(metric=hypothesis.metric) for c in ARM_COLUMNS]
    table = [[columns[0], columns[2], columns[3], columns[4]], *rows]
    widths = [max(len(r[i]) for r in table) for i in range(4)]
    lines = ["", *("  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in table), ""]
    lines += [f"  {'passed' if g.passed else 'FAILED'}  {g.name}: {g.detail}" for g in s.verdict.gates]
    if s.verdict.missing:
        lines += ["", f"Missing: {missing_text(s)}. Type: {command(hypothesis, s)}"]
    return "\n".join([*lines, "", headline(hypothesis, s), s.arms.about])


# ---- Markdown and HTML -----------------------------------------------------------------------------------------------


def markdown_table(columns: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(r) + " |" for r in (columns, ["---"] * len(columns), *rows)]


def markdown(hypothesis: Experiment, sections: list[Section]) -> str:
    lines = [f"# Hypothesis {hypothesis.hypothesis}: {hypothesis.claim}", "", f"Source: {hypothesis.source}.", ""]
    for s in sections:
        columns = [c.format(metric=hypothesis.metric) for c in ARM_COLUMNS]
        lines += [f"## {s.scale.capitalize()} scale", "", f"**{headline(hypothesis, s)}**", "", s.arms.about, ""]
        lines += [f"![paired differences](hypothesis_{hypothesis.hypothesis}_{s.scale}.svg)", ""]
        if s.runs:
            lines += [*markdown_table(columns, arm_rows(hypothesis, s)), ""]
        lines += ["Gates, any of which makes the verdict inconclusive:", ""]
        lines += [f"- {'passed' if g.passed else '**failed**'}: {g.name}. {g.detail}" for g in s.verdict.gates]
        if s.runs:
            lines += ["", f"{hypothesis.metric} of each seed:", "", *markdown_table(*seed_rows(hypothesis, s))]
        if s.verdict.missing:
            lines += ["", f"Missing: {missing_text(s)}."]
        lines += ["", f"Re-make or complete: `{command(hypothesis, s)}`", ""]
        lines += [f"- {line}" for line in provenance(s)]
        lines += [""]
    return "\n".join([*lines, rule(hypothesis), ""])


def missing_text(s: Section) -> str:
    by_arm: dict[str, list[str]] = {}
    for arm, seed in s.verdict.missing:
        by_arm.setdefault(arm, []).append(str(seed))
    return "; ".join(f"{arm} seed {', '.join(seeds)}" for arm, seeds in by_arm.items())


def rule(hypothesis: Experiment) -> str:
    """The registered rule in plain words, and the hash of the file that registers it."""
    return (
        f"Rule: d = {hypothesis.metric} of the control minus that of the arm, paired by seed (same data draw, order, "
        f"augmentation and initial values of shared layers); t interval with one-sided alpha {hypothesis.alpha:g} at each "
        f"planned look ({', '.join(map(str, hypothesis.looks))} seeds). Supported if for every treatment the interval lies "
        "above -margin, refuted if it lies below for any (Holm over treatments), else inconclusive. The interval is about "
        "repeating the runs with other draws from the same pool of images, not about images from elsewhere. "
        f"Registered in experiments/hypothesis_{hypothesis.hypothesis}.yaml, sha256 {hypothesis.sha256[:16]}."
    )


def html(hypothesis: Experiment, sections: list[Section], figures: dict[str, str]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    views = [
        {
            "scale": s.scale,
            "outcome": s.verdict.outcome,
            "headline": headline(hypothesis, s),
            "about": s.arms.about,
            # only the drawing: an XML declaration has no place inside HTML
            "figure": figures[s.scale][figures[s.scale].index("<svg") :],
            "arm_rows": arm_rows(hypothesis, s),
            "seed_columns": seed_rows(hypothesis, s)[0],
            "seed_rows": seed_rows(hypothesis, s)[1],
            "gates": s.verdict.gates,
            "missing": missing_text(s),
            "command": command(hypothesis, s),
            "provenance": provenance(s),
        }
        for s in sections
    ]
    columns = [c.format(metric=hypothesis.metric) for c in ARM_COLUMNS]
    template = environment.get_template("report.html.jinja")
    return template.render(hypothesis=hypothesis, sections=views, arm_columns=columns, rule=rule(hypothesis)) + "\n"


# ---- the figure ------------------------------------------------------------------------------------------------------


def figure(hypothesis: Experiment, s: Section) -> str:
    """SVG: left, d of each seed with mean, interval and margin; right, the metric of every arm and seed."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "svg.hashsalt": "hypotheses",  # so that the same records give the same bytes
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with matplotlib.rc_context(style):
        rows = max(len({arm for arm, _ in s.runs}), 1.7 * (len(s.verdict.contrasts) + len(s.verdict.extra)))
        drawn = Figure(figsize=(9.6, max(3.2, 1.4 + 0.45 * rows)), layout="constrained")
        left, right = drawn.subplots(1, 2, width_ratios=[1.25, 1])
        draw_differences(left, hypothesis, s)
        draw_arms(right, hypothesis, s)
        out = io.StringIO()
        drawn.savefig(out, format="svg", metadata={"Date": None})
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


def draw_differences(axes: Any, hypothesis: Experiment, s: Section) -> None:
    from matplotlib.transforms import offset_copy

    margin = s.arms.margin
    contrasts = [*s.verdict.contrasts, *s.verdict.extra]
    axes.axvline(0, color=QUIET, lw=0.8)
    axes.axvline(-margin, color=BAD, lw=1.2, ls="--")
    axes.axvspan(-margin, 1e3, color=GOOD, alpha=0.06, lw=0)
    above = offset_copy(axes.transData, axes.figure, y=9, units="points")
    for row, c in enumerate(contrasts):
        color = INK if row < len(s.verdict.contrasts) else QUIET  # extra arms, which are not judged, are paler
        axes.plot(c.d, [row] * c.n, "o", color=color, ms=4, alpha=0.6, mew=0, transform=above)
        axes.plot([c.low, c.high], [row, row], color=color, lw=2.2, solid_capstyle="butt")
        axes.plot([c.mean], [row], "D", color=color, ms=6)
    ends = [x for c in contrasts for x in (c.low, c.high, *c.d)] + [-1.3 * margin, 0.8 * margin]
    pad = 0.06 * (max(ends) - min(ends))
    axes.set_xlim(min(ends) - pad, max(ends) + pad)
    axes.set_ylim(max(len(contrasts), 1) - 0.45, -0.6)
    labels = [f"{c.control}\n- {c.treatment}\n{interval(c)}, n = {c.n}" for c in contrasts]
    axes.set_yticks(range(len(contrasts)), labels)
    axes.annotate(
        f"margin -{margin:g}",
        (-margin, 1),
        xycoords=("data", "axes fraction"),
        ha="center",
        va="bottom",
        color=BAD,
        fontsize=8,
    )
    axes.set_xlabel(f"d = {hypothesis.metric} of the control - of the arm (points)\ndots: seeds; bar: interval")
    if not contrasts:
        axes.text(0.5, 0.5, "no pair of runs yet", transform=axes.transAxes, ha="center", color=QUIET)
    axes.set_title(f"paired differences, {s.scale} scale", fontsize=9, loc="left", pad=14)


def draw_arms(axes: Any, hypothesis: Experiment, s: Section) -> None:
    arms = [arm for arm in s.arms.all() if any(name == arm for name, _ in s.runs)]
    for row, arm in enumerate(arms):
        values = [r["metrics"][hypothesis.metric] for (name, _), r in sorted(s.runs.items()) if name == arm]
        axes.plot(values, [row] * len(values), "o", color=INK, ms=4, alpha=0.6, mew=0)
        mean = sum(values) / len(values)
        axes.plot([mean, mean], [row - 0.25, row + 0.25], color=INK, lw=2)
        axes.annotate(f"{mean:.1f}", (mean, row - 0.28), ha="center", va="bottom", fontsize=8)
    axes.axvline(s.arms.chance, color=QUIET, lw=0.8, ls=":")
    axes.set_xlim(0, 100)
    axes.set_ylim(max(len(arms), 1) - 0.4, -0.8)
    axes.set_yticks(range(len(arms)), arms)
    axes.set_xlabel(f"{hypothesis.metric} (percent)\ndots: seeds; line: mean; dotted: chance")
    axes.set_title("can this bed see a mixer?", fontsize=9, loc="left", pad=14)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="make report HYP=1",
        description="Judge the records of a hypothesis and write its report.",
        usage="make report HYP=1 [SCALE=demo] [ARGS='paths.results=FOLDER']",
    )
    parser.add_argument("hypothesis")
    parser.add_argument("--scale", help="show this scale only; the files hold all that have records")
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_intermixed_args(sys.argv[1:] if arguments is None else arguments)
    hypothesis = experiment.load(asked.hypothesis)
    for override in asked.overrides:
        if not override.startswith("paths."):
            raise UserError(f"{override}: a report takes paths only, such as paths.results=FOLDER")
    if asked.scale and asked.scale not in hypothesis.scales:
        raise UserError(f"SCALE={asked.scale}: choose one of {', '.join(hypothesis.scales)}")
    results = Path(compose(asked.overrides)["paths"]["results"])
    print(write(hypothesis, results, asked.scale))


if __name__ == "__main__":
    with one_line():
        main()
