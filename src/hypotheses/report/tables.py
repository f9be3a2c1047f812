"""The tables of a report, and each of them as Markdown, CSV and LaTeX."""

import csv
import dataclasses
import io
import statistics
from collections.abc import Sequence
from typing import Any

from hypotheses import bootstrap, response
from hypotheses.config import ROOT, is_dense
from hypotheses.metrics import METRICS
from hypotheses.record import Record
from hypotheses.report.reading import Section, arms_of
from hypotheses.report.wording import interval
from hypotheses.verdict import Bed, Difference, compare, level

PUBLISHED = ROOT / "results" / "published"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts. `name` is that of its files."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[str]]

    def markdown(self) -> list[str]:
        return [
            "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
            for row in (self.columns, ["---"] * len(self.columns), *self.rows)
        ]

    def csv(self) -> str:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.columns, *self.rows])
        return out.getvalue()

    def latex(self) -> str:
        """With booktabs' rules, to be \\input into a paper."""
        import pandas as pd

        frame = pd.DataFrame(self.rows, columns=self.columns).map(latex_text)
        frame.columns = [latex_text(name) for name in self.columns]
        caption = latex_text(f"{self.title}.")
        return frame.to_latex(index=False, escape=False, caption=caption, label=f"tab:{self.name}", position="t")


LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"}


def latex_text(text: str) -> str:
    """As LaTeX prints it: its own characters escaped."""
    return text.translate(str.maketrans(LATEX))


# ---- of our runs -----------------------------------------------------------------------------------------------------


def found_runs(s: Section, task: str) -> dict[str, list[Record]]:
    """The records of a task by arm, in the order of the arms and seeds."""
    runs = s.runs[task]
    by_arm = {arm: [runs[key] for key in sorted(runs) if key[0] == arm] for arm in arms_of(s.hypothesis, s.scale, task)}
    return {arm: records for arm, records in by_arm.items() if records}


def roles(s: Section) -> dict[str, str]:
    """Control, treatment, negative control or sham of each arm that has such a part, or larger kernel; the others are extra."""
    known = dict.fromkeys(s.arms.reach, "larger kernel")
    known |= {sham: "sham" for sham in s.arms.shams.values()}
    known |= {s.arms.control: "control", s.arms.negative_control: "negative control"}
    return known | {arm: "treatment" for arm in s.arms.treatments}


def arms(s: Section, bed: Bed) -> Table:
    """A row per arm: role, n, metric, difference to its control, what it costs; in detection and segmentation also what the
    backbones start from. Of a dose-response a row for each arm in each dose."""
    contrasts: dict[str, list[Difference]] = {}
    doses = bool(s.arms.doses)
    shown = in_doses(s, bed) if doses else (*bed.contrasts, *([bed.assay] if bed.assay else []), *bed.extra)
    for c in shown:
        contrasts.setdefault(c.treatment, []).append(c)
    difference = "arm - control" if s.hypothesis.gains else "control - arm"
    columns = [
        "arm",
        "role",
        "n",
        f"{bed.metric}, mean (range)",
        f"{difference}, points [{level(s.hypothesis.alpha)} interval over seeds]",
        "L/(6D)" if doses else f"[{level(s.hypothesis.alpha)} interval over images]",
        *(["mask_ap_percent, mean"] if bed.task == "coco" else []),
        *(["pretrained"] if is_dense(bed.task) else []),
        "parameters",
        "MACs",
        "seconds a run, median",
        "peak memory, MB, median",
    ]
    rows = []
    for arm, records in found_runs(s, bed.task).items():
        mine = contrasts.get(arm, [])
        rows.append(
            [
                arm,
                roles(s).get(arm.partition("+")[0], "extra"),
                str(len(records)),
                mean_and_range(records, bed.metric),
                "; ".join(difference_cell(s, c, len(records)) for c in mine),
                f"{response.ratio(records[0]['config']):.2f}"
                if doses
                else "; ".join(images_cell(s, bed, c) for c in mine),
                *others(bed, records),
                *costs(records),
            ]
        )
    return Table(f"{s.name}_{bed.task}_arms", f"Arms on {s.bed(bed.task)}, {s.scale} scale", columns, rows)


