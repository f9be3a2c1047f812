"""How often the registered rules are wrong, and how often they decide: by simulation of the rules themselves.

    python benchmarks/error_rates.py [--simulations 4000]

Differences are drawn normal and paired, all lengths are in deviations of a pair, and the looks and alpha are those of
experiments/. A claim that is looked at again at the next planned look, unless it was decided at this one, is what "with the
looks" means.
"""

import argparse
import gc
from collections.abc import Callable

import numpy as np

from hypotheses import experiment, verdict
from hypotheses.verdict import REFUTED, SUPPORTED, Difference

Rule = Callable[[list[Difference]], str]


def contrasts(values: np.ndarray, alpha: float) -> list[Difference]:
    """(contrasts, seeds) -> what the rules take."""
    return [verdict.estimate(f"arm {i}", "control", range(len(d)), d, alpha) for i, d in enumerate(values)]


def decisions(rule: Rule, means: list[float], looks: list[int], alpha: float, simulations: int) -> list[list[str]]:
    """The outcome at every look of each simulation, whose contrasts have the given true means."""
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(simulations, len(means), max(looks))) + np.array(means)[:, None]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--simulations", type=int, default=4000)
    simulations = parser.parse_args().simulations
    gc.collect = lambda generation=2: 0  # type: ignore[assignment] # statsmodels asks for one in every correction
    one, two = experiment.load("1"), experiment.load("2")
    looks, alpha = one.looks, one.alpha
    assert (looks, alpha) == (two.looks, two.alpha)
    margin = 1.5

    def not_worse(c: list[Difference]) -> str:
        return verdict.non_inferiority(c, margin, alpha)[0]

    def better(c: list[Difference]) -> str:
        of_task = {f"task {i}": [d] for i, d in enumerate(c)}
        return verdict.superiority(of_task, dict.fromkeys(of_task, margin), len(c), alpha)[0]

    print(f"one-sided alpha {alpha:g} at looks of {looks} seeds; percent of {simulations} simulations [95 % interval]")
    print("\nwrong decisions, with the looks:")
    for said, rule, means, wrong in (
        ("H1 supported, though exactly the margin is lost", not_worse, [-margin], SUPPORTED),
        ("H1 supported, though it is lost against both of two arms", not_worse, [-margin] * 2, SUPPORTED),
        ("H1 refuted, though exactly the margin is lost", not_worse, [-margin], REFUTED),
        ("H2 supported, though nothing is gained on either task", better, [0.0, 0.0], SUPPORTED),
        ("H2 refuted, though one task gains what matters", better, [margin, -9.0], REFUTED),
        ("H3 supported, though nothing is gained", better, [0.0], SUPPORTED),
    ):
        found = decisions(rule, means, looks, alpha, simulations)
        print(f"  {share([first_decided(o) for o in found], wrong)}  {said}")

    print("\npower, percent: a true difference of 0 is shown to be no loss of the margin (H1), or a true gain of that")
    print("size is shown (H3; H2 by one task of two, while the other gains nothing)")
    print(f"  {'margin, deviations':20}" + "".join(f"{f'n = {n}':>22}" for n in looks) + f"{'with the looks':>22}")
    for name in ("H1", "H2", "H3"):
        for size in (0.5, 1.0, 1.5, 2.0, 3.0):
            if name == "H1":
                found = decisions(
                    lambda c, size=size: verdict.non_inferiority(c, size, alpha)[0], [0.0], looks, alpha, simulations
                )
            else:
                found = decisions(better, [size, 0.0] if name == "H2" else [size], looks, alpha, simulations)
            cells = [share([o[i] for o in found], SUPPORTED) for i in range(len(looks))]
            cells.append(share([first_decided(o) for o in found], SUPPORTED))
            print(f"  {name} {size:<17g}" + "".join(f"{cell:>22}" for cell in cells))


if __name__ == "__main__":
    main()
