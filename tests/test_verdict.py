"""Hand-made records give supported, refuted and inconclusive, and each gate can fail."""

import dataclasses
import gc

import numpy as np
import pytest
from scipy import stats

from hypotheses import experiment, verdict
from hypotheses.verdict import INCONCLUSIVE, REFUTED, SUPPORTED

CONTROL = [90.1, 91.0, 89.6, 90.4, 90.9]
IDENTITY = [40.0, 41.0, 39.0, 42.0, 38.0]


@pytest.fixture
def judge(hypothesis, make_records, memory):
    """Records with the given metrics of the treatment, changed by `edit`, judged at demo scale."""

    def run(treatment, control=CONTROL, identity=IDENTITY, edit=lambda records: None):
        records = make_records(
            {"mambaout_atto": control, "mambaout_atto_ssm": treatment, "mambaout_atto_identity": identity}
        )
        edit(records)
        return verdict.judge(hypothesis, "demo", {"imagenet": records} | memory)

    return run


def shift(by, noise=(0.1, -0.2, 0.0, 0.2, -0.1)):
    return [c + by + n for c, n in zip(CONTROL, noise, strict=True)]


def test_supported(judge):
    v = judge(shift(0.3))
    assert v.outcome == SUPPORTED and all(g.passed for g in v.beds[0].gates)
    assert v.beds[0].contrasts[0].n == 5 and v.beds[0].contrasts[0].mean == pytest.approx(-0.3)


def test_refuted_if_the_ssm_gains_more_than_the_margin_and_is_not_larger(judge):
    def same_size(records):
        for r in records.values():
            r["cost"] = {"params": 100, "macs": 100}

    v = judge(shift(4.0), edit=same_size)
    assert v.outcome == REFUTED and "for mambaout_atto_ssm, with which more is gained" in v.reason


def test_a_larger_arm_that_wins_decides_nothing(judge):
    v = judge(shift(4.0))
    assert v.outcome == INCONCLUSIVE and v.reason.startswith("gate not passed: matched size; without it: refuted")


@pytest.mark.parametrize(
    ("sham", "outcome"), [(shift(0.5), REFUTED), (shift(3.9, noise=(0.5, -0.5, 0.2, 0.1, -0.3)), INCONCLUSIVE)]
)
def test_a_larger_arm_that_beats_its_sham_refutes(hypothesis, make_records, memory, sham, outcome):
    records = make_records(
        {
            "mambaout_atto": CONTROL,
            "mambaout_atto_ssm": shift(4.0),
            "mambaout_atto_identity": IDENTITY,
            "mambaout_atto_sham": sham,
        }
    )
    v = verdict.judge(hypothesis, "demo", {"imagenet": records} | memory)
    assert v.outcome == outcome and v.beds[0].wanted == ()
    assert "over its sham, which is as large, it gains" in v.beds[0].gates[-1].detail


def test_the_sham_is_wanted_only_where_a_larger_arm_wins(judge):
    assert judge(shift(4.0)).beds[0].wanted == ("mambaout_atto_sham",)
    assert judge(shift(0.3)).beds[0].wanted == ()
    odd = judge(shift(4.0), edit=set_key("mambaout_atto_ssm", 2, ("data_fingerprint",), "other"))
    assert odd.beds[0].wanted == ()  # it would not settle anything
    assert judge(shift(1.0, noise=(2.0, -2.0, 1.0, -1.5, 0.5))).beds[0].wanted == ()


def test_inconclusive_says_how_many_seeds_would_decide(judge):
    v = judge(shift(1.0, noise=(2.0, -2.0, 1.0, -1.5, 0.5)))
    assert v.outcome == INCONCLUSIVE and "seeds would decide with power 0.8" in v.reason
    need = int(v.reason.split("about ")[1].split()[0])
    c = v.beds[0].contrasts[0]
    noncentral = stats.nct(need - 1, (c.mean + 2.0) / c.sd * np.sqrt(need))
    assert (
        noncentral.sf(stats.t.ppf(1 - c.alpha, need - 1)) >= 0.8
    )  # the power of the one-sided t test, by its definition
    fewer = stats.nct(need - 2, (c.mean + 2.0) / c.sd * np.sqrt(need - 1))
    assert fewer.sf(stats.t.ppf(1 - c.alpha, need - 2)) < 0.8


