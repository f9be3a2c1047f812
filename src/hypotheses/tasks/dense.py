"""What detection and segmentation share: training, validation and pictures by mmengine's runner.

A task gives its `Setup`: the library's own base config with our changes in it, and how to draw a prediction. As in
classification, order and augmentation are functions of (seed, epoch, image), never of the workers or of what else the process
has drawn, and the arms of a seed share the initial values of every shared layer.
"""

from __future__ import annotations

import colorsys
import contextlib
import copy
import dataclasses
import io
import itertools
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.device import utils as device
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import DATA_SAMPLERS, DATASETS, LOOPS, METRICS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from hypotheses import stopping
from hypotheses.backbones import weights
from hypotheses.config import Config
from hypotheses.data import PUBLISHED
from hypotheses.data.layouts import chosen
from hypotheses.errors import UserError
from hypotheses.metrics import ours
from hypotheses.progress import Progress
from hypotheses.record import sha256
from hypotheses.tasks import Run
from hypotheses.tasks.common import (
    EpochSampler,
    Waiting,
    check_finite,
    checkpoint_if_due,
    divide,
    evaluation_bar,
    keyed_random,
    of_all_processes,
    random_state,
    rank,
    restore_random_state,
    save_weights,
    start_progress,
    workers,
    world_size,
)
from hypotheses.tasks.openmmlab import quiet

WRAPPERS = {"32-true": "OptimWrapper", "bf16-mixed": "Bfloat16", "16-mixed": "AmpOptimWrapper"}
PICTURES = 3  # images of the validation split that are drawn
WIDTH = 192  # pixels of one drawing, at least


@dataclasses.dataclass
class Setup:
    """library  "mmdet" or "mmseg"
    config      for mmengine's runner: model, train_dataloader, val_dataloader, val_evaluator, train_cfg, param_scheduler
    datasets    the classes that the config's data sets name
    metric      the class of the config's evaluator
    keep        that evaluator, after a validation, with `kept`, what it was given -> arrays of bootstrap.py
    draw        (image (3, H, W) uint8, data sample, whether its prediction or else its annotation, class names) -> an image
    batches     the class of the config's batch sampler where the schedule counts epochs; None where it counts iterations"""

    library: str
    config: Any
    datasets: tuple[type, ...]
    metric: type
    keep: Callable[[Any], dict[str, np.ndarray]]
    draw: Callable[[Tensor, Any, bool, list[str]], Tensor]
    batches: type | None


@dataclasses.dataclass
class Job:
    """What `build` makes and `train` and `evaluate` use."""

    runner: Any
    report: Report
    setup: Setup
    run: Run


# ---- the functions of a task -----------------------------------------------------------------------------------------


