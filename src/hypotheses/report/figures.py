"""The figures of a report, each a small SVG of one panel, so that they stand below each other on a phone. The same numbers give
the same bytes."""

import contextlib
import functools
import io
import re
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from hypotheses import response
from hypotheses.metrics import METRICS
from hypotheses.record import Record
from hypotheses.report.reading import Section, composed
from hypotheses.report.tables import found_runs, read_published, roles
from hypotheses.report.wording import interval
from hypotheses.verdict import Bed, level

INK, QUIET, GOOD, BAD = "#1b1f24", "#8a919a", "#2b6cb0", "#b5501b"
COLORS = {"control": INK, "treatment": GOOD, "negative control": BAD}  # by role; others are quiet
FAR = 2.0  # times what is judged, at which a difference is no longer drawn to scale
LONG_NUMBER = re.compile(r"-?\d+\.\d{4,}")  # of a coordinate
IN_A_PAGE = {INK: "--ink", QUIET: "--faint", GOOD: "--good", BAD: "--bad"}  # so that dark mode can change them


@contextlib.contextmanager
def panel(title: str, height: float, out: list[str], width: float = 5.4) -> Iterator[Any]:
    """Axes of a figure, inches, below its title; what is drawn on them is appended to `out` as SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "svg.hashsalt": "hypotheses",  # so that the same records give the same bytes
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": QUIET,
        "text.color": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
    }
    with matplotlib.rc_context(style):
        drawn = Figure(figsize=(width, height), layout="constrained")
        drawn.suptitle(title, x=0.01, ha="left", fontsize=9)
        yield drawn.subplots()
        content = io.StringIO()
        drawn.savefig(content, format="svg", metadata={"Date": None})
    drawing = LONG_NUMBER.sub(rounded, content.getvalue())
    out.append("".join(line.rstrip() + "\n" for line in drawing.splitlines()))


def rounded(coordinate: re.Match[str]) -> str:
    """To 3 decimals, which nobody sees, and which processors that add in another order agree in."""
    return f"{round(float(coordinate[0]), 3) + 0.0:.3f}".rstrip("0").rstrip(".")


def inline(svg: str) -> str:
    """An SVG as a part of a page: without an XML declaration, with the page's colours."""
    svg = svg[svg.index("<svg") :]
    for color, variable in IN_A_PAGE.items():
        svg = svg.replace(color, f"var({variable})")
    return svg


def metric_label(task: str, metric: str) -> str:
    return f"{METRICS[task][metric].title} (percent)"


# ---- of a hypothesis -------------------------------------------------------------------------------------------------


def of_section(s: Section) -> dict[str, tuple[str, str]]:
    """Every figure of a hypothesis at one scale: name of its file -> what it shows, SVG."""
    found = {}
    for bed in s.verdict.beds:
        name, where = f"{s.name}_{bed.task}", f"{s.bed(bed.task)}, {s.scale} scale"
        if not s.runs[bed.task] or (s.arms.doses and not bed.contrasts):  # no seed has all doses yet
            continue
        if s.arms.doses:
            found[f"{name}_dose"] = (f"Gain against L/(6D) on {where}", dose(s, bed))
            found[f"{name}_slopes"] = (f"Slopes of the gain on log2 L/(6D) on {where}", differences(s, bed))
            continue
        found[f"{name}_differences"] = (f"Paired differences on {where}", differences(s, bed))
        found[f"{name}_assay"] = (f"Every arm and seed on {where}", assay(s, bed))
        found[f"{name}_curves"] = (f"Validation during training on {where}", curves(s, bed))
        found[f"{name}_macs"] = (f"Metric against MACs on {where}", own_macs(s, bed))
    control = s.hypothesis.positive_control
    if control and s.runs.get(control.task):
        found[f"{s.name}_{control.task}"] = (f"Positive control, {control.task}, {s.scale} scale", memory(s))
    return found


