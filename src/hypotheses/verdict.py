"""From paired metrics to a verdict: supported, refuted or inconclusive, by the registered rule, never anything else.

Hypothesis 1 claims that nothing is lost: d = metric(control) - metric(treatment), what is lost without the SSM. Hypothesis 2
claims a gain: e = metric(treatment) - metric(control). One value per seed, in units of the metric (points of a percentage). The
interval is the two-sided t interval at confidence 1 - 2 alpha, so that each of its ends is a one-sided test at alpha.
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hypotheses.experiment import Arms, Experiment, Gates
from hypotheses.metrics import METRICS
from hypotheses.record import Record, differences

SUPPORTED, REFUTED, INCONCLUSIVE = "supported", "refuted", "inconclusive"
POWER = 0.8  # with which the seeds that are still needed would decide

Runs = Mapping[tuple[str, int], Record]  # by (backbone, seed)


@dataclasses.dataclass(frozen=True)
class Difference:
    """A contrast over n seeds: the values of d (or, `turned`, of e), their mean, deviation and interval."""

    treatment: str
    control: str
    seeds: tuple[int, ...]
    d: tuple[float, ...]
    mean: float
    sd: float
    low: float
    high: float
    alpha: float

    @property
    def n(self) -> int:
        return len(self.d)

    def turned(self) -> "Difference":
        """The same as treatment - control, and back."""
        values = tuple(-value for value in self.d)
        return dataclasses.replace(self, d=values, mean=-self.mean, low=-self.high, high=-self.low)


@dataclasses.dataclass(frozen=True)
class Gate:
    name: str
    passed: bool
    detail: str


@dataclasses.dataclass(frozen=True)
class Bed:
    """What the records of one task say. Differences are of the kind that the hypothesis is about: d, or e."""

    task: str
    metric: str
    contrasts: tuple[Difference, ...]  # of each treatment
    assay: Difference | None  # of the negative control
    extra: tuple[Difference, ...]
    gates: tuple[Gate, ...]
    missing: tuple[tuple[str, int], ...]  # runs of this look that are not recorded, (backbone, seed)
    wanted: tuple[str, ...] = ()  # shams without whose runs a larger treatment that wins decides nothing
    margin: float = 0.0  # or the smallest effect, or slope, of interest

    @property
    def failed(self) -> list[str]:
        """Names of the gates that did not pass."""
        return [gate.name for gate in self.gates if not gate.passed]


@dataclasses.dataclass(frozen=True)
class Interaction:
    """e on a long task minus e on the short one, over the seeds that both have: what "because the sequence is long" predicts to
    be positive. The two are points of different metrics, so its sign says more than its size."""

    long: str
    short: str
    difference: Difference


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the report says of one hypothesis at one scale."""

    outcome: str  # SUPPORTED, REFUTED or INCONCLUSIVE
    reason: str
    beds: tuple[Bed, ...]  # by task
    seeds: tuple[int, ...]  # of the look that was judged
    changes: tuple[str, ...] = ()  # of the rule after runs were begun, which make the verdict exploratory
    interactions: tuple["Interaction", ...] = ()


def compare(
    runs: Runs, metric: str, treatment: str, control: str, seeds: Sequence[int], alpha: float, step: float = 0.0
) -> Difference | None:
    """d over those of `seeds` for which both arms are recorded; None for fewer than two. Of a metric that is rounded to `step` the
    deviation is taken as that of the rounding at least, step / sqrt(6), so that seeds which agree by rounding decide nothing."""
    both = [s for s in seeds if (treatment, s) in runs and (control, s) in runs]
    if len(both) < 2:
        return None
    values = {arm: np.array([runs[arm, s]["metrics"][metric] for s in both]) for arm in (control, treatment)}
    return estimate(treatment, control, both, values[control] - values[treatment], alpha, step)