def build(run: Run, setup: Setup) -> Job:
    """The network, data and runner of a run. Raises UserError where the recipe does not fit the hardware or the model."""
    config, recipe, hardware = run.config, run.config["recipe"], run.config["hardware"]
    cpu = hardware["accelerator"] == "cpu" or not torch.cuda.is_available()
    if cpu:  # mmengine puts a model on a GPU where it saw one when it was imported
        device.DEVICE = "cpu"
    training = config["mode"]["name"] == "train"
    share = divide(recipe["batch_size"], world_size(), hardware["max_batch_per_device"])
    for dataset in setup.datasets:
        name = f"Keyed{dataset.__name__}"
        DATASETS.register_module(name=name, module=type(name, (Keyed, dataset), {}), force=True)
    name = f"Kept{setup.metric.__name__}"
    METRICS.register_module(name=name, module=type(name, (Kept, setup.metric), {}), force=True)
    cfg = copy.deepcopy(setup.config)
    cfg.val_evaluator.type = name
    num_workers = workers(hardware, least=0)
    for loader in [cfg[key] for key in ("train_dataloader", "val_dataloader", "test_dataloader") if key in cfg]:
        loader.num_workers, loader.persistent_workers = num_workers, num_workers > 0
        loader.sampler = {"type": "KeyedSampler", "batch": None}
        loader.dataset.type = f"Keyed{loader.dataset.type}"
        loader.dataset.seed = config["seed"]
        loader.dataset.left_out = [str(run.images.root / name) for name in run.images.left_out]  # type: ignore[operator]
        loader.batch_size = 1
    if recipe["data"]["source"] in PUBLISHED:
        cfg.train_dataloader.dataset.subset = recipe["data"].get("train_images")
    cfg.train_dataloader.batch_size = share.images * share.passes
    cfg.train_dataloader.sampler |= {"batch": recipe["batch_size"], "endless": not setup.batches}
    cfg.train_cfg.type = "EpochLoop" if setup.batches else "StepLoop"
    if setup.batches:
        name = f"Skipping{setup.batches.__name__}"
        DATA_SAMPLERS.register_module(name=name, module=type(name, (Skipping, setup.batches), {}), force=True)
        cfg.train_dataloader.batch_sampler.type = name
    cfg.optim_wrapper = {
        "type": WRAPPERS[recipe["precision"]],
        "accumulative_counts": share.passes,
        "constructor": "AdamWOfRecipe",
        "optimizer": recipe["optimizer"],
    }
    if recipe["precision"] == "16-mixed":
        if cpu:
            raise UserError("recipe.precision=16-mixed is for GPUs: use bf16-mixed or 32-true on a CPU")
        cfg.optim_wrapper["dtype"] = "float16"
    cfg.val_cfg = {"type": "ValLoop"}
    # of its own hooks, runtime_info would read every loss at every step
    cfg.default_hooks = dict.fromkeys(("logger", "checkpoint", "runtime_info"))
    for name in ("val_evaluator", "test_evaluator"):
        if name in cfg:
            cfg[name].collect_device = "cpu" if cpu else "gpu"
    cfg.custom_hooks = []
    cfg.visualizer = {"type": "mmengine.Visualizer", "vis_backends": None}
    cfg.default_scope, cfg.log_level = setup.library, "ERROR"
    cfg.work_dir = str(run.folder / "mmengine")
    cfg.randomness = {"seed": config["seed"], "diff_rank_seed": False}
    if world_size() > 1:
        cfg.launcher = "pytorch"
        if cpu:
            cfg.model_wrapper_cfg = {"type": "MMDistributedDataParallel", "device_ids": None}
            without_sync(cfg.model)  # of one process mmengine does it
            if not torch.distributed.is_initialized():
                torch.distributed.init_process_group("gloo")  # mmengine's own way asks for GPUs
    # on a GPU torch would put slow Python in the place of kernels that have no deterministic version, whatever `warn_only` says
    torch.use_deterministic_algorithms(cpu)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    unused = [] if training else ["train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler"]
    unused += [] if recipe.get("multi_scale") else ["test_dataloader", "test_cfg", "test_evaluator"]
    for key in unused:
        cfg.pop(key)
    with quiet():
        try:
            runner: Any = Runner.from_cfg(cfg)
        except (TypeError, AssertionError, KeyError) as error:  # what the library says of a model it cannot build
            raise UserError(f"recipe.model does not fit {setup.library}: {error}") from error
        for handler in runner.logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.setStream(sys.stderr)  # else what it says goes to a file that is closed after this block
        try:
            loaders = [runner.train_dataloader, runner.val_dataloader] if training else [runner.val_dataloader]
            for loader in loaders:  # else each new iterator draws from the generator of dropout and of the proposals
                loader.generator = torch.Generator()
                if loader.num_workers:
                    loader.worker_init_fn = stopping.begin_worker
            batches = len(loaders[0])
            check_classes(run, runner.val_dataloader.dataset, setup)
        except (ValueError, KeyError, TypeError, AssertionError, OSError) as error:  # of what it reads
            raise UserError(
                f"the annotations at {run.images.root} cannot be read ({type(error).__name__}: {error})"
            ) from error
    if not batches:
        raise UserError(
            f"recipe.batch_size={recipe['batch_size']} is more than the images for training: make it smaller"
        )
    if training:
        runner.train_loop.passes = share.passes
        if recipe["precision"] == "bf16-mixed" and hasattr(unwrapped(runner.model), "rpn_head"):
            # mmdet hands proposals to NumPy, which has no bfloat16
            unwrapped(runner.model).rpn_head.register_forward_hook(in_float32)
    report = Report(run, runner.train_loop.max_iters if training else 0)
    runner.register_hook(report, priority="LOW")
    if not training:
        fit(config, unwrapped(runner.model))
    return Job(runner, report, setup, run)