def test_the_interval_is_the_t_interval_of_the_paired_differences(judge):
    c = judge(shift(0.3)).beds[0].contrasts[0]
    d = np.array(c.d)
    half = stats.t.ppf(0.98, 4) * d.std(ddof=1) / np.sqrt(5)
    assert (c.low, c.high) == pytest.approx((d.mean() - half, d.mean() + half))


def test_the_bounds_decide_exactly_at_the_margin(hypothesis):
    def contrast(low, high):
        d = tuple(np.array([-1.0, 0.0, 1.0]) * 0.1 + (low + high) / 2)
        return verdict.Difference("ssm", "control", (0, 1, 2), d, (low + high) / 2, 0.1, low, high, 0.02)

    assert verdict.non_inferiority([contrast(-1.99, 3.0)], 2.0, 0.02)[0] == SUPPORTED
    assert verdict.non_inferiority([contrast(-2.0, -0.5)], 2.0, 0.02)[0] == INCONCLUSIVE
    assert verdict.non_inferiority([contrast(-4.0, -3.0)], 2.0, 0.02)[0] == REFUTED
    # for all treatments: one that is not settled keeps the whole from being supported
    assert verdict.non_inferiority([contrast(-1.0, 1.0), contrast(-2.5, 1.0)], 2.0, 0.02)[0] == INCONCLUSIVE
    assert verdict.non_inferiority([contrast(-1.0, 1.0), contrast(-4.0, -3.0)], 2.0, 0.02)[0] == REFUTED


@pytest.mark.parametrize(("by", "outcome"), [(0.0, SUPPORTED), (2.5, REFUTED), (2.0, INCONCLUSIVE)])
def test_seeds_that_agree_exactly_are_judged_too(by, outcome):
    d = verdict.Difference("ssm", "control", (0, 1, 2), (-by,) * 3, -by, 0.0, -by, -by, 0.02)
    assert verdict.non_inferiority([d], 2.0, 0.02)[0] == outcome


def failed(v):
    return [g.name for g in v.beds[0].gates if not g.passed]


def drop(*keys):
    def edit(records):
        for key in keys:
            del records[key]

    return edit


def set_key(key, seed, path, value):
    def edit(records):
        target = records[key, seed]
        for part in path[:-1]:
            target = target[part]
        target[path[-1]] = value

    return edit


def test_a_missing_run_decides_nothing_and_is_named(judge):
    v = judge(shift(0.3), edit=drop(("mambaout_atto_ssm", 3)))
    assert v.outcome == INCONCLUSIVE and failed(v) == ["complete"]
    assert v.beds[0].missing == (("mambaout_atto_ssm", 3),)
    assert "14 of the 15" in v.reason


@pytest.mark.parametrize(
    ("path", "value", "gate"),
    [
        (("config", "recipe", "optimizer", "lr"), 1.0, "same recipe"),
        (("config", "backbone", "depths"), [5], "same recipe"),
        (("data_fingerprint",), "other", "same data, code and software"),
        (("provenance", "code"), "other", "same data, code and software"),
        (("provenance", "packages", "torch"), "other", "same data, code and software"),
        (("provenance", "kernels", "scan"), "chunked", "same data, code and software"),
        (("provenance", "device"), "another", "same data, code and software"),
        (("provenance", "hardware"), {"devices": 2}, "same data, code and software"),
        (("curve",), [{"epoch": 1, "top1_percent": 90.0}], "trained"),
        (("curve",), [{"epoch": 1, "train_loss": 1.0}], "trained"),
        (("curve",), [{"epoch": e, "top1_percent": 10.0 * e} for e in range(8)], "trained"),
    ],
)
def test_one_odd_run_closes_its_gate(judge, path, value, gate):
    v = judge(shift(0.3), edit=set_key("mambaout_atto_ssm", 2, path, value))
    assert v.outcome == INCONCLUSIVE and failed(v) == [gate] and v.reason.startswith(f"gate not passed: {gate}")


def test_a_bed_that_cannot_see_a_mixer_decides_nothing(judge):
    v = judge(shift(0.3), identity=[c - 1 for c in CONTROL])
    assert v.outcome == INCONCLUSIVE and failed(v) == ["assay sensitivity"]
    # and the margin must be small against what the bed can see
    assert failed(judge(shift(0.3), identity=shift(-6.0))) == ["assay sensitivity"]
    assert failed(judge(shift(0.3), identity=[c + 5 for c in CONTROL])) == ["assay sensitivity"]


