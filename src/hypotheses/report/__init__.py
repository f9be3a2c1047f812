"""Records and hypotheses -> results/report/: index.html, index.md, and their figures and tables as files. Only reads records;
run twice, it writes the same bytes.

    python -m hypotheses.report [1] [--scale demo]

reading   the records of a hypothesis at one scale, judged      wording   what is said of them
tables    as Markdown, CSV and LaTeX                            figures   as SVG
index.html.jinja   the page
"""

import argparse
import base64
import dataclasses
import fcntl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypotheses import experiment, record
from hypotheses.config import compose
from hypotheses.errors import Parser, UserError
from hypotheses.experiment import Experiment
from hypotheses.report import figures, tables, wording
from hypotheses.report.reading import Section, lengths, over_images, section
from hypotheses.report.tables import Table
from hypotheses.verdict import Bed

__all__ = ["Section", "read_arguments", "section", "write"]

TITLE = "Is the state space model worth having for vision?"
ABOUT = (
    "A controlled test of the hypotheses of MambaOut (arXiv 2405.07992): the same network with and without the SSM, the same recipe, "
    "several seeds, a decision rule that was written down before the runs. Each verdict speaks about its own scale."
)
ASIDE = (
    "Numbers of others, each one run by its own recipe. They stand beside ours and enter no test; the whole files, with the rows "
    "from repositories and re-evaluations, are results/published/*.csv."
)


