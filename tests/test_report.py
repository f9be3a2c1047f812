"""The report is a pure function of records and hypotheses, and needs nothing but itself to be read."""

import csv
import io
import json
import re
import subprocess
from html.parser import HTMLParser

import pandas as pd
import pytest
from PIL import Image

from hypotheses import attempts, experiment, record, report
from hypotheses.config import ROOT
from hypotheses.errors import UserError
from hypotheses.report import figures, tables

VALUES = {
    "mambaout_atto": [90.1, 91.0, 89.6, 90.4, 90.9],
    "mambaout_atto_ssm": [90.0, 91.3, 89.9, 90.1, 91.0],
    "mambaout_atto_identity": [40.0, 41.0, 39.0, 42.0, 38.0],
    "vit_atto": [50.0, 52.0],
    "vit_atto_causal": [48.0, 49.0],
}


@pytest.fixture
def results(tmp_path, make_records, memory):
    for r in (*make_records(VALUES).values(), *memory["recall"].values()):
        record.write(tmp_path / "records" / (r["address"] + ".json"), r)
    return tmp_path


def files(results):
    return {f.relative_to(results): f.read_bytes() for f in (results / "report").rglob("*") if f.is_file()}


def page(results):
    return (results / "report/index.html").read_text()


def text(results):
    return (results / "report/index.md").read_text()


def test_twice_the_same_bytes(results, hypothesis):
    first = report.write(hypothesis, results)
    before = files(results)
    assert report.write(hypothesis, results) == first
    assert files(results) == before


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(results, hypothesis, command):
    report.write(hypothesis, results)
    before = files(results)
    done = command("hypotheses.report", f"paths.results={results}", PYTHONHASHSEED="7")
    assert done.returncode == 0, done.stderr
    assert files(results) == before


def test_the_verdict_stands_first_with_n_interval_margin_and_scale(results, hypothesis):
    shown = report.write(hypothesis, results)
    for found in (shown, text(results), page(results)):
        assert "Hypothesis 1 at demo scale: SUPPORTED" in found
        assert re.search(r"96 % interval [+-]\d\.\d\d to [+-]\d\.\d\d, n = 5 seeds, margin -2", found)
    assert page(results).index("at demo scale: SUPPORTED") < page(results).index("<svg")
    assert "make sweep HYP=1" in text(results)


def test_one_report_has_all_hypotheses(results, hypothesis):
    """Also those without a run, and the causal pair of hypothesis 3, which hypothesis 1 has run."""
    shown = report.write(hypothesis, results)
    assert "Hypothesis 2" not in shown
    for number in (1, 2, 3, 4):
        assert f"Hypothesis {number} at demo scale" in page(results)
    assert page(results).count('<section id="hypothesis_') == 4
    assert "Hypothesis 2" in report.write(None, results)


def test_a_row_per_run(results, hypothesis):
    report.write(hypothesis, results)
    table = pd.read_csv(results / "report/runs.csv")
    assert len(table) == sum(map(len, VALUES.values())) + 9
    assert not table.duplicated(["scale", "task", "backbone", "seed"]).any()
    for backbone, values in VALUES.items():
        chosen = table[(table.task == "imagenet") & (table.backbone == backbone)]
        assert chosen.sort_values("seed").top1_percent.tolist() == values


