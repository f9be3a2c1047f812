"""A hypothesis as registered in experiments/: claim, arms, seeds, margin, gates; data written before the runs.

Each run keeps the hashes of these files as they were when it began, and a copy of them in results/registered/. So a verdict can
say whether the rule that it goes by was written before its runs, and what was changed since.
"""

import collections
import dataclasses
import hashlib
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from hypotheses.config import CONF, ROOT, Config, compose, compose_seeds
from hypotheses.errors import UserError, nearest
from hypotheses.metrics import MARGIN_STEPS, METRICS
from hypotheses.record import Record, differences, write_aside

FOLDER = ROOT / "experiments"
TESTS = ("non_inferiority", "superiority", "dose_response")


@dataclasses.dataclass(frozen=True)
class Gates:
    """Thresholds; what each means stands beside it in the file."""

    assay_share: float
    ceiling_margins: float
    floor_chances: float
    trained_tail: float
    trained_margins: float
    params_percent: float
    macs_percent: float


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Two arms compared seed by seed: d = metric(control) - metric(treatment)."""

    treatment: str
    control: str


@dataclasses.dataclass(frozen=True)
class Arms:
    """The backbones of a hypothesis at one scale, and what counts there: by task, in units of its metric, the margin (of a
    superiority, the smallest effect of interest) and chance. `about` says what data and networks a verdict speaks of."""

    about: str
    margin: dict[str, float]
    chance: dict[str, float]
    control: str
    treatments: list[str]
    negative_control: str
    extra: list[Contrast]
    shams: dict[str, str] = dataclasses.field(default_factory=dict)  # by treatment: its twin without memory
    reach: list[str] = dataclasses.field(default_factory=list)  # of a dose_response: the control with larger kernels
    doses: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # of conf/dose/, by what varies over them

    def registered(self) -> list[str]:
        """The arms that the verdict needs. Of a dose_response every arm stands in every dose, as <arm>+<dose>."""
        if self.doses:
            return [arm for dose in self.each_dose() for arm in self.at(dose).of_a_dose()]
        return [self.control, *self.treatments, self.negative_control]

    def of_a_dose(self) -> list[str]:
        return [self.control, *self.treatments, *self.shams.values(), *self.reach, self.negative_control]

    def each_dose(self) -> list[str]:
        return list(dict.fromkeys(dose for doses in self.doses.values() for dose in doses))

    def at(self, dose: str) -> "Arms":
        """The arms of one dose."""
        return dataclasses.replace(
            self,
            control=at(self.control, dose),
            treatments=[at(arm, dose) for arm in self.treatments],
            negative_control=at(self.negative_control, dose),
            shams={at(arm, dose): at(sham, dose) for arm, sham in self.shams.items()},
            reach=[at(arm, dose) for arm in self.reach],
            doses={},
        )

    def all(self) -> list[str]:
        """Those, and the extra ones."""
        if self.doses:
            return self.registered()
        extra = [name for contrast in self.extra for name in (contrast.control, contrast.treatment)]
        return list(dict.fromkeys([*self.registered(), *self.shams.values(), *extra]))


@dataclasses.dataclass(frozen=True)
class PositiveControl:
    """A task that takes a memory, at these scales, with this many seeds: every treatment solves it, reaching `solved` in the mean,
    and its sham and the control do not, staying at `unsolved` at most, in units of the metric."""

    task: str
    metric: str
    scales: list[str]
    seeds: int
    solved: float
    unsolved: float


@dataclasses.dataclass(frozen=True)
class Experiment:
    hypothesis: int
    claim: str
    source: str
    tasks: dict[str, str]  # with the metric that decides on each
    test: str
    looks: list[int]
    alpha: float
    pair_may_differ: list[str]
    gates: Gates
    scales: dict[str, Arms]
    sha256: str  # of the file
    what: str = "the SSM"  # that the treatments have and their control lacks
    interaction: dict[str, str] = dataclasses.field(default_factory=dict)  # the short task and its metric
    positive_control: PositiveControl | None = None

    @property
    def gains(self) -> bool:
        """Whether differences are e, arm - control, and not d."""
        return self.test != "non_inferiority"

    @property
    def unit(self) -> str:
        """Of what is judged."""
        return "points per doubling of L/(6D)" if self.test == "dose_response" else "points"

    def metrics(self) -> dict[str, str]:
        """The metric that is looked at on each task that it runs."""
        control = self.positive_control
        return self.tasks | ({control.task: control.metric} if control else {})

    def memory_arms(self, scale: str) -> list[str]:
        """The arms of the positive control at a scale, the control first; none where there is no such control."""
        if not self.positive_control or scale not in self.positive_control.scales:
            return []
        arms = self.scales[scale]
        return [arms.control, *arms.treatments, *arms.shams.values()]

    def memory_runs(self, scale: str) -> list[tuple[str, int]]:
        """(arm, seed) of every run of the positive control at a scale."""
        seeds = range(self.positive_control.seeds if self.positive_control else 0)
        return [(arm, seed) for seed in seeds for arm in self.memory_arms(scale)]


def wanted(
    hypothesis: Experiment, scale: str, seeds: int, arms: Iterable[str], tasks: Iterable[str]
) -> list[tuple[str, str, int]]:
    """(task, arm, seed) of every run of a sweep, in its order: first the positive control, then seed by seed."""
    control = hypothesis.positive_control
    found = [(control.task, *run) for run in hypothesis.memory_runs(scale)] if control else []
    return found + [(task, arm, seed) for seed in range(seeds) for task in tasks for arm in arms]


def config_of(scale: str, task: str, arm: str, seed: int, overrides: list[str]) -> Config:
    """The resolved config of a run."""
    return compose(run_overrides(scale, task, arm, seed) + overrides)


def configs_of(scale: str, runs: list[tuple[str, str, int]], overrides: list[str]) -> list[Config]:
    """The resolved configs of runs, each a task, an arm and a seed, in their order."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for task, arm, seed in runs:
        seeds.setdefault((task, arm), []).append(seed)
    found: dict[tuple[str, str, int], Config] = {}
    for (task, arm), asked in seeds.items():
        configs = compose_seeds(run_overrides(scale, task, arm, asked[0]) + overrides, asked)
        found |= {(task, arm, seed): config for seed, config in zip(asked, configs, strict=True)}
    return [found[run] for run in runs]