def estimate(
    treatment: str, control: str, seeds: Sequence[int], values: np.ndarray, alpha: float, step: float = 0.0
) -> Difference:
    """The mean of one value per seed, with its t interval."""
    from scipy import stats

    d = np.round(values, 9)  # so that equal differences are equal
    mean, sd = float(d.mean()), max(float(d.std(ddof=1)), step / math.sqrt(6))
    half = float(stats.t.ppf(1 - alpha, len(d) - 1)) * sd / math.sqrt(len(d))
    return Difference(treatment, control, tuple(seeds), tuple(map(float, d)), mean, sd, mean - half, mean + half, alpha)


def interactions(experiment: Experiment, scale: str, runs: Mapping[str, Runs], look: int) -> tuple[Interaction, ...]:
    """Of every treatment and long task, over the seeds of the look for which the short task is recorded too."""
    arms, found = experiment.scales[scale], []
    for short, metric in experiment.interaction.items():
        for long, arm in itertools.product(experiment.tasks, arms.treatments):
            gains = [
                compare(runs.get(task, {}), name, arm, arms.control, range(look), experiment.alpha)
                for task, name in ((long, experiment.tasks[long]), (short, metric))
            ]
            e = [dict(zip(g.seeds, (-d for d in g.d), strict=True)) if g else {} for g in gains]
            if len(both := sorted(e[0].keys() & e[1].keys())) > 1:
                values = np.array([e[0][seed] - e[1][seed] for seed in both])
                found.append(Interaction(long, short, estimate(arm, arms.control, both, values, experiment.alpha)))
    return tuple(found)


def non_inferiority(contrasts: Sequence[Difference], margin: float, alpha: float) -> tuple[str, str, set[str]]:
    """The rule of hypothesis 1: outcome, reason, and the treatments that refute it.

    Supported if for every treatment the lower bound of d is above -margin: without the SSM nothing that matters is lost.
    Every one must hold, so alpha needs no correction. Refuted if for any treatment d is below -margin (one-sided t test
    at alpha, Holm over treatments). Else inconclusive.
    """
    from statsmodels.stats.multitest import multipletests

    worst = min(contrasts, key=lambda c: c.low)
    if worst.low > -margin:
        if worst.low > 0:
            how = "better without it"
        elif worst.high < 0:
            how = "worse without it, but by less than the margin"
        elif worst.high < margin:
            how = "equivalent: neither arm leads by the margin"
        else:
            how = "not worse without it"
        return SUPPORTED, f"the lower bound {worst.low:+.2f} is above the margin of -{margin:g} ({how})", set()
    p = [one_sided(-(c.mean + margin), c) for c in contrasts]
    holds = multipletests(p, alpha, method="holm")[0]
    if holds.any():
        gain = [c.treatment for c, held in zip(contrasts, holds, strict=True) if held]
        what = f"d is below the margin of -{margin:g} for {' and '.join(gain)}, with which more is gained"
        return REFUTED, f"{what} (Holm over treatments)", set(gain)
    need = seeds_needed(worst, margin)
    advice = f"about {need} seeds would decide with power {POWER:g}" if need else "more seeds would not decide it soon"
    return (
        INCONCLUSIVE,
        f"the interval {worst.low:+.2f} to {worst.high:+.2f} is on neither side of -{margin:g}; {advice}",
        set(),
    )