def test_the_page_needs_no_network(results, hypothesis):
    report.write(hypothesis, results)
    outside, beside = [], []

    class Links(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found = [v for k, v in attrs if k in ("src", "href", "xlink:href") and not v.startswith(("#", "data:"))]
            (beside if tag == "a" else outside).extend(found)
            assert tag != "script"

    Links().feed(page(results))
    assert outside == [] and "@import" not in page(results) and "url(http" not in page(results)
    assert beside and all((results / "report" / link).is_file() for link in beside)  # what can be clicked is there


def test_every_table_is_there_as_markdown_csv_and_latex(results, hypothesis):
    report.write(hypothesis, results)
    folder = results / "report/tables"
    names = {f.stem for f in folder.iterdir()}
    assert {f.name for f in folder.iterdir()} == {f"{name}.{kind}" for name in names for kind in ("md", "csv", "tex")}
    assert names >= {
        "hypothesis_1_demo_imagenet_arms",
        "hypothesis_1_demo_imagenet_seeds",
        "hypothesis_1_demo_recall_arms",
    }
    rows = list(csv.reader((folder / "hypothesis_1_demo_imagenet_arms.csv").open()))
    latex = (folder / "hypothesis_1_demo_imagenet_arms.tex").read_text()
    assert rows[1][0] == "mambaout_atto" and rows[1][3] == "90.40 (89.60 to 91.00)"
    assert r"mambaout\_atto\_ssm & treatment & 5 &" in latex and r"\toprule" in latex and "_arms}" in latex
    assert "| mambaout_atto | control | 5 | 90.40 (89.60 to 91.00) |" in text(results)


def test_what_latex_and_markdown_take_for_their_own_is_escaped():
    table = tables.Table("t", "50 % of _all_", ["a|b", "c_d"], [["1 & 2", "x\\y {z} ~ ^ # $"]])
    assert table.markdown()[0] == "| a\\|b | c_d |"
    assert r"1 \& 2 & x\textbackslash{}y \{z\} \textasciitilde{} \^{} \# \$" in table.latex()
    assert r"\caption{50 \% of \_all\_.}" in table.latex()


def test_every_row_has_the_command_that_makes_it_again(results, hypothesis):
    report.write(hypothesis, results)
    wanted = (
        "for s in 0 1 2 3 4; do python -m hypotheses.run task=imagenet backbone=mambaout_atto_ssm hardware=cpu hardware.threads=1 "
        "seed=$s paths.results=again/results paths.outputs=again/outputs; done"
    )
    assert wanted in page(results) and wanted in text(results)
    assert "task=recall backbone=mambaout_atto_sham hardware=cpu hardware.threads=1 seed=$s" in text(results)


def test_without_records_it_says_what_is_missing(tmp_path, hypothesis):
    shown = report.write(hypothesis, tmp_path)
    assert (
        "Hypothesis 1 at demo scale: NOT RUN YET: make sweep HYP=1" in shown
        and "None of its 15 registered runs is there yet" in shown
    )
    for written in (text(tmp_path), page(tmp_path)):
        assert written.count("registered runs is there yet.") == 5  # of four hypotheses, one with two tasks
        assert "Deviations" not in written and "Gates, any" not in written and "_differences" not in written


def test_a_positive_control_alone_is_no_verdict_and_is_not_nothing(tmp_path, memory, hypothesis):
    for r in memory["recall"].values():
        record.write(tmp_path / "records" / (r["address"] + ".json"), r)
    shown = report.write(hypothesis, tmp_path)
    assert "demo scale: ONLY THE POSITIVE CONTROL HAS RUN: make sweep HYP=1" in shown and "NOT RUN YET" not in shown


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


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"address": 1}', "null"])
def test_a_corrupt_record_is_named_and_nothing_is_lost(results, hypothesis, content):
    report.write(hypothesis, results)
    before = files(results)
    file = results / "records/demo/imagenet/mambaout_atto/seed_0.json"
    file.write_text(content)
    with pytest.raises(
        UserError, match=r"seed_0\.json is not a valid record .*: restore it, or delete it and make sweep runs it again"
    ):
        report.write(hypothesis, results)
    assert files(results) == before and file.read_text() == content


def test_a_corrupt_record_of_another_hypothesis_does_not_stop_this_one(results, hypothesis):
    bad = results / "records/demo/coco/mambaout_atto/seed_0.json"
    bad.parent.mkdir(parents=True)
    bad.write_text("{")
    shown = report.write(hypothesis, results)
    assert "Hypothesis 1 at demo scale: SUPPORTED" in shown and "note: hypothesis 2 is not in the report: " in shown
    assert "not read" in page(results) and "coco/mambaout_atto/seed_0.json is not a valid record" in page(results)


def test_records_of_an_unregistered_recipe_do_not_decide(results, hypothesis):
    for file in (results / "records/demo/imagenet").glob("mambaout*/*.json"):
        changed = json.loads(file.read_text())
        changed["config"]["recipe"]["epochs"] = 2  # in both arms of every pair
        record.write(file, changed)
    shown = report.write(hypothesis, results)
    assert "INCONCLUSIVE" in shown and "gate not passed: registered configuration" in shown
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
    assert "\ncoco (digit scenes):\n" in shown and "\nade20k (digit scenes):\n" in shown
    assert re.search(
        r"On coco \(digit scenes\) the SSM changes box AP by \+0\.60 points \(96 % interval .*n = 5 seeds, smallest effect",
        shown,
    )
    for task in hypothesis.tasks:
        for kind in ("differences", "assay", "curves", "macs"):
            assert (tmp_path / f"report/figures/hypothesis_2_demo_{task}_{kind}.svg").exists()
    assert page(tmp_path).count("data:image/jpeg;base64,") == 2
    assert "arm - control" in page(tmp_path) and "mask_ap_percent, mean" in page(tmp_path)
    assert "<td>none</td>" in page(tmp_path)  # pretrained
    assert f"[{gated}](../records/demo/coco/{gated}/seed_0.jpg)" in text(tmp_path)
    assert len(pd.read_csv(tmp_path / "report/runs.csv")) == 39