def differences(s: Section, bed: Bed) -> str:
    """The difference of each seed, with mean, interval and margin, a row for each contrast. An extra one that lies far from those that
    are judged is an arrow: drawn to scale it would leave them no room."""
    from matplotlib.transforms import offset_copy

    gain, margin, dosed = s.hypothesis.gains, bed.margin, bool(s.arms.doses)
    line, label = (margin, f"smallest of interest {margin:.2g}") if gain else (-margin, f"margin -{margin:g}")
    contrasts, out = [*bed.contrasts, *bed.extra], []
    with panel(
        f"{'slopes of' if dosed else 'paired'} differences, {s.bed(bed.task)}, {s.scale} scale",
        max(2.6, 1.5 + 0.62 * len(contrasts)),
        out,
        6.2,
    ) as axes:
        axes.axvline(0, color=QUIET, lw=0.8)
        axes.axvline(line, color=QUIET if gain else BAD, lw=1.2, ls="--")
        axes.axvspan(0 if gain else line, 1e3, color=GOOD, alpha=0.08, lw=0)  # where an interval supports the claim
        above = offset_copy(axes.transData, axes.figure, y=9, units="points")
        judged = [x for c in bed.contrasts for x in (c.low, c.high, *c.d)] + [1.3 * line, -0.8 * line]
        reach = FAR * max(abs(x) for x in judged)
        near = [c for c in contrasts if not bed.contrasts or (c.low <= reach and c.high >= -reach)]
        ends = [x for c in near for x in (c.low, c.high, *c.d)] + judged
        pad = 0.06 * (max(ends) - min(ends))
        axes.set_xlim(min(ends) - pad, max(ends) + pad)
        for row, c in enumerate(contrasts):
            color = INK if row < len(bed.contrasts) else QUIET  # extra arms, which are not judged, are paler
            if c not in near:
                side, arrow = (0.0, "\u25c0 ") if c.mean < 0 else (1.0, " \u25b6")
                shown = f"{arrow}{c.mean:+.1f}" if c.mean < 0 else f"{c.mean:+.1f}{arrow}"
                where = {"transform": axes.get_yaxis_transform(), "va": "center", "ha": "right" if side else "left"}
                axes.text(side, row, shown, color=INK, **where)
                continue
            axes.plot(c.d, [row] * c.n, "o", color=color, ms=4, alpha=0.6, mew=0, transform=above)
            axes.plot([c.low, c.high], [row, row], color=color, lw=2.2, solid_capstyle="butt")
            axes.plot([c.mean], [row], "D", color=color, ms=6)
        axes.set_ylim(max(len(contrasts), 1) - 0.45, -0.6)
        pairs = [(c.treatment, c.control) if gain else (c.control, c.treatment) for c in contrasts]
        labels = [f"{a}\n- {b}\n{interval(c)}, n = {c.n}" for c, (a, b) in zip(contrasts, pairs, strict=True)]
        axes.set_yticks(range(len(contrasts)), labels, fontsize=8)
        top = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom", "fontsize": 8}
        axes.annotate(label, (line, 1), color=INK if gain else BAD, **top)
        which = "e = arm - control" if gain else "d = control - arm"
        which = f"slope of {which}" if dosed else which
        axes.set_xlabel(
            f"{which}, {METRICS[bed.task][bed.metric].title} ({s.hypothesis.unit})\ndots: seeds; bar: {level(s.hypothesis.alpha)} interval over seeds"
        )
        if not contrasts:
            axes.text(0.5, 0.5, "no pair of runs yet", transform=axes.transAxes, ha="center", color=INK)
    return out[0]


def dose(s: Section, bed: Bed) -> str:
    """e in each dose against L/(6D): of the treatment every seed, mean and interval, and the line of the mean slope; of the sham and the
    larger kernels the means."""
    found = response.responses(s.hypothesis, s.arms, s.runs[bed.task], s.verdict.seeds)
    out: list[str] = []
    with panel(f"gain against length, {s.bed(bed.task)}, {s.scale} scale", 4.2, out, 6.2) as axes:
        axes.axhline(0, color=QUIET, lw=0.8)
        axes.axvline(1, color=BAD, lw=1.2, ls="--")
        place = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom", "fontsize": 8, "color": BAD}
        axes.annotate("L = 6D", (1, 1), **place)
        over_control = [r for r in found if r.slope.control == s.arms.control]
        first_way = next(iter(s.arms.doses.values()))
        for row, (r, marker) in enumerate(zip(over_control, "Dsv^<>", strict=False)):
            first, c = row == 0, r.slope
            color = GOOD if first else QUIET
            ends = [min(r.ratios.values()), max(r.ratios.values())]
            for name, e in r.gains.items():
                of_first_way = name in first_way
                x = r.ratios[name] * 1.07 ** (row - (len(over_control) - 1) / 2) * (1 if of_first_way else 1.035)
                if first:
                    axes.plot([x] * e.n, e.d, "o", color=color, ms=3, alpha=0.5, mew=0)
                    axes.plot([x, x], [e.low, e.high], color=color, lw=1.6)
                axes.plot([x], [e.mean], marker, color=color, ms=5, mfc=color if of_first_way else "none")
            for seed in range(c.n if first else 0):
                axes.plot(ends, [r.line(end, seed) for end in ends], color=color, lw=0.6, alpha=0.5)
            label = f"{c.treatment}: {interval(c)} per doubling"
            style = {"lw": 1.8, "ls": "-"} if first else {"lw": 0.8, "ls": ":"}
            axes.plot(ends, [r.line(end) for end in ends], color=color, marker=marker, ms=0, label=label, **style)
        axes.set_xscale("log", base=2)
        ticks = sorted(set(found[0].ratios.values()))
        axes.set_xticks(ticks, [f"{t:.2g}" for t in ticks])
        legend = axes.legend(frameon=False, fontsize=7, loc="best")
        for handle in legend.legend_handles:
            handle.set_markersize(5)
        axes.minorticks_off()
        axes.set_xlabel(
            f"L/(6D), n = {found[0].slope.n} seeds; filled: by {next(iter(s.arms.doses))}; open: by {[*s.arms.doses][-1]} alone\n"
            f"dots and thin lines: seeds; bar: {level(s.hypothesis.alpha)} interval; thick line: their mean"
        )
        axes.set_ylabel(f"e = arm - {s.arms.control}, {METRICS[bed.task][bed.metric].title} (points)")
    return out[0]