def superiority(
    beds: Mapping[str, Sequence[Difference]], margins: Mapping[str, float], pairs: int, alpha: float
) -> tuple[str, str, set[tuple[str, str]]]:
    """The rule of hypothesis 2: outcome, reason, and the (task, treatment) that are better.

    beds     e of each treatment, of the tasks whose gates are passed
    margins  the smallest effect of interest of each task
    pairs    of task and treatment that are registered; those that are not in `beds` count as not better

    Supported if on any task any treatment is better than its control (one-sided t test at alpha, Holm over all registered pairs).
    Refuted if all pairs are there and every upper bound of e lies below the smallest effect of interest: all must hold, so alpha
    needs no correction. Else inconclusive.
    """
    from statsmodels.stats.multitest import multipletests

    known = [(task, c) for task, contrasts in beds.items() for c in contrasts]
    if not known:
        return INCONCLUSIVE, "no task is left that could decide", set()
    p = [one_sided(c.mean, c) for _, c in known]
    p += [1.0] * (pairs - len(known))
    holds = multipletests(p, alpha, method="holm")[0]
    better = {(task, c.treatment): c for (task, c), held in zip(known, holds, strict=False) if held}
    if better:
        said = ", ".join(
            f"{treatment} on {task} ({'at least the' if c.low > margins[task] else 'perhaps less than the'} smallest "
            f"effect of interest, {margins[task]:g})"
            for (task, treatment), c in better.items()
        )
        return SUPPORTED, f"better than without it: {said}; Holm over {pairs} pairs of task and treatment", set(better)
    if len(known) == pairs and all(c.high < margins[task] for task, c in known):
        return REFUTED, "on every task any gain is smaller than the smallest effect of interest", set()
    best, contrast = min(zip(p, known, strict=False), key=lambda pair: pair[0])[1]
    need = seeds_needed(contrast, 0.0) if contrast.mean > 0 else None
    advice = f"; about {need} seeds would decide {best} with power {POWER:g} (without Holm)" if need else ""
    return INCONCLUSIVE, f"no gain is shown, nor that every gain is too small to matter{advice}", set()


def level(alpha: float) -> str:
    """Of an interval whose ends are one-sided tests at alpha."""
    return f"{100 * (1 - 2 * alpha):g} %"


def one_sided(excess: float, contrast: Difference) -> float:
    """p of the one-sided t test that a mean difference which exceeds a bound by `excess` does so by chance."""
    from scipy import stats

    if contrast.sd == 0:  # all seeds agree exactly
        return float(excess <= 0)
    return float(stats.t.sf(excess / (contrast.sd / math.sqrt(contrast.n)), contrast.n - 1))


def seeds_needed(contrast: Difference, margin: float) -> int | None:
    """Seeds for power POWER if the mean and deviation seen so far are the true ones; None above a thousand."""
    if contrast.sd == 0:
        return None
    return seeds_for(abs(contrast.mean + margin) / contrast.sd, contrast.alpha, contrast.n + 1)


def seeds_for(effect: float, alpha: float, first: int = 2) -> int | None:
    """Seeds, from `first` on, with which a one-sided paired t test at alpha sees a mean of `effect` deviations with power POWER;
    None above a thousand."""
    from statsmodels.stats.power import TTestPower

    def power(n: int) -> float:
        return TTestPower().power(effect, n, alpha, alternative="larger")

    seeds = range(first, 1001)
    found = bisect.bisect_left(seeds, POWER, key=power)
    return seeds[found] if found < len(seeds) else None


def detectable(n: int, alpha: float) -> float:
    """The mean, in deviations, that a one-sided paired t test at alpha sees with power POWER in n seeds."""
    from statsmodels.stats.power import TTestPower

    return float(TTestPower().solve_power(nobs=n, alpha=alpha, power=POWER, alternative="larger"))