def difference_cell(s: Section, c: Difference, runs: int) -> str:
    """An interval, with what goes without saying left out: the hypothesis' control, and as many seeds as the row has."""
    against = "" if c.control.partition("+")[0] == s.arms.control else f", control {c.control}"
    return f"{interval(c)}{'' if c.n == runs else f', n = {c.n}'}{against}"


def in_doses(s: Section, bed: Bed) -> list[Difference]:
    """e of every arm in every dose."""
    runs, step = s.runs[bed.task], METRICS[bed.task][bed.metric].step
    found = []
    for dose in s.arms.each_dose():
        control, *others = s.arms.at(dose).of_a_dose()
        pairs = (compare(runs, bed.metric, arm, control, s.verdict.seeds, s.hypothesis.alpha, step) for arm in others)
        found += [c.turned() for c in pairs if c]
    return found


def slopes(s: Section, bed: Bed) -> Table:
    """A row for each contrast of a dose-response: its slope over all doses, and over those of each way to vary the length."""
    runs, seeds, alpha = s.runs[bed.task], s.verdict.seeds, s.hypothesis.alpha
    by_way = {
        way: {
            (r.slope.treatment, r.slope.control): r.slope
            for r in response.responses(s.hypothesis, s.arms, runs, seeds, way)
        }
        for way in ("", *s.arms.doses)
    }
    names = [f"by {way} [{level(alpha)} interval]" if way else f"slope [{level(alpha)} interval]" for way in by_way]
    rows = [
        [a, b, str(c.n), *(interval(found[a, b]) if (a, b) in found else "-" for found in by_way.values())]
        for (a, b), c in by_way[""].items()
    ]
    title = f"Slopes of e = arm - control, {s.hypothesis.unit}, on {s.bed(bed.task)}, {s.scale} scale"
    return Table(f"{s.name}_{bed.task}_slopes", title, ["arm", "control", "n", *names], rows)


def mean_and_range(records: Sequence[Record], metric: str) -> str:
    values = [r["metrics"][metric] for r in records]
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else " (one run)"
    return f"{statistics.fmean(values):.2f}{spread}"


def costs(records: Sequence[Record]) -> list[str]:
    """The cells of parameters, MACs, seconds and megabytes."""
    macs = records[0]["cost"]["macs"]
    peaks = [r["provenance"].get("peak_memory_bytes") for r in records]
    return [
        f"{records[0]['cost']['params']:,}",
        f"{macs / 1e6:,.1f} M" if macs < 1e9 else f"{macs / 1e9:,.1f} G",
        f"{statistics.median(r['seconds'] for r in records):.0f}",
        "not kept" if None in peaks else f"{statistics.median(peaks) / 1e6:,.0f}",
    ]


def images_cell(s: Section, bed: Bed, c: Difference) -> str:
    found: bootstrap.Interval | None = s.over_images.get((bed.task, c))
    if c is bed.assay:
        return ""
    return f"[{found.low:+.2f}, {found.high:+.2f}], {found.images} images" if found else "not kept"


def others(bed: Bed, records: list[Record]) -> list[str]:
    """The cells of a task's other columns: mask AP beside box AP, and the weights that the backbones start from."""
    if not is_dense(bed.task):
        return []
    cells = [", ".join(sorted({r["config"]["recipe"]["pretrained"] for r in records}))]
    if bed.task == "coco":
        cells.insert(0, f"{statistics.fmean(r['metrics']['mask_ap_percent'] for r in records):.2f}")
    return cells


def memory(s: Section) -> Table | None:
    """A row per arm of the positive control; None where it has no runs."""
    control = s.hypothesis.positive_control
    if not control or not (found := found_runs(s, control.task)):
        return None
    columns = ["arm", "role", "n", f"{control.metric}, mean (range)", "wanted", "parameters", "MACs"]
    columns += ["seconds a run, median", "peak memory, MB, median"]
    rows = [
        [
            arm,
            roles(s)[arm],
            str(len(records)),
            mean_and_range(records, control.metric),
            f"at least {control.solved:g}" if arm in s.arms.treatments else f"at most {control.unsolved:g}",
            *costs(records),
        ]
        for arm, records in found.items()
    ]
    return Table(
        f"{s.name}_{control.task}_arms", f"Positive control, {s.bed(control.task)}, {s.scale} scale", columns, rows
    )


