"""Whether results are whole, and say what they were made from: of a folder, or of a bundle on another machine.

    python -m hypotheses.verify [paths.results=FOLDER]
    python -m hypotheses.verify bundle.tar.gz
    python -m hypotheses.verify --bundle results.tar.gz [paths.results=FOLDER]   (makes one)

Of each record: its checksum, address and identity; the sha256 of every file that it names; its metrics, made anew from the
predictions that its run has kept. Of the whole: that no record was taken away after its run had ended; the report and all tables, made
anew and compared byte for byte, but for the last decimals of the figures' coordinates, in which processors differ.
"""

import dataclasses
import gzip
import hashlib
import io
import re
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hypotheses import attempts, bootstrap, experiment, provenance, record, report
from hypotheses.config import ROOT, compose
from hypotheses.errors import Parser, UserError, command
from hypotheses.metrics import METRICS

MANIFEST = "MANIFEST.sha256"
KEPT = {"predictions": ".npz", "pictures": ".jpg", "rows": ".jsonl"}
OF_RESULTS = ("records", "attempts", "registered", "provenance", "replaced", "quarantine", "measured", "report")
PAGE = "index.html"
DRAWN = (".svg", ".html")
DRAWING = re.compile(r"<svg.*?</svg>", re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
LAST_DECIMAL = 1e-3  # of a coordinate, as figures.py writes it
OF_PROJECT = ("experiments", "conf", "requirements.lock")


@dataclasses.dataclass
class Found:
    """checked   how many of each kind were looked at and right
    absent    how many are not kept here any more, which is no mistake
    problems  in words, each with its file"""

    checked: dict[str, int] = dataclasses.field(default_factory=dict)
    absent: dict[str, int] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)

    def right(self, kind: str) -> None:
        self.checked[kind] = self.checked.get(kind, 0) + 1

    def missing(self, kind: str) -> None:
        self.absent[kind] = self.absent.get(kind, 0) + 1

    def compare(self, kind: str, file: Path, sha256: str, must_exist: bool = True) -> None:
        """Whether a file has this sha256."""
        if not file.exists():
            self.problems.append(f"{file} is not there") if must_exist else self.missing(kind)
        elif record.sha256(file) != sha256:
            self.problems.append(f"{file} is not what was written: its sha256 is another one")
        else:
            self.right(kind)


def verify(results: Path, outputs: Path) -> Found:
    """Look at everything in a folder of results; weights lie in `outputs`, if they are kept."""
    found = Found()
    folder = results / "records"
    for file in sorted(folder.rglob("*.json")):
        try:
            one = record.read(file)
        except UserError as error:
            found.problems.append(str(error))
            continue
        found.right("records")
        if f"{one['address']}.json" != file.relative_to(folder).as_posix():
            found.problems.append(f"{file} says that it is {one['address']}")
        try:
            check(found, one, file, results, outputs)
        except (KeyError, TypeError, ValueError, UserError) as error:
            found.problems.append(f"{file} cannot be followed ({type(error).__name__}: {error})")
    check_attempts(found, results)
    if (results / "report").is_dir():
        check_report(found, results)
    else:
        found.missing("report")
    return found


def check_attempts(found: Found, results: Path) -> None:
    """Whether every run that ended as recorded has its record, here or where one goes that is run again."""
    folder = results / "attempts"
    for file in sorted(folder.rglob("*.jsonl")):
        address = file.relative_to(folder).with_suffix("").as_posix()
        kept, moved = results / "records" / f"{address}.json", results / "replaced" / address
        ended = attempts.read(results, address)[-1:] == [attempts.RECORDED]
        if ended and not kept.exists() and not any(moved.parent.glob(f"{moved.name}_*")):
            found.problems.append(f"{kept} is not there, and its run was recorded: restore it, or make sweep again")