def test_what_did_not_go_as_planned_is_listed(results, hypothesis):
    for address, ends in (
        ("demo/imagenet/mambaout_atto/seed_0", [attempts.UNENDED, attempts.RECORDED]),
        ("demo/imagenet/mambaout_atto/seed_1", [attempts.RECORDED]),
        ("demo/imagenet/mambaout_atto_act/seed_3", ["FloatingPointError: the loss is nan"]),
    ):
        for end in ends:
            attempts.path(results, address).parent.mkdir(parents=True, exist_ok=True)
            attempts.add(attempts.path(results, address), begun="now")
            if end != attempts.UNENDED:
                attempts.add(attempts.path(results, address), ended="now", how=end)
    file = results / "records/demo/imagenet/mambaout_atto/seed_2.json"
    changed = record.read(file)
    changed["provenance"] |= {"dirty": True, "code": "other"}
    record.write(file, changed)
    report.write(hypothesis, results)
    for line in (
        "demo/imagenet/mambaout_atto/seed_0: 2 attempts: no end noted: killed, or still running; recorded",
        "demo/imagenet/mambaout_atto_act/seed_3: 1 attempt: FloatingPointError: the loss is nan; no record",
        "26 of 28 runs were made before attempts at a run were kept",
        "1 of 28 runs were made with uncommitted changes",
        "the runs differ in training code: code, other",
    ):
        assert f"- {line}\n" in text(results), line
        assert line in page(results)
    assert "mambaout_atto/seed_1:" not in text(results)


def test_files_of_runs_that_are_gone_go_too(results, hypothesis):
    report.write(hypothesis, results)
    assert (results / "report/figures/hypothesis_1_demo_recall.svg").exists()
    for file in (results / "records/demo/recall").rglob("*.json"):
        file.unlink()
    report.write(hypothesis, results)
    assert not list((results / "report").rglob("*recall*"))


# ---- published results -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["imagenet", "coco", "ade20k", "causal_attention"])
def test_every_published_number_has_its_source_and_its_warning(task):
    rows = tables.read_published(task)
    assert len(rows) >= 2
    for row in rows:
        assert re.search(r"arXiv|github\.com|CVPR|timm", row["source"]), row
        assert row["like_for_like"].split(":")[0] in ("no", "unknown"), row


def test_the_papers_tables_are_whole():
    """Rows that arXiv 2405.07992 prints for its own networks, Tables 1 to 3 and Figure 3b."""

    def own(task, *columns):
        rows = tables.read_published(task)
        return {
            r["model"].removeprefix("MambaOut-"): tuple(float(r[c]) for c in columns)
            for r in rows
            if r["source_kind"] == "paper_table" and r["model"].startswith("MambaOut")
        }

    assert own("imagenet", "macs_g", "top1") == {
        "Femto": (1.2, 78.9),
        "Tiny": (4.5, 82.7),
        "Small": (9.0, 84.1),
        "Base": (15.8, 84.2),
    }
    assert own("coco", "ap_box", "ap_mask") == {"Tiny": (45.1, 41.0), "Small": (47.4, 42.7), "Base": (47.4, 43.0)}
    assert own("ade20k", "miou_ss", "miou_ms") == {"Tiny": (47.4, 48.6), "Small": (49.5, 50.6), "Base": (49.6, 51.0)}
    causal = {
        r["model"]: (float(r["fully_visible"]), float(r["causal"])) for r in tables.read_published("causal_attention")
    }
    assert causal == {"ViT-T": (72.2, 70.6), "ViT-S": (79.8, 78.9)}


def test_published_numbers_stand_beside_ours_and_move_no_verdict(results, hypothesis, monkeypatch):
    first = report.write(hypothesis, results)
    assert report.ASIDE in page(results)
    assert page(results).index('id="published"') > page(results).index('id="hypothesis_3_demo"')
    better = tables.read_published

    def raised(task):
        return [row | {k: "99.9" for k in ("top1", "ap_box", "miou_ss", "causal") if k in row} for row in better(task)]

    monkeypatch.setattr(tables, "read_published", raised)
    monkeypatch.setattr(figures, "read_published", raised)
    before = files(results)
    assert report.write(hypothesis, results) == first
    changed = {name.as_posix() for name, content in files(results).items() if before[name] != content}
    assert "report/figures/published_accuracy_macs.svg" in changed
    assert not [name for name in changed if "hypothesis_" in name or name.endswith("runs.csv")]


