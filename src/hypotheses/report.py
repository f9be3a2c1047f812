"""Records and a hypothesis -> results/hypothesis_<n>.md, .html, .csv and .svg. Only reads records; run twice, it writes
the same bytes.

    python -m hypotheses.report 1
"""

import argparse
import base64
import dataclasses
import io
import sys
from pathlib import Path
from typing import Any

from hypotheses import bootstrap, experiment, record, verdict
from hypotheses.config import Config, compose
from hypotheses.errors import UserError, one_line
from hypotheses.experiment import Arms, Experiment
from hypotheses.metrics import METRICS
from hypotheses.verdict import Bed, Difference, Verdict

INK, QUIET, GOOD, BAD = "#1b1f24", "#8a919a", "#2b6cb0", "#c05621"


@dataclasses.dataclass(frozen=True)
class Section:
    """A hypothesis at one scale: its arms, records, verdict and figure."""

    scale: str
    arms: Arms
    runs: dict[str, dict[tuple[str, int], record.Record]]  # by task, then by arm and seed
    verdict: Verdict
    pictures: dict[str, dict[str, Path]]  # by task, then by arm: what its first seed has drawn
    over_images: dict[
        tuple[str, Difference], bootstrap.Interval
    ]  # by task and contrast, of those whose runs have kept enough

    @property
    def records(self) -> list[record.Record]:
        return [runs[key] for runs in self.runs.values() for key in sorted(runs)]


def write(hypothesis: Experiment, results: Path, scale: str | None = None) -> str:
    """Write the report of every scale that has records; return what a terminal shows of `scale`, or of all."""
    name = f"hypothesis_{hypothesis.hypothesis}"
    sections = [
        s for s in (section(hypothesis, results, name) for name in hypothesis.scales) if s.records or s.scale == scale
    ]
    sections = [dataclasses.replace(s, over_images=over_images(hypothesis, results, s)) for s in sections]
    sections = sections or [section(hypothesis, results, next(iter(hypothesis.scales)))]
    records = [r for s in sections for r in s.records]
    figures = {figure_name(hypothesis, s, bed): figure(hypothesis, s, bed) for s in sections for bed in s.verdict.beds}
    outputs = {
        f"{name}.md": markdown(hypothesis, sections, results),
        f"{name}.html": html(hypothesis, sections, figures),
        f"{name}.csv": record.table(records).to_csv(index=False, lineterminator="\n"),
    }
    outputs |= figures
    for file, text in outputs.items():
        record.write_aside(results / file, text)
    shown = [s for s in sections if scale in (None, s.scale)]
    return "\n".join([*(terminal(hypothesis, s) for s in shown), f"\nreport: {results / name}.html and .md, .csv"])


def section(hypothesis: Experiment, results: Path, scale: str) -> Section:
    """Read the records of one scale, those of the registered arms and of the extra ones."""
    arms = hypothesis.scales[scale]
    runs: dict[str, dict[tuple[str, int], record.Record]] = {}
    pictures: dict[str, dict[str, Path]] = {}
    unregistered: dict[str, list[str]] = {}
    memory = hypothesis.positive_control.task if hypothesis.positive_control else None
    for task in (*hypothesis.metrics(), *hypothesis.interaction):
        runs[task], pictures[task], unregistered[task] = {}, {}, []
        wanted = arms.all() if task in hypothesis.tasks else [arms.control, *arms.treatments]
        for arm in hypothesis.memory_arms(scale) if task == memory else wanted:
            folder = results / "records" / scale / task / arm
            asked: Config = {}
            for file in sorted(folder.glob("seed_*.json")):
                found = record.read(file)
                if not found["config"]["scale"]["verdict"]:
                    continue
                seed = found["config"]["seed"]
                runs[task][arm, seed] = found
                if task in hypothesis.interaction:
                    continue
                asked = asked or hypothesis.config(scale, task, arm, seed, [])
                registered = {k: asked[k] for k in record.IDENTITY} | {"seed": seed}
                for key, was, now in record.differences(found["config"], registered):
                    unregistered[task].append(f"{found['address']}: {key} was {was}, registered is {now}")
            if (folder / "seed_0.jpg").exists():
                pictures[task][arm] = folder / "seed_0.jpg"
    judged = verdict.judge(hypothesis, scale, runs, unregistered)
    runs = {task: {k: r for k, r in runs[task].items() if k[1] in judged.seeds} for task in hypothesis.metrics()}
    decisive = [
        r for task, found in runs.items() for (arm, _), r in found.items() if task == memory or arm in arms.registered()
    ]
    judged = dataclasses.replace(judged, changes=tuple(experiment.changes(hypothesis, scale, results, decisive)))
    return Section(scale, arms, runs, judged, pictures, {})