def test_a_ceiling_or_a_floor_decides_nothing(judge):
    up = [c + 7 for c in CONTROL]
    assert failed(judge([c + 0.1 for c in up], control=up)) == ["ceiling and floor"]
    low = [c - 65 for c in CONTROL]
    assert "ceiling and floor" in failed(judge([c + 0.1 for c in low], control=low, identity=[10.0] * 5))


def test_only_planned_looks_are_judged(hypothesis, make_records, memory):
    def at(n):
        values = {
            "mambaout_atto": CONTROL * 4,
            "mambaout_atto_ssm": shift(0.3) * 4,
            "mambaout_atto_identity": IDENTITY * 4,
        }
        return verdict.judge(
            hypothesis, "demo", {"imagenet": make_records({k: v[:n] for k, v in values.items()})} | memory
        )

    assert {n: len(at(n).seeds) for n in (3, 5, 7, 10, 19, 20)} == {3: 5, 5: 5, 7: 10, 10: 10, 19: 20, 20: 20}
    assert at(5).outcome == SUPPORTED == at(10).outcome
    # seeds on the way to a look, a failed one too, keep it open
    assert at(7).outcome == INCONCLUSIVE and failed(at(7)) == ["complete"] and len(at(7).beds[0].missing) == 9


def test_every_treatment_must_hold(hypothesis, make_records):
    arms = dataclasses.replace(hypothesis.scales["demo"], treatments=["mambaout_atto_ssm", "mambaout_atto_ssm_causal"])
    both = dataclasses.replace(hypothesis, scales={"demo": arms}, positive_control=None)
    values = {"mambaout_atto": CONTROL, "mambaout_atto_ssm": shift(0.3), "mambaout_atto_identity": IDENTITY}
    good = verdict.judge(both, "demo", {"imagenet": make_records(values | {"mambaout_atto_ssm_causal": shift(-0.5)})})
    assert good.outcome == SUPPORTED and len(good.beds[0].contrasts) == 2
    bad = verdict.judge(both, "demo", {"imagenet": make_records(values | {"mambaout_atto_ssm_causal": shift(1.9)})})
    assert bad.outcome == INCONCLUSIVE


def test_the_rule_rarely_supports_a_false_claim(hypothesis):
    """At the boundary, where the SSM gains just the margin, the planned looks together say supported in 5 % at most."""
    rng = np.random.default_rng(0)
    margin, wrong, simulations = 2.0, 0, 400
    for _ in range(simulations):
        control = rng.normal(90.0, 1.0, 20)
        treated = control + rng.normal(margin, 1.0, 20)
        runs = {(arm, s): {"metrics": {"m": v[s]}} for arm, v in (("a", control), ("b", treated)) for s in range(20)}
        for look in hypothesis.looks:
            contrast = verdict.compare(runs, "m", "b", "a", range(look), hypothesis.alpha)
            if contrast and contrast.low > -margin:
                assert verdict.non_inferiority([contrast], margin, hypothesis.alpha)[0] == SUPPORTED
                wrong += 1
                break
    assert wrong / simulations <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / simulations)
    assert wrong / simulations >= 0.015  # and the test has power to see an alpha that is spent


def test_a_run_with_another_recipe_at_the_registered_address_is_seen(hypothesis, make_records, memory):
    records = make_records(
        {"mambaout_atto": CONTROL, "mambaout_atto_ssm": shift(0.3), "mambaout_atto_identity": IDENTITY}
    )
    v = verdict.judge(
        hypothesis, "demo", {"imagenet": records} | memory, {"imagenet": ["recipe.epochs was 2, registered is 5"]}
    )
    assert v.outcome == INCONCLUSIVE and failed(v) == ["registered configuration"]


# ---- hypothesis 2 ----------------------------------------------------------------------------------------------------

BASE = {"coco": [52.0, 51.0, 53.0, 52.5, 51.5], "ade20k": [48.0, 49.0, 47.0, 48.5, 47.5]}
NOISE = (0.1, -0.2, 0.0, 0.2, -0.1)


@pytest.fixture
def judge_2(make_records, memory):
    """Both tasks of hypothesis 2 with the given gains of the SSM over the control, and of the sham if there is one."""
    hypothesis = experiment.load("2")

    def run(gains, sham=None, noise=NOISE, edit=lambda runs: None):
        runs = {}
        for task, gain in gains.items():
            arms = {
                "mambaout_atto": BASE[task],
                "mambaout_atto_ssm": [c + gain + n for c, n in zip(BASE[task], noise, strict=True)],
                "mambaout_atto_identity": [c - 15 for c in BASE[task]],
            }
            if sham is not None:
                arms["mambaout_atto_sham"] = [c + sham - n for c, n in zip(BASE[task], noise, strict=True)]
            runs[task] = make_records(arms, task)
        edit(runs)
        return verdict.judge(hypothesis, "demo", runs | memory)

    return run