def judge(
    experiment: Experiment,
    scale: str,
    runs: Mapping[str, Runs],
    unregistered: Mapping[str, Sequence[str]] | None = None,
) -> Verdict:
    """The verdict from the records of one scale, at the smallest planned look that covers every seed that was begun: a
    run that failed on the way to a later look keeps that look open, it does not fall back to the one before.

    runs          the records of each task
    unregistered  by task, what is recorded differently from how the experiment would run it, as texts
    """
    arms, alpha = experiment.scales[scale], experiment.alpha
    decisive = (key for task in experiment.tasks for key in runs.get(task, {}) if key[0] in arms.registered())
    begun = 1 + max((seed for _, seed in decisive), default=0)
    look = min((n for n in experiment.looks if n >= begun), default=experiment.looks[-1])
    if experiment.test == "dose_response":
        from hypotheses import response  # which imports this file

        (task,) = experiment.tasks
        odd = (unregistered or {}).get(task, ())
        return response.judge(experiment, scale, runs.get(task, {}), range(look), odd)
    beds = [judge_bed(experiment, scale, task, runs, look, unregistered or {}) for task in experiment.tasks]

    def with_size(bed: Bed, winners: Sequence[str]) -> Bed:
        """The bed with the gate that needs to know which treatments win."""
        size, wanted = matched_size(runs[bed.task], bed.metric, arms, winners, look, experiment)
        return dataclasses.replace(bed, gates=(*bed.gates, size), wanted=() if bed.failed else wanted)

    seeds = tuple(range(look))
    if experiment.test == "superiority":
        long_short = interactions(experiment, scale, runs, look)
        return Verdict(*judge_superiority(beds, arms, alpha, with_size), seeds=seeds, interactions=long_short)
    (bed,) = beds
    if bed.missing:
        return Verdict(INCONCLUSIVE, bed.gates[0].detail, (bed,), seeds)
    outcome, reason, better = non_inferiority(bed.contrasts, arms.margin[bed.task], alpha)
    bed = with_size(bed, sorted(better))
    if bed.failed:
        reason = f"gate not passed: {', '.join(bed.failed)}; without it: {outcome}, {reason}"
        outcome = INCONCLUSIVE
    return Verdict(outcome, reason, (bed,), seeds)


def judge_superiority(
    beds: Sequence[Bed], arms: Arms, alpha: float, with_size: Callable[[Bed, Sequence[str]], Bed]
) -> tuple[str, str, tuple[Bed, ...]]:
    """Outcome, reason and beds: the rule over the beds whose gates are passed, and again without those whose winner is larger."""
    pairs = len(beds) * len(arms.treatments)

    def rule(beds: Sequence[Bed]) -> tuple[str, str, set[tuple[str, str]]]:
        sound = {bed.task: bed.contrasts for bed in beds if not bed.failed}
        return superiority(sound, arms.margin, pairs, alpha)

    outcome, reason, better = rule(beds)
    sized = [bed if bed.failed else with_size(bed, [arm for task, arm in better if task == bed.task]) for bed in beds]
    if sum(bool(bed.failed) for bed in sized) > sum(bool(bed.failed) for bed in beds):
        without = f"; but for that gate: {outcome}, {reason}"
        outcome, reason, _ = rule(sized)
        reason += without
    failed = "; ".join(f"{', '.join(bed.failed)} ({bed.task})" for bed in sized if bed.failed)
    if failed and outcome == SUPPORTED:
        reason += f"; not counted, its gate not passed: {failed}"
    elif failed:
        outcome, reason = INCONCLUSIVE, f"gate not passed: {failed}; {reason}"
    return outcome, reason, tuple(sized)


def judge_bed(
    experiment: Experiment,
    scale: str,
    task: str,
    by_task: Mapping[str, Runs],
    look: int,
    unregistered: Mapping[str, Sequence[str]],
) -> Bed:
    """The differences and gates of one task; of an incomplete one what there is, and the gate that says so. The gate of matched
    size needs an outcome and is not among them."""
    arms, metric, seeds = experiment.scales[scale], experiment.tasks[task], range(look)
    runs = by_task.get(task, {})
    margin, chance = arms.margin[task], arms.chance[task]

    def differ(treatment: str, control: str) -> Difference | None:
        step = METRICS[task][metric].step
        return compare(runs, metric, treatment, control, seeds, experiment.alpha, step)

    missing = [(arm, seed) for seed in seeds for arm in arms.registered() if (arm, seed) not in runs]
    contrasts = [c for arm in arms.treatments if (c := differ(arm, arms.control))]
    assay = differ(arms.negative_control, arms.control)
    extra = [c for pair in arms.extra if (c := differ(pair.treatment, pair.control))]
    gates = [complete(look, missing, arms)]
    if not missing:
        assert assay
        gates += [
            registered(unregistered.get(task, ())),
            same_recipe(runs, arms.registered(), seeds, experiment.pair_may_differ),
            same_provenance(runs, arms.registered(), seeds),
            assay_sensitivity(assay, margin, experiment.gates.assay_share),
            *positive_control(experiment, scale, by_task, unregistered, runs[arms.control, 0]),
            ceiling_and_floor(runs, metric, arms, seeds, margin, chance, experiment.gates),
            trained(runs, metric, arms, seeds, margin, experiment.gates),
        ]
    if experiment.test == "superiority":
        contrasts, extra = [c.turned() for c in contrasts], [c.turned() for c in extra]
        assay = assay and assay.turned()
    return Bed(task, metric, tuple(contrasts), assay, tuple(extra), tuple(gates), tuple(missing), margin=margin)