def over_images(hypothesis: Experiment, results: Path, s: Section) -> dict[tuple[str, Difference], bootstrap.Interval]:
    """The interval over images of every contrast, in the direction that the hypothesis is about."""
    found = {}
    for bed in s.verdict.beds:
        runs = s.runs[bed.task]
        for c in (*bed.contrasts, *bed.extra):
            first, second = (c.treatment, c.control) if hypothesis.test == "superiority" else (c.control, c.treatment)
            pairs = [(runs[first, seed], runs[second, seed]) for seed in c.seeds]
            if interval := bootstrap.compare(results, bed.metric, pairs, 1 - 2 * c.alpha):
                found[bed.task, c] = interval
    return found


# ---- numbers as text, formatted once ---------------------------------------------------------------------------------


def interval(c: Difference) -> str:
    return f"{c.mean:+.2f} [{c.low:+.2f}, {c.high:+.2f}]"


def confidence(c: Difference) -> str:
    return f"{100 * (1 - 2 * c.alpha):g} %"


def headline(hypothesis: Experiment, s: Section) -> str:
    """The verdict in a sentence, with n, interval, unit, margin and scale."""
    v = s.verdict
    said = f"Hypothesis {hypothesis.hypothesis} at {s.scale} scale: {v.outcome.upper()}"
    said += " (EXPLORATORY: not all runs were begun under this rule)" if v.changes else ""
    changes = []
    for bed in v.beds:
        if not bed.contrasts:
            continue
        title, margin = METRICS[bed.task][bed.metric].title, s.arms.margin[bed.task]
        if hypothesis.test == "superiority":
            c = max(bed.contrasts, key=lambda c: c.low)
            what = f"on {bed.task} {hypothesis.what} changes {title} by {c.mean:+.2f} points"
            limit = f"smallest effect of interest {margin:g}"
        else:
            c = min(bed.contrasts, key=lambda c: c.low)
            what = f"without {hypothesis.what} {bed.metric} changes by {c.mean:+.2f} points"
            limit = f"margin -{margin:g}"
        seeds = f"n = {c.n} seeds"
        changes.append(f"{what} ({confidence(c)} interval {c.low:+.2f} to {c.high:+.2f}, {seeds}, {limit})")
    if not changes:
        return f"{said} ({v.reason})"
    text = "; ".join(changes)
    return f"{said}. {text[0].upper()}{text[1:]}: {v.reason}"


def remarks(hypothesis: Experiment, s: Section) -> list[str]:
    """What stands below the verdict: changes of the rule, and what is shown beside it and decides nothing."""
    lines = [f"Exploratory: {change}." for change in s.verdict.changes]
    for found in s.verdict.interactions:
        c = found.difference
        lines.append(
            f"Interaction, which decides nothing: the gain of {c.treatment} on {found.long} minus that on {found.short} is "
            f"{interval(c)} points ({confidence(c)} interval, n = {c.n} seeds), of two metrics; if the length mattered it would be "
            "above 0."
        )
    if hypothesis.interaction and not s.verdict.interactions:
        lines.append(
            f"The interaction with the short task, {' and '.join(hypothesis.interaction)}, is not known yet: "
            f"make sweep HYP=1{scale_word(s)}"
        )
    return lines


def scale_word(s: Section) -> str:
    return f" SCALE={s.scale}" if s.scale != "demo" else ""


