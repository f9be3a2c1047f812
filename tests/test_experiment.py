"""A hypothesis file is read whole or refused with the line or key to mend."""

import copy
import hashlib
import shutil

import pytest

from hypotheses import experiment, record, report
from hypotheses.errors import UserError

TEXT = (experiment.FOLDER / "hypothesis_1.yaml").read_text()


def parse(tmp_path, text):
    file = tmp_path / "hypothesis_9.yaml"
    file.write_text(text)
    return experiment.parse(file)


def check_refused(tmp_path, text, old, new, message):
    """A file in which one thing is changed is refused with that message."""
    assert old in text
    with pytest.raises(UserError, match=message):
        parse(tmp_path, text.replace(old, new, 1))


def test_what_is_registered():
    h = experiment.load("1")
    demo = h.scales["demo"]
    assert demo.registered() == ["mambaout_atto", "mambaout_atto_ssm", "mambaout_atto_identity"]
    arms = ("sham", "ssm_causal", "ssm_cross", "act", "matched_params")
    assert demo.all()[3:] == [*(f"mambaout_atto_{arm}" for arm in arms), "vit_atto", "vit_atto_causal"]
    assert (h.looks, h.alpha) == ([5, 10, 20], 0.02)
    assert (demo.margin, h.scales["paper"].margin) == ({"imagenet": 2.0}, {"imagenet": 0.3})
    assert len(h.sha256) == 64


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "margin: {imagenet: 2.0}",
            "margn: {imagenet: 2.0}",
            r"unknown key scales\.demo\.margn; did you mean margin\?",
        ),
        ("alpha: 0.02", "alfa: 0.02", r"unknown key alfa; did you mean alpha\?"),
        ("alpha: 0.02 ", "# ", r"key alpha is missing"),
        ("margin: {imagenet: 2.0}", "margin: {imagenet: two}", r"demo\.margin\.imagenet: 'two' is not a number"),
        ("margin: {imagenet: 2.0}", "margin: {coco: 2.0}", r"scales\.demo\.margin: .*tasks; odd: coco, imagenet"),
        ("top1_percent}", "top1}", r"tasks\.imagenet: no metric 'top1'; did you mean top1_percent\?"),
        ("{imagenet: top1_percent}", "{imagenet: top1_percent, coco: box_ap_percent}", r"margin: .*odd: coco"),
        ("looks: [5, 10, 20]", "looks: 5", r"looks: 5 is not a list"),
        ("looks: [5, 10, 20]", "looks: [five]", r"looks\[0\]: 'five' is not a whole number"),
        (
            "negative_control: mambaout_atto_identity",
            "negative_control: mambaout_atto_identit",
            r"no backbone .*did you mean mambaout_atto_identity",
        ),
        (
            "shams: {mambaout_atto_ssm: mambaout_atto_sham}",
            "shams: {mambaout_atto_sms: mambaout_atto_sham}",
            r"scales\.demo\.shams: mambaout_atto_sms is none of treatments; did you mean mambaout_atto_ssm\?",
        ),
        ("shams: {mambaout_atto_ssm: ", "shams: {mambaout_atto_ssm: no", r"no backbone 'nomambaout_atto_sham'"),
        (
            "test: non_inferiority",
            "interaction: {coco: ap}\ntest: non_inferiority",
            r"interaction\.coco: no metric 'ap'",
        ),
        ("task: recall", "task: recal", r"positive_control: no task 'recal'; did you mean recall\?"),
        (
            "scales: [demo, pilot, paper]",
            "scales: [dmo]",
            r"positive_control\.scales: no scale 'dmo'; did you mean demo\?",
        ),
        ("seeds: 3", "seeds: 6", r"positive_control\.seeds: give a number from 1 to that of the first look, 5"),
        ("solved: 60.0", "solved: 20.0", r"positive_control: give an unsolved below solved"),
        ("seeds: 3, ", "", r"key positive_control\.seeds is missing"),
        ("shams: {mambaout_atto_ssm: mambaout_atto_sham}", "shams: {}", r"mambaout_atto_ssm has no sham at scale demo"),
        ("test: non_inferiority", "test: t_test", r"choose one of non_inferiority, superiority, dose_response"),
        ("claim: An", "claim: [An", r"hypothesis_9\.yaml, line \d+: not valid YAML"),
    ],
)
def test_a_mistake_is_named(tmp_path, old, new, message):
    check_refused(tmp_path, TEXT, old, new, message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("d24_p8_32px, ", "d24_p8_32, ", r"demo\.doses: no dose 'd24_p8_32' in conf/dose/; did you mean d24_p8_32px\?"),
        ("[d24_p8_32px, d24_p4_32px, d24_p2_32px]", "[d24_p8_32px]", r"demo\.doses\.patch: give two doses or more"),
        ("test: dose_response", "test: superiority", r"demo\.doses: a dose_response has some, and nothing else has"),
        ("shams: {mambaout_atto_ssm: mambaout_atto_sham}", "shams: {}", r"one of treatments with its sham in shams"),
        (
            "mambaout_atto_k25]",
            "mambaout_atto_k24]",
            r"no backbone 'mambaout_atto_k24'; did you mean mambaout_atto_k25\?",
        ),
    ],
)
def test_a_mistake_in_doses_is_named(tmp_path, old, new, message):
    check_refused(tmp_path, (experiment.FOLDER / "hypothesis_4.yaml").read_text(), old, new, message)


