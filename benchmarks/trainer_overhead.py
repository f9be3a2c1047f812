"""What the trainer costs: the demo's training by Lightning, with its bar, heartbeat and rows, against a plain loop.

    make bench

Both train the same network on the same batches with the same loss, optimiser and schedule, in one process, one thread,
interleaved; the plain loop is a dozen lines of PyTorch. Validation is left out of both. Prints the median of the
per-round ratios and their range, for the arm with the shortest step (the identity) and for the control.
"""

import argparse
import contextlib
import io
import platform
import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path

import lightning as L
import torch
from torch.nn import functional as F

from hypotheses import data, tasks
from hypotheses.config import compose
from hypotheses.run import device_name
from hypotheses.tasks import imagenet


def by_lightning(job: imagenet.Job) -> float:
    class Clock(L.Callback):
        def on_train_start(self, *_):
            self.start = time.perf_counter()

        def on_train_end(self, *_):
            self.seconds = time.perf_counter() - self.start

    clock = Clock()
    job.trainer.callbacks.insert(0, clock)
    with contextlib.redirect_stderr(io.StringIO()):
        job.trainer.fit(job.module, job.train_loader)
    return clock.seconds


def plainly(job: imagenet.Job) -> float:
    model, recipe = job.module.model.train(), job.run.config["recipe"]
    made = job.module.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    start = time.perf_counter()
    for epoch in range(recipe["epochs"]):
        job.train_loader.sampler.set_epoch(epoch)
        for images, labels in job.train_loader:
            loss = F.cross_entropy(model(job.module.normalise(images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    loss.item()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--data", default=None, help="folder for the demo's digits (default: the project's)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for backbone in ("mambaout_atto_identity", "mambaout_atto"):
        folder = [f"paths.data={asked.data}"] if asked.data else []
        config = compose(
            [
                f"backbone={backbone}",
                "hardware=cpu",
                "recipe.epochs=1",
                "recipe.validate_every=9",
                "recipe.schedule.warmup_epochs=0",
                *folder,
            ]
        )
        images = data.prepare(config)
        seconds: dict[str, list[float]] = {"lightning": [], "plain": []}
        for _ in range(asked.rounds):
            for name, function in (("lightning", by_lightning), ("plain", plainly)):
                with tempfile.TemporaryDirectory() as place:
                    job = imagenet.build(tasks.Run(config, images, Path(place)))
                    seconds[name].append(function(job))
        steps = len(job.train_loader)
        ratios = [a / b for a, b in zip(seconds["lightning"], seconds["plain"], strict=True)]
        per_step = {name: 1e3 * statistics.median(s) / steps for name, s in seconds.items()}
        print(
            f"{backbone}: Lightning / plain loop = {statistics.median(ratios):.3f} "
            f"(median of {len(ratios)} rounds of {steps} steps, {min(ratios):.3f} to {max(ratios):.3f}); "
            f"{per_step['lightning']:.1f} and {per_step['plain']:.1f} ms a step"
        )
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "lightning"))
    print(f"{device_name(config)}, 1 thread, {versions}, Python {platform.python_version()}")


if __name__ == "__main__":
    main()
