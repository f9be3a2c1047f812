"""What a task is: a module with these functions.

    build(run) -> job             the network, data and trainer of a run; reads the config, changes nothing. In mode=eval
                                  the network has the given weights, and there is nothing to train on
    fit(config) -> sha256         of the weights of an evaluation, checked to fit its network
    train(job)                    to the end of its schedule
    evaluate(job) -> metrics      {name_with_unit: value} as in metrics.py, percent where it is a share
    predictions(job) -> arrays    of the validation, image by image, as in bootstrap.py
    curve(job) -> rows            of the training: loss, and the metrics where there was a validation
    validate_some(job, batches) -> images  a few batches of the validation, for a measurement: how many images they were
    pictures(job) -> JPEG         a few validation images with annotation and prediction, the same ones in every arm

A task that needs a library imports it at the top of its own module, and is itself imported by name when it is run, so
that the others work without that library.
"""

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType

from hypotheses.checkpoint import Checkpoints
from hypotheses.config import Config
from hypotheses.data import Images
from hypotheses.tracking import Live


@dataclasses.dataclass(frozen=True)
class Run:
    """What a task is given: the resolved config, the data, the folder for logs, the file of weights that the backbone starts
    from (None: from its seed), and the checkpoints, from whose `start` it goes on (None: none are written). Of a measurement,
    after how many steps it ends, by `Enough`. W&B, which is `told` its rows (None: it is not)."""

    config: Config
    images: Images
    folder: Path
    pretrained: str | None = None
    checkpoints: Checkpoints | None = None
    only_steps: int | None = None
    told: Live | None = None


def load(name: str) -> ModuleType:
    return importlib.import_module(f"hypotheses.tasks.{name}")