def run_overrides(scale: str, task: str, arm: str, seed: int) -> list[str]:
    """What is typed after `python -m hypotheses.run` for a run."""
    backbone, _, dose = arm.partition("+")
    words = [f"task={task}", f"backbone={backbone}", f"scale={scale}", f"seed={seed}"]
    return [*words, f"dose={dose}"] if dose else words


def at(arm: str, dose: str) -> str:
    """The name of an arm in a dose, as its address has it."""
    return f"{arm}+{dose}"


def numbers() -> list[str]:
    """Of all hypotheses that are registered."""
    return sorted(file.stem.removeprefix("hypothesis_") for file in FOLDER.glob("hypothesis_*.yaml"))


def load(number: str) -> Experiment:
    """Read experiments/hypothesis_<number>.yaml. Raises UserError on an unknown number, key, arm or value."""
    file = FOLDER / f"hypothesis_{number}.yaml"
    if not file.exists():
        raise UserError(f"HYP={number}: no such hypothesis; registered in experiments/: {', '.join(numbers())}")
    found = parse(file)
    if str(found.hypothesis) != number:
        raise UserError(
            f"{file}: hypothesis: {found.hypothesis}: the file's name says {number}: write hypothesis: {number}"
        )
    return found


def check_scale(hypothesis: Experiment, scale: str) -> None:
    if scale not in hypothesis.scales:
        raise UserError(
            f"SCALE={scale}: hypothesis {hypothesis.hypothesis} is registered at {', '.join(hypothesis.scales)}"
        )