def arm_rows(hypothesis: Experiment, s: Section, bed: Bed) -> list[list[str]]:
    """A row per arm: role, n, metric, difference to its control, parameters, MACs, seconds; in detection and segmentation also
    what the backbones start from."""
    roles = {s.arms.control: "control", s.arms.negative_control: "negative control"}
    roles |= {arm: "treatment" for arm in s.arms.treatments}
    contrasts = {c.treatment: c for c in (*bed.contrasts, *bed.extra)}
    if bed.assay:
        contrasts[bed.assay.treatment] = bed.assay
    rows = []
    for arm in s.arms.all():
        records = [r for (name, _), r in sorted(s.runs[bed.task].items()) if name == arm]
        if not records:
            continue
        values = [r["metrics"][bed.metric] for r in records]
        mean = sum(values) / len(values)
        spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else " (one run)"
        c = contrasts.get(arm)
        against = "" if not c or c.control == s.arms.control else f", control {c.control}"
        seeds = "" if not c or c.n == len(values) else f", n = {c.n}"
        seconds = sorted(r["seconds"] for r in records)
        macs = records[0]["cost"]["macs"]
        rows.append(
            [
                arm,
                roles.get(arm, "extra"),
                str(len(records)),
                f"{mean:.2f}{spread}",
                f"{interval(c)}{seeds}{against}" if c else "",
                images_cell(s.over_images.get((bed.task, c))) if c else "",
                *others(bed, records),
                f"{records[0]['cost']['params']:,}",
                f"{macs / 1e6:,.1f} M" if macs < 1e9 else f"{macs / 1e9:,.1f} G",
                f"{seconds[len(seconds) // 2]:.0f}",
            ]
        )
    return rows


def images_cell(found: bootstrap.Interval | None) -> str:
    return f"[{found.low:+.2f}, {found.high:+.2f}], {found.images} images" if found else "not kept"


def others(bed: Bed, records: list[record.Record]) -> list[str]:
    """The cells of a task's other columns: mask AP beside box AP, and the weights that the backbones start from."""
    if bed.task == "imagenet":
        return []
    start = sorted({r["config"]["recipe"]["pretrained"] for r in records})
    cells = [", ".join(start)]
    if bed.task == "coco":
        masks = [r["metrics"]["mask_ap_percent"] for r in records]
        cells.insert(0, f"{sum(masks) / len(masks):.2f}")
    return cells


def arm_columns(hypothesis: Experiment, bed: Bed) -> list[str]:
    difference = "arm - control" if hypothesis.test == "superiority" else "control - arm"
    return [
        "arm",
        "role",
        "n",
        f"{bed.metric}, mean (range)",
        f"{difference}, points [interval over seeds]",
        "[interval over images]",
        *(["mask_ap_percent, mean"] if bed.task == "coco" else []),
        *(["pretrained"] if bed.task != "imagenet" else []),
        "parameters",
        "MACs",
        "seconds a run, median",
    ]


def seed_rows(s: Section, bed: Bed) -> tuple[list[str], list[list[str]]]:
    """Columns and a row per seed: every arm's metric."""
    runs = s.runs[bed.task]
    arms = [arm for arm in s.arms.all() if any(name == arm for name, _ in runs)]
    seeds = sorted({seed for _, seed in runs})
    rows = [
        [
            str(seed),
            *(f"{runs[a, seed]['metrics'][bed.metric]:.2f}" if (a, seed) in runs else "-" for a in arms),
        ]
        for seed in seeds
    ]
    return ["seed", *arms], rows


def command(hypothesis: Experiment, s: Section) -> str:
    seeds = len(s.verdict.seeds)
    more = f" SEEDS={seeds}" if seeds != hypothesis.looks[0] else ""
    return f"make sweep HYP={hypothesis.hypothesis}{scale_word(s)}{more}"


def provenance(s: Section) -> list[str]:
    """What the runs were made with; every distinct value is listed."""
    records = s.records
    if not records:
        return []

    def values(key: str) -> str:
        return ", ".join(sorted({str(r["provenance"][key]) for r in records}))

    packages = sorted({f"{k} {v}" for r in records for k, v in r["provenance"]["packages"].items()})
    dirty = any(r["provenance"]["dirty"] for r in records)
    data = sorted(
        {f"seed {seed} {r['data_fingerprint'][:12]}" for of_task in s.runs.values() for (_, seed), r in of_task.items()}
    )
    return [
        f"commit {values('commit')}{' with uncommitted changes' if dirty else ''}; training code {', '.join(sorted({r['provenance']['code'][:12] for r in records}))}",
        f"device {values('device')}, {values('threads')} thread(s) a run; Python {values('python')}; {', '.join(packages)}",
        f"data: {', '.join(data)}",
    ]