def write(hypothesis: Experiment | None, results: Path, scale: str | None = None) -> str:
    """Write the report of every hypothesis and scale that has records. Return what a terminal shows of `hypothesis`, or of all, at
    `scale`, or at all. Raises UserError where a record of `hypothesis` is not valid; what is wrong with those of another one stands
    in the report."""
    outputs, said = render(hypothesis, results, scale)
    folder = results / "report"
    folder.mkdir(parents=True, exist_ok=True)
    with open(results / ".report.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # waits for another one
        for file, text in outputs.items():
            record.write_aside(folder / file, text)
        made = {file for kind in ("hypothesis_*", "published_*", "length*") for file in folder.glob(f"*/{kind}")}
        for old in made - {folder / file for file in outputs}:
            old.unlink()  # of runs that are gone
    return said


def render(hypothesis: Experiment | None, results: Path, scale: str | None = None) -> tuple[dict[str, str], str]:
    """The report: its files by their names in results/report/, and what a terminal shows. Writes nothing."""
    sections: list[Section] = []
    unread: dict[str, str] = {}
    for number in experiment.numbers():
        asked = hypothesis is None or number == str(hypothesis.hypothesis)
        try:
            sections += sections_of(hypothesis if hypothesis and asked else experiment.load(number), results)
        except UserError as error:
            if asked:
                raise
            unread[number] = str(error)
    drawn = {name: found for s in sections for name, found in figures.of_section(s).items()}
    drawn |= figures.of_the_paper(sections)
    listed = all_tables(sections)
    measured = lengths(results)
    if measured:
        drawn |= figures.of_lengths(measured)
        listed["length"] = tables.length(measured)
    about_length = wording.length(measured) if measured else ""
    outputs = {
        "index.html": html(sections, drawn, listed, unread, about_length),
        "index.md": markdown(sections, drawn, listed, unread, results, about_length),
        "runs.csv": record.table([r for s in sections for r in s.records])
        .drop_duplicates()
        .to_csv(index=False, lineterminator="\n"),
    }
    outputs |= {f"figures/{name}.svg": svg for name, (_, svg) in drawn.items()}
    for table in listed.values():
        outputs |= {
            f"tables/{table.name}.md": "\n".join([*table.markdown(), ""]),
            f"tables/{table.name}.csv": table.csv(),
            f"tables/{table.name}.tex": table.latex(),
        }
    shown = [s for s in sections if hypothesis is None or s.hypothesis.hypothesis == hypothesis.hypothesis]
    if hypothesis and scale:
        shown = [s for s in shown if s.scale == scale] or [section(hypothesis, results, scale)]
    warnings = [f"note: hypothesis {number} is not in the report: {why}" for number, why in unread.items()]
    if "published_imagenet" not in listed:
        warnings.append(
            f"note: {tables.PUBLISHED} is not there, and no published results in the report: git checkout {tables.PUBLISHED}"
        )
    page = results / "report" / "index.html"
    return outputs, "\n".join([*(terminal(s) for s in shown), "", *warnings, f"report: {page}"])


def sections_of(hypothesis: Experiment, results: Path) -> list[Section]:
    """Those scales of a hypothesis that have records; its first one if none has."""
    found = [section(hypothesis, results, name) for name in hypothesis.scales]
    chosen = [s for s in found if s.records] or found[:1]
    return [dataclasses.replace(s, over_images=over_images(s, results)) for s in chosen]


def all_tables(sections: Sequence[Section]) -> dict[str, Table]:
    found = []
    for s in sections:
        for bed in s.verdict.beds:
            if s.runs[bed.task]:
                found += [tables.arms(s, bed), tables.seeds(s, bed.task)]
                found += [tables.slopes(s, bed)] if s.arms.doses else []
        if (memory := tables.memory(s)) and s.hypothesis.positive_control:
            found += [memory, tables.seeds(s, s.hypothesis.positive_control.task)]
    published = [*(tables.published(task) for task in tables.HEADS), tables.published_causal()]
    found += [table for table in published if table.rows]
    return {table.name: table for table in found}


def terminal(s: Section) -> str:
    """The table of arms, the gates and the verdict, for a terminal."""
    lines = ["", f"# Hypothesis {s.hypothesis.hypothesis}, {s.scale} scale: {s.hypothesis.claim}"]
    for bed in s.verdict.beds:
        if not s.runs[bed.task]:
            lines += ["", f"{s.bed(bed.task)}: {wording.nothing_yet(bed)}"]
            continue
        found = tables.arms(s, bed)
        table = [[row[i] for i in (0, 2, 3, 4)] for row in (found.columns, *found.rows)]
        widths = [max(len(r[i]) for r in table) for i in range(4)]
        lines += ["", f"{s.bed(bed.task)}:"]
        lines += ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in table]
        if s.arms.doses:
            slopes = tables.slopes(s, bed)
            lines += ["", f"{slopes.title}:", *(f"  {' | '.join(row)}" for row in (slopes.columns, *slopes.rows))]
        lines += ["", *(f"  {'passed' if g.passed else 'FAILED'}  {g.name}: {g.detail}" for g in bed.gates)]
        if bed.missing:
            lines += ["", f"Missing: {wording.missing(bed)}. Type: {wording.command(s)}"]
    return "\n".join([*lines, "", wording.headline(s), *wording.remarks(s), s.arms.about])


# ---- the page, as HTML and as Markdown -------------------------------------------------------------------------------


