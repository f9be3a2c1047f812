"""What a report says in words, each sentence in one place for terminal, page and Markdown. Numbers become text here."""

import statistics
from typing import Any

from hypotheses import bootstrap
from hypotheses.experiment import Experiment
from hypotheses.metrics import METRICS
from hypotheses.record import Record
from hypotheses.report.reading import Section
from hypotheses.verdict import Bed, Difference, level

WORDS = (
    (
        "arm",
        "a network in its part: control (without what is tested), treatment (with it), negative control, sham, or extra",
    ),
    ("mixer", "what lets tokens see each other: a convolution, an SSM, attention; the negative control has none"),
    ("sham", "an SSM arm with its parameters and operations, whose every token sees itself alone: size without memory"),
    ("bed", "data, recipe and heads together; where they cannot tell a network without a mixer, they can tell nothing"),
    ("gate", "what must hold before a difference means anything; a gate that fails leaves the verdict inconclusive"),
    ("assay sensitivity", "the gate that the negative control clearly loses"),
    ("positive control", "a task that takes a memory, on which the SSM must do well and its sham must not"),
    ("margin", "the largest loss that does not matter; of a claimed gain, the smallest that does"),
    (
        "registered, exploratory",
        "written down before the runs; a verdict by a rule that was changed afterwards is exploratory",
    ),
    ("planned look", "a number of seeds at which the rule may be asked, with its share of the error"),
    ("Holm", "a correction of several tests at once, so that together they err no more often than one"),
)
PICTURES = "Validation images of seed 0, the same ones in every arm, as annotated and as predicted"


def interval(c: Difference) -> str:
    return f"{c.mean:+.2f} [{c.low:+.2f}, {c.high:+.2f}]"


def headline(s: Section) -> str:
    """The verdict in a sentence, with n, interval, unit, margin and scale."""
    v, hypothesis = s.verdict, s.hypothesis
    said = f"Hypothesis {hypothesis.hypothesis} at {s.scale} scale: {label(s).upper()}"
    if not has_runs(s):
        return f"{said}: {command(s)}"
    said += " (EXPLORATORY: not all runs were begun under this rule)" if v.changes else ""
    changes = []
    for bed in v.beds:
        if not bed.contrasts:
            continue
        title, margin = METRICS[bed.task][bed.metric].title, bed.margin
        if hypothesis.test == "dose_response":
            c = bed.contrasts[0]
            what = (
                f"with each doubling of L/(6D) the gain of {hypothesis.what} in {title} changes by {c.mean:+.2f} points"
            )
            limit = f"smallest slope of interest {margin:.2g}"
        elif hypothesis.test == "superiority":
            c = max(bed.contrasts, key=lambda c: c.low)
            what = f"on {s.bed(bed.task)} {hypothesis.what} changes {title} by {c.mean:+.2f} points"
            limit = f"smallest effect of interest {margin:g}"
        else:
            c = min(bed.contrasts, key=lambda c: c.low)
            what = f"without {hypothesis.what} {title} changes by {c.mean:+.2f} points"
            limit = f"margin -{margin:g}"
        seeds = f"n = {c.n} seeds"
        changes.append(f"{what} ({level(c.alpha)} interval {c.low:+.2f} to {c.high:+.2f}, {seeds}, {limit})")
    if not changes:
        return f"{said} ({v.reason})"
    text = "; ".join(changes)
    return f"{said}. {text[0].upper()}{text[1:]}: {v.reason}"


def has_runs(s: Section) -> bool:
    return any(s.runs[task] for task in s.hypothesis.tasks)


def label(s: Section) -> str:
    """The outcome, or that there is none yet."""
    if has_runs(s):
        return s.verdict.outcome
    return "only the positive control has run" if any(s.runs.values()) else "not run yet"