def terminal(hypothesis: Experiment, s: Section) -> str:
    """The table of arms, the gates and the verdict, for a terminal."""
    lines = []
    for bed in s.verdict.beds:
        columns, rows = arm_columns(hypothesis, bed), arm_rows(hypothesis, s, bed)
        table = [[r[i] for i in (0, 2, 3, 4)] for r in (columns, *rows)]
        widths = [max(len(r[i]) for r in table) for i in range(4)]
        lines += ["", *([f"{bed.task}:"] if len(s.verdict.beds) > 1 else [])]
        lines += ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in table]
        lines += ["", *(f"  {'passed' if g.passed else 'FAILED'}  {g.name}: {g.detail}" for g in bed.gates)]
        if bed.missing:
            lines += ["", f"Missing: {missing_text(bed)}. Type: {command(hypothesis, s)}"]
    return "\n".join([*lines, "", headline(hypothesis, s), *remarks(hypothesis, s), s.arms.about])


# ---- Markdown and HTML -----------------------------------------------------------------------------------------------


def markdown_table(columns: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(r) + " |" for r in (columns, ["---"] * len(columns), *rows)]


def markdown(hypothesis: Experiment, sections: list[Section], results: Path) -> str:
    lines = [f"# Hypothesis {hypothesis.hypothesis}: {hypothesis.claim}", "", f"Source: {hypothesis.source}.", ""]
    for s in sections:
        lines += [f"## {s.scale.capitalize()} scale", "", f"**{headline(hypothesis, s)}**", "", s.arms.about, ""]
        lines += [line for remark in remarks(hypothesis, s) for line in (remark, "")]
        for bed in s.verdict.beds:
            lines += [f"### {bed.task}", ""] if len(s.verdict.beds) > 1 else []
            lines += [f"![paired differences]({figure_name(hypothesis, s, bed)})", ""]
            if s.runs[bed.task]:
                lines += [*markdown_table(arm_columns(hypothesis, bed), arm_rows(hypothesis, s, bed)), ""]
            lines += [gates_title(hypothesis), ""]
            lines += [f"- {'passed' if g.passed else '**failed**'}: {g.name}. {g.detail}" for g in bed.gates]
            if s.runs[bed.task]:
                lines += ["", f"{bed.metric} of each seed:", "", *markdown_table(*seed_rows(s, bed))]
            if drawn := s.pictures[bed.task]:
                links = [f"[{arm}]({file.relative_to(results).as_posix()})" for arm, file in drawn.items()]
                lines += ["", f"{PICTURES}: {', '.join(links)}"]
            if bed.missing:
                lines += ["", f"Missing: {missing_text(bed)}."]
            lines += [""]
        lines += [f"Re-make or complete: `{command(hypothesis, s)}`", ""]
        lines += [f"- {line}" for line in provenance(s)]
        lines += [""]
    return "\n".join([*lines, rule(hypothesis), ""])


PICTURES = "Validation images of seed 0, the same ones in every arm, left as annotated, right as predicted"


def gates_title(hypothesis: Experiment) -> str:
    effect = (
        "keeps the task out of the verdict" if hypothesis.test == "superiority" else "makes the verdict inconclusive"
    )
    return f"Gates, any of which {effect}:"


def missing_text(bed: Bed) -> str:
    by_arm: dict[str, list[str]] = {}
    for arm, seed in bed.missing:
        by_arm.setdefault(arm, []).append(str(seed))
    return "; ".join(f"{arm} seed {', '.join(seeds)}" for arm, seeds in by_arm.items())


def rule(hypothesis: Experiment) -> str:
    """The registered rule in plain words, and the hash of the file that registers it."""
    metric = " or ".join(hypothesis.tasks.values())
    if hypothesis.test == "superiority":
        difference = f"e = {metric} of the arm minus that of the control"
        decided = (
            "Supported if on any task the interval's lower bound lies above 0 (Holm over tasks and treatments), refuted if on "
            "every task every upper bound lies below the smallest effect of interest, else inconclusive."
        )
    else:
        difference = f"d = {metric} of the control minus that of the arm"
        decided = (
            "Supported if for every treatment the interval lies above -margin, refuted if it lies below for any (Holm over "
            "treatments), else inconclusive."
        )
    return (
        f"Rule: {difference}, paired by seed (same data draw, order, "
        f"augmentation and initial values of shared layers); t interval with one-sided alpha {hypothesis.alpha:g} at each "
        f"planned look ({', '.join(map(str, hypothesis.looks))} seeds). {decided} This interval, over seeds, is about "
        "repeating the runs with other draws from the same pool of images, and it alone decides. The interval over images is "
        f"about judging the same trained networks on other images of that pool ({bootstrap.DRAWS} bootstrap draws of each seed's "
        "validation images, the same for both arms of a pair). Neither is about images from elsewhere. "
        f"Registered in experiments/hypothesis_{hypothesis.hypothesis}.yaml, sha256 {hypothesis.sha256[:16]}."
    )