def html(
    sections: Sequence[Section],
    drawn: dict[str, tuple[str, str]],
    listed: dict[str, Table],
    unread: dict[str, str],
    about_length: str,
) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = {name: (title, figures.inline(svg)) for name, (title, svg) in drawn.items()}

    def part(s: Section, task: str) -> dict[str, Any]:
        """What is shown of a task's runs, be it a bed or the positive control."""
        name = f"{s.name}_{task}"
        return {
            "task": s.bed(task),
            "figures": [(key, *found) for key, found in pictures.items() if key == name or key.startswith(f"{name}_")],
            "arms": listed.get(f"{name}_arms"),
            "seeds": listed.get(f"{name}_seeds"),
            "slopes": listed.get(f"{name}_slopes"),
            "commands": [(arm, wording.row_command(runs)) for arm, runs in tables.found_runs(s, task).items()],
            "pictures": pictures_of(s, task),
        }

    def bed_view(s: Section, bed: Bed) -> dict[str, Any]:
        return part(s, bed.task) | {
            "gates": bed.gates,
            "missing": wording.missing(bed),
            "nothing": wording.nothing_yet(bed),
        }

    def memory_view(s: Section) -> dict[str, Any] | None:
        control = s.hypothesis.positive_control
        return part(s, control.task) if control and s.runs[control.task] else None

    views = [
        {
            "id": s.name,
            "number": s.hypothesis.hypothesis,
            "claim": s.hypothesis.claim,
            "source": s.hypothesis.source,
            "scale": s.scale,
            "outcome": s.verdict.outcome,
            "label": wording.label(s) + (", exploratory" if s.verdict.changes else ""),
            "headline": wording.headline(s),
            "about": s.arms.about,
            "remarks": wording.remarks(s),
            "beds": [bed_view(s, bed) for bed in s.verdict.beds],
            "memory": memory_view(s),
            "gates_title": wording.gates_title(s.hypothesis),
            "rule": wording.rule(s.hypothesis),
            "command": wording.command(s),
            "deviations": wording.deviations(s),
            "provenance": wording.provenance(s),
        }
        for s in sections
    ]
    return (
        environment.get_template("index.html.jinja").render(
            title=TITLE,
            about=ABOUT,
            aside=ASIDE,
            sections=views,
            unread=unread,
            published=[table for name, table in listed.items() if name.startswith("published_")],
            paper=[(name, *pictures[name]) for name in figures.OF_THE_PAPER],
            lengths={
                "about": about_length,
                "figures": [(name, *found) for name, found in pictures.items() if name.startswith("length_")],
                "table": listed.get("length"),
            },
            pictures_title=wording.PICTURES,
            again=wording.AGAIN,
            words=wording.WORDS,
        )
        + "\n"
    )


def pictures_of(s: Section, task: str) -> list[tuple[str, str]]:
    """Arm and JPEG, in base64, of what the first seed has drawn."""
    return [(arm, base64.b64encode(file.read_bytes()).decode()) for arm, file in s.pictures[task].items()]


def markdown(
    sections: Sequence[Section],
    drawn: dict[str, tuple[str, str]],
    listed: dict[str, Table],
    unread: dict[str, str],
    results: Path,
    about_length: str,
) -> str:
    lines = [f"# {TITLE}", "", ABOUT, "", "## Verdicts", ""]
    lines += [f"- **{wording.headline(s)}**" for s in sections]
    lines += [f"- Hypothesis {number} could not be read: {why}" for number, why in unread.items()]
    for s in sections:
        lines += ["", f"## Hypothesis {s.hypothesis.hypothesis}, {s.scale} scale: {s.hypothesis.claim}", ""]
        lines += [f"Source: {s.hypothesis.source}.", "", f"**{wording.headline(s)}**", "", s.arms.about, ""]
        lines += [line for remark in wording.remarks(s) for line in (remark, "")]
        for bed in s.verdict.beds:
            lines += [f"### {s.bed(bed.task)}", ""]
            if not s.runs[bed.task]:
                lines += [wording.nothing_yet(bed), ""]
                continue
            lines += images(drawn, f"{s.name}_{bed.task}_")
            lines += [*listed[f"{s.name}_{bed.task}_arms"].markdown(), ""]
            if slopes := listed.get(f"{s.name}_{bed.task}_slopes"):
                lines += [f"{slopes.title}:", "", *slopes.markdown(), ""]
            lines += [wording.gates_title(s.hypothesis), ""]
            lines += [f"- {'passed' if g.passed else '**failed**'}: {g.name}. {g.detail}" for g in bed.gates]
            seeds = listed[f"{s.name}_{bed.task}_seeds"]
            lines += ["", f"{seeds.title}:", "", *seeds.markdown()]
            lines += picture_links(s, bed.task, results)
            if bed.missing:
                lines += ["", f"Missing: {wording.missing(bed)}."]
            lines += [""]
        control = s.hypothesis.positive_control
        if control and (arms := listed.get(f"{s.name}_{control.task}_arms")):
            lines += [f"### Positive control: {s.bed(control.task)}", "", *images(drawn, f"{s.name}_{control.task}")]
            seeds = listed[f"{s.name}_{control.task}_seeds"]
            lines += [*arms.markdown(), "", f"{seeds.title}:", "", *seeds.markdown()]
            lines += [*picture_links(s, control.task, results), ""]
        lines += [f"Make it again, or complete it: `{wording.command(s)}`.", ""]
        if s.records:
            lines += [f"A row of a table: {wording.AGAIN}", ""]
            for task in s.hypothesis.metrics():
                lines += [f"- `{wording.row_command(runs)}`" for runs in tables.found_runs(s, task).values()]
            lines += ["", "Deviations:", "", *(f"- {line}" for line in wording.deviations(s)), ""]
            lines += ["Made with:", "", *(f"- {line}" for line in wording.provenance(s)), ""]
        lines += [wording.rule(s.hypothesis)]
    if about_length:
        lines += ["", f"## {listed['length'].title}", "", about_length, "", *images(drawn, "length_")]
        lines += [*listed["length"].markdown()]
    lines += ["", "## Published results", "", ASIDE, ""]
    lines += [line for name in figures.OF_THE_PAPER for line in images(drawn, name)]
    for name, table in listed.items():
        lines += [f"- [{table.title}](tables/{name}.md)"] if name.startswith("published_") else []
    return "\n".join([*lines, ""])


