"""What a task is: a module with three functions.

    build(run) -> job             the network, data and trainer of a run; reads the config, changes nothing. In mode=eval
                                  the network has the given weights, and there is nothing to train on
    train(job)                    to the end of its schedule
    evaluate(job) -> metrics      {name_with_unit: value}, percent where it is a share

A task that needs a library imports it at the top of its own module, and is itself imported by name when it is run, so
that the others work without that library.
"""

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType

from hypotheses.config import Config
from hypotheses.data import Images


@dataclasses.dataclass(frozen=True)
class Run:
    """What a task is given: the resolved config, the data, and the folder for logs and checkpoints."""

    config: Config
    images: Images
    folder: Path


def load(name: str) -> ModuleType:
    return importlib.import_module(f"hypotheses.tasks.{name}")