# ---- gates: what must hold before a difference means anything --------------------------------------------------------


def complete(look: int, missing: Sequence[tuple[str, int]], arms: Arms) -> Gate:
    """Every registered run exists: a run that crashed or diverged is not dropped."""
    total = look * len(arms.registered())
    return Gate("complete", not missing, f"{total - len(missing)} of the {total} registered runs are recorded")


def registered(unregistered: Sequence[str]) -> Gate:
    """The runs are those that the experiment's file asks for, not others at the same address."""
    detail = "; ".join(unregistered) or "every run has the configuration that the experiment composes to"
    return Gate("registered configuration", not unregistered, detail)


def pairs(runs: Runs, arms: Sequence[str], seeds: Sequence[int]) -> list[tuple[Record, Record]]:
    """(the first arm, another one) of each seed."""
    return [(runs[arms[0], seed], runs[arm, seed]) for seed in seeds for arm in arms[1:]]


def same_recipe(runs: Runs, arms: Sequence[str], seeds: Sequence[int], may_differ: Sequence[str]) -> Gate:
    """The configs of the first arm and of another one differ in the registered keys only."""
    odd: dict[str, Any] = {}
    for control, other in pairs(runs, arms, seeds):
        for key, ours, theirs in differences(control["config"], other["config"]):
            if key not in may_differ:
                odd[key] = f"{key} ({ours} against {theirs} in {other['address']})"
    detail = (
        f"differs: {'; '.join(odd.values())}"
        if odd
        else f"the configs of a pair differ in {', '.join(may_differ)} only"
    )
    return Gate("same recipe", not odd, detail)


def same_provenance(runs: Runs, arms: Sequence[str], seeds: Sequence[int], kernels: bool = True) -> Gate:
    """All runs had the same code, software and kind of device, and the runs of a seed the same data. The number of
    threads may differ: it moves no more than rounding; and so do `kernels`, where they are not asked for."""
    first = runs[arms[0], seeds[0]]

    def view(record: Record) -> dict[str, Any]:
        return {key: record["provenance"][key] for key in ("code", "python", "packages", "device", "hardware")}

    odd = {}
    ways: dict[str, str] = {}  # an arm without a scan has no kernel for one
    for seed in seeds:
        for arm in arms:
            run = runs[arm, seed]
            odd |= {key.split(".")[0]: run["address"] for key, _, _ in differences(view(first), view(run))}
            used = run["provenance"]["kernels"]
            if kernels and any(ways.setdefault(part, used[part]) != used[part] for part in used):
                odd["kernels"] = run["address"]
    for control, other in pairs(runs, arms, seeds):
        if control["data_fingerprint"] != other["data_fingerprint"]:
            odd["data"] = other["address"]
    name = "same data, code and software"
    if odd:
        listed = "; ".join(f"{key} of {address}" for key, address in odd.items())
        return Gate(name, False, f"differs: {listed}; delete the records that are to be made again")
    return Gate(name, True, "code, packages, kernels and device are equal in all runs, the data within every seed")