def html(hypothesis: Experiment, sections: list[Section], figures: dict[str, str]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )

    def drawing(s: Section, bed: Bed) -> str:
        svg = figures[figure_name(hypothesis, s, bed)]
        return svg[svg.index("<svg") :]  # an XML declaration has no place inside HTML

    views = [
        {
            "scale": s.scale,
            "outcome": s.verdict.outcome,
            "headline": headline(hypothesis, s),
            "about": s.arms.about,
            "remarks": remarks(hypothesis, s),
            "beds": [
                {
                    "task": bed.task if len(s.verdict.beds) > 1 else "",
                    "metric": bed.metric,
                    "figure": drawing(s, bed),
                    "arm_columns": arm_columns(hypothesis, bed),
                    "arm_rows": arm_rows(hypothesis, s, bed),
                    "seed_columns": seed_rows(s, bed)[0],
                    "seed_rows": seed_rows(s, bed)[1],
                    "gates": bed.gates,
                    "missing": missing_text(bed),
                    "pictures": [
                        (arm, base64.b64encode(file.read_bytes()).decode())
                        for arm, file in s.pictures[bed.task].items()
                    ],
                }
                for bed in s.verdict.beds
            ],
            "command": command(hypothesis, s),
            "provenance": provenance(s),
        }
        for s in sections
    ]
    template = environment.get_template("report.html.jinja")
    words = {"gates_title": gates_title(hypothesis), "pictures_title": PICTURES, "rule": rule(hypothesis)}
    return template.render(hypothesis=hypothesis, sections=views, **words) + "\n"


# ---- the figure ------------------------------------------------------------------------------------------------------


def figure_name(hypothesis: Experiment, s: Section, bed: Bed) -> str:
    task = f"_{bed.task}" if len(s.verdict.beds) > 1 else ""
    return f"hypothesis_{hypothesis.hypothesis}_{s.scale}{task}.svg"


def figure(hypothesis: Experiment, s: Section, bed: Bed) -> str:
    """SVG: left, the difference of each seed with mean, interval and margin; right, the metric of every arm and seed."""
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
        rows = max(len({arm for arm, _ in s.runs[bed.task]}), 1.7 * (len(bed.contrasts) + len(bed.extra)))
        drawn = Figure(figsize=(9.6, max(3.2, 1.4 + 0.45 * rows)), layout="constrained")
        left, right = drawn.subplots(1, 2, width_ratios=[1.25, 1])
        draw_differences(left, hypothesis, s, bed)
        draw_arms(right, s, bed)
        out = io.StringIO()
        drawn.savefig(out, format="svg", metadata={"Date": None})
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