def check(found: Found, one: record.Record, file: Path, results: Path, outputs: Path) -> None:
    """Look at what a record names."""
    made = one["provenance"]
    identity = record.identity(one["config"], one["data_fingerprint"], made.get("pretrained"))
    if identity == one["identity"]:
        found.right("identities")
    else:
        found.problems.append(f"{file}: its identity is not that of its configuration and data")
    for name, sha256 in (made.get("artefacts") or {"predictions": made.get("predictions")}).items():
        if sha256 is None:
            continue
        place = outputs / one["address"] / "weights.pt" if name == "weights" else file.with_suffix(KEPT[name])
        found.compare(name, place, sha256, must_exist=name == "predictions")
    for name, sha256 in made.get("registered", {}).items():
        found.compare("registered rules", experiment.registered_copy(results, name, sha256), sha256)
    for kind, sha256 in made.get("kept", {}).items():
        if sha256:
            found.compare("environments", provenance.file_of(results, kind, sha256), sha256)
    check_metrics(found, one, file, results)


def check_metrics(found: Found, one: record.Record, file: Path, results: Path) -> None:
    """Make the metrics anew from what the run has predicted, to what its library rounds to."""
    try:
        kept = bootstrap.read(one, results)
    except UserError:
        return  # it was said that the file is another one
    if kept is None:
        found.missing("metrics made anew")
        return
    known = METRICS[one["config"]["task"]["name"]]
    once = np.ones((1, bootstrap.size(kept)), int)
    for name in (name for name in known if name in bootstrap.METRICS and name in one["metrics"]):
        again = float(bootstrap.resampled(name, kept, once)[0])
        if abs(again - one["metrics"][name]) > known[name].step / 2 + 1e-4:
            found.problems.append(f"{file}: {name} is {one['metrics'][name]}, by its predictions {again:.4f}")
        else:
            found.right("metrics made anew")


def check_report(found: Found, results: Path) -> None:
    """Make the report anew, and compare every file of it."""
    try:
        outputs, _ = report.render(None, results)
    except UserError as error:
        found.problems.append(f"the report cannot be made anew: {error}")
        return
    here = results == Path(compose([])["paths"]["results"])
    again = "make report" if here else f"make report ARGS=paths.results={results}"
    for name, text in sorted(outputs.items()):
        file = results / "report" / name
        if not file.exists() and name == PAGE and file.with_suffix(".md").exists():
            found.missing(
                "page of the report"
            )  # as where results are committed: it is large, and its Markdown says the same
        elif not file.exists():
            found.problems.append(f"{file} is not there: {again}")
        elif (kept := file.read_text()) != text and not (file.suffix in DRAWN and drawn_alike(kept, text)):
            found.problems.append(f"{file} is not what the records give: {again}")
        else:
            found.right("files of the report")


def drawn_alike(kept: str, again: str) -> bool:
    """Whether two files are the same but for numbers that differ in the last decimal of a drawing's coordinate."""
    if DRAWING.sub("", kept) != DRAWING.sub("", again) or NUMBER.split(kept) != NUMBER.split(again):
        return False
    pairs = zip(NUMBER.findall(kept), NUMBER.findall(again), strict=True)
    return all(a == b or abs(float(a) - float(b)) < 1.5 * LAST_DECIMAL for a, b in pairs)


# ---- a bundle --------------------------------------------------------------------------------------------------------


def members(results: Path, outputs: Path) -> Iterator[tuple[str, Path]]:
    """(name, file) of what goes into a bundle: records with what they name, events, rules, configurations and the environment."""
    for part in OF_RESULTS:
        for file in sorted((results / part).rglob("*")):
            if file.is_file() and not file.name.startswith("."):
                yield f"results/{file.relative_to(results).as_posix()}", file
    for part in OF_PROJECT:
        whole = ROOT / part
        for file in [whole] if whole.is_file() else sorted(whole.rglob("*.yaml")):
            yield file.relative_to(ROOT).as_posix(), file
    for file in sorted((results / "records").rglob("*.json")):
        address = file.relative_to(results / "records").with_suffix("").as_posix()
        if (events := outputs / address / "metrics.jsonl").exists():
            yield f"events/{address}.jsonl", events