def rows_of_arms(axes: Any, found: dict[str, list[Record]], metric: str, colors: dict[str, str]) -> None:
    """Every seed of every arm, a row for each, and its mean."""
    for row, (arm, records) in enumerate(found.items()):
        values, color = [r["metrics"][metric] for r in records], colors.get(arm, QUIET)
        mean = statistics.fmean(values)
        axes.plot(values, [row] * len(values), "o", color=color, ms=4, alpha=0.6, mew=0)
        axes.plot([mean, mean], [row - 0.25, row + 0.25], color=color, lw=2)
        axes.annotate(f"{mean:.2f}", (mean, row - 0.28), ha="center", va="bottom", fontsize=8)
    axes.set_xlim(0, 100)
    axes.set_ylim(max(len(found), 1) - 0.4, -0.8)
    axes.set_yticks(range(len(found)), [f"{arm}, n = {len(records)}" for arm, records in found.items()], fontsize=8)


def assay(s: Section, bed: Bed) -> str:
    found, out = found_runs(s, bed.task), []
    with panel(
        f"can this bed see a mixer? {s.bed(bed.task)}, {s.scale} scale", max(2.4, 1.3 + 0.36 * len(found)), out
    ) as axes:
        rows_of_arms(axes, found, bed.metric, colors_of(s))
        axes.axvline(s.arms.chance[bed.task], color=QUIET, lw=0.8, ls=":")
        axes.set_xlabel(f"{metric_label(bed.task, bed.metric)}\ndots: seeds; line: mean; dotted: chance")
    return out[0]


def memory(s: Section) -> str:
    control = s.hypothesis.positive_control
    assert control
    found, out = found_runs(s, control.task), []
    with panel(
        f"can the SSM show a memory? {s.bed(control.task)}, {s.scale} scale", max(2.2, 1.3 + 0.4 * len(found)), out
    ) as axes:
        rows_of_arms(axes, found, control.metric, colors_of(s))
        chance = 100 / next(iter(found.values()))[0]["config"]["recipe"]["num_classes"]
        axes.axvline(chance, color=QUIET, lw=0.8, ls=":")
        for x, word, side in ((control.solved, "solved from", "left"), (control.unsolved, "unsolved to", "right")):
            axes.axvline(x, color=BAD if side == "right" else GOOD, lw=1, ls="--")
            place = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom", "fontsize": 8}
            axes.annotate(f"{word} {x:g}", (x, 1), **place)
        axes.set_xlabel(f"{metric_label(control.task, control.metric)}\ndots: seeds; line: mean; dotted: chance")
    return out[0]


def colors_of(s: Section) -> dict[str, str]:
    return {arm: COLORS.get(role, QUIET) for arm, role in roles(s).items()}