def parse(file: Path) -> Experiment:
    text = file.read_text()
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{file}{where}: not valid YAML ({getattr(error, 'problem', error)}); mend that line"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected keys and values, such as claim: ...")
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    experiment = convert(content, Experiment, file, "")
    assert isinstance(experiment, Experiment)
    backbones = {p.stem for p in (CONF / "backbone").glob("*.yaml")}
    for scale, arms in experiment.scales.items():
        for name in (arm.partition("+")[0] for arm in arms.all()):
            if name not in backbones:
                raise UserError(f"{file}: scales.{scale}: no backbone '{name}'{nearest(name, backbones)}")
        if odd := sorted(arms.shams.keys() - set(arms.treatments)):
            raise UserError(
                f"{file}: scales.{scale}.shams: {odd[0]} is none of treatments{nearest(odd[0], arms.treatments)}"
            )
        for key, values in (("margin", arms.margin), ("chance", arms.chance)):
            if odd := sorted(values.keys() ^ experiment.tasks.keys()):
                raise UserError(f"{file}: scales.{scale}.{key}: give one for each of tasks; odd: {', '.join(odd)}")
    if experiment.test not in TESTS:
        raise UserError(f"{file}: test: {experiment.test}: choose one of {', '.join(TESTS)}")
    if experiment.test != "superiority" and len(experiment.tasks) != 1:
        raise UserError(f"{file}: tasks: a {experiment.test} is of one task")
    check_doses(experiment, file)
    memory = (
        {experiment.positive_control.task: experiment.positive_control.metric} if experiment.positive_control else {}
    )
    for key, group in (
        ("tasks", experiment.tasks),
        ("interaction", experiment.interaction),
        ("positive_control", memory),
    ):
        for task, metric in group.items():
            if task not in METRICS:
                raise UserError(f"{file}: {key}: no task '{task}'{nearest(task, METRICS)}")
            if metric not in METRICS[task]:
                raise UserError(f"{file}: {key}.{task}: no metric '{metric}'{nearest(metric, METRICS[task])}")
    if control := experiment.positive_control:
        check_positive_control(experiment, control, file)
    for task, metric in experiment.tasks.items():
        least = MARGIN_STEPS * METRICS[task][metric].step
        for scale, arms in experiment.scales.items():
            if arms.margin[task] < least:
                raise UserError(
                    f"{file}: scales.{scale}.margin.{task}: {arms.margin[task]:g} is finer than what is measured in steps of "
                    f"{METRICS[task][metric].step:g} can decide: give {least:g} or more"
                )
    return experiment


def check_doses(experiment: Experiment, file: Path) -> None:
    known = {p.stem for p in (CONF / "dose").glob("*.yaml")}
    for scale, arms in experiment.scales.items():
        key = f"{file}: scales.{scale}"
        if (experiment.test == "dose_response") != bool(arms.doses):
            raise UserError(f"{key}.doses: a dose_response has some, and nothing else has")
        if not arms.doses:
            if arms.reach:
                raise UserError(f"{key}.reach: it is of a dose_response alone: list these arms in extra")
            continue
        if odd := sorted(set(arms.each_dose()) - known):
            raise UserError(f"{key}.doses: no dose '{odd[0]}' in conf/dose/{nearest(odd[0], known)}")
        for way, doses in arms.doses.items():
            if len(set(doses)) < 2:
                raise UserError(f"{key}.doses.{way}: give two doses or more: a slope is over them")
        if len(arms.treatments) != 1 or not arms.shams or arms.extra:
            raise UserError(f"{key}: a dose_response has one of treatments with its sham in shams, and no extra")


def check_positive_control(experiment: Experiment, control: PositiveControl, file: Path) -> None:
    key = f"{file}: positive_control"
    for scale in control.scales:
        if scale not in experiment.scales:
            raise UserError(f"{key}.scales: no scale '{scale}'{nearest(scale, experiment.scales)}")
        arms = experiment.scales[scale]
        if without := [arm for arm in arms.treatments if arm not in arms.shams]:
            raise UserError(f"{key}: {without[0]} has no sham at scale {scale}: give one in scales.{scale}.shams")
        if not (CONF / "recipe" / f"{control.task}_{scale}.yaml").exists():
            raise UserError(f"{key}.scales: conf/recipe/{control.task}_{scale}.yaml is missing")
    if control.task in experiment.tasks:
        raise UserError(f"{key}.task: {control.task} is one of tasks already: a control is another one")
    if not 1 <= control.seeds <= experiment.looks[0]:
        raise UserError(f"{key}.seeds: give a number from 1 to that of the first look, {experiment.looks[0]}")
    if not control.unsolved < control.solved:
        raise UserError(f"{key}: give an unsolved below solved")


