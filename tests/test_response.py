"""The dose-response: one slope per seed, its rule and its gates, and what the report shows of it."""

import copy
import csv
import importlib
import io
import json
import shutil
import sys
import time

import numpy as np
import pytest
import torch

from hypotheses import (
    experiment,
    power,
    publish,
    record,
    report,
    response,
    selection,
    standing,
    sweep,
    tracking,
    verdict,
)
from hypotheses.config import ROOT
from hypotheses.errors import UserError
from hypotheses.report import tables

H = experiment.load("4")
ARMS = H.scales["demo"]
X = {"d24_p8_32px": -3.17, "d24_p4_32px": -1.17, "d24_p2_32px": 0.83, "d24_p4_16px": -3.17, "d24_p4_64px": 0.83}
NOISE = np.random.default_rng(0).normal(0, 0.3, (6, 5, 5))  # arm, dose, seed


@pytest.fixture(scope="module")
def runs_of(make_records):
    """Records of which each arm's metric rises with log2 r by so many points per doubling more than the control's."""
    made = make_records({arm: [70.0] * 5 for arm in ARMS.registered()})

    def make(ssm=0.0, sham=0.0, k13=0.0, k25=0.0, noise=1.0, dose=None):
        """`dose` is a slope of the SSM of its own by doses, {dose: slope}."""
        slopes = {"": 0.0, "_ssm": ssm, "_sham": sham, "_k13": k13, "_k25": k25, "_identity": 0.0}
        runs = copy.deepcopy(made)
        for i, (arm, slope) in enumerate(slopes.items()):
            for j, (name, x) in enumerate(X.items()):
                own = (dose or {}).get(name, slope) if arm == "_ssm" else slope
                for seed in range(5):
                    r = runs[f"mambaout_atto{arm}+{name}", seed]
                    value = 70 + 2 * x + own * x - 30 * (arm == "_identity") + noise * NOISE[i, j, seed]
                    r["metrics"]["top1_percent"] = value
                    for row in r["curve"]:
                        row["top1_percent"] = value - 0.5
        return runs

    return make


def judge(runs):
    return verdict.judge(H, "demo", {"imagenet": runs})


def test_every_arm_stands_in_every_dose():
    assert len(ARMS.registered()) == len(set(ARMS.registered())) == 6 * 5
    assert experiment.run_overrides("demo", "imagenet", "mambaout_atto_ssm+d24_p2_32px", 3) == [
        "task=imagenet", "backbone=mambaout_atto_ssm", "scale=demo", "seed=3", "dose=d24_p2_32px",
    ]  # fmt: skip


def test_a_slope_is_that_of_each_seeds_least_squares_line(runs_of):
    runs = runs_of(ssm=0.7)
    (bed,) = judge(runs).beds
    found = bed.contrasts[0]
    r = response.ratios(runs, ARMS, ARMS.each_dose())
    assert r == pytest.approx({dose: 2**x for dose, x in X.items()}, rel=0.01)
    for seed in range(5):
        e = [
            runs[f"mambaout_atto_ssm+{dose}", seed]["metrics"]["top1_percent"]
            - runs[f"mambaout_atto+{dose}", seed]["metrics"]["top1_percent"]
            for dose in r
        ]
        line = np.polyfit(np.log2(list(r.values())), e, 1)
        assert found.d[seed] == pytest.approx(line[0], abs=1e-6)
        (drawn,) = response.responses(H, ARMS, runs, range(5))[:1]
        assert drawn.line(0.7, seed) == pytest.approx(np.polyval(line, np.log2(0.7)), abs=1e-6)
    assert found.low < 0.7 < found.high and found.n == 5
    assert bed.margin == pytest.approx(2.0 / 4)  # over the four doublings from 16 to 256 tokens


@pytest.mark.parametrize(
    ("slopes", "outcome", "said"),
    [
        ({"ssm": 1.0}, "supported", "also over the sham's (at least the smallest slope of interest)"),
        ({"ssm": 1.0, "sham": 1.0}, "inconclusive", "not shown to rise more than the sham's"),
        ({"ssm": 0.0}, "refuted", "smaller than the smallest slope of interest"),
        ({"ssm": -1.0}, "refuted", "smaller than the smallest slope of interest"),
        ({"ssm": 0.4, "noise": 8.0}, "inconclusive", "no rise is shown, nor that any rise is too small to matter"),
        ({"ssm": 0.3, "noise": 0.1}, "supported", "also over the sham's (less than the smallest slope of interest)"),
        (
            {"ssm": 1.5, "dose": {"d24_p8_32px": -0.3, "d24_p2_32px": -0.3}},
            "inconclusive",
            "its mean slope by patch alone is not above 0",
        ),
    ],
)
def test_the_rule(runs_of, slopes, outcome, said):
    v = judge(runs_of(**slopes))
    assert v.beds[0].failed == []
    assert (v.outcome, said in v.reason) == (outcome, True), v.reason


