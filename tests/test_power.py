"""What more seeds would decide: the numbers by their definitions, and a message where nothing is known yet."""

import numpy as np
import pytest
from scipy import stats

from hypotheses import power, record, report, verdict
from hypotheses.errors import UserError

CONTROL = [90.0, 91.0, 89.0, 90.5, 90.2]
D = np.array([0.5, -1.0, 2.0, 0.3, -0.7])


@pytest.fixture
def results(tmp_path, make_records):
    arms = {
        "mambaout_atto": CONTROL,
        "mambaout_atto_ssm": list(np.array(CONTROL) - D),
        "mambaout_atto_identity": [40.0] * 5,
    }
    for r in make_records(arms).values():
        record.write(tmp_path / "records" / f"{r['address']}.json", r)
    return tmp_path


def test_the_table_follows_from_the_spread_of_the_pairs(results, hypothesis):
    columns, (row,) = power.table(hypothesis, report.section(hypothesis, results, "demo"))
    cells = dict(zip(columns, row, strict=True))
    sd = D.std(ddof=1)
    low, high = (np.sqrt(4 * sd**2 / stats.chi2.ppf(tail, 4)) for tail in (0.975, 0.025))
    assert cells["deviation of a pair"] == f"{sd:.2f} ({low:.2f} to {high:.2f})" and cells["n"] == "5"
    effect = verdict.detectable(10, 0.02)
    assert cells["smallest margin, 10 seeds"] == f"{effect * sd:.2f} ({effect * low:.2f} to {effect * high:.2f})"
    need = verdict.seeds_for(2.0 / sd, 0.02)
    assert cells["seeds for it"].startswith(f"{need} (") and cells["registered"] == "2"


def test_a_simulation_agrees_that_the_seeds_decide(hypothesis):
    """With the seeds and the deviation that the table names, the rule says supported in about 80 % of true equalities."""
    rng, margin, sd = np.random.default_rng(0), 2.0, 1.3
    n = verdict.seeds_for(margin / sd, 0.02)
    assert n
    means_and_sds = [(d.mean(), d.std(ddof=1)) for d in rng.normal(0, sd, (4000, n))]
    t = stats.t.ppf(0.98, n - 1)
    supported = np.mean([mean - t * s / np.sqrt(n) > -margin for mean, s in means_and_sds])
    assert 0.78 < supported < 0.90  # n is a whole number, so the power is POWER or a little more


def test_what_a_user_sees_and_what_is_refused(results, hypothesis, capsys, tmp_path, one_line_error):
    power.main(["1", f"paths.results={results}"])
    shown = capsys.readouterr().out
    assert "seeds for it" in shown and "with power 0.8, one-sided alpha 0.02" in shown
    with pytest.raises(UserError, match=r"fewer than two pairs of runs at paper scale .*make sweep HYP=1 SCALE=paper"):
        power.main(["1", "--scale", "paper", f"paths.results={results}"])
    for arguments, message in (
        (["1", "--scale", "dem"], "SCALE=dem: hypothesis 1 is registered at demo, pilot, paper"),
        (["1", "recipe.epochs=3"], "takes paths only"),
        (["7"], "HYP=7: no such hypothesis"),
    ):
        with pytest.raises(UserError, match=message):
            power.main(arguments)
