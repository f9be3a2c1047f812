"""From paired metrics to a verdict: supported, refuted or inconclusive, by the registered rule, never anything else.

d = metric(control) - metric(treatment), one value per seed: what is lost without the SSM, in units of the metric (points
of a percentage). The interval is the two-sided t interval at confidence 1 - 2 alpha, so that each of its ends is a
one-sided test at alpha.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hypotheses.experiment import Arms, Experiment, Gates
from hypotheses.record import Record, differences

SUPPORTED, REFUTED, INCONCLUSIVE = "supported", "refuted", "inconclusive"
POWER = 0.8  # with which the seeds that are still needed would decide

Runs = Mapping[tuple[str, int], Record]  # by (backbone, seed)


@dataclasses.dataclass(frozen=True)
class Difference:
    """A contrast over n seeds: the values of d, their mean, deviation and interval."""

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


@dataclasses.dataclass(frozen=True)
class Gate:
    name: str
    passed: bool
    detail: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the report says of one hypothesis at one scale."""

    outcome: str  # SUPPORTED, REFUTED or INCONCLUSIVE
    reason: str
    seeds: tuple[int, ...]  # of the look that was judged
    contrasts: tuple[Difference, ...]  # control against each treatment
    assay: Difference | None  # control against the negative control
    extra: tuple[Difference, ...]
    gates: tuple[Gate, ...]
    missing: tuple[tuple[str, int], ...]  # runs of this look that are not recorded, (backbone, seed)


def compare(
    runs: Runs, metric: str, treatment: str, control: str, seeds: Sequence[int], alpha: float
) -> Difference | None:
    """d over those of `seeds` for which both arms are recorded; None for fewer than two."""
    from scipy import stats

    both = [s for s in seeds if (treatment, s) in runs and (control, s) in runs]
    if len(both) < 2:
        return None
    values = {arm: np.array([runs[arm, s]["metrics"][metric] for s in both]) for arm in (control, treatment)}
    d = values[control] - values[treatment]
    mean, sd = float(d.mean()), float(d.std(ddof=1))
    if sd > 0:
        interval = stats.ttest_1samp(d, 0).confidence_interval(1 - 2 * alpha)
        low, high = float(interval.low), float(interval.high)
    else:  # all seeds agree exactly, where the t interval is a point
        low = high = mean
    return Difference(treatment, control, tuple(both), tuple(map(float, d)), mean, sd, low, high, alpha)


def non_inferiority(contrasts: Sequence[Difference], margin: float, alpha: float) -> tuple[str, str]:
    """The rule of hypothesis 1, and why: (outcome, reason).

    Supported if for every treatment the lower bound of d is above -margin: without the SSM nothing that matters is lost.
    Every one must hold, so alpha needs no correction. Refuted if for any treatment d is below -margin (one-sided t test
    at alpha, Holm over treatments). Else inconclusive.
    """
    from scipy import stats
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
        return SUPPORTED, f"the lower bound {worst.low:+.2f} is above the margin of -{margin:g} ({how})"
    p = [
        np.asarray(stats.ttest_1samp(c.d, -margin, alternative="less"))[1] if c.sd > 0 else float(c.mean >= -margin)
        for c in contrasts
    ]
    if multipletests(p, alpha, method="holm")[0].any():
        best = contrasts[int(np.argmin(p))]
        return (
            REFUTED,
            f"d is below the margin of -{margin:g} for {best.treatment}, which gains more (Holm over treatments)",
        )
    need = seeds_needed(worst, margin)
    advice = f"about {need} seeds would decide with power {POWER:g}" if need else "more seeds would not decide it soon"
    return (
        INCONCLUSIVE,
        f"the interval {worst.low:+.2f} to {worst.high:+.2f} is on neither side of -{margin:g}; {advice}",
    )


def seeds_needed(contrast: Difference, margin: float) -> int | None:
    """Seeds for power POWER if the mean and deviation seen so far are the true ones; None above a thousand."""
    from statsmodels.stats.power import TTestPower

    if contrast.sd == 0:
        return None
    effect = abs(contrast.mean + margin) / contrast.sd
    for n in range(contrast.n + 1, 1001):
        if TTestPower().power(effect, n, contrast.alpha, alternative="larger") >= POWER:
            return n
    return None


def judge(experiment: Experiment, scale: str, runs: Runs, unregistered: Sequence[str] = ()) -> Verdict:
    """The verdict from the records of one scale, at the smallest planned look that covers every seed that was begun: a
    run that failed on the way to a later look keeps that look open, it does not fall back to the one before.

    unregistered  what is recorded differently from how the experiment would run it, as texts
    """
    arms, metric, alpha = experiment.scales[scale], experiment.metric, experiment.alpha

    def missing(look: int) -> list[tuple[str, int]]:
        return [(arm, seed) for seed in range(look) for arm in arms.registered() if (arm, seed) not in runs]

    begun = 1 + max((seed for arm, seed in runs if arm in arms.registered()), default=0)
    look = min((n for n in experiment.looks if n >= begun), default=experiment.looks[-1])
    seeds = tuple(range(look))
    contrasts = [compare(runs, metric, arm, arms.control, seeds, alpha) for arm in arms.treatments]
    assay = compare(runs, metric, arms.negative_control, arms.control, seeds, alpha)
    extra = [compare(runs, metric, c.treatment, c.control, seeds, alpha) for c in arms.extra]
    known = tuple(c for c in contrasts if c)
    gates = [complete(look, missing(look), arms)]
    outcome, reason = INCONCLUSIVE, gates[0].detail
    if gates[0].passed:
        assert assay and len(known) == len(contrasts)
        outcome, reason = non_inferiority(known, arms.margin, alpha)
        gates += [
            registered(unregistered),
            same_recipe(runs, arms, seeds, experiment.pair_may_differ),
            same_provenance(runs, arms, seeds),
            assay_sensitivity(assay, arms.margin, experiment.gates.assay_share),
            ceiling_and_floor(runs, metric, arms, seeds, experiment),
            trained(runs, metric, arms, seeds, experiment.gates),
            matched_size(runs, arms, outcome, experiment),
        ]
        if failed := [gate.name for gate in gates if not gate.passed]:
            reason = f"gate: {', '.join(failed)}; without it: {outcome}, {reason}"
            outcome = INCONCLUSIVE
    return Verdict(
        outcome, reason, seeds, known, assay, tuple(c for c in extra if c), tuple(gates), tuple(missing(look))
    )