def bundle(target: Path, results: Path, outputs: Path) -> int:
    """Write an archive, the same bytes for the same files; the number of files. Raises UserError where there is nothing."""
    found = dict(members(results, outputs))
    if not any(name.startswith("results/records/") for name in found):
        raise UserError(f"no records in {results}: make a sweep first, or set paths.results=FOLDER")
    contents = {name: file.read_bytes() for name, file in found.items()}
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(contents.items())]
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as archive,
    ):
        for name, content in {MANIFEST: "".join(lines).encode(), **dict(sorted(contents.items()))}.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    record.write_aside(target, packed.getvalue())
    return len(contents)


def verify_bundle(file: Path) -> Found:
    """Unpack a bundle, compare every file with its manifest, and look at its results as at a folder's."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        try:
            with tarfile.open(file) as archive:
                archive.extractall(place, filter="data")  # nothing outside of the folder
            lines = (place / MANIFEST).read_text().splitlines()
            listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        except (OSError, EOFError, tarfile.TarError, ValueError) as error:
            why = " ".join(str(error).split())[:200]
            raise UserError(f"{file} is not a whole bundle of make bundle ({why}): copy it again") from error
        found = Found()
        for name, digest in listed.items():
            found.compare("files of the manifest", place / name, digest)
        unpacked = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
        found.problems += [f"{name} is not in the manifest" for name in sorted(unpacked - listed.keys() - {MANIFEST})]
        inside = verify(place / "results", place / "outputs")
        found.checked |= inside.checked
        found.absent |= inside.absent
        found.problems += inside.problems
        found.problems = [problem.replace(f"{folder}/", "") for problem in found.problems]
    return found


def say(found: Found, what: str) -> str:
    lines = [f"{what}:"]
    lines += [f"  {count:5} {kind} right" for kind, count in found.checked.items()]
    lines += [f"  {count:5} {kind} not kept here" for kind, count in found.absent.items()]
    lines += [f"  WRONG {problem}" for problem in found.problems]
    wrong = len(found.problems)
    lines.append(f"{wrong} problem{'s' * (wrong > 1)}" if wrong else "all that is here is right")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(
        prog="make verify",
        description="Whether results are whole and say what they were made from.",
        usage="make verify [BUNDLE=file.tar.gz] [ARGS='paths.results=FOLDER']; make bundle [BUNDLE=file.tar.gz]",
    )
    parser.add_argument("--bundle", help="write such an archive")
    parser.add_argument("words", nargs="*", help="a bundle; paths.results=FOLDER, paths.outputs=FOLDER")
    asked = parser.parse_intermixed_args(sys.argv[1:] if arguments is None else arguments)
    files, overrides = ([w for w in asked.words if ("=" in w) is has] for has in (False, True))
    paths = compose(overrides)["paths"]
    results, outputs = Path(paths["results"]), Path(paths["outputs"])
    given = {override.split("=")[0] for override in overrides}
    if "paths.results" in given and "paths.outputs" not in given:
        outputs = results / "outputs"  # the weights in outputs/ are of other runs
    if asked.bundle and Path(asked.bundle).is_dir():
        raise UserError(
            f"BUNDLE={asked.bundle} is a folder: name a file, such as {asked.bundle.rstrip('/')}/bundle.tar.gz"
        )
    if asked.bundle:
        count = bundle(Path(asked.bundle), results, outputs)
        print(
            f"{asked.bundle}: {count} files; make verify BUNDLE={asked.bundle} looks at it, on any machine with this project"
        )
        return 0
    if files and not Path(files[0]).is_file():
        raise UserError(f"no file {files[0]}: name a bundle that make bundle has written")
    if not files and not any((results / "records").rglob("*.json")):
        raise UserError(f"no records in {results}: make a sweep first, or set paths.results=FOLDER")
    found = verify_bundle(Path(files[0])) if files else verify(results, outputs)
    print(say(found, files[0] if files else str(results)))
    return 1 if found.problems else 0


if __name__ == "__main__":
    command(main)