def draw_differences(axes: Any, hypothesis: Experiment, s: Section, bed: Bed) -> None:
    from matplotlib.transforms import offset_copy

    gain, margin = hypothesis.test == "superiority", s.arms.margin[bed.task]
    line, label = (margin, f"of interest from {margin:g}") if gain else (-margin, f"margin -{margin:g}")
    contrasts = [*bed.contrasts, *bed.extra]
    axes.axvline(0, color=QUIET, lw=0.8)
    axes.axvline(line, color=QUIET if gain else BAD, lw=1.2, ls="--")
    axes.axvspan(0 if gain else line, 1e3, color=GOOD, alpha=0.06, lw=0)  # where an interval supports the claim
    above = offset_copy(axes.transData, axes.figure, y=9, units="points")
    for row, c in enumerate(contrasts):
        color = INK if row < len(bed.contrasts) else QUIET  # extra arms, which are not judged, are paler
        axes.plot(c.d, [row] * c.n, "o", color=color, ms=4, alpha=0.6, mew=0, transform=above)
        axes.plot([c.low, c.high], [row, row], color=color, lw=2.2, solid_capstyle="butt")
        axes.plot([c.mean], [row], "D", color=color, ms=6)
    ends = [x for c in contrasts for x in (c.low, c.high, *c.d)] + [1.3 * line, -0.8 * line]
    pad = 0.06 * (max(ends) - min(ends))
    axes.set_xlim(min(ends) - pad, max(ends) + pad)
    axes.set_ylim(max(len(contrasts), 1) - 0.45, -0.6)
    pairs = [(c.treatment, c.control) if gain else (c.control, c.treatment) for c in contrasts]
    labels = [f"{a}\n- {b}\n{interval(c)}, n = {c.n}" for c, (a, b) in zip(contrasts, pairs, strict=True)]
    axes.set_yticks(range(len(contrasts)), labels)
    axes.annotate(
        label,
        (line, 1),
        xycoords=("data", "axes fraction"),
        ha="center",
        va="bottom",
        color=INK if gain else BAD,
        fontsize=8,
    )
    difference = (
        f"e = {bed.metric} of the arm - of the control" if gain else f"d = {bed.metric} of the control - of the arm"
    )
    axes.set_xlabel(f"{difference} (points)\ndots: seeds; bar: interval")
    if not contrasts:
        axes.text(0.5, 0.5, "no pair of runs yet", transform=axes.transAxes, ha="center", color=QUIET)
    axes.set_title(f"paired differences, {bed.task}, {s.scale} scale", fontsize=9, loc="left", pad=14)


def draw_arms(axes: Any, s: Section, bed: Bed) -> None:
    runs = s.runs[bed.task]
    arms = [arm for arm in s.arms.all() if any(name == arm for name, _ in runs)]
    for row, arm in enumerate(arms):
        values = [r["metrics"][bed.metric] for (name, _), r in sorted(runs.items()) if name == arm]
        axes.plot(values, [row] * len(values), "o", color=INK, ms=4, alpha=0.6, mew=0)
        mean = sum(values) / len(values)
        axes.plot([mean, mean], [row - 0.25, row + 0.25], color=INK, lw=2)
        axes.annotate(f"{mean:.1f}", (mean, row - 0.28), ha="center", va="bottom", fontsize=8)
    axes.axvline(s.arms.chance[bed.task], color=QUIET, lw=0.8, ls=":")
    axes.set_xlim(0, 100)
    axes.set_ylim(max(len(arms), 1) - 0.4, -0.8)
    axes.set_yticks(range(len(arms)), arms)
    axes.set_xlabel(f"{bed.metric} (percent)\ndots: seeds; line: mean; dotted: chance")
    axes.set_title("can this bed see a mixer?", fontsize=9, loc="left", pad=14)


def check_scale(hypothesis: Experiment, scale: str) -> None:
    if scale not in hypothesis.scales:
        raise UserError(
            f"SCALE={scale}: hypothesis {hypothesis.hypothesis} is registered at {', '.join(hypothesis.scales)}"
        )


def read_arguments(target: str, about: str, arguments: list[str] | None) -> tuple[Experiment, Path, str | None]:
    """The hypothesis, the folder of results and the scale, if one is named, that a `make` target without runs is asked about."""
    parser = argparse.ArgumentParser(
        prog=f"make {target} HYP=1",
        description=about,
        usage=f"make {target} HYP=1 [SCALE=demo] [ARGS='paths.results=FOLDER']",
    )
    parser.add_argument("hypothesis")
    parser.add_argument("--scale")
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_intermixed_args(sys.argv[1:] if arguments is None else arguments)
    hypothesis = experiment.load(asked.hypothesis)
    for override in asked.overrides:
        if not override.startswith("paths."):
            raise UserError(f"{override}: make {target} takes paths only, such as paths.results=FOLDER")
    if asked.scale:
        check_scale(hypothesis, asked.scale)
    return hypothesis, Path(compose(asked.overrides)["paths"]["results"]), asked.scale


def main(arguments: list[str] | None = None) -> None:
    about = "Judge the records of a hypothesis and write its report; of all scales, and show one, if it is named."
    print(write(*read_arguments("report", about, arguments)))


if __name__ == "__main__":
    with one_line():
        main()
