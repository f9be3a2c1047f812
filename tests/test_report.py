"""The report is a pure function of records and hypothesis, and needs nothing but itself to be read."""

import io
import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from PIL import Image

from hypotheses import experiment, record, report
from hypotheses.errors import UserError

VALUES = {
    "mambaout_atto": [90.1, 91.0, 89.6, 90.4, 90.9],
    "mambaout_atto_ssm": [90.0, 91.3, 89.9, 90.1, 91.0],
    "mambaout_atto_identity": [40.0, 41.0, 39.0, 42.0, 38.0],
    "vit_atto": [50.0, 52.0],
    "vit_atto_causal": [48.0, 49.0],
}
FILES = ["hypothesis_1.md", "hypothesis_1.html", "hypothesis_1.csv", "hypothesis_1_demo.svg"]


@pytest.fixture
def results(tmp_path, make_records, memory):
    for r in (*make_records(VALUES).values(), *memory["recall"].values()):
        record.write(tmp_path / "records" / (r["address"] + ".json"), r)
    return tmp_path


def test_twice_the_same_bytes(results, hypothesis):
    first = report.write(hypothesis, results)
    before = {f: (results / f).read_bytes() for f in FILES}
    assert report.write(hypothesis, results) == first
    assert before == {f: (results / f).read_bytes() for f in FILES}


def test_the_verdict_stands_first_with_n_interval_margin_and_scale(results, hypothesis):
    shown = report.write(hypothesis, results)
    for text in (shown, (results / "hypothesis_1.md").read_text(), (results / "hypothesis_1.html").read_text()):
        assert "Hypothesis 1 at demo scale: SUPPORTED" in text
        assert re.search(r"96 % interval [+-]\d\.\d\d to [+-]\d\.\d\d, n = 5 seeds, margin -2", text)
    assert "make sweep HYP=1" in (results / "hypothesis_1.md").read_text()


def test_the_table_has_a_row_per_run(results, hypothesis):
    report.write(hypothesis, results)
    table = pd.read_csv(results / "hypothesis_1.csv")
    assert len(table) == sum(map(len, VALUES.values())) + 9
    assert not table.duplicated(["scale", "task", "backbone", "seed"]).any()
    for backbone, values in VALUES.items():
        assert (
            table[(table.task == "imagenet") & (table.backbone == backbone)].sort_values("seed").top1_percent.tolist()
            == values
        )


def test_the_html_needs_no_network(results, hypothesis):
    report.write(hypothesis, results)
    text = (results / "hypothesis_1.html").read_text()
    outside = []

    class Links(HTMLParser):
        def handle_starttag(self, tag, attrs):
            outside.extend(
                v for k, v in attrs if k in ("src", "href", "xlink:href") and not v.startswith(("#", "data:"))
            )
            assert tag != "script"

    Links().feed(text)
    assert outside == [] and "@import" not in text and "url(http" not in text
    assert text.count("<svg") == 1 and "mambaout_atto_identity" in text


def test_without_records_it_says_what_is_missing(tmp_path, hypothesis):
    shown = report.write(hypothesis, tmp_path)
    assert "INCONCLUSIVE" in shown and "0 of the 15 registered runs" in shown
    assert "mambaout_atto_ssm seed 0, 1, 2, 3, 4" in (tmp_path / "hypothesis_1.md").read_text()


def test_smoke_records_never_reach_a_verdict(results, hypothesis):
    file = results / "records/demo/imagenet/mambaout_atto/seed_0.json"
    changed = json.loads(file.read_text())
    changed["config"]["scale"] = {"name": "smoke", "verdict": False}
    record.write(file, changed)
    assert "14 of the 15" in report.write(hypothesis, results)


def test_a_record_that_was_edited_by_hand_is_named(results, hypothesis):
    file = results / "records/demo/imagenet/mambaout_atto/seed_0.json"
    file.write_text(file.read_text().replace("90.1", "99.1"))
    with pytest.raises(UserError, match=r"seed_0\.json is not a valid record \(changed since it was written\)"):
        report.write(hypothesis, results)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"address": 1}', "null"])
def test_a_corrupt_record_is_named_and_nothing_is_lost(results, hypothesis, text):
    report.write(hypothesis, results)
    before = (results / "hypothesis_1.html").read_bytes()
    file = results / "records/demo/imagenet/mambaout_atto/seed_0.json"
    file.write_text(text)
    with pytest.raises(
        UserError, match=r"seed_0\.json is not a valid record .*: delete it and run the same command again"
    ):
        report.write(hypothesis, results)
    assert (results / "hypothesis_1.html").read_bytes() == before and file.read_text() == text


def test_records_of_an_unregistered_recipe_do_not_decide(results, hypothesis):
    for file in (results / "records/demo/imagenet").glob("mambaout*/*.json"):
        changed = json.loads(file.read_text())
        changed["config"]["recipe"]["epochs"] = 2  # in both arms of every pair
        record.write(file, changed)
    shown = report.write(hypothesis, results)
    assert "INCONCLUSIVE" in shown and "gate: registered configuration" in shown
    assert "recipe.epochs was 2, registered is 5" in shown


def test_a_hypothesis_of_two_tasks_has_a_part_for_each_with_pictures(tmp_path, make_records, memory):
    hypothesis = experiment.load("2")
    gated, ssm, none = (f"mambaout_atto{suffix}" for suffix in ("", "_ssm", "_identity"))
    values = {gated: [50.0, 51, 52, 50, 51], ssm: [51.0, 51.5, 52.5, 51, 51], none: [40.0, 41, 42, 40, 41]}
    for runs in (*(make_records(values, task) for task in hypothesis.tasks), *memory.values()):
        for r in runs.values():
            record.write(tmp_path / "records" / (r["address"] + ".json"), r)
    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
    for arm in (gated, ssm):
        (tmp_path / f"records/demo/coco/{arm}/seed_0.jpg").write_bytes(jpeg.getvalue())
    shown = report.write(hypothesis, tmp_path)
    assert "\ncoco:\n" in shown and "\nade20k:\n" in shown
    assert re.search(
        r"On coco the SSM changes box AP by \+0\.60 points \(96 % interval .*n = 5 seeds, smallest effect", shown
    )
    assert all((tmp_path / f"hypothesis_2_demo_{task}.svg").exists() for task in hypothesis.tasks)
    page, text = ((tmp_path / f"hypothesis_2.{suffix}").read_text() for suffix in ("html", "md"))
    assert page.count("<svg") == 2 and page.count("data:image/jpeg;base64,") == 2
    assert "arm - control" in page and "mask_ap_percent, mean" in page and "<td>none</td>" in page  # pretrained
    assert f"[{gated}](records/demo/coco/{gated}/seed_0.jpg)" in text
    assert len(pd.read_csv(tmp_path / "hypothesis_2.csv")) == 39
