"""The notebooks are committed without output, and run from beginning to end: on records, and on the committed ones where there are none."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from hypotheses import experiment, notebook, record
from hypotheses.config import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 120  # that a notebook may compute
EMPTY = "overrides = []"


def test_they_are_the_three():
    assert [file.stem for file in NOTEBOOKS] == ["1_classification", "2_dense_prediction", "3_concept"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_they_are_committed_without_output_and_lean(file):
    book = nbformat.read(file, 4)
    nbformat.validate(book)
    assert book.cells[0].cell_type == "markdown" and book.cells[0].source.startswith("# ")
    for cell in book.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None and not cell.metadata, cell.id
        if cell.cell_type == "code":
            defined = [n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
            assert not defined, f"{cell.id}: what is defined belongs into the package"
    assert set(book.metadata) == {"kernelspec", "language_info"} and book.metadata.kernelspec.name == "python3"
    assert sum(cell.source.count(EMPTY) for cell in book.cells) == 1
    assert file.read_text().endswith("}\n") and file.stat().st_size < 20_000


def test_the_runs_of_a_hypothesis_are_those_of_all_its_arms(tmp_path, capsys, make_records, monkeypatch):
    """Two hypotheses share some of their arms; the committed runs are of all of them."""

    def found(number: str) -> tuple[Path, str]:
        return notebook.find(experiment.load(number), [f"paths.results={tmp_path}"]), capsys.readouterr().out

    def write(*arms: str) -> None:
        for r in make_records({arm: [90.0] for arm in arms}).values():
            record.write(tmp_path / "records" / f"{r['address']}.json", r)

    def committed(number: str) -> tuple[Path, str]:
        said = f"Not every arm of hypothesis {number} has a run in {tmp_path}: these are the committed runs of {notebook.REFERENCE}. "
        return notebook.REFERENCE, f"{said}For runs of your own: make sweep HYP={number}\n"

    none = f"Not every arm of hypothesis 4 has a run in {tmp_path}, and none are committed either: make sweep HYP=4\n"
    assert [found("1"), found("3")] == [committed("1"), committed("3")]
    assert found("4") == committed("4")
    write("mambaout_atto", "mambaout_atto_ssm", "mambaout_atto+d24_p2_32px")
    assert [found("1"), found("3")] == [committed("1"), committed("3")]
    assert found("4") == committed("4")
    with monkeypatch.context() as patched:
        patched.setattr(notebook, "REFERENCE", tmp_path / "none")
        assert found("4") == (tmp_path, none)
    write("mambaout_atto_identity")
    assert found("1") == (tmp_path, f"Records of {tmp_path}.\n")
    assert found("3") == committed("3")


def run(file, overrides: list[str]) -> tuple[str, float]:
    """Everything that the cells of a notebook have printed and shown as text, and the seconds of processor time that they took."""
    book = nbformat.read(file, 4)
    (cell,) = (cell for cell in book.cells if EMPTY in cell.source)
    cell.source = cell.source.replace(EMPTY, f"overrides = {overrides!r}")
    book.cells.append(nbformat.v4.new_code_cell("import time; print('took', time.process_time())"))
    NotebookClient(book, timeout=600, resources={"metadata": {"path": str(file.parent)}}).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    text = "\n".join(output.get("text") or str(output.get("data", {})) for output in outputs)
    return text, float(text.rpartition("took ")[2])


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_they_run_on_the_committed_records(file, tmp_path):
    text, seconds = run(file, [f"paths.results={tmp_path}"])
    assert f"these are the committed runs of {notebook.REFERENCE}" in text
    number = {"1_classification": 1, "2_dense_prediction": 2, "3_concept": 3}[file.stem]
    assert re.search(rf"Hypothesis {number} at demo scale: (SUPPORTED|REFUTED|INCONCLUSIVE)", text)
    assert text.count("<svg") >= 4 and seconds < SECONDS


@pytest.mark.slow
def test_they_run_on_records_of_ones_own(tmp_path, make_records, memory):
    values = {"mambaout_atto": [90.1, 91.0], "mambaout_atto_ssm": [90.0, 91.3], "mambaout_atto_identity": [40.0, 41.0]}
    for r in (*make_records(values).values(), *memory["recall"].values()):
        record.write(tmp_path / "records" / f"{r['address']}.json", r)
    text, _ = run(NOTEBOOKS[0], [f"paths.results={tmp_path}"])
    assert f"Records of {tmp_path}." in text and "committed runs" not in text
    assert "Hypothesis 1 at demo scale: INCONCLUSIVE" in text and "6 of the 15 registered runs are recorded" in text
