"""Which runs a command is about: what `make sweep`, `make plan` and `make status` take, read in one place."""

import argparse
import dataclasses
import shlex

from hypotheses import experiment, record
from hypotheses.config import Config
from hypotheses.errors import Parser, UserError
from hypotheses.experiment import Experiment

STALES = ("reuse", "rerun")
USAGE = "HYP=1 [SCALE=demo] [TASK=coco] [SEEDS=5] [ARMS=all] [JOBS=2] [STALE=reuse|rerun]"
LAST = " [ARGS='hardware=cpu paths.data=FOLDER']"


@dataclasses.dataclass(frozen=True)
class Selection:
    """stale      what to do with records of other code: "reuse" or "rerun"; None where the user has not said
    overrides  Hydra's, of hardware, cluster, paths, resume and wandb
    launcher   what starts the runs: "local" or "slurm"; said to a sweep alone"""

    hypothesis: Experiment
    scale: str
    seeds: int
    arms: list[str]
    tasks: list[str]
    jobs: int | None
    stale: str | None
    overrides: list[str]
    launcher: str = "local"

    def configs(self) -> list[Config]:
        """Of every run, in the order of a sweep."""
        wanted = experiment.wanted(self.hypothesis, self.scale, self.seeds, self.arms, self.tasks)
        return experiment.configs_of(self.scale, wanted, self.overrides)

    def check_pairs(self, configs: list[Config]) -> None:
        """Raise UserError where arms differ in more than is registered: after all the runs a gate would say so."""
        if self.scale not in self.hypothesis.scales:  # nothing is registered, and nothing is judged
            return
        arms, may_differ = self.hypothesis.scales[self.scale], self.hypothesis.pair_may_differ
        names = [arms.at(dose).of_a_dose() for dose in arms.each_dose()] or [arms.of_a_dose()]
        groups = [(task, group) for task in self.hypothesis.tasks for group in names]
        if control := self.hypothesis.positive_control:
            groups.append((control.task, self.hypothesis.memory_arms(self.scale)))
        one = {(c["task"]["name"], record.arm(c)): c for c in reversed(configs)}  # the first seed of each
        for task, group in groups:
            here = [one[task, arm] for arm in group if (task, arm) in one]
            for other in here[1:]:
                first, second = ({key: c[key] for key in record.IDENTITY} for c in (here[0], other))
                for key, ours, theirs in record.differences(first, second):
                    if key not in may_differ and key != "seed":
                        raise UserError(
                            f"{record.address(other)} differs from {record.address(here[0])} in {key}, {theirs} against {ours}: "
                            f"make them equal in conf/, or add {key} to pair_may_differ in the file of the hypothesis in experiments/"
                        )


def parser(target: str, about: str, more: str = "", after: str = "") -> argparse.ArgumentParser:
    """Of `make <target>`, with the options that say which runs it is about; `more` of its own and what is said `after` them stand in
    its usage."""
    parser = Parser(prog=f"make {target} HYP=1", description=about, usage=f"make {target} {USAGE}{more}{LAST}{after}")
    parser.add_argument("hypothesis", help="number of a file in experiments/")
    parser.add_argument("--scale", default="demo", help="demo, pilot or paper")
    parser.add_argument("--task", help="one task of the hypothesis; all by default")
    parser.add_argument("--seeds", type=int, help="a planned look: 5, 10 or 20; the first by default")
    parser.add_argument("--arms", default="registered", help="registered (default), or all: the extra arms too")
    parser.add_argument("--jobs", type=int, help="runs side by side; one per core or GPU by default")
    parser.add_argument("--stale", help="what to do with records of other code: reuse, or rerun")
    parser.add_argument(
        "overrides",
        nargs="*",
        help="hardware=..., hardware.key=..., cluster.key=..., paths.key=..., resume=any|never, wandb=online|off",
    )
    return parser


def read(asked: argparse.Namespace) -> Selection:
    """What was asked for. Raises UserError with what can be."""
    hypothesis = experiment.load(asked.hypothesis)
    experiment.check_scale(hypothesis, asked.scale)
    seeds = hypothesis.looks[0] if asked.seeds is None else asked.seeds
    if seeds not in hypothesis.looks:
        planned = ", ".join(map(str, hypothesis.looks))
        raise UserError(f"SEEDS={seeds} is not a planned look; the registered ones are {planned}")
    if asked.arms not in ("registered", "all"):
        raise UserError(f"ARMS={asked.arms}: say all for the extra arms too, or leave it out")
    if asked.task is not None and asked.task not in hypothesis.tasks:
        raise UserError(
            f"TASK={asked.task}: hypothesis {hypothesis.hypothesis} is about {', '.join(hypothesis.tasks)}: choose one, or leave "
            "it out"
        )
    if asked.jobs is not None and asked.jobs < 1:
        raise UserError(f"JOBS={asked.jobs}: give a number from 1")
    if asked.stale not in (None, *STALES):
        raise UserError(f"STALE={asked.stale}: choose one of {', '.join(STALES)}, or leave it out to be asked")
    for override in asked.overrides:
        if override.split("=")[0].split(".")[0] not in ("hardware", "cluster", "paths", "resume", "wandb"):
            raise UserError(
                f"{override}: a sweep takes hardware, cluster, paths, resume and wandb only, the rest is registered; for a variant use "
                f"python -m hypotheses.run {shlex.quote(override)} tag=NAME"
            )
    arms = hypothesis.scales[asked.scale]
    names = arms.all() if asked.arms == "all" else arms.registered()
    tasks = [asked.task] if asked.task else list(hypothesis.tasks)
    return Selection(hypothesis, asked.scale, seeds, names, tasks, asked.jobs, asked.stale, asked.overrides)


def minutes(asked: str | None) -> float | None:
    """Of BUDGET. Raises UserError where they are no number above 0, before anything is measured for them."""
    if asked is None:
        return None
    try:
        budget = float(asked)
    except ValueError:
        budget = 0.0
    if not budget > 0:
        raise UserError(f"BUDGET={asked}: give a number of minutes above 0")
    return budget