# ---- gates: what must hold before a difference means anything --------------------------------------------------------


def complete(look: int, missing: Sequence[tuple[str, int]], arms: Arms) -> Gate:
    """Every registered run exists: a run that crashed or diverged is not dropped."""
    total = look * len(arms.registered())
    return Gate("complete", not missing, f"{total - len(missing)} of the {total} registered runs are recorded")


def registered(unregistered: Sequence[str]) -> Gate:
    """The runs are those that the experiment's file asks for, not others at the same address."""
    detail = "; ".join(unregistered) or "every run has the configuration that the experiment composes to"
    return Gate("registered configuration", not unregistered, detail)


def pairs(runs: Runs, arms: Arms, seeds: Sequence[int]) -> list[tuple[Record, Record]]:
    """(control, other arm) of each seed."""
    return [(runs[arms.control, s], runs[arm, s]) for s in seeds for arm in arms.registered() if arm != arms.control]


def same_recipe(runs: Runs, arms: Arms, seeds: Sequence[int], may_differ: Sequence[str]) -> Gate:
    """The two configs of a pair differ in the registered keys only."""
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


def same_provenance(runs: Runs, arms: Arms, seeds: Sequence[int]) -> Gate:
    """All runs had the same code, software and kind of device, and the runs of a seed the same data. The number of
    threads may differ: it moves no more than rounding."""
    first = runs[arms.control, seeds[0]]

    def view(record: Record) -> dict[str, Any]:
        return {key: record["provenance"][key] for key in ("code", "python", "packages", "device", "hardware")}

    odd = {}
    kernels: dict[str, str] = {}  # an arm without a scan has no kernel for one
    for seed in seeds:
        for arm in arms.registered():
            run = runs[arm, seed]
            odd |= {key.split(".")[0]: run["address"] for key, _, _ in differences(view(first), view(run))}
            used = run["provenance"]["kernels"]
            if any(kernels.setdefault(part, used[part]) != used[part] for part in used):
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
        f"without any mixer {assay.mean:.1f} points are lost ({assay.low:.1f} to {assay.high:.1f}, n = {assay.n}); "
        f"the margin of {margin:g} is {100 * margin / assay.mean:.0f} % of that, at most {100 * share:g} % is allowed"
        if assay.mean > 0
        else f"the negative control does not lose: {assay.mean:.1f} points (n = {assay.n})"
    )
    return Gate("assay sensitivity", passed, detail)


def ceiling_and_floor(runs: Runs, metric: str, arms: Arms, seeds: Sequence[int], experiment: Experiment) -> Gate:
    """There is room above the better arm and below the control, in percent of the metric."""
    means = {
        a: float(np.mean([runs[a, s]["metrics"][metric] for s in seeds])) for a in (arms.control, *arms.treatments)
    }
    top, low = max(means.values()), means[arms.control]
    most = 100 - experiment.gates.ceiling_margins * arms.margin
    least = experiment.gates.floor_chances * arms.chance
    detail = f"best arm {top:.1f}, at most {most:.1f} allowed; control {low:.1f}, at least {least:.1f} needed (means, n = {len(seeds)})"
    return Gate("ceiling and floor", top <= most and low >= least, detail)


def trained(runs: Runs, metric: str, arms: Arms, seeds: Sequence[int], gates: Gates) -> Gate:
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
    most = gates.trained_margins * arms.margin
    detail = (
        f"the last {100 * gates.trained_tail:g} % of the schedule, but one validation at least, gained {worst} most: "
        f"{gains[worst]:.1f} points (mean, n = {len(seeds)}), at most {most:g} allowed"
    )
    return Gate("trained", gains[worst] <= most, detail)


def matched_size(runs: Runs, arms: Arms, outcome: str, experiment: Experiment) -> Gate:
    """Parameters and MACs agree, or the arm that wins is not the larger one."""
    control = runs[arms.control, 0]["cost"]
    details, passed = [], True
    for arm in arms.treatments:
        cost = runs[arm, 0]["cost"]
        percent = {key: 100 * (cost[key] / control[key] - 1) for key in ("params", "macs")}
        within = (
            abs(percent["params"]) <= experiment.gates.params_percent
            and abs(percent["macs"]) <= experiment.gates.macs_percent
        )
        larger_wins = outcome == REFUTED and max(percent.values()) > 0
        passed &= within or not larger_wins
        details.append(f"{arm} has {percent['params']:+.1f} % parameters, {percent['macs']:+.1f} % MACs")
    tail = (
        "the larger arm does not win, or the sizes agree"
        if passed
        else "the larger arm wins, which its size alone may explain: compare it with its sham (ARMS=all)"
    )
    return Gate("matched size", passed, f"{'; '.join(details)}: {tail}")