def test_a_run_that_is_missing_in_one_dose_decides_nothing(runs_of):
    runs = runs_of(ssm=1.0)
    del runs["mambaout_atto_k25+d24_p4_16px", 3]
    v = judge(runs)
    assert v.outcome == "inconclusive" and v.beds[0].missing == (("mambaout_atto_k25+d24_p4_16px", 3),)
    assert [c.n for c in v.beds[0].contrasts] == [5, 5]
    assert next(c.n for c in v.beds[0].extra if c.treatment == "mambaout_atto_k25") == 4


def test_a_gate_that_fails_in_one_dose_names_it(runs_of):
    runs = runs_of(ssm=1.0)
    for seed in range(5):
        runs["mambaout_atto_identity+d24_p2_32px", seed]["metrics"]["top1_percent"] = 71.0
        runs["mambaout_atto_ssm+d24_p4_16px", seed]["config"]["recipe"]["epochs"] = 9
    v = judge(runs)
    assert v.beds[0].failed == ["same recipe", "assay sensitivity"] and "without it: supported" in v.reason
    details = {gate.name: gate.detail for gate in v.beds[0].gates}
    assert (
        details["assay sensitivity"].startswith("d24_p2_32px: without any mixer")
        and "d24_p8" not in details["assay sensitivity"]
    )
    assert details["same recipe"].startswith("d24_p4_16px: differs: recipe.epochs")


def test_a_sham_that_is_not_trained_or_at_the_ceiling_decides_nothing(runs_of):
    runs = runs_of(ssm=1.0)
    for seed in range(5):
        for row in runs["mambaout_atto_sham+d24_p2_32px", seed]["curve"][:-1]:
            row["top1_percent"] -= 10
        runs["mambaout_atto_sham+d24_p8_32px", seed]["metrics"]["top1_percent"] = 98.0
    v = judge(runs)
    assert v.outcome == "inconclusive" and v.beds[0].failed == ["ceiling and floor", "trained"], v.reason
    details = {gate.name: gate.detail for gate in v.beds[0].gates}
    assert details["ceiling and floor"].startswith("d24_p8_32px: best arm 98.0")
    assert "d24_p2_32px: " in details["trained"] and "mambaout_atto_sham" in details["trained"]


def test_the_seeds_that_are_needed_are_those_of_both_slopes():
    def of(mean: float) -> verdict.Difference:
        return verdict.estimate("a", "b", range(5), mean + np.array([-0.5, -0.3, 0.0, 0.3, 0.5]), H.alpha)

    far, near = of(0.4), of(0.2)
    need = verdict.seeds_needed(near, 0.0)
    assert f"about {need} seeds" in response.advice(far, near) and response.advice(far, near) == response.advice(
        near, far
    )
    assert response.advice(far, of(-0.1)) == ""


def test_a_larger_kernel_may_be_computed_another_way_and_nothing_else_may(runs_of):
    runs = runs_of(ssm=1.0)
    for (arm, _), r in runs.items():
        r["provenance"]["kernels"] = {"gate": "plain" if "_k" in arm else "cpp"}
    assert judge(runs).beds[0].failed == []
    runs["mambaout_atto_k13+d24_p4_16px", 0]["provenance"]["code"] = "other"
    assert judge(runs).beds[0].failed == ["same data, code and software"]


def test_doses_of_one_length_have_no_slope():
    with pytest.raises(UserError, match=r"the doses have all the same L/\(6D\)"):
        response.weights(np.zeros(3))


