"""The check of a data set before the first step of any run, and alone by `python -m hypotheses.data check`.

Every file is read and decoded once; nothing is repaired, skipped or replaced. An error keeps a run from beginning; files that can be
left out one by one go into the quarantine (quarantine.py) at the user's word.

findings.py  every kind of finding, with its weight and what to do
files.py     image files decoded by several processes, and the database of what was found
sets.py      a data set as its check sees it; what is wrong with images of any set
imagenet.py, coco.py, ade20k.py  what is particular to each layout

Nothing here imports torch.
"""

import dataclasses
import importlib
import json
import sys
import time
from pathlib import Path

from hypotheses import data
from hypotheses.config import ROOT, Config
from hypotheses.data import layouts, quarantine
from hypotheses.data.preflight.files import Cache
from hypotheses.data.preflight.findings import Finding, grouped, ordered
from hypotheses.data.preflight.sets import ANNOTATIONS, COUNTS, DataSet
from hypotheses.errors import UserError
from hypotheses.record import code_fingerprint, write_aside

LAYOUTS = {"imagenet": "imagenet", "recall": "imagenet", "coco": "coco", "ade20k": "ade20k"}  # by task


@dataclasses.dataclass(frozen=True)
class Result:
    """findings  those of files in quarantine left out, and said as such
    decoded    files that had to be decoded
    file       where all findings are written"""

    data: DataSet
    findings: list[Finding]
    decoded: int
    seconds: float
    file: Path

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.error]

    @property
    def summary(self) -> str:
        notes = len(self.findings) - len(self.errors)
        return (
            f"{self.data.root}: {amount(len(self.data.files), 'file')}, {self.decoded:,} of them decoded, in {self.seconds:.0f} seconds: "
            f"{amount(len(self.errors), 'error')}, {amount(notes, 'note')}"
            + (f"; all of them in {self.file}" if self.findings else "")
        )


