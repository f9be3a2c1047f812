"""Image classification by Lightning: ImageNet in any of its layouts, and the demo's digits in one of them.

Order and augmentation are functions of (seed, epoch, image) alone (images.py), mixing of (seed, epoch, pass, process): never of the
workers or of what else the process has drawn. So the arms of a seed see the same images.

B batch; H, W pixels. Images travel as uint8 and are normalised on the device.
"""

import dataclasses
import io
import logging
import math
import os
import warnings
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from hypotheses import backbones, stopping
from hypotheses.backbones import weights
from hypotheses.config import Config
from hypotheses.errors import UserError
from hypotheses.progress import Progress
from hypotheses.tasks import Run, images
from hypotheses.tasks.common import (
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
    world_size,
)

MEAN = ("mean_value", "weight")  # what torchmetrics' MeanMetric is made of
ERASING = 1  # in the key of an image's draws, beside those of its crop
IN_CACHE = 2**18  # values that a processor normalises at a time
PICTURES, TILE = 10, 96  # how many validation images are shown of a run, and their height in pixels


@dataclasses.dataclass
class Job:
    """What `build` makes and `train` and `evaluate` use."""

    module: "Classification"
    trainer: L.Trainer
    report: "Report"
    train_loader: DataLoader | None  # None in mode=eval
    val_loader: DataLoader
    run: Run


def build(run: Run, kind: "type[Classification] | None" = None) -> Job:
    """The network, data and trainer of a run. Raises UserError where the recipe does not fit the hardware."""
    kind = kind or Classification
    config, recipe, hardware = run.config, run.config["recipe"], run.config["hardware"]
    quieten()
    distributed = world_size() > 1
    cpu = hardware["accelerator"] == "cpu" or not torch.cuda.is_available()
    if config["mode"]["name"] == "eval":
        most = hardware["max_batch_per_device"]
        most = min(most, 64) if cpu else most  # for the memory, and for a bar that moves
        share = divide(recipe["batch_size"], world_size(), most)
        train_loader, steps_per_epoch = None, 1
        module = kind(config, steps_per_epoch)
        weights.load(module.model, config["weights"])
    else:
        share = divide(recipe["batch_size"], world_size(), hardware["max_batch_per_device"])
        if recipe["mix"] and share.images % 2:
            raise UserError(
                f"recipe.mix needs an even number of images at a time, not {share.images}: change the batch size"
            )
        train_loader = images.loader(run, "train", share.images)
        steps_per_epoch = len(train_loader) // share.passes
        if steps_per_epoch == 0:
            raise UserError(
                f"recipe.batch_size={recipe['batch_size']} is more than the images for training: make it smaller"
            )
        module = kind(config, steps_per_epoch)
    val_loader = images.loader(run, "val", share.images)
    report = Report(run, recipe["epochs"] * steps_per_epoch)
    trainer = L.Trainer(
        accelerator=hardware["accelerator"],
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        num_nodes=hardware["nodes"],
        strategy="ddp" if distributed else "auto",
        precision=recipe["precision"],
        max_epochs=recipe["epochs"],
        accumulate_grad_batches=share.passes,
        check_val_every_n_epoch=recipe["validate_every"],
        deterministic=True if cpu else "warn",
        callbacks=[EvaluationBar(run) if train_loader is None else report],
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run.folder,
    )
    return Job(module, trainer, report, train_loader, val_loader, run)


def train(job: Job) -> None:
    """Train to the end of the schedule. Raises FloatingPointError where the loss is no longer a number."""
    # stochastic depth and dropout, of their own on every process
    L.seed_everything(job.run.config["seed"] + 1_000_003 * rank(), verbose=False)
    start = job.run.checkpoints.start if job.run.checkpoints else None
    if start and job.train_loader:
        done = start.step * job.trainer.accumulate_grad_batches * int(job.train_loader.batch_size or 1)
        job.train_loader.sampler.skip(done)  # type: ignore[attr-defined]
    try:
        job.trainer.fit(
            job.module,
            job.train_loader,
            job.val_loader,
            ckpt_path=str(start.file) if start else None,
            weights_only=True,
        )
    except stopping.Stopped:
        raise
    except SystemExit:  # what it makes of Ctrl-C
        raise KeyboardInterrupt from None
    if job.trainer.is_global_zero:
        save_weights(job.module.model, job.run)