def check_classes(run: Run, dataset: Any, setup: Setup) -> None:
    """Raise where the annotations have other classes than the recipe, with which a network would learn nothing or wrongly."""
    asked = run.config["recipe"]["num_classes"]
    found = len(dataset.cat_ids) if setup.library == "mmdet" else len(dataset.metainfo["classes"])
    if found != asked or not len(dataset):
        raise UserError(
            f"{run.images.root}: {found} of the {asked} classes of recipe.num_classes are annotated, in {len(dataset)} images: "
            "set it to what the data have, or mend the categories of the annotations"
        )


def train(job: Job) -> None:
    """Train to the end of the schedule. Raises FloatingPointError where the loss is no longer a number."""
    try:
        with quiet():
            job.runner.train()
    finally:
        job.report.close()
    if rank() == 0:
        save_weights(unwrapped(job.runner.model), job.run)


def evaluate(job: Job) -> dict[str, float]:
    """The metrics over the whole validation split, and its number of images; after training those of the last validation,
    which was of the trained network."""
    if not job.report.metrics:
        with quiet():
            job.runner.val()
    loader = job.runner.val_dataloader
    return job.report.metrics | {"val_images": len(loader.dataset)}


@torch.no_grad()
def validate_some(job: Job, batches: int) -> int:
    """Predict so many batches of the validation, for a measurement; the images that they are."""
    model, found = unwrapped(job.runner.model).eval(), 0
    with quiet():
        for batch in itertools.islice(job.runner.val_dataloader, batches):
            found += len(model.val_step(batch))
    return found


def predictions(job: Job) -> dict[str, np.ndarray]:
    """What the metrics of the last validation were made of, image by image."""
    (metric,) = job.runner.val_loop.evaluator.metrics
    with quiet():
        return job.setup.keep(metric)


def curve(job: Job) -> list[dict[str, float]]:
    """The mean training loss since the row before, with the validation metrics, at each validation."""
    return job.report.curve