def curves(s: Section, bed: Bed) -> str:
    """The validation metric against the share of the schedule: mean over seeds, and their range for the registered arms."""
    found, out, known = found_runs(s, bed.task), [], roles(s)
    others = "; dotted: other arms" if found.keys() - {*s.arms.registered()} else ""
    with panel(f"validation during training, {s.bed(bed.task)}, {s.scale} scale", 3.1, out) as axes:
        for arm, records in found.items():
            rows = [[row for row in r["curve"] if bed.metric in row] for r in records]
            unit = next((u for u in ("epoch", "step") if rows and rows[0] and u in rows[0][0]), "")
            length = min(len(r) for r in rows)
            if not unit or not length:
                continue
            x = [row[unit] for row in rows[0][:length]]
            values = [[r[i][bed.metric] for r in rows] for i in range(length)]
            color = COLORS.get(known.get(arm, ""), QUIET)
            registered = arm in s.arms.registered()
            if registered:
                axes.fill_between(x, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.12, lw=0)
            axes.plot(
                x, [statistics.fmean(v) for v in values], "-" if registered else ":", color=color, lw=1.8 if registered else 0.9,
                label=f"{arm}, n = {len(records)}" if registered else None,
            )  # fmt: skip
            axes.set_xlabel(f"{unit}\nline: mean over seeds; band: their range{others}")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel(metric_label(bed.task, bed.metric))
        axes.legend(frameon=False, fontsize=8, loc="best")
    return out[0]


def own_macs(s: Section, bed: Bed) -> str:
    found, out = found_runs(s, bed.task), []
    with panel(f"metric against MACs, {s.bed(bed.task)}, {s.scale} scale", 3.1, out) as axes:
        points = []
        for arm, records in found.items():
            values = [r["metrics"][bed.metric] for r in records]
            x, mean, color = records[0]["cost"]["macs"] / 1e6, statistics.fmean(values), colors_of(s).get(arm, QUIET)
            axes.plot([x, x], [min(values), max(values)], color=color, lw=1, alpha=0.6)
            axes.plot([x], [mean], "o", color=color, ms=5)
            points.append((x, mean, shortened(arm, s.arms.control)))
        axes.margins(x=0.18, y=0.12)
        axes.set_xlabel("MACs of an image (millions)\npoint: mean over seeds; line: their range")
        axes.set_ylabel(metric_label(bed.task, bed.metric))
        label_points(axes, points)
    return out[0]


def shortened(arm: str, control: str) -> str:
    """_ssm for mambaout_atto_ssm beside mambaout_atto."""
    return arm.removeprefix(control) if arm.startswith(f"{control}_") else arm


def label_points(axes: Any, points: Sequence[tuple[float, float, str]]) -> None:
    """Names to the right of points, moved down as far as they would lie on each other or on a point, then with a line to their own."""
    axes.figure.draw_without_rendering()  # where things lie is known only then
    pixel = axes.figure.dpi / 72  # in points
    there = [axes.transData.transform(p[:2]) for p in points]
    placed = [(x - 4, x + 4, y) for x, y in there]  # left, right and height of points and names, pixels
    for (x, y, name), (px, py) in sorted(zip(points, there, strict=True), key=lambda p: -p[0][1]):
        left, right, height = px + 5, px + 12 + 6 * len(name), py
        while any(left < r and at < right and abs(height - h) < 11 for at, r, h in placed):
            height -= 1
        placed.append((left, right, height))
        shift, line = (height - py) / pixel, {"arrowstyle": "-", "color": QUIET, "lw": 0.5, "shrinkA": 0, "shrinkB": 2}
        axes.annotate(
            name, (x, y), xytext=(6, shift), textcoords="offset points", fontsize=7, va="center",
            arrowprops=line if shift < -6 else None,
        )  # fmt: skip


# ---- of layers -------------------------------------------------------------------------------------------------------

LAYERS = {  # of benchmarks/length.py
    "attention, fully visible": (BAD, "o-"),
    "attention, causal": (BAD, "s:"),
    "SSM, causal": (GOOD, "s:"),
    "SSM, both ways": (GOOD, "o-"),
}

# L/D from which the quadratic part of fully visible attention leads: 8 D^2 L + 4 D L^2 operations are those of the layer with its projections,
# 24 D^2 L + 4 D L^2 those of a Transformer block, which has an MLP of ratio 4 too
LEADS = {2: "2D: layer", 6: "6D: block"}

QUANTITIES: dict[str, tuple[str, float, str, str, str]] = {  # of a layer: name of the figure -> key, factor to the unit, unit, title, what it shows
    "length_kept": (
        "kept_bytes", 2.0**-10, "kept for the next token (KiB)", "keys and values, or the state",
        "What a causal layer keeps of the sequence so far, against its length",
    ),
    "length_forward": ("forward_seconds", 1e3, "milliseconds", "forward, one layer", "Time of a layer against the length"),
    "length_training": (
        "training_seconds", 1e3, "milliseconds", "forward and backward, one layer",
        "Time of forward and backward of a layer against the length",
    ),
    "length_activations": (
        "training_bytes", 2.0**-20, "kept for the backward pass (MiB)", "activations, one layer",
        "What autograd keeps of a layer against the length",
    ),
}  # fmt: skip