def remarks(s: Section) -> list[str]:
    """What stands below the verdict: changes of the rule, and what is shown beside it and decides nothing."""
    hypothesis = s.hypothesis
    lines = [f"Exploratory: {change}." for change in s.verdict.changes]
    for found in s.verdict.interactions:
        c = found.difference
        lines.append(
            f"Interaction, which decides nothing: the gain of {c.treatment} on {found.long} minus that on {found.short} is "
            f"{interval(c)} points ({level(c.alpha)} interval, n = {c.n} seeds), of two metrics; if the length mattered it would be "
            "above 0."
        )
    for bed in s.verdict.beds if s.arms.doses else ():
        told = [f"{c.treatment} over {c.control} {interval(c)}" for c in bed.extra if s.arms.reach]
        if told:
            lines.append(
                f"The other slopes, which decide nothing ({hypothesis.unit}, {level(hypothesis.alpha)} intervals, n = "
                f"{bed.extra[0].n} seeds): {'; '.join(told)}. Where a larger kernel's slope is as large as that of {hypothesis.what}, "
                "a longer reach would explain it as well."
            )
            lines.append(
                "L/(6D) is about what attention costs, not about what an SSM can do: nothing in it says that accuracy must follow it."
            )
    paired = any(bed.contrasts for bed in s.verdict.beds)  # so that the short task is what lacks runs
    if hypothesis.interaction and paired and not s.verdict.interactions:
        lines.append(
            f"The interaction with the short task, {' and '.join(hypothesis.interaction)}, is not known yet: "
            f"make sweep HYP=1{scale_word(s)}"
        )
    if hypothesis.positive_control and not hypothesis.memory_arms(s.scale):
        lines.append("No positive control is registered at this scale.")
    return lines


def scale_word(s: Section) -> str:
    return f" SCALE={s.scale}" if s.scale != "demo" else ""


def gates_title(hypothesis: Experiment) -> str:
    effect = (
        "keeps the task out of the verdict" if hypothesis.test == "superiority" else "makes the verdict inconclusive"
    )
    where = ", in any dose," if hypothesis.test == "dose_response" else ""
    return f"Gates, any of which{where} {effect}:"


MANY = 10  # arms that would not be read


def missing(bed: Bed) -> str:
    by_arm: dict[str, list[str]] = {}
    for arm, seed in bed.missing:
        by_arm.setdefault(arm, []).append(str(seed))
    if len(by_arm) > MANY:
        return f"{len(bed.missing)} runs of {len(by_arm)} arms, which make status lists"
    return "; ".join(f"{arm} seed {', '.join(seeds)}" for arm, seeds in by_arm.items())


def nothing_yet(bed: Bed) -> str:
    return f"None of its {len(bed.missing)} registered runs is there yet."


def rule(hypothesis: Experiment) -> str:
    """The registered rule in plain words, and the hash of the file that registers it."""
    metric = " or ".join(hypothesis.tasks.values())
    if hypothesis.test == "superiority":
        difference = f"e = {metric} of the arm minus that of the control"
        decided = (
            "Supported if on any task the interval's lower bound lies above 0 (Holm over tasks and treatments), refuted if on "
            "every task every upper bound lies below the smallest effect of interest, else inconclusive."
        )
    elif hypothesis.test == "dose_response":
        difference = f"e = {metric} of the arm minus that of the control in each dose; its slope on log2 of L/(6D), one for each seed"
        decided = (
            "Supported if the interval of the slope lies above 0, so does that of the slope over the sham, which is as large, and the "
            "mean slope by each way to vary the length is above 0; if not, refuted if the interval lies below the smallest slope of "
            "interest, which is the margin divided by the doublings from the shortest to the longest dose; else inconclusive. So a "
            "slope that is shown to be above 0 and below the smallest of interest is supported."
        )
    else:
        difference = f"d = {metric} of the control minus that of the arm"
        decided = (
            "Supported if for every treatment the interval lies above -margin, refuted if it lies below for any (Holm over "
            "treatments), else inconclusive."
        )
    over_images = (
        "The interval over images is "
        f"about judging the same trained networks on other images of that pool ({bootstrap.DRAWS} bootstrap draws of each seed's "
        "validation images, the same for both arms of a pair). Neither is about images from elsewhere. "
    )
    return (
        f"Rule of hypothesis {hypothesis.hypothesis}: {difference}, paired by seed (same data draw, order, "
        f"augmentation and initial values of shared layers); t interval with one-sided alpha {hypothesis.alpha:g} at each "
        f"planned look ({', '.join(map(str, hypothesis.looks))} seeds). {decided} This interval, over seeds, is about "
        "repeating the runs with other draws from the same pool of images, and it alone decides. "
        f"{'It is not about images from elsewhere. ' if hypothesis.test == 'dose_response' else over_images}"
        f"Registered in experiments/hypothesis_{hypothesis.hypothesis}.yaml, sha256 {hypothesis.sha256[:16]}."
    )