def test_a_false_rise_is_rarely_supported():
    """No slope in the truth: at alpha 0.02, over 2,000 draws of five seeds whose doses share their noise."""
    rng = np.random.default_rng(1)
    w = response.weights(np.array(list(X.values())))
    wrong = 0
    for _ in range(2000):
        e = rng.normal(0, 1, (5, 5)) + rng.normal(0, 2, (1, 5))  # doses, seeds
        over_sham = verdict.estimate("a", "b", range(5), np.ones(5) + rng.normal(0, 0.01, 5), H.alpha)
        found = verdict.estimate("a", "b", range(5), w @ e, H.alpha)
        wrong += response.rule(found, over_sham, {}, 0.5)[0] == "supported"
    assert 0.01 < wrong / 2000 < 0.032


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A folder of hypotheses that has the fourth alone, so that a report is of nothing else."""
    (folder := tmp_path / "experiments").mkdir()
    shutil.copy(experiment.FOLDER / "hypothesis_4.yaml", folder)
    monkeypatch.setattr(experiment, "FOLDER", folder)


@pytest.fixture
def results(tmp_path, runs_of, alone):
    for r in runs_of(ssm=1.0, k25=0.8).values():
        record.write(tmp_path / "records" / f"{r['address']}.json", r)
    return tmp_path


def test_the_report_has_the_figure_the_slope_with_interval_and_the_tables(results):
    shown = report.write(H, results, "demo")
    s = report.section(H, results, "demo")
    slope = s.verdict.beds[0].contrasts[0]
    for text in (shown, (results / "report/index.md").read_text(), (results / "report/index.html").read_text()):
        assert (
            "Hypothesis 4 at demo scale: SUPPORTED. With each doubling of L/(6D) the gain of the SSM in top-1" in text
        )
        assert (
            f"changes by {slope.mean:+.2f} points (96 % interval {slope.low:+.2f} to {slope.high:+.2f}, n = 5 seeds"
            in text
        )
        assert "mambaout_atto_k25 over mambaout_atto +0." in text
    for name in ("dose", "slopes"):
        svg = (results / f"report/figures/hypothesis_4_demo_imagenet_{name}.svg").read_text()
        assert f"figures/hypothesis_4_demo_imagenet_{name}.svg" in (results / "report/index.md").read_text()
        assert svg.startswith("<?xml")
    rows = list(
        csv.DictReader(io.StringIO((results / "report/tables/hypothesis_4_demo_imagenet_slopes.csv").read_text()))
    )
    assert [row["control"] for row in rows[:2]] == ["mambaout_atto", "mambaout_atto_sham"] and len(rows) == 7
    assert f"{slope.mean:+.2f} [{slope.low:+.2f}, {slope.high:+.2f}]" in rows[0].values()
    arms = list(
        csv.DictReader(io.StringIO((results / "report/tables/hypothesis_4_demo_imagenet_arms.csv").read_text()))
    )
    assert len(arms) == 30 and {row["L/(6D)"] for row in arms} == {"0.11", "0.44", "1.78"}
    for name, (_, svg) in report.figures.of_section(s).items():  # the same bytes again
        assert (results / f"report/figures/{name}.svg").read_text() == svg


def test_the_ways_to_vary_the_length_have_slopes_of_their_own(results):
    s = report.section(H, results, "demo")
    table = tables.slopes(s, s.verdict.beds[0])
    assert table.columns[3:] == ["slope [96 % interval]", "by patch [96 % interval]", "by resolution [96 % interval]"]
    (patch,) = [r for r in response.responses(H, ARMS, s.runs["imagenet"], range(5), "patch")][:1]
    assert list(patch.gains) == ARMS.doses["patch"] and table.rows[0][4].startswith(f"{patch.slope.mean:+.2f} ")
    assert "make sweep HYP=4" in (report.wording.command(s))
    assert "dose=d24_p2_32px" in report.wording.row_command(
        tables.found_runs(s, "imagenet")["mambaout_atto+d24_p2_32px"]
    )


def test_without_a_whole_seed_there_is_no_figure(tmp_path, make_records, alone):
    for r in make_records({"mambaout_atto+d24_p2_32px": [70.0]}).values():
        record.write(tmp_path / "records" / f"{r['address']}.json", r)
    s = report.section(H, tmp_path, "demo")
    assert s.verdict.outcome == "inconclusive" and "1 of the 150 registered runs" in s.verdict.reason
    assert response.responses(H, ARMS, s.runs["imagenet"], range(5)) == []
    report.write(H, tmp_path, "demo")
    assert not list((tmp_path / "report/figures").glob("hypothesis_4*"))
    assert (
        "mambaout_atto_ssm+" not in (tmp_path / "report/index.md").read_text()
        and "which make status lists" in (tmp_path / "report/index.md").read_text()
    )


def test_w_and_b_is_told_both_slopes_and_shows_every_dose_apart(results):
    s = report.section(H, results, "demo")
    (bed,) = s.verdict.beds
    summary = next(m["content"]["summary"] for m in publish.verdict_story(s, results) if "content" in m)
    for over, found in zip(("mambaout_atto", "mambaout_atto_sham"), bed.contrasts, strict=True):
        assert summary[f"imagenet/mambaout_atto_ssm_over_{over}/mean"] == found.mean
    about = tracking.opening(s.records[0])["open"]["config"]
    assert about["arm"] == s.records[0]["address"].split("/")[2]
    made = publish.workspace(s, "us", "P")
    spec = made._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)
    assert made.settings.max_runs >= len(s.records) == 150
    assert '"groupBy":"arm.value"' in spec and '"section":"config","name":"arm.value"' in spec
    assert "backbone" not in spec and "tables/imagenet_slopes" in spec


def test_what_more_seeds_would_decide_is_in_the_slopes_unit(results):
    shown = power.write(H, results, "demo")
    assert "points per doubling of L/(6D) of each task's metric" in shown
    assert [line.split() for line in shown.splitlines() if line.split()[:1] == ["registered"]] == [
        ["registered", "0.5"]
    ] * 2


@pytest.mark.slow
def test_a_run_of_a_dose_as_the_sweep_starts_it_is_the_registered_one(paths):
    """It trains, so it has composed what was asked for, which it compares before; and it stops with a checkpoint that the sweep takes."""
    overrides = [*paths, "hardware=cpu"]
    asked = selection.Selection(H, "demo", 1, ["mambaout_atto_identity+d24_p4_16px"], ["imagenet"], 1, None, overrides)
    (before,) = standing.of_all(asked.configs())
    (slot,), place = sweep.make_slots(before.config, 1), standing.folder(before.config)
    child = sweep.start(before.config, slot, overrides, before.identity, record.code_fingerprint())
    while standing.heartbeat(place).get("step", 0) < 2:
        assert child.process.poll() is None, child.log.read_text()
        time.sleep(0.1)
    sweep.stop([child])
    (after,) = standing.of_all(asked.configs())
    assert (before.state, before.step) == (standing.WAITING, 0) and after.step > 1 and not after.foreign


# ---- a layer against the length --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def length():
    """benchmarks/length.py, as a module."""
    sys.path.append(str(ROOT / "benchmarks"))
    module = importlib.import_module("length")
    sys.path.remove(str(ROOT / "benchmarks"))
    return module


def test_token_by_token_is_what_the_layers_make_of_the_whole_sequence(length):
    made = length.layers(48, 3, 8)
    x = torch.randn(1, 30, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, stream in length.streams(made).items():
            stream.take(x[0, :10])
            stream.take(x[0, 10:29])
            assert torch.allclose(stream.next(x[0, 29:30]), made[name](x)[0, 29:30], atol=1e-5), name


def test_keys_and_values_grow_with_the_length_and_the_state_does_not(length, tmp_path, alone):
    found = length.whole(48, 3, 8, length.lengths_of([256, 64], 1, 48, 3, 8), 1)
    kept = {(r["layer"], r["tokens"]): r["kept_bytes"] for r in found["rows"] if "kept_bytes" in r}
    assert [kept["attention, causal", n] for n in (64, 256)] == [2 * 4 * 48 * n for n in (64, 256)]
    assert [kept["SSM, causal", n] for n in (64, 256)] == [4 * 48 * 8] * 2
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured/length.json").write_text(json.dumps(found))
    report.write(None, tmp_path)
    page, text = ((tmp_path / "report" / name).read_text() for name in ("index.html", "index.md"))
    for shown in (page, text):
        assert "One layer at equal width (D = 48)" in shown and "kept for it, KiB" in shown
    svg = (tmp_path / "report/figures/length_forward.svg").read_text()
    assert "2D: layer" in svg and "6D: block" in svg
    assert page.count('aria-label="Time of') == 2 and "figures/length_kept.svg" in text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "report/tables/length.csv").read_text())))
    assert [r["kept for it, KiB"] for r in rows if r["layer"] == "SSM, causal"] == ["2", "2"]
    (tmp_path / "measured/length.json").unlink()
    report.write(None, tmp_path)
    assert not list((tmp_path / "report").glob("*/length*"))


@pytest.mark.parametrize("content", ["{", "[]", '{"rows": []}', '{"rows": [{"layer": "SSM"}]}'])
def test_a_measurement_that_is_none_is_named(tmp_path, content):
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured/length.json").write_text(content)
    with pytest.raises(
        UserError, match=r"is not what benchmarks/length\.py writes: delete it, or make it anew: python"
    ):
        report.write(None, tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--lengths", "64,long"), "give numbers of tokens"),
        (("--json", "README.md/length.json"), "--json README.md/length.json: File exists: name a file in a folder"),
        (("--json", "docs"), "--json docs: it is a folder: name a file"),
    ],
)
def test_what_cannot_be_measured_or_kept_is_said_in_a_line_before(length, monkeypatch, capsys, words, said):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["length.py", *words])
    with pytest.raises(SystemExit) as left:
        length.main()
    assert left.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]
