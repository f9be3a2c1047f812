"""What the tasks share: order and randomness that are functions of the seed, and a process's share of the work."""

import contextlib
import dataclasses
import io
import math
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Sampler

from hypotheses.config import Config
from hypotheses.errors import UserError
from hypotheses.progress import Progress
from hypotheses.record import write_aside
from hypotheses.tasks import Run

Key = tuple[int, int]  # (epoch, index of an image)


class EpochSampler(Sampler[Key]):
    """(epoch, index) of this process's share of an epoch; the order is a function of (seed, epoch).

    In training the global batches are the same for any number of processes: each takes every `world`-th image of every
    batch, and images that do not fill a batch are left out. In validation (batch=None) all images are visited once.
    """

    def __init__(self, images: int, batch: int | None, seed: int):
        self.images, self.batch, self.seed, self.epoch = images, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch  # Lightning calls this before each epoch

    def __len__(self) -> int:
        whole = self.images - self.images % self.batch if self.batch else self.images
        return len(range(rank(), whole, world_size()))

    def __iter__(self) -> Iterator[Key]:
        order = np.arange(self.images)
        if self.batch:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
            order = order[: self.images - self.images % self.batch]
        return ((self.epoch, int(i)) for i in order[rank() :: world_size()])


@contextlib.contextmanager
def keyed_random(*key: int) -> Iterator[None]:
    """Inside, the global generators of Python, NumPy and torch are functions of `key`; outside they are untouched."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@dataclasses.dataclass(frozen=True)
class Share:
    """One process's part of the global batch: `images` at a time, in `passes` forward and backward passes."""

    images: int
    passes: int


def divide(batch: int, world: int, most: int) -> Share:
    """Split a global batch over processes and, where a share is more than `most` images, over passes."""
    if batch < 1 or most < 1:
        raise UserError(f"recipe.batch_size={batch}, hardware.max_batch_per_device={most}: give numbers from 1")
    if batch % world:
        raise UserError(
            f"recipe.batch_size={batch} cannot be shared by {world} processes: choose a multiple of {world}"
        )
    share = batch // world
    passes = next(p for p in range(1, share + 1) if share % p == 0 and share // p <= most)
    return Share(share // passes, passes)


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def check_finite(loss: float, when: str) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} {when}")


def workers(hardware: Config, least: int) -> int:
    """Processes that load data, per device: as asked, else 8 beside a GPU, else the threads that are left over."""
    if hardware["workers"] is not None:
        return hardware["workers"]
    return 8 if torch.cuda.is_available() else max(least, torch.get_num_threads() - 1)


def save_weights(model: nn.Module, folder: Path) -> None:
    """weights.pt of a run, whole or not at all."""
    content = io.BytesIO()
    torch.save(model.state_dict(), content)
    write_aside(folder / "weights.pt", content.getvalue())


def start_progress(run: Run, steps: int) -> Progress:
    """The progress of a training, named after what is trained."""
    config = run.config
    name = f"{config['task']['name']} {config['backbone']['name']} seed {config['seed']}"
    return Progress(run.folder, name, steps)


def evaluation_bar(config: Config, batches: int) -> Any:
    """A bar of the batches of an evaluation, shown by the main process."""
    from tqdm import tqdm

    interval = 0.5 if sys.stderr.isatty() else 30.0
    name = f"{config['task']['name']} {config['backbone']['name']}"
    return tqdm(total=batches, desc=name, unit="batch", mininterval=interval, dynamic_ncols=True, disable=rank() != 0)
