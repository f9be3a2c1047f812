"""Results that are whole are found right, and what was changed in them is named; a record is made again and compared."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from hypotheses import experiment, provenance, record, report, reproduce, verify
from hypotheses.config import ROOT, compose
from hypotheses.errors import UserError
from hypotheses.run import run

ADDRESS = "demo/imagenet/mambaout_atto_identity/seed_0"
SHORT = [
    "recipe.data.train_placements=1",
    "recipe.data.val_placements=1",
    "recipe.epochs=1",
    "recipe.schedule.warmup_epochs=0",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a short run with its report; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    paths = [f"paths.{name}={folder / name}" for name in ("data", "outputs", "results")]
    found = run(compose(["backbone=mambaout_atto_identity", "hardware=cpu", "hardware.threads=1", *SHORT, *paths]))
    assert found
    report.write(None, folder / "results")
    return folder


@pytest.fixture
def copy(made, tmp_path):
    """A copy of it, to be changed: results and outputs."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def look(folder: Path) -> verify.Found:
    return verify.verify(folder / "results", folder / "outputs")


def change(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def rewrite(folder: Path, **changes: object) -> Path:
    """Change a record as somebody would who knows how to set its checksum."""
    file = folder / "results" / "records" / f"{ADDRESS}.json"
    record.write(file, record.read(file) | changes)
    return file


def test_what_is_whole_is_right(copy):
    found = look(copy)
    assert found.problems == [] and found.absent == {}
    assert found.checked["records"] == found.checked["weights"] == found.checked["metrics made anew"] == 1
    assert found.checked["registered rules"] == len(experiment.numbers()) and found.checked["files of the report"] > 20
    assert "all that is here is right" in verify.say(found, "here")
    shutil.rmtree(copy / "outputs")
    found = look(copy)
    assert found.problems == [] and found.absent == {"weights": 1}


@pytest.mark.parametrize("name", ["seed_0.npz", "seed_0.jpg", "seed_0.json"])
@pytest.mark.parametrize("damage", ["changed", "gone", "cut"])
def test_damage_is_named(name, damage, copy):
    file = copy / "results" / "records" / Path(ADDRESS).parent / name
    if damage == "changed":
        change(file)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    else:
        file.unlink()
    found = look(copy)
    if (name, damage) == ("seed_0.jpg", "gone"):  # which is no mistake, but the report has it
        assert found.absent == {"pictures": 1} and any("is not what the records give" in p for p in found.problems)
    elif (name, damage) == ("seed_0.json", "gone"):
        assert found.problems[0] == f"{file} is not there, and its run was recorded: restore it, or make sweep again"
    else:
        assert str(file) in found.problems[0]


@pytest.mark.parametrize("folder", ["registered", "provenance"])
def test_what_a_record_names_has_to_be_there(folder, copy):
    file = sorted((copy / "results" / folder).iterdir())[0]
    change(file)
    assert look(copy).problems[0] == f"{file} is not what was written: its sha256 is another one"
    file.unlink()
    assert look(copy).problems[0] == f"{file} is not there"


def test_changed_weights_are_named(copy):
    change(copy / "outputs" / ADDRESS / "weights.pt")
    assert "weights.pt is not what was written" in look(copy).problems[0]


def test_a_metric_that_its_predictions_do_not_give_is_named(copy):
    file = copy / "results" / "records" / f"{ADDRESS}.json"
    metrics = record.read(file)["metrics"]
    better = metrics | {"top1_percent": metrics["top1_percent"] + 1}
    rewrite(copy, metrics=better)
    problems = look(copy).problems
    assert any(
        f"{file}: top1_percent is {better['top1_percent']}, by its predictions" in problem for problem in problems
    )
    assert any("runs.csv is not what the records give" in problem for problem in problems)


def test_a_record_under_another_name_or_configuration_is_named(copy):
    file = rewrite(copy, data_fingerprint="other")
    assert f"{file}: its identity is not that of its configuration and data" in look(copy).problems
    moved = file.with_name("seed_7.json")
    file.rename(moved)
    assert f"{moved} says that it is {ADDRESS}" in look(copy).problems


def test_a_table_that_was_edited_is_named(copy):
    file = copy / "results" / "report" / "runs.csv"
    file.write_text(file.read_text().replace("mambaout", "mambain"))
    again = f"make report ARGS=paths.results={copy / 'results'}"
    assert look(copy).problems == [f"{file} is not what the records give: {again}"]
    file.unlink()
    assert look(copy).problems == [f"{file} is not there: {again}"]


def test_figures_may_differ_in_the_last_decimal_of_a_coordinate(copy):
    """Other processors round otherwise; figures have three decimals, and of zeros none."""
    file = sorted((copy / "results" / "report" / "figures").glob("*.svg"))[0]
    drawn = file.read_text()
    coordinate = next(c for c in re.findall(r'\b[xy]="(\d+\.\d+)"', drawn) if len(c.split(".")[1]) == 3)

    def moved(by: float) -> None:
        file.write_text(drawn.replace(coordinate, f"{float(coordinate) + by:.3f}".rstrip("0")))

    moved(1e-3)
    assert file.read_text() != drawn and not look(copy).problems
    assert not verify.drawn_alike("at 1.5 or 2", "at 2 or 1.5") and not verify.drawn_alike("a 1 b", "a b 1")
    assert verify.drawn_alike("<svg>1.5</svg> 1.501", "<svg>1.501</svg> 1.501")
    assert not verify.drawn_alike("<svg>1.5</svg> 1.501", "<svg>1.5</svg> 1.5")
    moved(1e-2)
    assert len(look(copy).problems) == 1 and f"{file} is not what the records give" in look(copy).problems[0]


def test_the_page_need_not_be_kept_beside_its_markdown(copy):
    (copy / "results/report/index.html").unlink()
    found = look(copy)
    assert found.problems == [] and found.absent == {"page of the report": 1}


def test_a_record_that_is_run_again_is_not_missed(copy):
    """STALE=rerun has moved it, and was ended before it was run."""
    record.replace(copy / "results", ADDRESS)
    assert not any("its run was recorded" in problem for problem in look(copy).problems)


# ---- a bundle --------------------------------------------------------------------------------------------------------


@pytest.fixture
def packed(copy, tmp_path):
    file = tmp_path / "bundle.tar.gz"
    verify.bundle(file, copy / "results", copy / "outputs")
    return file


def test_a_bundle_verifies_elsewhere_and_is_the_same_twice(packed, copy, tmp_path):
    shutil.rmtree(copy)  # as on another machine
    found = verify.verify_bundle(packed)
    assert found.problems == [] and found.checked["records"] == 1 and found.checked["files of the report"] > 20
    with tarfile.open(packed) as archive:
        names = archive.getnames()
    assert {
        "MANIFEST.sha256",
        "requirements.lock",
        f"events/{ADDRESS}.jsonl",
        f"results/records/{ADDRESS}.json",
    } <= set(names)
    assert any(n.startswith("conf/recipe/") for n in names) and any(
        n.startswith("results/provenance/environment_") for n in names
    )


def test_the_same_files_give_the_same_bundle(packed, copy, tmp_path):
    again = tmp_path / "again.tar.gz"
    verify.bundle(again, copy / "results", copy / "outputs")
    assert again.read_bytes() == packed.read_bytes()


def repack(packed: Path, edit) -> None:
    """Change a bundle: `edit` gets its files by name."""
    place = packed.parent / "unpacked"
    with tarfile.open(packed) as archive:
        archive.extractall(place, filter="data")
    edit(place)
    with tarfile.open(packed, "w:gz") as archive:
        for file in sorted(place.rglob("*")):
            if file.is_file():
                archive.add(file, file.relative_to(place).as_posix())


def test_a_bundle_that_was_changed_is_named(packed):
    name = f"results/records/{ADDRESS}.json"
    repack(packed, lambda place: change(place / name))
    assert verify.verify_bundle(packed).problems[0] == f"{name} is not what was written: its sha256 is another one"


def test_a_bundle_with_more_than_its_manifest_says_is_named(packed):
    repack(packed, lambda place: (place / "results" / "more.txt").write_text("x"))
    assert verify.verify_bundle(packed).problems == ["results/more.txt is not in the manifest"]


@pytest.mark.parametrize("damage", ["cut", "no archive", "no manifest"])
def test_a_bundle_that_cannot_be_read_is_an_error(damage, packed):
    if damage == "cut":
        packed.write_bytes(packed.read_bytes()[:5000])
    elif damage == "no archive":
        packed.write_text("hello")
    else:
        repack(packed, lambda place: (place / "MANIFEST.sha256").unlink())
    with pytest.raises(UserError, match="is not a whole bundle"):
        verify.verify_bundle(packed)


def test_a_bundle_cannot_write_outside_of_its_folder(tmp_path):
    file = tmp_path / "evil.tar.gz"
    (tmp_path / "x").write_text("x")
    with tarfile.open(file, "w:gz") as archive:
        archive.add(tmp_path / "x", "../../escaped.txt")
    with pytest.raises(UserError, match="is not a whole bundle"):
        verify.verify_bundle(file)


def test_nothing_to_pack_or_to_look_at_is_an_error(paths, one_line_error):
    assert "no records in" in one_line_error("hypotheses.verify", *paths)
    assert "no records in" in one_line_error("hypotheses.verify", "--bundle", "/tmp/never.tar.gz", *paths)
    assert "no file /nowhere.tar.gz" in one_line_error("hypotheses.verify", "/nowhere.tar.gz")


# ---- making a record again -------------------------------------------------------------------------------------------


def again(folder: Path, capsys) -> tuple[int, str]:
    paths = [f"paths.{name}={folder / name}" for name in ("data", "outputs", "results")]
    code = reproduce.main([f"results/records/{ADDRESS}.json", "hardware=cpu", *paths])
    return code, capsys.readouterr().out


def test_a_record_is_made_again_with_the_same_bits_in_a_folder_of_its_own(copy, capsys):
    """Though its recipe is not the registered one of its address, and is not asked for again."""
    before = {
        file: file.stat().st_mtime_ns
        for part in ("results", "outputs")
        for file in (copy / part).rglob("*")
        if file.is_file()
    }
    code, said = again(copy, capsys)
    assert code == 0 and f"{ADDRESS}: IDENTICAL" in said and "first difference" not in said
    assert "95 % interval over images" in said and "made otherwise" not in said
    assert all(file.stat().st_mtime_ns == then for file, then in before.items())
    new = copy / "outputs" / "reproduced" / f"{ADDRESS}_1" / "results" / "records" / f"{ADDRESS}.json"
    assert record.read(new)["identity"] == record.read(copy / "results" / "records" / f"{ADDRESS}.json")["identity"]


def outcome(made: Path, **changes: object) -> reproduce.Outcome:
    old = record.read(made / "results" / "records" / f"{ADDRESS}.json")
    return reproduce.compare(old, json.loads(json.dumps(old)) | changes, made / "results")


def test_differences_are_told_by_their_size(made):
    old = record.read(made / "results" / "records" / f"{ADDRESS}.json")
    top1 = old["metrics"]["top1_percent"]
    assert outcome(made).says == reproduce.IDENTICAL
    low, high = outcome(made).metrics["top1_percent"][2]  # type: ignore[misc]
    assert low < top1 < high and high - low < 10
    found = outcome(made, metrics=old["metrics"] | {"top1_percent": top1 + 0.1})
    assert found.says == reproduce.WITHIN and found.first == f"top1_percent: recorded {top1}, now {top1 + 0.1}"
    found = outcome(made, metrics=old["metrics"] | {"top1_percent": high + 1})
    assert found.says == reproduce.DIFFERENT
    curve = [old["curve"][0] | {"train_loss": 9.0}]
    found = outcome(made, curve=curve)
    assert found.says == reproduce.WITHIN and found.first.startswith("row 1 of the curve, train_loss: recorded")
    artefacts = old["provenance"]["artefacts"] | {"weights": "other"}
    found = outcome(made, provenance=old["provenance"] | {"artefacts": artefacts})
    assert found.says == reproduce.WITHIN and found.first == "the weights are not the same bits"
    found = outcome(made, provenance=old["provenance"] | {"device": "1 x GPU", "threads": 8})
    assert found.says == reproduce.IDENTICAL and "threads: 1, now 8" in found.unlike


def test_a_record_that_is_not_there_is_an_error_with_the_nearest(made):
    with pytest.raises(
        UserError, match=rf"RUN=demo/imagenet/mambaout_ato_identity/seed_0: no such record .*did you mean {ADDRESS}"
    ):
        reproduce.find("demo/imagenet/mambaout_ato_identity/seed_0", made / "results")
    done = subprocess.run(["make", "reproduce"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "error: say which record: make reproduce RUN=demo/" in done.stderr


# ---- what a run was made with ----------------------------------------------------------------------------------------


def test_a_record_says_what_it_was_made_with(made):
    found = record.read(made / "results" / "records" / f"{ADDRESS}.json")["provenance"]
    kept = found["kept"]
    listed = provenance.file_of(made / "results", "environment", kept["environment"]).read_text()
    assert "torch==" in listed and "lightning==" in listed and len(listed.splitlines()) > 50
    assert (
        provenance.file_of(made / "results", "lock", kept["lock"]).read_bytes()
        == (ROOT / "requirements.lock").read_bytes()
    )
    assert kept["lock"] == hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest()
    assert bool(kept["changes"]) == found["dirty"]
    assert found["machine"]["cores"] == len(os.sched_getaffinity(0)) and found["machine"]["memory_bytes"] > 2**30
    assert found["flags"]["deterministic"] is True
    assert {"weights", "predictions", "pictures", "rows"} == found["artefacts"].keys()


def test_uncommitted_changes_are_kept_and_can_be_applied(tmp_path, monkeypatch):
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(tmp_path / "p"), *words], capture_output=True, text=True, check=True
        ).stdout

    (tmp_path / "p" / "src").mkdir(parents=True)
    (tmp_path / "p" / "src" / "a.py").write_text("x = 1\n")
    git("init", "-q")
    git("add", "-A")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one")
    for part in ("conf", "experiments", "requirements.lock"):
        (tmp_path / "p" / part).touch()
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "p")
    monkeypatch.setattr(provenance, "SOURCES", ("src",))
    assert provenance.keep(tmp_path / "results")["changes"] is None
    (tmp_path / "p" / "src" / "a.py").write_text("x = 2\n")
    digest = provenance.keep(tmp_path / "results")["changes"]
    assert digest
    git("checkout", "--", "src")
    git("apply", str(provenance.file_of(tmp_path / "results", "changes", digest)))
    assert (tmp_path / "p" / "src" / "a.py").read_text() == "x = 2\n"