def images(drawn: dict[str, tuple[str, str]], prefix: str) -> list[str]:
    chosen = {name: title for name, (title, _) in drawn.items() if name.startswith(prefix)}
    return [line for name, title in chosen.items() for line in (f"![{title}](figures/{name}.svg)", "")]


def picture_links(s: Section, task: str, results: Path) -> list[str]:
    links = [f"[{arm}](../{file.relative_to(results).as_posix()})" for arm, file in s.pictures[task].items()]
    return ["", f"{wording.PICTURES}: {', '.join(links)}"] if links else []


# ---- what a person types ---------------------------------------------------------------------------------------------


def read_arguments(
    target: str,
    about: str,
    arguments: Sequence[str] | None,
    options: argparse.ArgumentParser | None = None,
    given: argparse.Namespace | None = None,
) -> tuple[Experiment | None, Path, str | None]:
    """The hypothesis, the folder of results and the scale that a `make` target without runs is asked about; None for what is not
    named. Values of further `options`, a parser without --help, go into `given`."""
    more = "".join(f"{o.option_strings[0]} {o.metavar} " for o in options._actions) if options else ""
    parser = Parser(
        prog=f"make {target} HYP=1",
        description=about,
        usage=f"make {target} HYP=1 [SCALE=demo] [ARGS='{more}paths.results=FOLDER']",
        parents=[options] if options else [],
    )
    parser.add_argument("--scale")
    parser.add_argument("words", nargs="*", help="the number of a hypothesis; paths.results=FOLDER")
    asked = argparse.Namespace() if given is None else given
    parser.parse_intermixed_args(sys.argv[1:] if arguments is None else arguments, asked)
    numbers, overrides = ([w for w in asked.words if ("=" in w) is has] for has in (False, True))
    if len(numbers) > 1:
        raise UserError(f"HYP={' '.join(numbers)}: name one hypothesis: make {target} HYP=1")
    hypothesis = experiment.load(numbers[0]) if numbers else None
    check_paths(target, overrides)
    if asked.scale and hypothesis:
        experiment.check_scale(hypothesis, asked.scale)
    elif asked.scale:
        raise UserError(f"SCALE={asked.scale}: say of which hypothesis: make {target} HYP=1 SCALE={asked.scale}")
    return hypothesis, results_folder(overrides), asked.scale


def check_paths(target: str, overrides: Sequence[str]) -> None:
    for override in overrides:
        if not override.startswith("paths."):
            raise UserError(f"{override}: make {target} takes paths only, such as paths.results=FOLDER")


def results_folder(overrides: Sequence[str]) -> Path:
    results = Path(compose(list(overrides))["paths"]["results"])
    if not results.is_dir():
        raise UserError(f"no folder {results}: set paths.results to one that a sweep has written")
    return results


def main(arguments: list[str] | None = None) -> None:
    about = "Judge the records of the hypotheses and write the report; show what it says of one, or of all."
    print(write(*read_arguments("report", about, arguments)))