def same_size(runs):
    for of_task in runs.values():
        for r in of_task.values():
            r["cost"] = {"params": 100, "macs": 100}


def test_a_gain_on_one_task_supports(judge_2):
    v = judge_2({"coco": 2.5, "ade20k": 0.0}, edit=same_size)
    assert (
        v.outcome == SUPPORTED and "mambaout_atto_ssm on coco (at least the smallest effect of interest, 1)" in v.reason
    )
    (e,) = v.beds[0].contrasts
    assert e.mean == pytest.approx(2.5) and e.low < 2.5 < e.high and v.beds[0].assay.mean == pytest.approx(-15)
    small = judge_2({"coco": 0.5, "ade20k": 0.0}, edit=same_size)
    assert small.outcome == SUPPORTED and "perhaps less than the smallest effect of interest" in small.reason


def test_gains_that_are_too_small_to_matter_refute_and_only_on_every_task(judge_2):
    assert judge_2({"coco": -0.5, "ade20k": 0.0}).outcome == REFUTED
    wide = judge_2({"coco": -0.5, "ade20k": 1.5}, noise=(3.0, -3.0, 2.0, -2.0, 0.0))
    assert wide.outcome == INCONCLUSIVE and "seeds would decide" in wide.reason
    alone = judge_2({"ade20k": 0.0})
    assert alone.outcome == INCONCLUSIVE and "complete (coco)" in alone.reason and len(alone.beds[0].missing) == 15


def test_one_task_that_was_run_can_support(judge_2):
    v = judge_2({"ade20k": 4.0}, edit=same_size)
    assert v.outcome == SUPPORTED and "not counted, its gate not passed: complete (coco)" in v.reason


def test_a_larger_arm_must_beat_its_sham(judge_2):
    v = judge_2({"coco": 2.5, "ade20k": 0.0})
    assert (
        v.outcome == INCONCLUSIVE
        and v.beds[0].failed == ["matched size"]
        and "but for that gate: supported" in v.reason
    )
    beaten = judge_2({"coco": 2.5, "ade20k": 0.0}, sham=0.5)
    assert (
        beaten.outcome == SUPPORTED
        and "over its sham, which is as large, it gains +2.00 points (96 % interval" in beaten.beds[0].gates[-1].detail
    )
    assert judge_2({"coco": 2.5, "ade20k": 0.0}, sham=2.5).outcome == INCONCLUSIVE


@pytest.mark.parametrize("odd", ["missing", "code", "recipe"])
def test_a_sham_that_is_not_whole_or_not_fair_does_not_help(judge_2, odd):
    def edit(runs):
        if odd == "missing":
            del runs["coco"]["mambaout_atto_sham", 2]
        elif odd == "code":
            runs["coco"]["mambaout_atto_sham", 2]["provenance"]["code"] = "other"
        else:
            runs["coco"]["mambaout_atto_sham", 2]["config"]["recipe"]["epochs"] = 9

    v = judge_2({"coco": 2.5, "ade20k": 0.0}, sham=0.5, edit=edit)
    assert v.outcome == INCONCLUSIVE and v.beds[0].failed == ["matched size"]
    assert v.beds[0].wanted == (("mambaout_atto_sham",) if odd == "missing" else ())


def test_the_interaction_is_the_gain_on_the_long_task_minus_that_on_the_short_one(judge_2, make_records):
    short = {"mambaout_atto": CONTROL, "mambaout_atto_ssm": shift(-1.0, NOISE)}

    def with_short(runs):
        runs["imagenet"] = make_records(short)
        del runs["imagenet"]["mambaout_atto", 4]

    v = judge_2({"coco": 2.5, "ade20k": 0.0}, edit=with_short)
    assert [(i.long, i.short) for i in v.interactions] == [("coco", "imagenet"), ("ade20k", "imagenet")]
    first, second = (i.difference for i in v.interactions)
    assert first.mean == pytest.approx(3.5) and second.mean == pytest.approx(1.0)
    assert first.seeds == (0, 1, 2, 3) and first.sd == pytest.approx(0.0)  # the noise is shared by the tasks
    assert judge_2({"coco": 2.5, "ade20k": 0.0}).interactions == ()


