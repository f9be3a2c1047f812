"""A hypothesis file is read whole or refused with the line or key to mend."""

import pytest

from hypotheses import experiment
from hypotheses.errors import UserError

TEXT = (experiment.FOLDER / "hypothesis_1.yaml").read_text()


def parse(tmp_path, text):
    file = tmp_path / "hypothesis_9.yaml"
    file.write_text(text)
    return experiment.parse(file)


def test_what_is_registered():
    h = experiment.load("1")
    demo = h.scales["demo"]
    assert demo.registered() == ["mambaout_atto", "mambaout_atto_ssm", "mambaout_atto_identity"]
    arms = ("ssm_causal", "ssm_cross", "act", "sham", "matched_params")
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
        ("test: non_inferiority", "test: t_test", r"choose one of non_inferiority, superiority"),
        ("claim: An", "claim: [An", r"hypothesis_9\.yaml, line \d+: not valid YAML"),
    ],
)
def test_a_mistake_is_named(tmp_path, old, new, message):
    assert old in TEXT
    with pytest.raises(UserError, match=message):
        parse(tmp_path, TEXT.replace(old, new, 1))


def test_an_unknown_hypothesis_is_refused():
    with pytest.raises(UserError, match="HYP=3: no such hypothesis; registered in experiments/: 1, 2"):
        experiment.load("3")