def command(s: Section) -> str:
    """What makes, or completes, the whole section."""
    seeds = len(s.verdict.seeds)
    more = f" SEEDS={seeds}" if seeds != s.hypothesis.looks[0] else ""
    needed = {*s.arms.registered(), *s.arms.shams.values()}
    more += " ARMS=all" if any(arm not in needed for task in s.hypothesis.tasks for arm, _ in s.runs[task]) else ""
    return f"make sweep HYP={s.hypothesis.hypothesis}{scale_word(s)}{more}"


AGAIN = "Beside the recorded ones, in again/. At pilot and paper scale add your hardware= and paths."


def row_command(records: list[Record]) -> str:
    """What makes the runs of one row again, beside the recorded ones."""
    config, seeds = records[0]["config"], " ".join(str(r["config"]["seed"]) for r in records)
    scale, of_all = config["scale"]["name"], [r["provenance"] for r in records]
    words = f"task={config['task']['name']} backbone={config['backbone']['name']}{'' if scale == 'demo' else f' scale={scale}'}"
    dose = records[0]["address"].split("/")[2].partition("+")[2]
    words += f" dose={dose}" if dose else ""
    if all("CPU" in p["device"] for p in of_all):
        words += f" hardware=cpu hardware.threads={of_all[0]['threads']}"
    return f"for s in {seeds}; do python -m hypotheses.run {words} seed=$s paths.results=again/results paths.outputs=again/outputs; done"


def length(measured: dict[str, Any]) -> str:
    """What the figures of benchmarks/length.py show, and on what they were measured."""
    return (
        f"One layer at equal width (D = {measured['dim']}): attention with {measured['heads']} heads and its projections, the SSM with N = "
        f"{measured['states']} states a channel; one sequence, float32; medians of {measured['rounds']} rounds with their range; "
        f"{measured['machine']}. To go on with the next token, causal attention keeps a key and a value of every token before it, the SSM "
        "its state alone. Attention's kernel keeps no L x L matrix. Lines: from L = 2D the quadratic part of such a layer, fully visible, is the "
        "larger one, from L = 6D that of a whole Transformer block. It is about cost, and decides nothing."
    )


def deviations(s: Section) -> list[str]:
    """What did not go as planned, or that nothing did."""
    none = (
        f"None: all {len(s.records)} runs were recorded at their first attempt, as registered and under the registered rule, by the "
        "same committed code."
    )
    return s.deviations or [none]


def provenance(s: Section) -> list[str]:
    """What the runs were made with; every distinct value is listed."""
    records = s.records
    if not records:
        return []

    def values(key: str) -> str:
        return ", ".join(sorted({str(r["provenance"][key]) for r in records}))

    packages = sorted({f"{k} {v}" for r in records for k, v in r["provenance"]["packages"].items()})
    data = sorted(
        {
            f"{task} seed {seed} {r['data_fingerprint'][:12]}"
            for task, found in s.runs.items()
            for (_, seed), r in found.items()
        }
    )
    return [
        f"commit {values('commit')}; training code {', '.join(sorted({r['provenance']['code'][:12] for r in records}))}",
        f"device {values('device')}, {values('threads')} thread(s) a run; Python {values('python')}; {', '.join(packages)}",
        f"data: {', '.join(data)}",
        *waiting(records),
    ]


def waiting(records: list[Record]) -> list[str]:
    """How long training waited for its data, where the records say it."""
    found = [r["provenance"]["waited_for_data"] for r in records if "waited_for_data" in r["provenance"]]
    shares = [100 * one["seconds"] / one["of"] for one in found if one["of"]]
    if not shares:
        return []
    middle = statistics.median(shares)
    return [
        f"training waited for data {middle:.1f} % of its time (median of {len(shares)} runs; {min(shares):.1f} to {max(shares):.1f} %)"
    ]