def test_the_seeds_of_the_short_task_choose_no_look(judge_2, make_records):
    short = make_records({"mambaout_atto": [90.0] * 10, "mambaout_atto_ssm": [90.5] * 10})
    v = judge_2({"coco": 2.5, "ade20k": 0.0}, edit=lambda runs: (same_size(runs), runs.update(imagenet=short)))
    assert v.seeds == (0, 1, 2, 3, 4) and v.outcome == SUPPORTED


def test_seeds_that_agree_to_the_rounding_of_the_metric_show_no_gain(judge_2):
    """mmdet rounds AP to 0.1 point: a tenth of a point in every seed is one step, not a certainty."""
    v = judge_2({"coco": 0.1, "ade20k": 0.0}, noise=(0.0,) * 5, edit=same_size)
    (e,) = v.beds[0].contrasts
    assert e.sd == pytest.approx(0.1 / np.sqrt(6)) and e.low < 0.1 < e.high
    assert v.outcome != SUPPORTED or e.low > 0


def test_a_gate_of_one_task_leaves_the_other_to_decide(judge_2):
    def blind(runs):
        same_size(runs)
        for seed in range(5):
            runs["coco"]["mambaout_atto_identity", seed]["metrics"]["box_ap_percent"] = 53.0

    v = judge_2({"coco": 2.5, "ade20k": 0.0}, edit=blind)
    assert v.outcome == INCONCLUSIVE and v.beds[0].failed == ["assay sensitivity"] and not v.beds[1].failed
    assert judge_2({"coco": 0.0, "ade20k": 4.0}, edit=blind).outcome == SUPPORTED


def test_holm_counts_every_registered_pair(hypothesis):
    """A gain whose p lies between alpha / 2 and alpha is enough for one pair, and not for the better of two."""
    values = np.array([-0.5, 0.0, 0.5, 1.0, 1.5])
    shift = next(
        s
        for s in np.linspace(0, 2, 2001)
        if 0.01 < stats.ttest_1samp(values + s, 0, alternative="greater").pvalue < 0.0199
    )
    d = values + shift
    e = verdict.Difference("ssm", "control", tuple(range(5)), tuple(d), d.mean(), d.std(ddof=1), 0.0, 5.0, 0.02)
    assert verdict.superiority({"coco": [e]}, {"coco": 1.0}, 1, 0.02)[0] == SUPPORTED
    assert verdict.superiority({"coco": [e]}, {"coco": 1.0}, 2, 0.02)[0] == INCONCLUSIVE


def test_the_rule_rarely_supports_a_gain_that_is_not_there(monkeypatch):
    """With no gain on either task, the planned looks together say supported in 5 % at most."""
    monkeypatch.setattr(
        gc, "collect", lambda: 0
    )  # statsmodels asks for it in every correction: minutes in a large process
    rng, wrong, simulations = np.random.default_rng(0), 0, 400
    looks, alpha = experiment.load("2").looks, experiment.load("2").alpha
    for _ in range(simulations):
        e = {task: rng.normal(0.0, 1.0, 20) for task in BASE}
        for look in looks:
            contrasts = {
                task: [
                    verdict.Difference(
                        "b",
                        "a",
                        tuple(range(look)),
                        tuple(d[:look]),
                        d[:look].mean(),
                        d[:look].std(ddof=1),
                        -1.0,
                        1.0,
                        alpha,
                    )
                ]
                for task, d in e.items()
            }
            if verdict.superiority(contrasts, dict.fromkeys(BASE, 0.1), 2, alpha)[0] == SUPPORTED:
                wrong += 1
                break
    assert 0.015 <= wrong / simulations <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / simulations)


# ---- power -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 10, 20])
def test_the_power_of_a_look_is_that_of_the_noncentral_t(n):
    effect, alpha = verdict.detectable(n, 0.02), 0.02
    power = stats.nct(n - 1, effect * np.sqrt(n)).sf(stats.t.ppf(1 - alpha, n - 1))
    assert power == pytest.approx(verdict.POWER, abs=1e-4)
    assert verdict.seeds_for(effect * 1.001, alpha) == n and verdict.seeds_for(effect * 0.999, alpha) == n + 1
    assert verdict.seeds_for(1e-3, alpha) is None