def seeds(s: Section, task: str) -> Table:
    """A row per seed: every arm's metric; of a dose-response, whose arms are many, a column per seed."""
    metric, found = s.hypothesis.metrics()[task], found_runs(s, task)
    runs = s.runs[task]
    name, title = f"{s.name}_{task}_seeds", f"{metric} of each seed on {s.bed(task)}, {s.scale} scale"
    if s.arms.doses:
        every = sorted({seed for _, seed in runs})
        rows = [
            [a, *(f"{runs[a, seed]['metrics'][metric]:.2f}" if (a, seed) in runs else "-" for seed in every)]
            for a in found
        ]
        return Table(name, title, ["arm", *(f"seed {seed}" for seed in every)], rows)
    rows = [
        [str(seed), *(f"{runs[a, seed]['metrics'][metric]:.2f}" if (a, seed) in runs else "-" for a in found)]
        for seed in sorted({seed for _, seed in runs})
    ]
    return Table(name, title, ["seed", *found], rows)


# ---- of layers -------------------------------------------------------------------------------------------------------


def length(measured: dict[str, Any]) -> Table:
    """A row for each length and layer of what benchmarks/length.py has measured."""

    def ms(seconds: dict[str, float] | None) -> str:
        if seconds is None:
            return ""
        return "{} ({} to {})".format(
            *(
                f"{1e3 * s:,.0f}" if s >= 0.1 else f"{1e3 * s:.3g}"
                for s in (seconds[k] for k in ("median", "least", "most"))
            )
        )

    columns = ["tokens", "layer", "forward, ms", "training, ms", "kept for training, MiB", "next token, ms"]
    rows = [
        [
            f"{r['tokens']:,}",
            r["layer"],
            ms(r["forward_seconds"]),
            ms(r["training_seconds"]),
            f"{r['training_bytes'] / 2**20:.3g}",
            ms(r.get("next_token_seconds")),
            f"{r['kept_bytes'] / 2**10:,.0f}" if "kept_bytes" in r else "",
        ]
        for r in measured["rows"]
    ]
    return Table(
        "length", "A layer of attention and of an SSM against the length", [*columns, "kept for it, KiB"], rows
    )


# ---- of others -------------------------------------------------------------------------------------------------------

HEADS = {  # the columns that are shown of results/published/<task>.csv: ours, theirs
    "imagenet": {"top-1, percent": "top1"},
    "coco": {"box AP, percent": "ap_box", "mask AP, percent": "ap_mask"},
    "ade20k": {"mIoU, percent": "miou_ss", "mIoU multi-scale, percent": "miou_ms"},
}


def read_published(task: str) -> list[dict[str, str]]:
    """The rows of results/published/<task>.csv; none where somebody has deleted it."""
    if not (PUBLISHED / f"{task}.csv").exists():
        return []
    with open(PUBLISHED / f"{task}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def published(task: str) -> Table:
    """The paper's own table, each number with its source and what speaks against comparing it; the other rows of the file, from
    repositories and re-evaluations, are left to the file."""
    shown = {
        "model": "model",
        "mixer": "mixer_type",
        "image": "image_size",
        "parameters, M": "params_m",
        "MACs, G": "macs_g",
    }
    shown |= HEADS[task] | {
        "paper": "paper_version",
        "source": "source",
        "like for like": "like_for_like",
        "note": "note",
    }
    rows = [
        [row[name] or "-" for name in shown.values()]
        for row in read_published(task)
        if row["source_kind"] == "paper_table"
    ]
    return Table(f"published_{task}", f"Published results on {task}, as the paper prints them", list(shown), rows)


def published_causal() -> Table:
    rows = [
        [r["model"], r["fully_visible"], r["causal"], r["source"], r["like_for_like"]]
        for r in read_published("causal_attention")
    ]
    columns = ["model", "top-1 fully visible, percent", "top-1 causal, percent", "source", "like for like"]
    return Table("published_causal_attention", "Published results of causal attention on imagenet", columns, rows)
