"""Images of classification, from their files to batches.

Which images a batch holds, and how each is cropped, flipped and recoloured, are functions of (seed, epoch, image) alone: never of the
workers or of what else the process has drawn. So the arms of a seed see the same images.

The recipe's augmentation is timm's, by timm's own code, in another order of work: the file is decoded and its crop resized as a
tensor of uint8, and an image stays uint8 until it is in a batch on the device. There `erase` and the normalisation follow.

B batch; H, W pixels.
"""

import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from hypotheses import stopping
from hypotheses.config import Config
from hypotheses.data import index_folder, sources
from hypotheses.errors import UserError
from hypotheses.tasks import Run
from hypotheses.tasks.common import EpochSampler, Key, keyed_random, workers


class ImageDataset(Dataset):
    """Images by (epoch, index), a batch at once: (B, 3, H, W) uint8 and their labels (B,)."""

    def __init__(self, source: sources.Source, transform: Callable[[bytes, str], Tensor], seed: int):
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        """(H, W, 3) uint8, as files have it and PIL gives it, and its label."""
        epoch, index = key
        with keyed_random(self.seed, epoch, index):
            image = self.transform(self.source.read(index), self.source.name(index))
        return image, int(self.source.labels[index])

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        images, labels = zip(*(self[key] for key in keys), strict=True)
        return torch.stack(images).permute(0, 3, 1, 2), torch.tensor(labels)

    def picture(self, index: int) -> Image.Image:
        """An image as it lies in its file, for a person."""
        return decode(self.source.read(index), self.source.name(index))


class TensorDataset(Dataset):
    """All images decoded: uint8 (images, 3, H, W), and their labels. A batch is one indexing."""

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor]:
        indices = torch.tensor([index for _, index in keys])
        return self.images[indices], self.labels[indices]

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index].permute(1, 2, 0).numpy())


def loader(run: Run, split: str, batch: int) -> DataLoader:
    """Batches of this process's share of a split: `train` shuffled, `val` all of it in order."""
    recipe, hardware, seed = run.config["recipe"], run.config["hardware"], run.config["seed"]
    data = dataset(run, split)
    in_this_process = recipe["in_memory"] and hardware["workers"] is None
    num_workers = 0 if in_this_process else workers(hardware, least=1)
    global_batch = recipe["batch_size"] if split == "train" else None
    return DataLoader(
        data,
        batch_size=batch,
        sampler=EpochSampler(len(data), global_batch, seed),  # type: ignore[arg-type]
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        collate_fn=as_it_is,
        worker_init_fn=stopping.begin_worker if num_workers else None,
        generator=torch.Generator(),  # else each new iterator draws from the generator of dropout and stochastic depth
    )


def as_it_is(batch: Any) -> Any:
    return batch  # the data sets collate


def dataset(run: Run, split: str) -> Dataset:
    recipe, seed = run.config["recipe"], run.config["seed"]
    training = split == "train"
    if run.images.root is None:
        generator = torch.Generator().manual_seed(2 * seed + training)
        num = recipe["data"][f"{split}_images"]
        size = (num, 3, recipe["image_size"], recipe["image_size"])
        images = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
        return TensorDataset(images, torch.arange(num) % recipe["num_classes"])
    kept = index_folder(run.config)
    source = sources.load(run.images.root, split, run.images.classes, kept, frozenset(run.images.left_out))
    if recipe["in_memory"]:
        if recipe["augment"]:
            raise UserError("recipe.in_memory=true keeps decoded images, so recipe.augment must be null")
        decoded = [np.asarray(decode(source.read(i), source.name(i))) for i in range(len(source.labels))]
        images = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)
        return TensorDataset(images.contiguous(), torch.from_numpy(source.labels))
    return ImageDataset(source, augmentation(recipe) if training and recipe["augment"] else evaluation(recipe), seed)


# ---- one image -------------------------------------------------------------------------------------------------------


def augmentation(recipe: Config) -> Callable[[bytes, str], Tensor]:
    """timm's transform for training, but for what it does to floats: (content, name) of a file -> (H, W, 3) uint8."""
    crop, policy, _ = parts(recipe)
    first, *others = crop

    def transform(content: bytes, name: str) -> Tensor:
        whole = decode(content, name)
        top, left, height, width = first.get_params(whole, first.scale, first.ratio)
        part = np.array(whole.crop((left, top, left + width, top + height)))
        kinds = first.interpolation
        kind = random.choice(kinds) if isinstance(kinds, list | tuple) else kinds
        image = v2.functional.resize(torch.from_numpy(part).permute(2, 0, 1), list(first.size), kind, antialias=True)
        drawn: Any = Image.fromarray(image.permute(1, 2, 0).numpy())
        for step in (*others, *policy):
            drawn = step(drawn)
        return torch.from_numpy(np.array(drawn))

    return transform


def parts(recipe: Config) -> tuple[list[Any], list[Any], Any]:
    """What timm does with an image for training: the steps until it has its size, the policy of colours and shapes, and the random
    erasing or None."""
    from timm.data import create_transform  # type: ignore[attr-defined]
    from timm.data.random_erasing import RandomErasing

    made: Any = create_transform(
        recipe["image_size"],
        is_training=True,
        separate=True,
        mean=recipe["mean"],
        std=recipe["std"],
        **recipe["augment"],
    )
    crop, policy, floats = (part.transforms for part in made)
    eraser = next((step for step in floats if isinstance(step, RandomErasing)), None)
    return crop, policy, eraser


def erasing(recipe: Config) -> Any:
    """timm's random erasing for normalised batches (B, 3, H, W), in place; None where the recipe has none."""
    if not recipe["augment"] or recipe["in_memory"]:
        return None
    return parts(recipe)[2]


def evaluation(recipe: Config) -> Callable[[bytes, str], Tensor]:
    """timm's transform for evaluation, by PIL as published accuracies were measured: (content, name) -> (H, W, 3) uint8."""
    from timm.data import create_transform  # type: ignore[attr-defined]

    made: Any = create_transform(
        recipe["image_size"], interpolation="bicubic", crop_pct=recipe["crop_pct"], normalize=False
    )
    return lambda content, name: torch.as_tensor(made(decode(content, name))).permute(1, 2, 0)


def decode(content: bytes, name: str) -> Image.Image:
    """An RGB image of the bytes of a file. Raises UserError, also where they end too soon."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name} cannot be read as an image ({error}): mend or replace the file") from error