def assay_sensitivity(assay: Difference, margin: float, share: float) -> Gate:
    """The test bed can see a token mixer: the negative control loses by more than the margin, and the margin is a small
    share of what it loses (ICH E10's demand on a claim of 'no worse')."""
    passed = assay.low > margin and margin <= share * assay.mean
    detail = (
        f"without any mixer {assay.mean:.1f} points are lost ({level(assay.alpha)} interval {assay.low:.1f} to {assay.high:.1f}, "
        f"n = {assay.n}); "
        f"the margin of {margin:g} is {100 * margin / assay.mean:.0f} % of that, at most {100 * share:g} % is allowed"
        if assay.mean > 0
        else f"the negative control does not lose: {assay.mean:.1f} points (n = {assay.n})"
    )
    return Gate("assay sensitivity", passed, detail)


def positive_control(
    experiment: Experiment,
    scale: str,
    by_task: Mapping[str, Runs],
    unregistered: Mapping[str, Sequence[str]],
    of_bed: Record,
) -> list[Gate]:
    """On a task that takes a memory every treatment shows one, and neither its sham nor the control does: the treatment is what it
    is called. By the same code and software as `of_bed`, a run of the bed that it vouches for. Empty where the experiment asks for
    no such control."""
    names, control = experiment.memory_arms(scale), experiment.positive_control
    if not control or not names:
        return []
    runs, seeds, treatments = by_task.get(control.task, {}), range(control.seeds), experiment.scales[scale].treatments
    wanted, name = experiment.memory_runs(scale), "positive control"
    if (there := sum(run in runs for run in wanted)) < len(wanted):
        return [Gate(name, False, f"{there} of the {len(wanted)} runs of {control.task} are recorded")]
    checks = (
        registered(unregistered.get(control.task, ())),
        same_recipe(runs, names, seeds, experiment.pair_may_differ),
        same_provenance(runs, names, seeds),
    )
    odd = [f"on {control.task} {gate.name} does not hold: {gate.detail}" for gate in checks if not gate.passed]
    if changed := sorted({key for run in wanted for key in unlike(runs[run]["provenance"], of_bed["provenance"])}):
        odd.append(
            f"the runs of {control.task} differ from {of_bed['address']} in {', '.join(changed)}: delete their records"
        )
    values = {a: [runs[a, s]["metrics"][control.metric] for s in seeds] for a in names}
    means = {a: float(np.mean(v)) for a, v in values.items()}
    solved, unsolved = (
        ", ".join(
            f"{a} {means[a]:.1f} ({min(v):.1f} to {max(v):.1f})" for a, v in values.items() if (a in treatments) is it
        )
        for it in (True, False)
    )
    passed = all(m >= control.solved if a in treatments else m <= control.unsolved for a, m in means.items())
    detail = (
        f"on {control.task} {solved}, at least {control.solved:g} needed; without memory {unsolved}, at most {control.unsolved:g} "
        f"allowed ({METRICS[control.task][control.metric].title} in percent, means and ranges, n = {control.seeds})"
    )
    return [Gate(name, passed and not odd, "; ".join([detail, *odd]))]


def unlike(a: Mapping[str, Any], b: Mapping[str, Any]) -> set[str]:
    """In which of code, software and device two runs of different tasks differ, by their provenance; of packages and kernels
    those count that both have used."""
    found = {key for key in ("code", "python", "device", "hardware") if a[key] != b[key]}
    for key in ("packages", "kernels"):
        found |= {key for name in a[key].keys() & b[key].keys() if a[key][name] != b[key][name]}
    return found


def ceiling_and_floor(
    runs: Runs, metric: str, arms: Arms, seeds: Sequence[int], margin: float, chance: float, gates: Gates
) -> Gate:
    """There is room above the better arm and below the control, in percent of the metric."""
    means = {
        a: float(np.mean([runs[a, s]["metrics"][metric] for s in seeds])) for a in (arms.control, *arms.treatments)
    }
    top, low = max(means.values()), means[arms.control]
    most, least = 100 - gates.ceiling_margins * margin, gates.floor_chances * chance
    detail = f"best arm {top:.1f}, at most {most:.1f} allowed; control {low:.1f}, at least {least:.1f} needed (means, n = {len(seeds)})"
    return Gate("ceiling and floor", top <= most and low >= least, detail)