def evaluate(job: Job) -> dict[str, float]:
    """top1_percent, top5_percent and loss (nats) over the whole validation split, and its number of images."""
    try:
        job.trainer.validate(job.module, job.val_loader, verbose=False)
    except stopping.Stopped:
        raise
    except SystemExit:  # what it makes of Ctrl-C
        raise KeyboardInterrupt from None
    return job.module.metrics | {"val_images": len(job.val_loader.dataset)}  # type: ignore[arg-type]


def validate_some(job: Job, batches: int) -> int:
    """Predict so many batches of the validation, for a measurement; the images that they are."""
    job.trainer.limit_val_batches = batches
    evaluate(job)
    return job.module.kept.shape[1]


def predictions(job: Job) -> dict[str, np.ndarray]:
    """The predicted and the annotated class of each image of the validation split, in its order."""
    predicted, annotated = job.module.kept
    return {"predicted": predicted, "annotated": annotated}


def curve(job: Job) -> list[dict[str, float]]:
    """Mean training loss of each epoch, with the validation metrics of the epochs that had one."""
    return job.report.curve


def fit(config: Config) -> str:
    """The sha256 of the config's weights. Raises UserError where they do not fit its network."""
    model = backbones.build_classifier(config["backbone"], config["recipe"]["num_classes"], config["seed"])
    return weights.load(model, config["weights"])


