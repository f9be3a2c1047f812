"""What the tasks share: order and randomness that are functions of the seed, and a process's share of the work."""

import contextlib
import dataclasses
import functools
import io
import math
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Sampler, get_worker_info

from hypotheses import stopping
from hypotheses.checkpoint import Checkpoints
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
        self.images, self.batch, self.seed, self.epoch, self.first = images, batch, seed, 0, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch  # Lightning calls this before each epoch

    def skip(self, images: int) -> None:
        """Leave out that many of this process's images, whole epochs of them too, when it is next iterated: to go on in the middle
        of a training."""
        epochs, self.first = divmod(images, len(self))
        self.epoch += epochs

    def __len__(self) -> int:
        whole = self.images - self.images % self.batch if self.batch else self.images
        return len(range(rank(), whole, world_size()))

    def __iter__(self) -> Iterator[Key]:
        order = np.arange(self.images)
        if self.batch:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
            order = order[: self.images - self.images % self.batch]
        first, self.first = self.first, 0
        return ((self.epoch, int(i)) for i in order[rank() :: world_size()][first:])


@contextlib.contextmanager
def keyed_random(*key: int) -> Iterator[None]:
    """Inside, the global generators of Python, NumPy and torch are functions of `key`; outside they are untouched, but in a process
    that loads data, where nothing else draws."""
    before = None if get_worker_info() else random_state()
    seed_generators(*key)
    try:
        yield
    finally:
        if before:
            restore_random_state(before)


def seed_generators(*key: int) -> None:
    """Make the global generators functions of `key`."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


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


def save_weights(model: nn.Module, run: Run) -> None:
    """weights.pt of a run, whole or not at all."""
    if run.checkpoints:
        run.checkpoints.guard()
    content = io.BytesIO()
    torch.save(model.state_dict(), content)
    write_aside(run.folder / "weights.pt", content.getvalue())


def start_progress(run: Run, steps: int, rows: Sequence[Mapping[str, float]]) -> Progress:
    """The progress of a training, named after what is trained; `rows` of what was done before a checkpoint."""
    config = run.config
    name = f"{config['task']['name']} {config['backbone']['name']} seed {config['seed']}"
    start = run.checkpoints.start if run.checkpoints else None
    return Progress(
        run.folder, name, steps, *((start.step, start.seconds) if start else (0, 0.0)), rows, run.only_steps, run.told
    )


def of_all_processes(mine: Any) -> list[Any]:
    """By rank; every process calls it and gets them all."""
    every: list[Any] = [mine] * world_size()
    if len(every) > 1:
        torch.distributed.all_gather_object(every, mine)
    return every


def random_state() -> dict[str, Any]:
    """The states of this process's global generators, as a checkpoint can keep them."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put the generators of this process back to what `random_state` has found."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu())


def agreed(wish: bool) -> bool:
    """Whether any process of the run wishes it; asked by all of them at the same place."""
    if world_size() == 1:
        return wish
    answer = torch.tensor([wish], dtype=torch.uint8)
    torch.distributed.all_reduce(answer, torch.distributed.ReduceOp.MAX, group=host_group())
    return bool(answer.item())


def checkpoint_if_due(checkpoints: Checkpoints, step: int, model: nn.Module, content: Callable[[], Any]) -> None:
    """Write a checkpoint if it is time, and stop if that was asked for; asked by every process after the same step. `content` is
    called by all of them, and what it returns on the main one is kept. Raises FloatingPointError where a parameter is no number."""
    if agreed(checkpoints.due()):
        if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
            raise FloatingPointError(f"a parameter is no finite number after step {step}")
        kept = content()
        if checkpoints.main:
            packed = io.BytesIO()
            torch.save(kept, packed)
            checkpoints.write(step, packed.getvalue())
        if agreed(stopping.requested()):
            raise stopping.Stopped(stopping.State.number or signal.SIGTERM)


@dataclasses.dataclass
class Waiting:
    """For how many seconds a training loop had no batch, `of` how many in all, validations left out. On a GPU the device may have work
    left meanwhile: it waits for no longer than the loop does."""

    seconds: float = 0.0
    of: float = 0.0
    since: float | None = None

    def ask(self) -> None:
        """A batch is wanted: a step has ended, or an epoch begins."""
        self.since = time.monotonic() if self.since is None else self.since + self.lap()

    def get(self) -> None:
        """Here it is."""
        if self.since is not None:
            passed = self.lap()
            self.seconds += passed
            self.since += passed

    def pause(self) -> None:
        """What follows is no training."""
        if self.since is not None:
            self.lap()
        self.since = None

    def lap(self) -> float:
        assert self.since is not None
        passed = time.monotonic() - self.since
        self.of += passed
        return passed

    def figure(self) -> dict[str, float]:
        """As a record and a checkpoint keep it."""
        return {"seconds": round(self.seconds, 3), "of": round(self.of, 3)}


@functools.cache
def host_group() -> Any:
    """The processes of a run, talking over the CPU, so that no GPU is waited for."""
    if torch.distributed.get_backend() == "gloo":
        return None  # the default group
    return torch.distributed.new_group(backend="gloo")


def evaluation_bar(config: Config, batches: int) -> Any:
    """A bar of the batches of an evaluation, shown by the main process."""
    from tqdm import tqdm

    interval = 0.5 if sys.stderr.isatty() else 30.0
    name = f"{config['task']['name']} {config['backbone']['name']}"
    return tqdm(total=batches, desc=name, unit="batch", mininterval=interval, dynamic_ncols=True, disable=rank() != 0)
