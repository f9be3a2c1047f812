"""How often the registered rules are wrong, and how often they decide: by simulation of the rules themselves.

    python benchmarks/error_rates.py [--simulations 4000] [--only H4]

Differences are drawn normal and paired, all lengths are in deviations of a pair, and the looks and alpha are those of
experiments/. Of hypothesis 4 metrics are drawn, of three arms in every dose with equal and independent noise, and its lengths are in
deviations of a seed's slope over the control. A claim that is looked at again at the next planned look, unless it was decided at this one, is what "with the
looks" means.
"""

import argparse
import gc
from collections.abc import Callable

import numpy as np

from hypotheses import experiment, response, verdict
from hypotheses.verdict import REFUTED, SUPPORTED, Difference

Rule = Callable[[list[Difference]], str]


def contrasts(values: np.ndarray, alpha: float) -> list[Difference]:
    """(contrasts, seeds) -> what the rules take."""
    return [verdict.estimate(f"arm {i}", "control", range(len(d)), d, alpha) for i, d in enumerate(values)]


def decisions(
    rule: Rule, means: list[float], looks: list[int], alpha: float, simulations: int, mixed: np.ndarray | None = None
) -> list[list[str]]:
    """The outcome at every look of each simulation, whose contrasts have the given true means. They are independent, or `mixed`
    (contrasts, sources) of independent sources."""
    rng = np.random.default_rng(0)
    mixed = np.eye(len(means)) if mixed is None else mixed
    drawn = mixed @ rng.normal(size=(simulations, mixed.shape[1], max(looks))) + np.array(means)[:, None]
    return [[rule(contrasts(values[:, :n], alpha)) for n in looks] for values in drawn]


def first_decided(outcomes: list[str]) -> str:
    """What a user who stops at the first look that decides has seen."""
    return next((outcome for outcome in outcomes if outcome in (SUPPORTED, REFUTED)), outcomes[-1])


def share(outcomes: list[str], outcome: str) -> str:
    """How often, in percent, with the 95 % interval of that number of simulations."""
    from statsmodels.stats.proportion import proportion_confint

    n, count = len(outcomes), outcomes.count(outcome)
    low, high = proportion_confint(count, n, method="wilson")
    return f"{100 * count / n:5.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def slopes(four: experiment.Experiment) -> np.ndarray:
    """What the noise of treatment, control and sham in each dose of the demo, (contrasts, arms x doses), does to the contrasts of hypothesis 4:
    the slope over the control, over the sham, and over the control by each way to vary the length. The first has a deviation of 1."""
    arms = four.scales["demo"]
    (task,), doses = four.tasks, arms.each_dose()
    x = {
        d: np.log2(response.ratio(experiment.config_of("demo", task, experiment.at(arms.control, d), 0, [])))
        for d in doses
    }

    def weights(of: list[str]) -> np.ndarray:
        found = dict(zip(of, response.weights(np.array([x[d] for d in of])), strict=True))
        return np.array([found.get(d, 0.0) for d in doses])

    whole = weights(doses)
    none = np.zeros_like(whole)
    rows = [[whole, -whole, none], [whole, none, -whole]]
    rows += [[w, -w, none] for w in map(weights, arms.doses.values())]
    mixed = np.array(rows).reshape(len(rows), -1)
    return mixed / np.linalg.norm(mixed[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--simulations", type=int, default=4000)
    parser.add_argument("--only", choices=("H1", "H2", "H3", "H4"), help="one hypothesis; all by default")
    asked = parser.parse_args()
    simulations = asked.simulations
    gc.collect = lambda generation=2: 0  # type: ignore[assignment] # statsmodels asks for one in every correction
    one, *others = (experiment.load(number) for number in "1234")
    looks, alpha = one.looks, one.alpha
    assert all((looks, alpha) == (other.looks, other.alpha) for other in others)
    margin, mixed = 1.5, slopes(others[-1])

    def not_worse(c: list[Difference]) -> str:
        return verdict.non_inferiority(c, margin, alpha)[0]

    def better(c: list[Difference]) -> str:
        of_task = {f"task {i}": [d] for i, d in enumerate(c)}
        return verdict.superiority(of_task, dict.fromkeys(of_task, margin), len(c), alpha)[0]

    def rises(c: list[Difference]) -> str:
        slope, over_sham, *ways = c
        return response.rule(slope, over_sham, dict(zip("ab", ways, strict=True)), margin)[0]

    print(f"one-sided alpha {alpha:g} at looks of {looks} seeds; percent of {simulations} simulations [95 % interval]")
    print("\nwrong decisions, with the looks:")
    for said, rule, means, wrong in (
        ("H1 supported, though exactly the margin is lost", not_worse, [-margin], SUPPORTED),
        ("H1 supported, though it is lost against both of two arms", not_worse, [-margin] * 2, SUPPORTED),
        ("H1 refuted, though exactly the margin is lost", not_worse, [-margin], REFUTED),
        ("H2 supported, though nothing is gained on either task", better, [0.0, 0.0], SUPPORTED),
        ("H2 refuted, though one task gains what matters", better, [margin, -9.0], REFUTED),
        ("H3 supported, though nothing is gained", better, [0.0], SUPPORTED),
        ("H4 supported, though neither the gain nor the sham's rises", rises, [0.0] * 4, SUPPORTED),
        ("H4 supported, though the sham's gain rises as much", rises, [margin, 0.0, margin, margin], SUPPORTED),
        (
            "H4 supported, though one way has no rise and the other twice it",
            rises,
            [margin, margin, 0.0, 2 * margin],
            SUPPORTED,
        ),
        ("H4 refuted, though the gain rises by what matters", rises, [margin] * 4, REFUTED),
        ("H4 refuted, though it and the sham's rise by what matters", rises, [margin, 0.0, margin, margin], REFUTED),
    ):
        if asked.only and not said.startswith(asked.only):
            continue
        found = decisions(rule, means, looks, alpha, simulations, mixed if rule is rises else None)
        print(f"  {share([first_decided(o) for o in found], wrong)}  {said}")

    print("\npower, percent: a true difference of 0 is shown to be no loss of the margin (H1), or a true gain of that")
    print(
        "size is shown (H3; H2 by one task of two, while the other gains nothing; H4 as a rise, while the sham has none)"
    )
    print(f"  {'margin, deviations':20}" + "".join(f"{f'n = {n}':>22}" for n in looks) + f"{'with the looks':>22}")
    for name in (asked.only,) if asked.only else ("H1", "H2", "H3", "H4"):
        for size in (0.5, 1.0, 1.5, 2.0, 3.0):
            if name == "H1":
                found = decisions(
                    lambda c, size=size: verdict.non_inferiority(c, size, alpha)[0], [0.0], looks, alpha, simulations
                )
            elif name == "H4":
                found = decisions(rises, [size] * 4, looks, alpha, simulations, mixed)
            else:
                found = decisions(better, [size, 0.0] if name == "H2" else [size], looks, alpha, simulations)
            cells = [share([o[i] for o in found], SUPPORTED) for i in range(len(looks))]
            cells.append(share([first_decided(o) for o in found], SUPPORTED))
            print(f"  {name} {size:<17g}" + "".join(f"{cell:>22}" for cell in cells))


if __name__ == "__main__":
    main()