def amount(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def check(config: Config, speed: bool = False) -> Result:
    """Check the data of a run, in mode=eval those of the validation alone; with `speed` also how fast they are read."""
    begun = time.monotonic()
    found = data_set(config)
    module = importlib.import_module(f"{__name__}.{found.layout}")
    module.walk(found)
    name, digest = (
        f"{found.layout} {found.root} {found.splits}",
        f"{code_fingerprint()} {found.cache.version} {found.digest()}",
    )
    if kept := found.cache.find_set(name, digest):
        findings = [Finding(*one) for one in json.loads(kept)]
    else:
        findings = list(module.check(found))
        if not any(
            finding.kind in ("unreadable", "packed") for finding in findings
        ):  # rights and disks change without the file
            found.cache.keep_set(name, digest, json.dumps([dataclasses.astuple(one) for one in findings]))
    findings = apart_from(quarantine.read(config) if published(config) else {}, findings, found)
    if speed and found.folders:  # of files of one image each
        findings += found.speed([file for file in found.files if not file.endswith(".json")])
    if found.cache.trouble:
        findings.append(Finding("uncached", str(found.cache.file), found.cache.trouble))
    file = Path(config["paths"]["outputs"], "preflight", f"{config['scale']['name']}_{config['task']['name']}.txt")
    findings = ordered(findings)
    if findings:
        write_aside(file, "".join(f"{finding}\n" for finding in findings))
    else:
        file.unlink(missing_ok=True)
    return Result(found, findings, found.decoded, time.monotonic() - begun, file)


def require(config: Config) -> None:
    """Check the published data of a run, and say what is found. Raises UserError where there are errors."""
    if not published(config):
        return  # what the project draws itself is known by its hash
    result = check(config)
    for line in grouped(result.findings):
        print(line, file=sys.stderr)
    if listed := quarantine.read(config):
        print(f"note: {amount(len(listed), 'file')} quarantined, listed in {quarantine.path(config)}", file=sys.stderr)
    if errors := result.errors:
        single = f"; what can be left out one by one: {command(config, 'quarantine')}" if errors[0].single else ""
        raise UserError(
            f"{amount(len(errors), 'error')} in the data at {result.data.root}, {errors[0].file} first: {errors[0].problem}{single}; "
            f"all of them in {result.file}"
        )


def published(config: Config) -> bool:
    return config["recipe"]["data"]["source"] in data.PUBLISHED


def command(config: Config, verb: str) -> str:
    """What to type to check, or write the list of, the data of a config."""
    task, paths = config["task"]["name"], config["paths"]
    words = [f"task={task}", f"scale={config['scale']['name']}"]
    words += [f"paths.{key}={paths[key]}" for key in (config["recipe"]["data"]["source"],) if key in paths]
    words += [f"paths.{key}={paths[key]}" for key in ("data", "results") if paths[key] != str(ROOT / key)]
    return f"python -m hypotheses.data {verb} {' '.join(words)}"


def data_set(config: Config) -> DataSet:
    """What of a config its check needs. Data that the project draws are made, if they are not there."""
    recipe, source, task = config["recipe"], config["recipe"]["data"]["source"], config["task"]["name"]
    layout = LAYOUTS[task]
    if source == "random":
        raise UserError("the images of scale=smoke are made up while it runs: there is nothing to check")
    training = config["mode"]["name"] == "train"
    splits = ("train", "val") if training else ("val",)
    classes: tuple[str, ...] | None = None
    if published(config):
        root = Path(config["paths"][source])
        counts, annotations = COUNTS[source], ANNOTATIONS if source == "coco" else {}
        if source == "coco":
            classes = lines(Path(layouts.__file__).parent / "coco_classes.txt")
        elif source == "imagenet" and (listed := recipe["data"]["classes"]):
            classes, counts = lines(Path(layouts.__file__).parent / listed), {}
    else:
        images = data.prepare(config)
        assert images.root
        root, annotations = images.root, {}
        known = {split: recipe["data"].get(f"{split}_images") for split in splits}
        counts = {split: number for split, number in known.items() if number and source != "digits"}
        classes = images.classes if layout == "coco" else None
    cache = Cache(Path(config["paths"]["data"], "preflight"))
    option = f"paths.{source if published(config) else 'data'}"
    return DataSet(
        layout,
        root,
        splits,
        classes,
        recipe["num_classes"],
        counts,
        annotations,
        option,
        cache,
        data.index_folder(config),
        config["hardware"]["workers"],
    )


def lines(file: Path) -> tuple[str, ...]:
    return tuple(file.read_text().splitlines())


def apart_from(listed: dict[str, str], findings: list[Finding], found: DataSet) -> list[Finding]:
    """Findings without those of files in quarantine, which are noted."""
    kept = [finding for finding in findings if finding.single not in listed or not finding.single]
    wrong = {finding.single for finding in findings}
    for name, reason in listed.items():
        if name in wrong:
            kept.append(Finding("quarantined", name, f"is in quarantine ({reason})"))
        elif looked_at(found, name) and (name in found.files or name.startswith(tuple(found.packs))):
            kept.append(Finding("mended", name, f"is in quarantine ({reason}), and nothing is wrong with it now"))
    return kept


def looked_at(found: DataSet, name: str) -> bool:
    """Whether the file of a list belongs to what was checked."""
    return name.startswith(tuple({f"{folder}/" for folder in found.folders} | found.packs))


MOST, SHARE = 10, 0.1  # files of a set, and their share, that are left out at most


def to_quarantine(result: Result, before: dict[str, str]) -> dict[str, str]:
    """The list as it should be: files with an error of their own, with the first of them as the reason, and those that are on the
    list already and still broken, or not looked at. Raises UserError where they are too many for single files."""
    still = {finding.file for finding in result.findings if finding.kind == "quarantined"}
    files = {name: reason for name, reason in before.items() if name in still or not looked_at(result.data, name)}
    for finding in result.errors:
        if finding.single:
            files.setdefault(finding.single, f"{finding.kind}: {finding.problem}")
    if len(files) > max(MOST, SHARE * len(result.data.files)):
        raise UserError(
            f"{len(files):,} of {len(result.data.files):,} files at {result.data.root} would be left out: those are no single files, so "
            f"nothing was written; mend the set ({result.file} names each)"
        )
    return files