def test_the_token_counts_are_the_papers():
    """Section 3.2: 196, 4000 and 4096 tokens of a patch of 16 against 6 D = 2304 and 4608."""
    for size, tokens in (((224, 224), 196), ((800, 1280), 4000), ((512, 2048), 4096)):
        assert figures.ratios("vit_small", size) == [pytest.approx(tokens / 2304)]
        assert figures.ratios("vit_base", size) == [pytest.approx(tokens / 4608)]
    assert figures.ratios("mambaout_atto", (32, 32)) == [pytest.approx(64 / 288)]


def test_our_causal_pair_stands_beside_the_papers(results, make_records):
    """With the seeds that both arms have."""
    longer = make_records({"vit_atto": [50.0, 52.0, 60.0]})
    record.write(results / "records/demo/imagenet/vit_atto/seed_2.json", longer["vit_atto", 2])
    *published, ours = figures.causal_pairs([report.section(experiment.load("3"), results, "demo")])
    assert published == [
        ("ViT-T\npublished,\none run", [72.2], [70.6]),
        ("ViT-S\npublished,\none run", [79.8], [78.9]),
    ]
    assert ours == ("vit_atto\nours, demo,\nn = 2 seeds", [50.0, 52.0], [48.0, 49.0])


def test_a_difference_that_is_far_from_what_is_judged_is_an_arrow(results, make_records):
    """So that the intervals that decide have room."""

    def drawn() -> str:
        s = report.section(experiment.load("1"), results, "demo")
        return figures.differences(s, s.verdict.beds[0])

    assert "\u25c0" not in drawn()
    for r in make_records({"vit_atto": [28.0, 29.0], "vit_atto_causal": [42.0, 44.0]}).values():
        record.write(results / "records" / f"{r['address']}.json", r)
    assert "\u25c0 -14.5" in drawn()


def test_without_the_published_files_the_report_is_written_and_says_so(results, hypothesis, monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "PUBLISHED", tmp_path / "nowhere")
    shown = report.write(hypothesis, results)
    assert (
        "Hypothesis 1 at demo scale: SUPPORTED" in shown and "no published results in the report: git checkout" in shown
    )
    assert not list((results / "report/tables").glob("published*"))


def test_an_extra_arm_that_is_not_as_registered_is_told_and_closes_no_gate(results, hypothesis):
    file = results / "records/demo/imagenet/vit_atto/seed_0.json"
    changed = record.read(file)
    changed["config"]["recipe"]["epochs"] = 2
    record.write(file, changed)
    assert "SUPPORTED" in report.write(hypothesis, results)
    assert "- demo/imagenet/vit_atto/seed_0: recipe.epochs was 2, registered is 5" in text(results)


def test_the_demos_data_are_not_called_by_the_names_of_the_real_ones(results, hypothesis):
    report.write(hypothesis, results)
    found = report.section(hypothesis, results, "demo")
    assert [found.bed(task) for task in ("imagenet", "recall")] == ["imagenet (moved digits)", "recall (digit strips)"]
    assert report.section(experiment.load("2"), results, "demo").bed("coco") == "coco (digit scenes)"
    assert report.section(hypothesis, results, "paper").bed("imagenet") == "imagenet"
    assert "<h3>imagenet (moved digits)</h3>" in page(results)


def test_a_folder_that_is_not_there_is_no_report(tmp_path, one_line_error):
    assert "set paths.results to one that a sweep has written" in one_line_error(
        "hypotheses.report", f"paths.results={tmp_path / 'nowhere'}"
    )


def test_make_refuses_options_that_it_would_not_use():
    for words in (["report", "SEEDS=10"], ["report", "TASK=coco", "HYP=2"], ["power", "HYP=1", "ARMS=all"]):
        done = subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and f"error: make {words[0]} takes HYP, SCALE" in done.stderr, done.stderr
    for option in (
        "ARGS=paths.results=results/reference",
        "RUN=demo/imagenet/mambaout_atto/seed_0",
        "HYP=1",
        "BUNDLE=a.tar.gz",
    ):
        done = subprocess.run(["make", "notebooks", option], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and "error: make notebooks takes no options: " in done.stderr, done.stderr