def of_lengths(measured: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Time and memory of a layer against the number of tokens, as far as they were measured."""
    return {
        name: (shows, lines(measured, key, factor, unit, title))
        for name, (key, factor, unit, title, shows) in QUANTITIES.items()
        if any(key in row for row in measured["rows"])
    }


def lines(measured: dict[str, Any], key: str, factor: float, unit: str, title: str) -> str:
    """One quantity of every layer that has it; bars are ranges over the rounds."""
    out: list[str] = []
    with panel(f"{title}, D = {measured['dim']}", 3.2, out) as axes:
        for name, (color, style) in LAYERS.items():
            rows = [r for r in measured["rows"] if r["layer"] == name and key in r]
            if not rows:
                continue
            values: list[dict[str, float]] = [
                r[key] if isinstance(r[key], dict) else {"median": r[key], "least": r[key], "most": r[key]}
                for r in rows
            ]
            x = [r["tokens"] for r in rows]
            axes.plot(x, [factor * v["median"] for v in values], style, color=color, ms=4, lw=1.4, label=name)
            axes.vlines(
                x, [factor * v["least"] for v in values], [factor * v["most"] for v in values], color=color, lw=1
            )
        for widths, name in LEADS.items():
            x = widths * measured["dim"]
            axes.axvline(x, color=QUIET, lw=1, ls="--")
            axes.annotate(name, (x, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = sorted({r["tokens"] for r in measured["rows"]})
        axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
        axes.minorticks_off()
        axes.set_xlabel("tokens")
        axes.set_ylabel(unit)
        axes.legend(frameon=False, fontsize=7)
    return out[0]


# ---- of the paper, and ours beside it --------------------------------------------------------------------------------


OF_THE_PAPER = ("published_accuracy_macs", "causal_attention", "token_counts")


def of_the_paper(sections: Sequence[Section]) -> dict[str, tuple[str, str]]:
    """The figures of the paper that can be made again from data: name -> what it shows, SVG."""
    titles = (
        "Published top-1 on ImageNet against MACs",
        "Fully visible and causal attention: published, and ours",
        "Tokens against 6 D: which tasks the paper calls long",
    )
    drawn = (published_macs(sections), causal_bars(sections), token_counts())
    return dict(zip(OF_THE_PAPER, zip(titles, drawn, strict=True), strict=True))


CAUSAL = 3  # the hypothesis about causal attention
MIXERS = {"conv": "o", "conv+ssm": "^", "attn": "s", "conv+attn": "D", "conv+attn+ssm": "v", "pool": "x"}


def published_macs(sections: Sequence[Section]) -> str:
    """The paper's Table 1 at 224 pixels, and our runs at paper scale where there are some."""
    out: list[str] = []
    rows = [
        r
        for r in read_published("imagenet")
        if r["source_kind"] == "paper_table" and r["image_size"] == "224" and r["macs_g"]
    ]
    with panel("published, one run each, other groups' recipes", 3.6, out) as axes:
        for mixer, marker in MIXERS.items():
            of_it = [r for r in rows if r["mixer_type"] == mixer and "MambaOut" not in r["model"]]
            if not of_it:
                continue
            color = GOOD if "ssm" in mixer else QUIET
            x, y = ([float(r[key]) for r in of_it] for key in ("macs_g", "top1"))
            axes.plot(x, y, marker, color=color, ms=4, alpha=0.75, mew=1 if marker == "x" else 0, label=mixer, ls="")
        own = [r for r in rows if r["model"].startswith("MambaOut")]
        x, y = ([float(r[key]) for r in own] for key in ("macs_g", "top1"))
        axes.plot(x, y, "*-", color=BAD, ms=8, lw=1, mew=0, label="MambaOut, published")
        ours = [
            (r["cost"]["macs"] / 1e9, r["metrics"]["top1_percent"])
            for s in sections
            if s.scale == "paper"
            for r in s.runs.get("imagenet", {}).values()
        ]
        if ours:
            axes.plot(
                *zip(*ours, strict=True), "P", color=INK, ms=6, mew=0, label="ours, paper scale, a seed each", ls=""
            )
        axes.set_xscale("log")
        ticks = [0.5, 1, 2, 4, 8, 16]
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.minorticks_off()
        axes.set_xlabel("MACs (G), 224 x 224 pixels" + ("" if ours else "; none of ours: no run at paper scale yet"))
        axes.set_ylabel("top-1 on ImageNet (percent)")
        axes.legend(frameon=False, fontsize=7, loc="lower right", ncols=2)
    return out[0]


def causal_pairs(sections: Sequence[Section]) -> list[tuple[str, list[float], list[float]]]:
    """A name with top-1 fully visible and causal: the published ones, and ours by the seeds that both arms have."""
    pairs = [
        (f"{r['model']}\npublished,\none run", [float(r["fully_visible"])], [float(r["causal"])])
        for r in read_published("causal_attention")
    ]
    for s in sections:
        if s.hypothesis.hypothesis != CAUSAL:
            continue
        runs, arms = s.runs["imagenet"], (s.arms.treatments[0], s.arms.control)
        if seeds := sorted({seed for _, seed in runs if all((arm, seed) in runs for arm in arms)}):
            full, causal = ([runs[arm, seed]["metrics"]["top1_percent"] for seed in seeds] for arm in arms)
            pairs.append((f"{arms[0]}\nours, {s.scale},\nn = {len(seeds)} seeds", full, causal))
    return pairs


def causal_bars(sections: Sequence[Section]) -> str:
    """Figure 3b of the paper, and our pairs of a ViT and a causal ViT, each with its scale and its seeds."""
    bars = causal_pairs(sections)
    out: list[str] = []
    with panel("causal attention; dots: seeds", 3.2, out) as axes:
        for i, (_, *pair) in enumerate(bars):
            for values, shift, color, label in zip(
                pair, (-0.19, 0.19), (INK, GOOD), ("fully visible", "causal"), strict=True
            ):
                mean = statistics.fmean(values)
                axes.bar(i + shift, mean, 0.36, color=color, alpha=0.75, label=label if i == 0 else None)
                axes.plot([i + shift] * len(values), values, "o", color=BAD, ms=3, mew=0) if len(values) > 1 else None
                axes.annotate(f"{mean:.1f}", (i + shift, max(values)), ha="center", va="bottom", fontsize=8)
        axes.set_xticks(range(len(bars)), [name for name, *_ in bars], fontsize=8)
        axes.set_ylim(0, 100)
        axes.set_ylabel("top-1 (percent)")
        axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
    return out[0]


@functools.cache
def token_counts() -> str:
    """L / (6 D) of the paper's networks at its three tasks, stage by stage, and of the demo's (paper, section 3.2)."""
    from hypotheses import cost

    sizes = {"imagenet, 224 x 224": (224, 224), "coco, 800 x 1280": (800, 1280), "ade20k, 512 x 2048": (512, 2048)}
    demo = {}
    for task in ("imagenet", "recall", "coco", "ade20k"):
        size = cost.image_size(composed("demo", task, "mambaout_atto"), None)
        demo[f"{task} demo, {size[0]} x {size[1]}"] = size
    rows = [
        (f"{task}\n{name}", ratios(name, size))
        for chosen, names in ((sizes, ("vit_small", "vit_base", "mambaout_tiny")), (demo, ("mambaout_atto",)))
        for task, size in chosen.items()
        for name in names
    ]
    out: list[str] = []
    with panel("tokens against 6 D", 5.2, out) as axes:
        axes.axvline(1, color=BAD, lw=1.2, ls="--")
        axes.annotate(
            "L = 6 D", (1, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8, color=BAD
        )
        for row, (_, values) in enumerate(rows):
            axes.plot(values, [row] * len(values), "o-", color=GOOD if max(values) > 1 else INK, ms=5, lw=0.8)
            for stage, value in enumerate(values, 1):
                text = f"{value:.2g}" if len(values) == 1 else f"{stage}"
                axes.annotate(text, (value, row - 0.2), ha="center", va="bottom", fontsize=7)
        axes.set_xscale("log")
        axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=7)
        axes.set_ylim(len(rows) - 0.5, -0.9)
        axes.set_xlabel("L / (6 D), by the paper long above 1\nnumbers along a line: stages of a network")
    return out[0]


def ratios(name: str, size: tuple[int, int]) -> list[float]:
    from hypotheses import cost

    return [stage.ratio for stage in cost.stages(composed("demo", "imagenet", name)["backbone"], *size)]