def test_a_positive_control_without_a_recipe_is_named(tmp_path, monkeypatch):
    shutil.copytree(experiment.CONF, tmp_path / "conf")
    (tmp_path / "conf/recipe/recall_pilot.yaml").unlink()
    monkeypatch.setattr(experiment, "CONF", tmp_path / "conf")
    with pytest.raises(UserError, match=r"positive_control\.scales: conf/recipe/recall_pilot\.yaml is missing"):
        parse(tmp_path, TEXT)


def test_a_file_bears_the_number_that_it_has_inside(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "FOLDER", tmp_path)
    (tmp_path / "hypothesis_9.yaml").write_text(TEXT)
    with pytest.raises(
        UserError, match=r"hypothesis_9\.yaml: hypothesis: 1: the file's name says 9: write hypothesis: 9"
    ):
        experiment.load("9")


def test_an_unknown_hypothesis_is_refused():
    with pytest.raises(UserError, match="HYP=9: no such hypothesis; registered in experiments/: 1, 2, 3, 4"):
        experiment.load("9")


# ---- registered before run -------------------------------------------------------------------------------------------


@pytest.fixture
def registered(tmp_path, monkeypatch, make_records, memory):
    """experiments/ copied to where it can be changed, and the records of a whole look that were begun under it."""
    folder, results = tmp_path / "experiments", tmp_path / "results"
    shutil.copytree(experiment.FOLDER, folder)
    monkeypatch.setattr(experiment, "FOLDER", folder)
    values = {"mambaout_atto": 90.0, "mambaout_atto_ssm": 90.1, "mambaout_atto_identity": 40.0}
    claims = experiment.register(results)
    made = make_records({arm: [value + s for s in range(5)] for arm, value in values.items()})
    for r in (*made.values(), *memory["recall"].values()):
        assert r["provenance"]["registered"] == claims
        record.write(results / "records" / f"{r['address']}.json", r)

    def change(old, new, file="hypothesis_1.yaml"):
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))

    return change, results


def test_a_rule_that_was_there_before_the_runs_is_not_exploratory(registered):
    change, results = registered
    assert "SUPPORTED. " in report.write(experiment.load("1"), results, "demo")
    assert len(list((results / "registered").iterdir())) == len(list(experiment.FOLDER.glob("*.yaml")))
    change("# Written before", "# Surely written before")  # a comment
    change("margin: {imagenet: 0.3}", "margin: {imagenet: 0.5}")  # of another scale
    assert "EXPLORATORY" not in report.write(experiment.load("1"), results, "demo")


def test_a_change_after_the_runs_marks_the_verdict_and_is_printed(registered):
    change, results = registered
    change("margin: {imagenet: 2.0}", "margin: {imagenet: 3.0}")
    change("assay_share: 0.2", "assay_share: 0.3")
    shown = report.write(experiment.load("1"), results, "demo")
    assert "SUPPORTED (EXPLORATORY: not all runs were begun under this rule)" in shown
    for text in (shown, (results / "report/index.md").read_text(), (results / "report/index.html").read_text()):
        assert "after 24 of 24 runs scales.demo.margin.imagenet was changed from 2.0 to 3.0" in text
        assert "after 24 of 24 runs gates.assay_share was changed from 0.2 to 0.3" in text


def test_a_change_between_the_runs_is_dated_by_how_many_there_were(registered):
    change, results = registered
    change("alpha: 0.02", "alpha: 0.01")
    now = experiment.register(results)
    for file in sorted((results / "records").rglob("seed_[234].json")):
        r = record.read(file)
        r["provenance"]["registered"] = now
        record.write(file, r)
    assert "Exploratory: after 12 of 24 runs alpha was changed from 0.02 to 0.01." in report.write(
        experiment.load("1"), results, "demo"
    )


def test_runs_that_do_not_say_and_a_lost_copy_are_named(registered):
    change, results = registered
    hypothesis = experiment.load("1")
    runs = [record.read(file) for file in (results / "records").rglob("*.json")]
    silent = copy.deepcopy(runs)
    del silent[0]["provenance"]["registered"]
    (said,) = experiment.changes(hypothesis, "demo", results, silent)
    assert said == "1 of 24 runs do not say which rule was registered when they were begun"
    change("alpha: 0.02", "alpha: 0.01")
    (kept,) = (results / "registered").glob("hypothesis_1_*.yaml")
    kept.write_text(kept.read_text() + "# edited\n")
    (said,) = experiment.changes(experiment.load("1"), "demo", results, runs)
    assert "the file was changed, from a version" in said and "is not in" in said


def test_a_control_of_another_scale_is_no_part_of_the_rule(tmp_path):
    text = (
        (experiment.FOLDER / "hypothesis_1.yaml").read_text().replace("scales: [demo, pilot, paper]", "scales: [demo]")
    )
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "b.yaml").write_text(text.replace("solved: 60.0", "solved: 50.0"))
    for scale, differ in (("paper", False), ("pilot", False), ("demo", True)):
        rules = [experiment.rule_of(tmp_path / name, scale) for name in ("a.yaml", "b.yaml")]
        assert (rules[0] != rules[1]) == differ, scale


@pytest.mark.parametrize("text", ["claim: [An", "- a\n- list\n", "positive_control: recall\n"])
def test_a_version_that_cannot_be_read_is_named(registered, text):
    """A run can begin while a file is being edited."""
    _, results = registered
    digest = hashlib.sha256(text.encode()).hexdigest()
    experiment.registered_copy(results, "hypothesis_1", digest).write_text(text)
    runs = [record.read(file) for file in (results / "records").rglob("*.json")]
    for run in runs:
        run["provenance"]["registered"]["hypothesis_1"] = digest
    (said,) = experiment.changes(experiment.load("1"), "demo", results, runs)
    assert said.startswith("after 24 of 24 runs the file was changed, from a version that cannot be read")