def trained(runs: Runs, metric: str, arms: Arms, seeds: Sequence[int], margin: float, gates: Gates) -> Gate:
    """Training had levelled off: the tail of the schedule gained no arm more than the margin. It cannot tell whether a
    longer schedule would gain more."""
    gains = {}
    for arm in (arms.control, *arms.treatments):
        gain = []
        for seed in seeds:
            curve = [row[metric] for row in runs[arm, seed]["curve"] if metric in row]
            if len(curve) < 4:  # too few validations to tell by
                gain.append(math.inf)
                continue
            last_before = min(math.floor((1 - gates.trained_tail) * len(curve)), len(curve) - 1)
            gain.append(runs[arm, seed]["metrics"][metric] - curve[last_before - 1])
        gains[arm] = float(np.mean(gain))
    worst = max(gains, key=lambda arm: gains[arm])
    most = gates.trained_margins * margin
    detail = (
        f"the last {100 * gates.trained_tail:g} % of the schedule, but one validation at least, gained {worst} most: "
        f"{gains[worst]:.1f} points (mean, n = {len(seeds)}), at most {most:g} allowed"
    )
    return Gate("trained", gains[worst] <= most, detail)


def matched_size(
    runs: Runs, metric: str, arms: Arms, winners: Sequence[str], look: int, experiment: Experiment
) -> tuple[Gate, tuple[str, ...]]:
    """Parameters and MACs agree, or no treatment wins that is larger, or it beats its sham too, which is as large: one-sided at
    alpha, on every seed of the look. As the sham is asked only after a win, alpha needs no further share. With the gate: the
    shams whose runs would settle it.

    winners  the treatments that are better than their control
    """
    control = runs[arms.control, 0]["cost"]
    details, passed, wanted = [], True, []
    for arm in arms.treatments:
        cost = runs[arm, 0]["cost"]
        percent = {key: 100 * (cost[key] / control[key] - 1) for key in ("params", "macs")}
        within = (
            abs(percent["params"]) <= experiment.gates.params_percent
            and abs(percent["macs"]) <= experiment.gates.macs_percent
        )
        details.append(f"{arm} has {percent['params']:+.1f} % parameters, {percent['macs']:+.1f} % MACs")
        if within or arm not in winners or max(percent.values()) <= 0:
            continue
        beaten, said = beats_sham(runs, metric, arms, arm, look, experiment)
        details[-1] += f", and wins; {said}"
        passed &= beaten is True
        wanted += [arms.shams[arm]] if beaten is None else []
    tail = "no arm wins by its size" if passed else "the larger arm's size alone may explain it"
    return Gate("matched size", passed, f"{'; '.join(details)}: {tail}"), tuple(wanted)


def beats_sham(
    runs: Runs, metric: str, arms: Arms, arm: str, look: int, experiment: Experiment
) -> tuple[bool | None, str]:
    """Whether a treatment is better than its sham, None if that needs more runs; and what there is to say of it."""
    if (sham := arms.shams.get(arm)) is None:
        return False, "no sham of it is registered"
    seeds = range(look)
    there = sum((sham, seed) in runs for seed in seeds)
    if there < look:
        return None, f"its sham, which is as large, is to be compared: {there} of {look} runs of {sham} are recorded"
    step = METRICS[runs[sham, 0]["config"]["task"]["name"]][metric].step
    gain = compare(runs, metric, sham, arm, seeds, experiment.alpha, step)
    assert gain
    with_it = [*arms.registered(), sham]
    for gate in (
        same_recipe(runs, with_it, seeds, experiment.pair_may_differ),
        same_provenance(runs, with_it, seeds),
    ):
        if not gate.passed:
            return False, f"its sham cannot be compared: {gate.detail}"
    return (
        gain.low > 0,
        f"over its sham, which is as large, it gains {gain.mean:+.2f} points ({level(gain.alpha)} interval {gain.low:+.2f} to "
        f"{gain.high:+.2f}, n = {gain.n})",
    )
