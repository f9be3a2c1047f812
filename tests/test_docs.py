"""What README and docs tell people to type exists, examples give what they show, and the pages build without a warning."""

import doctest
import functools
import importlib.util
import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from hypotheses import experiment, record, report, verdict
from hypotheses.config import CONF, ROOT, compose
from test_links import PAGES, pages, prose

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
OPTIONS = {
    "HYP": set(experiment.numbers()),
    "SCALE": {"demo", "pilot", "paper"},
    "TASK": {file.stem for file in (CONF / "task").glob("*.yaml")},
    "SEEDS": {"5", "10", "20"},
    "ARMS": {"all"},
    "STALE": {"reuse", "rerun"},
    "LAUNCHER": {"slurm"},
} | dict.fromkeys(("JOBS", "BUDGET", "RUN", "BUNDLE", "ARGS", "PYTHON"))
LANGUAGES = {"bash", "python", "text", "yaml", "diff", "{toctree}", "{literalinclude}", "{eval-rst}"}
EXTENSIONS = {
    file.stem for file in (ROOT / "tests/extensions").glob("*/conf/*/*.yaml")
}  # tests/test_extensions.py runs them
COMMAND = re.compile(r"(make|python|torchrun) ")
BLOCK = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """Lines of a page that a reader could type: of its shell blocks, and of its indented ones."""
    text = page.read_text()
    lines = [line for language, block in BLOCK.findall(text) if language == "bash" for line in block.splitlines()]
    lines += re.findall(r"^ {4}(\S.*)$", prose(page), re.MULTILINE)
    return [line for line in lines if COMMAND.match(line)]


def mentions(page: Path) -> list[str]:
    """Commands in the text of a page, which may leave out what goes without saying, such as HYP=."""
    return [code for code in re.findall(r"`([^`]+)`", " ".join(prose(page).split())) if COMMAND.match(code)]


def alternatives(words: list[str]) -> Iterator[list[str]]:
    """The runs of a grid of Hydra's: seed=0,1 is two of them."""
    choices = [[f"{w.split('=', 1)[0]}={v}" for v in w.split("=", 1)[1].split(",")] for w in words]
    yield from (list(chosen) for chosen in itertools.product(*choices))


@functools.cache
def composes(*overrides: str) -> None:
    compose(list(overrides))


def check_run(words: list[str]) -> None:
    """Of `python -m hypotheses.run`: its overrides compose."""
    grid, words = "-m" in words, [word for word in words if word not in ("-m", "--help", "--cfg", "job")]
    for launcher in [word.split("=")[1] for word in words if word.startswith("hydra/launcher=")]:
        package = {"joblib": "hydra_joblib_launcher"}.get(launcher, "hydra_submitit_launcher")
        assert importlib.util.find_spec(f"hydra_plugins.{package}"), launcher
    words = [word for word in words if not word.startswith("hydra")]
    for overrides in alternatives(words) if grid else [words]:
        composes(*overrides)


def check_make(words: list[str], mentioned: bool) -> None:
    options = dict(word.split("=", 1) for word in words if "=" in word)
    targets = [word for word in words if "=" not in word]
    assert targets and set(targets) <= TARGETS, f"no target {set(targets) - TARGETS}"
    assert options.keys() <= OPTIONS.keys(), f"no option {options.keys() - OPTIONS.keys()}"
    for name, value in options.items():
        assert OPTIONS[name] is None or value in OPTIONS[name], f"{name}={value}"
    assert mentioned or targets[0] not in ("sweep", "plan", "status", "power") or "HYP" in options, (
        "make needs HYP here"
    )
    if targets[0] in ("sweep", "plan", "status", "report", "verify"):
        overrides = [word for word in shlex.split(options.get("ARGS", "")) if not word.startswith("-")]
        composes(*overrides, *([f"scale={options['SCALE']}"] if "SCALE" in options else []))
    if "RUN" in options:
        assert (ROOT / "results/reference/records" / f"{options['RUN']}.json").exists(), options["RUN"]


def check_module(name: str, words: list[str]) -> None:
    """Of another module, or a benchmark: it is there, and knows these options; its overrides compose."""
    file = ROOT / name if name.endswith(".py") else Path(getattr(importlib.util.find_spec(name), "origin", ""))
    main = file.with_name("__main__.py") if file.name == "__init__.py" else file
    source = main.read_text() + file.read_text() + (ROOT / "src/hypotheses/selection.py").read_text()
    assert "__main__" in source or main != file, f"{name} is no command"
    for option in (word for word in words if word.startswith("-")):
        assert f'"{option}"' in source, f"{name} has no {option}"
    overrides = [word for word in words if re.match(r"[\w.]+=", word)]
    if name.startswith("hypotheses."):
        composes(*overrides)
    if name == "hypotheses.data":
        assert words[0] in ("check", "quarantine", "subset"), words[0]


def check(line: str, mentioned: bool = False) -> None:
    """Raise where a command of the project could not be typed so."""
    words = shlex.split(line, comments=True)
    words = words[: words.index("&&")] if "&&" in words else words
    if any(
        re.search(r"<|\.\.\.|^\[|\b(NAME|SOURCE|FOLDER)$", word) or word.split("=")[-1] in EXTENSIONS for word in words
    ):
        return
    if words[0] == "make":
        return check_make(words[1:], mentioned)
    if "-m" in words[:2]:
        module, rest = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
        if module == "hypotheses.run":
            return check_run(rest)
        return check_module(module, rest)
    return check_module(words[1], words[2:])


@pages
def test_what_a_reader_is_told_to_type_exists(page):
    wrong = []
    for mentioned, lines in ((False, commands(page)), (True, mentions(page))):
        for line in lines:
            try:
                check(line, mentioned)
            except Exception as error:
                wrong.append(f"{line}: {error}")
    assert wrong == []


