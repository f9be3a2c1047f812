"""The dose-response: how what an arm gains changes with the length of the sequence for its width, r = L/(6D).

In each dose, and for each seed, e = metric(arm) - metric(control). Each seed has one slope: that of the least-squares line of its e on
log2 r over the doses, in points per doubling of r. On log2 r, since doses are powers apart, and on r itself the longest one alone would
make the slope. The interval is the t interval over seeds: the doses of a seed share its draw of data and initial values, so what is
drawn again is a seed and not a dose.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence

import numpy as np

from hypotheses.config import Config
from hypotheses.errors import UserError
from hypotheses.experiment import Arms, Experiment, at
from hypotheses.metrics import METRICS
from hypotheses.verdict import (
    INCONCLUSIVE,
    POWER,
    REFUTED,
    SUPPORTED,
    Bed,
    Difference,
    Gate,
    Runs,
    Verdict,
    assay_sensitivity,
    ceiling_and_floor,
    compare,
    complete,
    estimate,
    registered,
    same_provenance,
    same_recipe,
    seeds_needed,
    trained,
)


@dataclasses.dataclass(frozen=True)
class Response:
    """A contrast over doses. `gains` is e in each dose, over the seeds that both arms have in all of them; `ratios` r of each;
    `slope` that of e on log2 r, one value per seed."""

    gains: dict[str, Difference]
    ratios: dict[str, float]
    slope: Difference

    def line(self, ratio: float, seed: int | None = None) -> float:
        """The line of the seed of that place, or the mean of all of them, at a ratio."""
        middle = sum(map(math.log2, self.ratios.values())) / len(self.ratios)
        level = sum(e.mean if seed is None else e.d[seed] for e in self.gains.values()) / len(self.gains)
        slope = self.slope.mean if seed is None else self.slope.d[seed]
        return level + slope * (math.log2(ratio) - middle)


def ratio(config: Config) -> float:
    """r = L/(6D) of a run, in the first stage of its network."""
    from hypotheses import cost

    return ratio_of(json.dumps(config["backbone"]), cost.image_size(config, None))


@functools.cache
def ratio_of(backbone: str, size: tuple[int, int]) -> float:
    from hypotheses import cost

    return cost.stages(json.loads(backbone), *size)[0].ratio


def ratios(runs: Runs, arms: Arms, doses: Sequence[str]) -> dict[str, float]:
    """r of each dose, from what its runs were; those without a run of the control are left out."""
    firsts = {dose: run for dose in doses for (arm, _), run in runs.items() if arm == at(arms.control, dose)}
    return {dose: ratio(firsts[dose]["config"]) for dose in doses if dose in firsts}


def weights(x: np.ndarray) -> np.ndarray:
    """Of the values at x in the slope of their least-squares line."""
    centred = x - x.mean()
    if not centred.any():
        raise UserError(
            "the doses have all the same L/(6D), and a slope over them is none: give others in scales.*.doses"
        )
    return centred / (centred**2).sum()


def respond(
    runs: Runs,
    arms: Arms,
    metric: str,
    treatment: str,
    control: str,
    doses: Sequence[str],
    seeds: Sequence[int],
    alpha: float,
    step: float,
) -> Response | None:
    """A contrast over doses; None where fewer than two seeds have both arms in all of them."""
    needed = [at(arm, dose) for arm in (treatment, control) for dose in doses]
    whole = [seed for seed in seeds if all((arm, seed) in runs for arm in needed)]
    if len(whole) < 2:
        return None
    found = ratios(runs, arms, doses)
    gains = {}
    for dose in doses:
        difference = compare(runs, metric, at(treatment, dose), at(control, dose), whole, alpha, step)
        assert difference
        gains[dose] = difference.turned()
    w = weights(np.log2([found[dose] for dose in doses]))
    slopes = w @ np.array([gains[dose].d for dose in doses])
    # a metric in steps leaves a slope uncertain by the share of each dose in it
    return Response(gains, found, estimate(treatment, control, whole, slopes, alpha, step * float(np.linalg.norm(w))))


def contrasts(arms: Arms) -> list[tuple[str, str]]:
    """(arm, control) of every slope that is shown, the deciding ones first: the treatment over its control and over its sham."""
    (treatment,) = arms.treatments
    sham = arms.shams[treatment]
    others = [(sham, arms.control)] + [(arm, arms.control) for arm in arms.reach] + [(treatment, a) for a in arms.reach]
    return [(treatment, arms.control), (treatment, sham), *others]


def responses(experiment: Experiment, arms: Arms, runs: Runs, seeds: Sequence[int], way: str = "") -> list[Response]:
    """Of every contrast that has the runs for it, over all doses or those of one way."""
    ((task, metric),) = experiment.tasks.items()
    doses = arms.doses[way] if way else arms.each_dose()
    found = [
        respond(runs, arms, metric, *pair, doses, seeds, experiment.alpha, METRICS[task][metric].step)
        for pair in contrasts(arms)
    ]
    return [response for response in found if response]


def judge(experiment: Experiment, scale: str, runs: Runs, seeds: Sequence[int], unregistered: Sequence[str]) -> Verdict:
    """The verdict of a dose_response from the runs of a look; its one bed has slopes for differences."""
    arms = experiment.scales[scale]
    ((task, metric),) = experiment.tasks.items()
    found = [response.slope for response in responses(experiment, arms, runs, seeds)]
    missing = [(arm, seed) for seed in seeds for arm in arms.registered() if (arm, seed) not in runs]
    margin = arms.margin[task]
    known = ratios(runs, arms, arms.each_dose())
    if len(known) == len(arms.each_dose()):
        margin /= math.log2(max(known.values()) / min(known.values()))
    gates = [complete(len(seeds), missing, arms)]
    if not missing:
        gates += [registered(unregistered), *gates_of_doses(experiment, arms, metric, task, runs, seeds)]
    (treatment,) = arms.treatments
    deciding = [c for c in found if c.treatment == treatment and c.control in (arms.control, arms.shams[treatment])]
    extra = tuple(c for c in found if c not in deciding)
    bed = Bed(task, metric, tuple(deciding), None, extra, tuple(gates), tuple(missing), margin=margin)
    if missing:
        return Verdict(INCONCLUSIVE, gates[0].detail, (bed,), tuple(seeds))
    slope, over_sham = deciding
    by_way = {way: responses(experiment, arms, runs, seeds, way)[0].slope for way in arms.doses}
    outcome, reason = rule(slope, over_sham, by_way, margin)
    if bed.failed:
        outcome, reason = INCONCLUSIVE, f"gate not passed: {', '.join(bed.failed)}; without it: {outcome}, {reason}"
    return Verdict(outcome, reason, (bed,), tuple(seeds))


def rule(slope: Difference, over_sham: Difference, by_way: Mapping[str, Difference], margin: float) -> tuple[str, str]:
    """Outcome and reason. Asked in this order, so that a slope which is shown to be above 0 and below the margin is supported:

    supported     the slope is above 0, so is that over the sham, which is as large (each one-sided at alpha; as both must hold alpha
                  needs no correction), and the mean slope over the doses of each way to vary the length is above 0
    refuted       the slope is below the margin
    inconclusive  else
    """
    against = [way for way, c in by_way.items() if c.mean <= 0]
    if slope.low > 0 and over_sham.low > 0 and not against:
        if slope.high < margin:
            size = "less than the"
        else:
            size = "at least the" if slope.low > margin else "perhaps less than the"
        return SUPPORTED, f"the gain rises with the length, also over the sham's ({size} smallest slope of interest)"
    if slope.high < margin:
        return REFUTED, "any rise of the gain with the length is smaller than the smallest slope of interest"
    if slope.low > 0 and over_sham.low > 0:
        said = f"by {' and by '.join(against)} alone"
        return INCONCLUSIVE, f"the gain rises over all doses, but its mean slope {said} is not above 0"
    if slope.low > 0:
        said = "the gain rises with the length, but it is not shown to rise more than the sham's, which is as large"
        return INCONCLUSIVE, said + advice(over_sham)
    return INCONCLUSIVE, f"no rise is shown, nor that any rise is too small to matter{advice(slope, over_sham)}"


def advice(*slopes: Difference) -> str:
    """The seeds with which each of the slopes would be shown to be above 0; nothing where one of them is not."""
    need = [seeds_needed(c, 0.0) if c.mean > 0 else None for c in slopes]
    known = [seeds for seeds in need if seeds]
    if len(known) < len(need):
        return ""
    each = ", over the control's and over the sham's each" if len(slopes) > 1 else ""
    return f"; about {max(known)} seeds would decide with power {POWER:g}{each}"


def gates_of_doses(
    experiment: Experiment, arms: Arms, metric: str, task: str, runs: Runs, seeds: Sequence[int]
) -> list[Gate]:
    """The gates of every other hypothesis, each in every dose; that of size is a part of the rule."""
    margin, chance, gates = arms.margin[task], arms.chance[task], experiment.gates
    by_name: dict[str, dict[str, Gate]] = {}
    for dose in arms.each_dose():
        here = arms.at(dose)
        compared = here.of_a_dose()
        judged = dataclasses.replace(here, treatments=[*here.treatments, *here.shams.values()])  # shams decide too
        assay = compare(
            runs, metric, here.negative_control, here.control, seeds, experiment.alpha, METRICS[task][metric].step
        )
        assert assay
        for gate in (
            same_recipe(runs, compared, seeds, experiment.pair_may_differ),
            assay_sensitivity(assay, margin, gates.assay_share),
            ceiling_and_floor(runs, metric, judged, seeds, margin, chance, gates),
            trained(runs, metric, judged, seeds, margin, gates),
        ):
            by_name.setdefault(gate.name, {})[dose] = gate
    # a larger kernel is not fused, so its arms are computed another way, to rounding
    alike = [arm for arm in arms.registered() if arm.partition("+")[0] not in arms.reach]
    everywhere = [same_provenance(runs, alike, seeds)]
    if arms.reach:
        control = at(arms.control, arms.each_dose()[0])
        larger = [at(arm, dose) for dose in arms.each_dose() for arm in arms.reach]
        everywhere.append(same_provenance(runs, [control, *larger], seeds, kernels=False))
    failed = next((gate for gate in everywhere if not gate.passed), everywhere[0])
    return [failed, *(merged(name, found) for name, found in by_name.items())]


def merged(name: str, found: Mapping[str, Gate]) -> Gate:
    """One gate of that of every dose: which of them speak against it, or that none does, with what the first says."""
    failed = {dose: gate.detail for dose, gate in found.items() if not gate.passed}
    if failed:
        return Gate(name, False, "; ".join(f"{dose}: {detail}" for dose, detail in failed.items()))
    first, *others = found
    return Gate(name, True, f"{first}: {found[first].detail}; and so in the other {len(others)} doses")
