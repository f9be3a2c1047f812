"""What a report is made of: the records of a hypothesis at one scale, what the rule says of them, and what went otherwise."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from hypotheses import attempts, bootstrap, data, experiment, record, verdict
from hypotheses.config import Config
from hypotheses.errors import UserError
from hypotheses.experiment import Arms, Experiment
from hypotheses.verdict import Difference, Verdict

STAND_INS = {"digits": "moved digits", "scenes": "digit scenes", "strips": "digit strips"}


@dataclasses.dataclass(frozen=True)
class Section:
    """A hypothesis at one scale: its arms, records and verdict."""

    hypothesis: Experiment
    scale: str
    arms: Arms
    runs: dict[str, dict[tuple[str, int], record.Record]]  # by task, then by arm and seed
    verdict: Verdict
    pictures: dict[str, dict[str, Path]]  # by task, then by arm: what its first seed has drawn
    deviations: list[str]  # what did not go as planned
    over_images: dict[
        tuple[str, Difference], bootstrap.Interval
    ]  # by task and contrast, where the runs have kept enough

    @property
    def records(self) -> list[record.Record]:
        return [runs[key] for runs in self.runs.values() for key in sorted(runs)]

    def bed(self, task: str) -> str:
        """A task as it is called in text: with what stands in for its data, where something does."""
        source = composed(self.scale, task, self.arms.control)["recipe"]["data"]["source"]
        return task if source in data.PUBLISHED else f"{task} ({STAND_INS[source]})"

    @property
    def name(self) -> str:
        """Of its files and its place in the page."""
        return f"hypothesis_{self.hypothesis.hypothesis}_{self.scale}"


def section(hypothesis: Experiment, results: Path, scale: str) -> Section:
    """Read the records of one scale, those of the registered arms and of the extra ones, and judge them. The intervals over
    images, which take longer, are left out."""
    arms = hypothesis.scales[scale]
    control = hypothesis.positive_control
    memory = control.task if control else None
    runs: dict[str, dict[tuple[str, int], record.Record]] = {}
    pictures: dict[str, dict[str, Path]] = {}
    unregistered: dict[str, list[str]] = {}  # of the arms that decide; those of the others are but told
    odd: list[str] = []
    for task in (*hypothesis.metrics(), *hypothesis.interaction):
        runs[task], pictures[task], unregistered[task] = {}, {}, []
        for arm in arms_of(hypothesis, scale, task):
            folder = results / "records" / scale / task / arm
            for file in sorted(folder.glob("seed_*.json")):
                found = record.read(file)
                if not found["config"]["scale"]["verdict"]:
                    continue
                seed = found["config"]["seed"]
                if control and task == memory and seed >= control.seeds:
                    continue
                runs[task][arm, seed] = found
                if task in hypothesis.interaction:
                    continue
                asked = composed(scale, task, arm)
                registered = {k: asked[k] for k in record.IDENTITY} | {"seed": seed}
                for key, was, now in record.differences(found["config"], registered):
                    odd.append(f"{found['address']}: {key} was {was}, registered is {now}")
                    if task == memory or arm in arms.registered():
                        unregistered[task].append(odd[-1])
            if (folder / "seed_0.jpg").exists() and not arms.doses:  # whose arms are many, and show the same digits
                pictures[task][arm] = folder / "seed_0.jpg"
    judged = verdict.judge(hypothesis, scale, runs, unregistered)
    runs = {task: {k: r for k, r in runs[task].items() if k[1] in judged.seeds} for task in hypothesis.metrics()}
    deciding = [*arms.registered(), *arms.shams.values()]
    decisive = [r for task, found in runs.items() for (arm, _), r in found.items() if task == memory or arm in deciding]
    judged = dataclasses.replace(judged, changes=tuple(experiment.changes(hypothesis, scale, results, decisive)))
    found = Section(hypothesis, scale, arms, runs, judged, pictures, [], {})
    return dataclasses.replace(found, deviations=deviations(found, results, odd))


def arms_of(hypothesis: Experiment, scale: str, task: str) -> list[str]:
    """The arms whose runs of a task are looked at: all, those of the positive control, or those of the interaction."""
    arms = hypothesis.scales[scale]
    if task in hypothesis.tasks:
        return arms.all()
    if task in hypothesis.interaction:
        return [arms.control, *arms.treatments]
    return hypothesis.memory_arms(scale)


LENGTH = Path("measured", "length.json")  # in results/


def lengths(results: Path) -> dict[str, Any] | None:
    """What benchmarks/length.py has measured; None where it has not. Raises UserError on anything else."""
    file = results / LENGTH
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_text())
        for row in found["rows"]:
            assert row["layer"] and row["tokens"] >= 1 and row["training_bytes"] >= 0
            for key in ("forward_seconds", "training_seconds"):
                assert 0 < row[key]["least"] <= row[key]["median"] <= row[key]["most"]
        assert (
            found["rows"]
            and found["dim"]
            and found["heads"]
            and found["states"]
            and found["rounds"]
            and found["machine"]
        )
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(
            f"{file} is not what benchmarks/length.py writes: delete it, or make it anew: python benchmarks/length.py --json {file}"
        ) from error
    return found


@functools.cache
def composed(scale: str, task: str, arm: str) -> Config:
    """The config that a registered run of seed 0 composes to; not to be changed."""
    return experiment.config_of(scale, task, arm, 0, [])


def over_images(s: Section, results: Path) -> dict[tuple[str, Difference], bootstrap.Interval]:
    """The interval over images of every contrast, in the direction that the hypothesis is about; of slopes there is none."""
    found = {}
    for bed in s.verdict.beds if not s.arms.doses else ():
        runs = s.runs[bed.task]
        for c in (*bed.contrasts, *bed.extra):
            first, second = (c.treatment, c.control) if s.hypothesis.gains else (c.control, c.treatment)
            pairs = [(runs[first, seed], runs[second, seed]) for seed in c.seeds]
            if interval := bootstrap.compare(results, bed.metric, pairs, 1 - 2 * c.alpha):
                found[bed.task, c] = interval
    return found


def deviations(s: Section, results: Path, unregistered: list[str]) -> list[str]:
    """Changes of the rule, runs that are missing or not the registered ones, attempts that failed, runs of other code or of a tree
    with uncommitted changes."""
    lines = [*s.verdict.changes, *unregistered]
    for bed in s.verdict.beds:
        if bed.missing and s.runs[bed.task]:
            total = len(s.verdict.seeds) * len(s.arms.registered())
            lines.append(f"{s.bed(bed.task)}: {len(bed.missing)} of the {total} registered runs are not recorded")
    silent = 0
    for task in s.hypothesis.metrics():
        for arm in arms_of(s.hypothesis, s.scale, task):
            for seed in s.verdict.seeds:
                address = f"{s.scale}/{task}/{arm}/seed_{seed}"
                ends, recorded = attempts.read(results, address), (arm, seed) in s.runs[task]
                silent += recorded and not ends
                if ends and ends != [attempts.RECORDED]:
                    lines.append(
                        f"{address}: {len(ends)} attempt{'s' * (len(ends) > 1)}: {'; '.join(ends)}{'' if recorded else '; no record'}"
                    )
    records = s.records
    if silent:
        lines.append(f"{silent} of {len(records)} runs were made before attempts at a run were kept")
    resumed = [r["provenance"]["attempts"] for r in records if len(r["provenance"].get("attempts", ())) > 1]
    if resumed:
        lines.append(f"{len(resumed)} of {len(records)} runs went on from a checkpoint")
    for key in ("code", "packages", "kernels", "device", "threads"):
        if mixed := sum(any(a[key] != made[-1][key] for a in made) for made in resumed):
            lines.append(f"{mixed} of them under another {key} than they were begun with")
    for r in records:
        place = results / "replaced" / r["address"]
        if again := len(list(place.parent.glob(f"{place.name}_*"))):
            lines.append(
                f"{r['address']}: {again} earlier record{'s' * (again > 1)} of other code replaced, kept in results/replaced/"
            )
    if dirty := sum(r["provenance"]["dirty"] for r in records):
        lines.append(f"{dirty} of {len(records)} runs were made with uncommitted changes")
    for key, what in (("code", "training code"), ("device", "device"), ("python", "Python")):
        if len(found := sorted({str(r["provenance"][key])[:40] for r in records})) > 1:
            lines.append(f"the runs differ in {what}: {', '.join(found)}")
    return lines