@torch.no_grad()
def pictures(job: Job) -> bytes:
    """The first images of the validation split, the same in every arm: left the annotation, right the prediction. JPEG."""
    model, dataset = unwrapped(job.runner.model).eval(), job.runner.val_dataloader.dataset
    names, rows = list(dataset.metainfo["classes"]), []
    for index in range(min(PICTURES, len(dataset))):
        batch = dataset[index]
        image = original(batch["data_samples"].img_path)
        sample = model.test_step(pseudo_collate([batch]))[0].cpu()
        rows.append([job.setup.draw(image, sample, predicted, names) for predicted in (False, True)])
    height, width = max(side.shape[1] for row in rows for side in row), max(s.shape[2] for r in rows for s in r)
    sheet = np.full((len(rows) * (height + 4), 2 * (width + 4), 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, side in enumerate(row):
            top, left = r * (height + 4), c * (width + 4)
            sheet[top : top + side.shape[1], left : left + side.shape[2]] = side.permute(1, 2, 0).numpy()
    content = io.BytesIO()
    Image.fromarray(sheet).save(content, "JPEG", quality=60)
    return content.getvalue()


def original(path: str) -> Tensor:
    """An image as it is on the disk: (3, H, W) uint8, RGB."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def enlarged(image: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """An image (3, H, W) and masks magnified a whole number of times, until they are WIDTH pixels wide. The image is
    interpolated, which a JPEG keeps in half the bytes."""
    factor = max(1, -(-WIDTH // image.shape[-1]))
    smooth = F.interpolate(image[None].float(), scale_factor=factor, mode="bilinear")[0].round().to(torch.uint8)
    return smooth, *(x.repeat_interleave(factor, -1).repeat_interleave(factor, -2) for x in others)


# ---- what is ours in mmengine's registries ---------------------------------------------------------------------------


class InPasses:
    """A training loop of mmengine that hands a batch to the model in `passes` parts, whose gradients are accumulated: a mixin in
    front of its class."""

    passes = 1

    def run_iter(self, *arguments: Any) -> None:
        """The batch is the last of them; a loop of epochs says its number too."""
        loop: Any = self
        runner, batch = loop.runner, arguments[-1]
        runner.call_hook("before_train_iter", batch_idx=loop._iter, data_batch=batch)
        size = len(batch["inputs"]) // self.passes
        parts = [{k: v[i * size : (i + 1) * size] for k, v in batch.items()} for i in range(self.passes)]
        losses = [runner.model.train_step(part, optim_wrapper=runner.optim_wrapper)["loss"] for part in parts]
        outputs = {"loss": torch.stack(losses).mean() if self.passes > 1 else losses[0]}
        runner.call_hook("after_train_iter", batch_idx=loop._iter, data_batch=batch, outputs=outputs)
        loop._iter += 1


@LOOPS.register_module()
class StepLoop(InPasses, IterBasedTrainLoop):
    """mmengine's loop that counts iterations."""


@LOOPS.register_module()
class EpochLoop(InPasses, EpochBasedTrainLoop):
    """mmengine's, that can also begin in the middle of an epoch: as many batches are left out as are done of it."""

    def run_epoch(self) -> None:
        done = self._iter - self._epoch * len(self.dataloader)
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        batches: Any = self.dataloader.batch_sampler
        batches.skip = done
        for number, batch in enumerate(self.dataloader, done):
            self.run_iter(number, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1


class Skipping:
    """A batch sampler that can leave out its first batches, once: a mixin in front of its class. Theirs put images of like shape
    together, so the batches are made and dropped; no image is read for them."""

    skip = 0

    def __iter__(self) -> Iterator[Any]:
        # now that the first batch is asked for: a loader with workers makes two iterators, and uses one
        skip, self.skip = self.skip, 0
        yield from itertools.islice(super().__iter__(), skip, None)  # type: ignore[misc]


@DATA_SAMPLERS.register_module()
class KeyedSampler(EpochSampler):
    """`EpochSampler` for mmengine, whose samplers yield whole numbers: epoch * images + index, which `Keyed` reads.

    endless  epoch after epoch in one iteration, for schedules that count iterations
    """

    def __init__(self, dataset: Any, seed: int, batch: int | None, endless: bool = False):
        super().__init__(len(dataset), batch, seed)
        self.dataset, self.endless = dataset, endless

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from (epoch * self.images + index for epoch, index in super().__iter__())
            if not self.endless or not len(self):
                return
            self.epoch += 1


class Keyed:
    """A data set of mmengine, or a `subset` of so many images, without the files in quarantine, whose augmentation is a function of (seed, epoch, image): a mixin in
    front of its class."""

    def __init__(self, *args: Any, seed: int, left_out: Sequence[str] = (), subset: int | None = None, **kwargs: Any):
        self.seed, self.left_out, self.subset = seed, frozenset(left_out), subset
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> list[Any]:
        found = super().load_data_list()  # type: ignore[misc]
        if self.subset:
            names = chosen([Path(one["img_path"]).name for one in found], self.subset)
            found = [one for one in found if Path(one["img_path"]).name in names]
        return [one for one in found if not self.left_out & {one["img_path"], one["seg_map_path"]}]

    def __getitem__(self, key: int) -> Any:
        epoch, index = divmod(key, len(self))  # type: ignore[arg-type]
        with keyed_random(self.seed, epoch, index):
            return super().__getitem__(index)  # type: ignore[misc]

    def get_data_info(self, key: int) -> Any:
        return super().get_data_info(key % len(self))  # type: ignore[misc,arg-type]

    def prepare_data(self, index: int) -> Any:
        """One image through the pipeline. mmengine would put another image in the place of one that cannot be read."""
        found = super().get_data_info(index)  # type: ignore[misc]
        try:
            data = self.pipeline(found)  # type: ignore[attr-defined]
        except Exception as error:
            raise UserError(
                f"{found['img_path']} or its annotation cannot be read ({str(error).splitlines()[0]}): mend or replace it"
            ) from error
        if data is None:
            raise UserError(f"{found['img_path']}: nothing is left of it after the pipeline; check its annotation")
        return data


class Kept:
    """A metric of mmengine that keeps the results of all images of the latest validation, on the main process: a mixin in front
    of its class. COCO's judges the images that it was given, not all of the annotation file: those in quarantine are not missed."""

    kept: list[Any]

    def compute_metrics(self, results: list[Any]) -> Any:
        self.kept = results
        if coco := getattr(self, "_coco_api", None):
            given = {found["img_id"] for _, found in results}
            self.img_ids = [number for number in coco.get_img_ids() if number in given]
        return super().compute_metrics(results)  # type: ignore[misc]


@OPTIM_WRAPPERS.register_module()
class Bfloat16(OptimWrapper):
    """Training in mixed bfloat16 on any device; mmengine's own wrapper is for GPUs, and scales the loss, which bfloat16 does not need."""

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        kind = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(kind, torch.bfloat16):
            yield


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class AdamWOfRecipe:
    """AdamW on two groups: what has `norm` in its name, position embeddings and the SSM's A, D and dt bias are not decayed, all
    others are, as in the libraries' own configs for Swin (which so decay the norms of UPerNet's heads, named bn)."""

    def __init__(self, optim_wrapper_cfg: Mapping[str, Any], paramwise_cfg: None = None):
        self.config = dict(optim_wrapper_cfg)

    def __call__(self, model: nn.Module) -> Any:
        optimizer = dict(self.config.pop("optimizer"))
        decay = optimizer.pop("weight_decay")
        free = {
            id(p)
            for name, p in model.named_parameters()
            if "norm" in name or name.endswith("pos_embed") or getattr(p, "no_weight_decay", False)
        }
        groups = [
            {"params": [p for p in model.parameters() if id(p) not in free], "weight_decay": decay},
            {"params": [p for p in model.parameters() if id(p) in free], "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW([g for g in groups if g["params"]], fused=True, **optimizer)
        return OPTIM_WRAPPERS.build(self.config | {"optimizer": adamw})


class Report(Hook):
    """Keeps the curve, with the loss of the main process's share of the batches, and the latest metrics, writes the checkpoints,
    and on the main process tells `Progress` what happens. The loss, which waits for the device, is read only when a heartbeat is
    due.

    A checkpoint is ours: mmengine's has no states of the generators, and is not read again by the torch of today. It is written
    between two steps, never between a step and its validation or the end of its epoch."""

    def __init__(self, run: Run, steps: int):
        self.run, self.steps, self.step = run, steps, 0
        self.random: Any = None  # state of the generators, to be restored before the next step
        self.curve: list[dict[str, float]] = []
        self.metrics: dict[str, float] = {}
        self.losses: list[Tensor] = []
        self.progress: Progress | None = None
        self.bar: Any = None  # of an evaluation
        self.waiting = Waiting()

    def before_train(self, runner: Any) -> None:
        start = self.run.checkpoints.start if self.run.checkpoints else None
        rows = self.go_on(runner, start.file) if start else []
        passes = runner.train_loop.passes
        runner.optim_wrapper.initialize_count_status(runner.model, self.step * passes, self.steps * passes)
        if rank() == 0:
            self.progress = start_progress(self.run, self.steps, rows)
        else:  # stochastic depth, dropout and samples of proposals of its own, as in classification
            seed = self.run.config["seed"] + 1_000_003 * rank()
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)

    def go_on(self, runner: Any, file: Path) -> list[dict[str, float]]:
        """Put everything back to what it was when a checkpoint was written; the rows of the progress until there."""
        kept = torch.load(file, map_location="cpu", weights_only=True)
        unwrapped(runner.model).load_state_dict(kept["model"])
        runner.optim_wrapper.load_state_dict(kept["optimizer"])
        for scheduler, state in zip(runner.param_schedulers, kept["schedulers"], strict=True):
            scheduler.load_state_dict(state)
        loop, self.step, self.curve = runner.train_loop, kept["step"], kept["curve"]
        loop._iter, loop._epoch = kept["step"], kept["epoch"]
        self.waiting = Waiting(**kept["waiting"])
        mine, place = kept["processes"][rank()], next(runner.model.parameters()).device
        self.random, self.losses = mine["random"], [loss.to(place) for loss in mine["losses"]]
        return kept["rows"]

    def content(self, runner: Any) -> dict[str, Any]:
        """Of a checkpoint."""
        losses = [loss.cpu() for loss in self.losses]
        every = of_all_processes({"random": random_state(), "losses": losses})
        return {
            "step": self.step,
            "epoch": runner.train_loop.epoch,
            "model": unwrapped(runner.model).state_dict(),
            "optimizer": runner.optim_wrapper.state_dict(),
            "schedulers": [scheduler.state_dict() for scheduler in runner.param_schedulers],
            "processes": every,
            "curve": self.curve,
            "rows": self.progress.kept if self.progress else [],
            "waiting": self.waiting.figure(),
        }

    def before_train_epoch(self, runner: Any) -> None:
        self.waiting.ask()

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.waiting.get()
        stopping.wait_for_step(self.run.checkpoints is not None)
        if self.random:
            restore_random_state(self.random)
            self.random = None

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        loss = outputs["loss"].detach()
        self.step += 1
        self.metrics = {}
        self.losses.append(loss)
        if self.progress:
            self.progress.advance()
            if self.progress.due():
                check_finite(loss.item(), f"at step {self.step}")
                self.progress.show(loss=loss.item())
        loop = runner.train_loop
        until = len(runner.train_dataloader) if isinstance(loop, EpochLoop) else loop.val_interval
        if self.step % until == 0 or self.step == self.steps:
            stopping.wait_for_step(False)
        elif self.run.checkpoints:
            checkpoint_if_due(self.run.checkpoints, self.step, runner.model, lambda: self.content(runner))
        self.waiting.ask()

    def before_test_epoch(self, runner: Any) -> None:
        self.collect_here(runner.test_loop)

    def before_val_epoch(self, runner: Any) -> None:
        self.collect_here(runner.val_loop)
        self.waiting.pause()
        if not self.losses:  # nothing is trained: mode=eval
            self.bar = evaluation_bar(self.run.config, len(runner.val_dataloader))

    def after_val_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        if self.bar:
            self.bar.update()
        elif self.progress and self.progress.due():
            self.progress.beat()

    def after_test_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        if self.progress and self.progress.due():
            self.progress.beat()

    def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:
        self.metrics = ours(self.run.config["task"]["name"], metrics)
        if self.bar:
            self.bar.close()
            return
        row = {"step": self.step, "train_loss": torch.stack(self.losses).mean().item()} | self.metrics
        self.losses.clear()
        self.curve.append(row)
        if self.progress:
            first = next(iter(self.metrics))
            shown = {k: v for k, v in row.items() if k != "step"}
            self.progress.row(**shown, lr=runner.optim_wrapper.optimizer.param_groups[0]["lr"])
            self.progress.show(loss=row["train_loss"], **{first: row[first]})
        check_finite(row["train_loss"], f"before step {self.step}")
        self.waiting.ask()

    def collect_here(self, loop: Any) -> None:
        """Where CPU processes put their parts of the results: by default mmengine does in the working directory."""
        for metric in loop.evaluator.metrics:
            metric.collect_dir = str(self.run.folder / "parts")

    def close(self) -> None:
        if self.progress:
            self.progress.close()


def color(label: int) -> Any:
    """A colour (red, green, blue) for a class, far from those of the classes beside it."""
    red, green, blue = colorsys.hsv_to_rgb(0.618034 * label % 1, 0.75, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


# ---- small things ----------------------------------------------------------------------------------------------------


def unwrapped(model: Any) -> Any:
    """A model without its wrapper for several processes."""
    return model.module if hasattr(model, "module") else model


def in_float32(module: nn.Module, inputs: Any, maps: tuple[list[Tensor], ...]) -> tuple[list[Tensor], ...]:
    return tuple([x.float() for x in each] for each in maps)


def without_sync(model: Any) -> None:
    """Put BatchNorm in the place of SyncBN, which has no CPU implementation, everywhere in a model's config."""
    for value in model.values() if isinstance(model, dict) else model if isinstance(model, list | tuple) else ():
        if isinstance(value, dict) and value.get("type") == "SyncBN":
            value["type"] = "BN"
        without_sync(value)


def fit(config: Config, model: nn.Module) -> str:
    """Put the config's weights, those of a run of this task, into a model; their sha256. Raises UserError with what does not fit."""
    source = config["weights"]
    file = weights.locate(source)
    state, wanted = weights.read(file), model.state_dict()
    problems = [f"missing {name}" for name in wanted if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in wanted]
    problems += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(
            f"weights={source} are not those of a run of this task, backbone and scale "
            f"(outputs/<scale>/<task>/<backbone>/seed_<k>/weights.pt): {'; '.join(problems[:5])}{more}"
        )
    model.load_state_dict(state)
    return sha256(file)