def register(results: Path) -> dict[str, str]:
    """The sha256 of every file in experiments/ as it is now, by its name; a copy of each is kept in results/registered/."""
    hashes = {}
    for file in sorted(FOLDER.glob("*.yaml")):
        text = file.read_text()
        hashes[file.stem] = digest = hashlib.sha256(text.encode()).hexdigest()
        if not (copy := registered_copy(results, file.stem, digest)).exists():
            write_aside(copy, text)
    return hashes


def registered_copy(results: Path, name: str, sha256: str) -> Path:
    return results / "registered" / f"{name}_{sha256[:12]}.yaml"


def changes(experiment: Experiment, scale: str, results: Path, runs: Sequence[Record]) -> list[str]:
    """What was changed in the file of a hypothesis after some of its `runs` of a scale were begun, a text for each key; empty
    where the rule is the one that all of them were begun under. Comments and other scales are no part of it."""
    name = f"hypothesis_{experiment.hypothesis}"
    counts = collections.Counter(run["provenance"].get("registered", {}).get(name) for run in runs)
    found = []
    for digest, count in sorted(counts.items(), key=str):
        if digest == experiment.sha256:
            continue
        when = f"after {count} of {len(runs)} runs"
        if digest is None:
            found.append(f"{count} of {len(runs)} runs do not say which rule was registered when they were begun")
            continue
        copy = registered_copy(results, name, digest)
        if not copy.exists() or hashlib.sha256(copy.read_bytes()).hexdigest() != digest:
            found.append(
                f"{when} the file was changed, from a version (sha256 {digest[:12]}) that is not in {copy.parent}"
            )
            continue
        try:
            was, now = (rule_of(file, scale) for file in (copy, FOLDER / f"{name}.yaml"))
        except (yaml.YAMLError, AttributeError, TypeError):  # it was copied as it was, and need not have been valid
            found.append(f"{when} the file was changed, from a version that cannot be read: {copy}")
            continue
        found += [f"{when} {key} was changed from {old} to {new}" for key, old, new in differences(was, now)]
    return found


def rule_of(file: Path, scale: str) -> dict[str, Any]:
    """What a file of experiments/ says about one scale."""
    content = yaml.safe_load(file.read_text())
    if scale not in content.get("positive_control", {}).pop("scales", ()):
        content.pop("positive_control", None)
    return content | {"scales": {scale: content.get("scales", {}).get(scale, {})}}


def convert(value: Any, kind: Any, file: Path, key: str) -> Any:
    """A value of the YAML as the type that its dataclass asks for; a wrong or missing key is an error that names it."""

    def wrong(expected: str) -> UserError:
        return UserError(f"{file}: {key}: {value!r} is not {expected}")

    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise wrong("a group of keys and values")
        hints = get_type_hints(kind)
        prefix = f"{key}." if key else ""
        for name in value:
            if name not in hints:
                raise UserError(f"{file}: unknown key {prefix}{name}{nearest(str(name), hints)}")
        for field in dataclasses.fields(kind):
            required = field.default is field.default_factory is dataclasses.MISSING
            if field.name not in value and required:
                raise UserError(f"{file}: key {prefix}{field.name} is missing")
        return kind(**{name: convert(value[name], hints[name], file, prefix + name) for name in value})
    origin, args = get_origin(kind), get_args(kind)
    if origin is list:
        if not isinstance(value, list):
            raise wrong("a list")
        return [convert(item, args[0], file, f"{key}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise wrong("a group of keys and values")
        return {str(name): convert(item, args[1], file, f"{key}.{name}") for name, item in value.items()}
    if origin in (Union, types.UnionType):  # of a group that may be left out
        return None if value is None else convert(value, args[0], file, key)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise wrong({int: "a whole number", float: "a number", str: "a text"}[kind])
    return value