def pictures(job: Job) -> bytes:
    """Images spread over the validation split, the same in every arm, each with its annotated and its predicted class. JPEG."""
    from PIL import Image, ImageDraw

    data: Any = job.val_loader.dataset
    tiles = []
    for index in np.linspace(0, len(data) - 1, min(PICTURES, len(data))).astype(int):
        image = data.picture(index)
        high = TILE if image.width <= 2 * image.height else TILE // 2
        image = image.resize((max(1, high * image.width // image.height), high), Image.Resampling.NEAREST)
        predicted, annotated = (job.run.images.classes[c] for c in job.module.kept[:, index])
        tile = Image.new("RGB", (max(image.width, TILE) + 8, high + 44), "white")
        tile.paste(image, (4, 4))
        color = "#1a7f37" if predicted == annotated else "#c0392b"
        ImageDraw.Draw(tile).text((4, high + 6), f"is {annotated}\nnamed {predicted}", fill=color, font_size=13)
        tiles.append(tile)
    width, height = max(tile.width for tile in tiles), max(tile.height for tile in tiles)
    columns = max(1, min(len(tiles), 5 * (TILE + 8) // width))
    sheet = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * width, i // columns * height))
    content = io.BytesIO()
    sheet.save(content, "JPEG", quality=75)
    return content.getvalue()


class Classification(L.LightningModule):
    """The recipe around a classifier: loss, optimiser, schedule and accuracy."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: Config, steps_per_epoch: int):
        super().__init__()
        recipe = config["recipe"]
        self.recipe, self.seed, self.steps_per_epoch = recipe, config["seed"], steps_per_epoch
        self.model = backbones.build_classifier(
            config["backbone"], recipe["num_classes"], config["seed"], recipe["drop_path"]
        )
        backbones.compute_as(self.model.backbone, recipe)
        self.layout = torch.channels_last if recipe.get("channels_last") else torch.contiguous_format
        self.register_buffer("mean", torch.tensor(recipe["mean"]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(recipe["std"]).view(3, 1, 1), persistent=False)
        self.mix = mixup(recipe) if recipe["mix"] else None
        self.eraser = images.erasing(recipe)
        self.top1 = MulticlassAccuracy(recipe["num_classes"], average="micro")
        self.top5 = MulticlassAccuracy(recipe["num_classes"], average="micro", top_k=min(5, recipe["num_classes"]))
        self.val_loss, self.train_loss = (MeanMetric(nan_strategy="disable") for _ in range(2))  # NaN must show
        self.metrics: dict[str, float] = {}  # of the latest validation, over all processes
        self.seen: list[Tensor] = []  # predicted and annotated classes of the batches of a validation, (2, B)
        self.kept = np.zeros((2, 0), np.uint16)  # of all images of the latest validation, over all processes

    def normalise(self, batch: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) in 0..255 -> float, normalised."""
        result = torch.empty(batch.shape, device=batch.device, memory_format=self.layout)
        middle, scale = 255 * self.mean, 1 / (255 * self.std)
        few = max(1, IN_CACHE // batch[0].numel()) if batch.device.type == "cpu" else len(batch)
        for values, part in zip(result.split(few), batch.split(few), strict=True):
            values.copy_(part).sub_(middle).mul_(scale)
        return result

    def loss(self, batch: Tensor, target: Tensor, smoothing: float) -> Tensor:
        """Of normalised images, for classes (B,) or, mixed, shares of them (B, num_classes)."""
        return F.cross_entropy(self.model(batch), target, label_smoothing=smoothing)

    def logits(self, batch: Tensor) -> Tensor:
        """That a validation judges: (B, num_classes)."""
        return self.model(batch)

    def training_step(self, batch: tuple[Tensor, ...], batch_index: int) -> Tensor:
        inputs, target = self.normalise(batch[0]), batch[1]
        if self.eraser:
            images.erase(inputs, self.eraser, [(self.seed, self.current_epoch, i, ERASING) for i in batch[2].tolist()])
        if self.mix:
            with keyed_random(self.seed, self.current_epoch, batch_index, self.global_rank):
                inputs, target = self.mix(inputs, target)
        smoothing = 0.0 if self.mix else self.recipe["label_smoothing"]  # mixing smooths the labels too
        loss = self.loss(inputs, target, smoothing)
        self.train_loss.update(loss.detach())
        return loss

    def mean_train_loss(self) -> float:
        """Over the batches of all processes since it was last asked."""
        mean = self.train_loss.compute().item()
        self.train_loss.reset()
        return mean

    def on_validation_epoch_start(self) -> None:
        self.top1.reset()
        self.top5.reset()
        self.val_loss.reset()
        self.seen.clear()

    def validation_step(self, batch: tuple[Tensor, ...], batch_index: int) -> None:
        logits = self.logits(self.normalise(batch[0]))
        self.top1.update(logits, batch[1])
        self.top5.update(logits, batch[1])
        self.val_loss.update(F.cross_entropy(logits, batch[1], reduction="none"))
        self.seen.append(torch.stack([logits.argmax(1), batch[1]]))

    def on_validation_epoch_end(self) -> None:
        self.metrics = {  # now, while the processes can still talk to each other
            "top1_percent": 100 * self.top1.compute().item(),
            "top5_percent": 100 * self.top5.compute().item(),
            "val_loss": self.val_loss.compute().item(),
        }
        self.kept = in_order(torch.cat(self.seen, 1).cpu().numpy().astype(np.uint16))

    def configure_optimizers(self) -> Any:
        optimizer, schedule = self.recipe["optimizer"], self.recipe["schedule"]
        peak, low, start = optimizer["lr"], schedule["min_lr"], schedule["warmup_lr"]
        warmup = schedule["warmup_epochs"] * self.steps_per_epoch
        total = self.recipe["epochs"] * self.steps_per_epoch

        def rate(step: int) -> float:
            """The learning rate as a share of its peak: linear warm-up, then half a cosine."""
            if step < warmup:
                return (start + (peak - start) * step / warmup) / peak
            angle = math.pi * min(1.0, (step - warmup) / max(1, total - warmup))
            return (low + (peak - low) * (1 + math.cos(angle)) / 2) / peak

        adamw = torch.optim.AdamW(
            backbones.decay_groups(self.model, optimizer["weight_decay"]),
            lr=peak,
            betas=tuple(optimizer["betas"]),
            eps=optimizer["eps"],
            fused=True,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(adamw, rate)
        return {"optimizer": adamw, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def in_order(mine: np.ndarray) -> np.ndarray:
    """What each process has of every `world`-th image (..., share) -> that of all images in their order."""
    parts = of_all_processes(mine)
    whole = np.empty((*mine.shape[:-1], sum(part.shape[-1] for part in parts)), mine.dtype)
    for number, part in enumerate(parts):
        whole[..., number :: len(parts)] = part
    return whole


class Report(L.Callback):
    """Keeps the curve, writes the checkpoints, and on the main process tells `Progress` what happens. The loss, which waits for
    the device, is read only when a heartbeat is due.

    A checkpoint is Lightning's own, with what it lacks: the states of the generators, the loss since the last validation and
    the curve. It is written between two steps of an epoch, never between an epoch's last step and its validation."""

    def __init__(self, run: Run, steps: int):
        self.run, self.steps, self.step = run, steps, 0
        self.curve: list[dict[str, float]] = []
        self.rows: list[dict[str, float]] = []  # of the progress until a checkpoint
        self.progress: Progress | None = None
        self.random: Any = None  # state of the generators, to be restored before the next step
        self.waiting = Waiting()

    def on_save_checkpoint(self, trainer: L.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        mean = {name: getattr(module.train_loss, name).cpu() for name in MEAN}
        checkpoint["hypotheses"] = {
            "processes": of_all_processes({"random": random_state(), "train_loss": mean}),
            "curve": self.curve,
            "rows": self.progress.kept if self.progress else [],
            "waiting": self.waiting.figure(),
        }

    def on_load_checkpoint(self, trainer: L.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        kept = checkpoint["hypotheses"]
        self.curve, self.rows, self.step = kept["curve"], kept["rows"], checkpoint["global_step"]
        self.waiting = Waiting(**kept["waiting"])
        self.random, mean = (kept["processes"][rank()][name] for name in ("random", "train_loss"))
        for name in MEAN:
            setattr(module.train_loss, name, mean[name].to(module.device))

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        if trainer.is_global_zero:
            self.progress = start_progress(self.run, self.steps, self.rows)

    def on_train_epoch_start(self, trainer: L.Trainer, module: Any) -> None:
        self.waiting.ask()

    def on_validation_start(self, trainer: L.Trainer, module: Any) -> None:
        self.waiting.pause()

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.waiting.get()
        stopping.wait_for_step(self.run.checkpoints is not None)
        if self.random:
            restore_random_state(self.random)
            self.random = None

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != self.step:  # an optimiser step can take several batches
            self.end_step(trainer, module, outputs, batch_idx)
        self.waiting.ask()

    def end_step(self, trainer: L.Trainer, module: Any, outputs: Any, batch_idx: int) -> None:
        self.step = trainer.global_step
        if self.progress:
            self.progress.advance()
            if self.progress.due():
                loss = outputs["loss"].item() * trainer.accumulate_grad_batches
                check_finite(loss, f"at step {self.step}")
                self.progress.show(loss=loss)
        if batch_idx + 1 == trainer.num_training_batches:
            stopping.wait_for_step(False)
        elif self.run.checkpoints:
            content = trainer._checkpoint_connector.dump_checkpoint
            checkpoint_if_due(self.run.checkpoints, self.step, module.model, content)

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        self.waiting.pause()
        row = {"epoch": trainer.current_epoch + 1, "train_loss": module.mean_train_loss()}
        if row["epoch"] % trainer.check_val_every_n_epoch == 0:
            row |= module.metrics
        self.curve.append(row)
        if self.progress:
            self.progress.row(**row, lr=trainer.optimizers[0].param_groups[0]["lr"])
            shown = {"loss": row["train_loss"]} | {k: row[k] for k in ("top1_percent",) if k in row}
            self.progress.show(**shown)
        check_finite(row["train_loss"], f"in epoch {row['epoch']}")

    def on_validation_batch_end(self, trainer: L.Trainer, module: Any, *_: Any, **__: Any) -> None:
        if self.progress and self.progress.due():
            self.progress.beat()

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        if self.progress:
            self.progress.close()

    def on_exception(self, trainer: L.Trainer, module: Any, exception: BaseException) -> None:
        if self.progress:
            self.progress.close()


class EvaluationBar(L.Callback):
    """A bar of the batches of an evaluation, on the main process."""

    def __init__(self, run: Run):
        self.config = run.config

    def on_validation_start(self, trainer: L.Trainer, module: Any) -> None:
        self.bar = evaluation_bar(self.config, int(trainer.num_val_batches[0]))

    def on_validation_batch_end(self, trainer: L.Trainer, module: Any, *_: Any, **__: Any) -> None:
        self.bar.update()

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        self.bar.close()


def mixup(recipe: Config) -> Any:
    from timm.data.mixup import Mixup

    return Mixup(**recipe["mix"], label_smoothing=recipe["label_smoothing"], num_classes=recipe["num_classes"])


def quieten() -> None:
    """Lightning's advice and notes about devices are not for the user of this project."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for category in (UserWarning, FutureWarning):
        warnings.filterwarnings("ignore", module="lightning", category=category)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