def test_the_pages_have_commands():
    assert sum(len(commands(page)) for page in PAGES) > 40 and sum(len(mentions(page)) for page in PAGES) > 40


@pytest.mark.parametrize(
    "line",
    [
        "make swep HYP=1",
        "make sweep HYP=99",
        "make sweep HYP=1 SEED=5",
        "make sweep",
        "make sweep HYP=1 ARGS=hardwear=cpu",
        "make reproduce RUN=demo/imagenet/none/seed_0",
        "python -m hypotheses.run task=imagenet backbone=none",
        "python -m hypotheses.run -m seed=0,1 backbone=mambaout_atto,none",
        "python -m hypotheses.none",
        "python -m hypotheses.data chekc task=coco",
        "python benchmarks/none.py",
        "python benchmarks/scan.py --none",
    ],
)
def test_what_does_not_exist_is_found(line):
    with pytest.raises(Exception):  # noqa: B017
        check(line)


@pages
def test_every_block_is_in_a_language_that_is_checked(page):
    assert {language for language, _ in BLOCK.findall(page.read_text())} <= LANGUAGES


@pages
def test_python_examples_give_what_they_show(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    blocks = [block for language, block in BLOCK.findall(page.read_text()) if language == "python"]
    assert all(block.startswith(">>> ") for block in blocks) and page.read_text().count("\n>>> ") == sum(
        block.count(">>> ") for block in blocks
    )
    example = doctest.DocTestParser().get_doctest("\n\n".join(blocks), {}, page.name, str(page), 0)
    assert doctest.DocTestRunner().run(example).failed == 0


@pages
def test_files_that_are_included_are_there(page):
    for name in re.findall(r"^```\{literalinclude\} (\S+)$", page.read_text(), re.MULTILINE):
        assert (page.parent / name).exists(), name


def test_every_file_of_an_extension_is_shown():
    shown = (ROOT / "docs/extend.md").read_text()
    for file in (ROOT / "tests/extensions").rglob("*"):
        if file.is_file() and file.suffix in (".py", ".yaml", ".patch"):
            assert f"../{file.relative_to(ROOT).as_posix()}" in shown, file


def test_the_api_reference_has_every_module():
    listed = re.findall(r"automodule:: (\S+)", "".join(page.read_text() for page in ROOT.glob("docs/api/*.md")))
    package = ROOT / "src"
    there = [file.relative_to(package).with_suffix("") for file in package.rglob("*.py") if file.stem != "__main__"]
    names = [".".join(path.parts).removesuffix(".__init__") for path in there]
    assert sorted(listed) == sorted(names)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs/verdicts.md"], ids=lambda page: page.stem)
def test_the_verdicts_are_those_of_the_committed_records(page):
    text = " ".join(page.read_text().split())
    for number, tasks in (("1", ["imagenet"]), ("2", ["coco", "ade20k"]), ("3", ["imagenet"])):
        hypothesis = experiment.load(number)
        arms = hypothesis.scales["demo"]
        for task in tasks:
            (treatment,), metric = arms.treatments, hypothesis.tasks[task]
            folder = ROOT / "results/reference/records/demo" / task
            runs = {
                (arm, seed): record.read(folder / arm / f"seed_{seed}.json")
                for arm in (treatment, arms.control)
                for seed in range(5)
            }
            found = verdict.compare(runs, metric, treatment, arms.control, range(5), hypothesis.alpha)
            assert found
            c = found.turned() if hypothesis.test == "superiority" else found
            assert f"{c.mean:+.2f} points" in text or f"{-c.mean:.2f} points behind" in text, (task, c.mean)
            assert f"{c.low:+.2f} to {c.high:+.2f}" in text, (task, c.low, c.high)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs/verdicts.md"], ids=lambda page: page.stem)
def test_the_slopes_are_those_of_the_committed_records(page):
    text = " ".join(page.read_text().split())
    found = report.section(experiment.load("4"), ROOT / "results/reference", "demo").verdict
    (bed,) = found.beds
    assert f"Hypothesis 4{' at demo scale' * (page.stem == 'README')}: {found.outcome.lower()}" in text
    assert len(bed.contrasts) >= 2
    for slope in bed.contrasts[:2]:  # over the control's, and over the sham's
        assert f"{slope.mean:+.2f}" in text and f"{slope.low:+.2f} to {slope.high:+.2f}" in text, (
            slope.mean,
            slope.low,
        )
        assert slope.n == 5


def test_the_citation_has_what_its_format_asks_for():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["cff-version"] == "1.2.0" and cited.keys() >= {"message", "title", "authors"}
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    paper = cited["preferred-citation"]
    assert paper.keys() >= {"type", "title", "authors"} and paper["identifiers"][0]["value"] == "arXiv:2405.07992"


def test_the_licence_is_apache_2_to_the_letter():
    published = (
        "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # www.apache.org/licenses/LICENSE-2.0.txt
    )
    assert record.sha256(ROOT / "LICENSE") == published


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(ROOT.glob("benchmarks/*.py")), ids=lambda file: file.stem)
def test_every_benchmark_explains_itself(file):
    if "argparse" not in file.read_text():
        pytest.skip("a part of the others")
    done = subprocess.run([sys.executable, str(file), "--help"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "usage: " in done.stdout, done.stderr


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path):
    words = ("-b", "html", "--fail-on-warning", "--keep-going", "--quiet", "docs", str(tmp_path / "html"))
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-d", str(tmp_path / "doctrees"), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    built = (tmp_path / "html/api/verdicts.html").read_text()
    assert "non_inferiority" in built and not re.search(r'<(script|link|img)[^>]* (src|href)="https?:', built)
