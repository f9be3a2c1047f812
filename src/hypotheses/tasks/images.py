"""Images of classification, from their files to batches.

Which images a batch holds, and how each is cropped, flipped and recoloured, are functions of (seed, epoch, image) alone: never of the
workers or of what else the process has drawn. So the arms of a seed see the same images.

The recipe's augmentation is timm's, draw for draw, in another order of work: the file is decoded and its crop resized as a tensor of
uint8, turned and recoloured by OpenCV, and an image stays uint8 until it is in a batch on the device, where it is normalised and erased.

B batch; H, W pixels.
"""

import functools
import io
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import transforms
from torchvision.transforms import v2

from hypotheses import stopping
from hypotheses.config import Config
from hypotheses.data import index_folder, sources
from hypotheses.errors import UserError
from hypotheses.tasks import Run
from hypotheses.tasks.common import EpochSampler, Key, keyed_random, seed_generators, workers


class ImageDataset(Dataset):
    """Images by (epoch, index), a batch at once: (B, 3, H, W) uint8, their labels (B,) and their indices (B,)."""

    def __init__(self, source: sources.Source, transform: Callable[[bytes, str], Tensor], seed: int):
        self.source, self.transform, self.seed = source, transform, seed

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, key: Key) -> tuple[Tensor, int, int]:
        """(3, H, W) uint8, its label and its index."""
        epoch, index = key
        with keyed_random(self.seed, epoch, index):
            image = self.transform(self.source.read(index), self.source.name(index))
        return image, int(self.source.labels[index]), index

    def __getitems__(self, keys: list[Key]) -> tuple[Tensor, Tensor, Tensor]:
        return default_collate([self[key] for key in keys])

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
        size = recipe["image_size"]
        size = size if isinstance(size, list) else [size, size]
        if list(images.shape[2:]) != size:  # enlarged, a digit has more tokens and no more to tell
            images = v2.functional.resize(images, size, v2.InterpolationMode.BILINEAR, antialias=True)
        return TensorDataset(images.contiguous(), torch.from_numpy(source.labels))
    return ImageDataset(source, augmentation(recipe) if training and recipe["augment"] else evaluation(recipe), seed)


# ---- one image -------------------------------------------------------------------------------------------------------


def augmentation(recipe: Config) -> Callable[[bytes, str], Tensor]:
    """timm's transform for training, draw for draw, but for what it does to floats: (content, name) of a file -> (3, H, W) uint8."""
    import cv2  # here, so that the demo does without its libraries of the system

    cv2.setNumThreads(0)  # the processes that load data are as many as there are cores already
    (first, *others), policy, _ = parts(recipe)
    steps = [on_arrays(step) for step in (*others, *policy)]

    def transform(content: bytes, name: str) -> Tensor:
        whole = decode_quickly(content, name)
        top, left, height, width = first.get_params(torch.from_numpy(whole).permute(2, 0, 1), first.scale, first.ratio)
        kinds = first.interpolation
        kind = random.choice(kinds) if isinstance(kinds, list | tuple) else kinds
        part = np.ascontiguousarray(
            whole[top : top + height, left : left + width]
        )  # of a view the resize would be slow
        resized = v2.functional.resize(torch.from_numpy(part).permute(2, 0, 1), list(first.size), kind, antialias=True)
        image = resized.permute(1, 2, 0).numpy()
        for step in steps:
            image = step(image)
        planes = np.empty((3, *image.shape[:2]), np.uint8)
        for channel in range(3):  # NumPy would take several times as long
            cv2.extractChannel(image, channel, planes[channel])
        return torch.from_numpy(planes)

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
    """timm's random erasing for normalised images; None where the recipe has none."""
    if not recipe["augment"] or recipe["in_memory"]:
        return None
    return parts(recipe)[2]


def erase(batch: Tensor, eraser: Any, keys: list[tuple[int, ...]]) -> None:
    """Erase in a normalised batch (B, 3, H, W), in place; each image's erasing is a function of its key."""
    eraser.device = batch.device
    with keyed_random():
        for image, key in zip(batch, keys, strict=True):
            seed_generators(*key)
            eraser(image)


def evaluation(recipe: Config) -> Callable[[bytes, str], Tensor]:
    """timm's transform for evaluation, by PIL as published accuracies were measured: (content, name) -> (3, H, W) uint8."""
    from timm.data import create_transform  # type: ignore[attr-defined]

    made: Any = create_transform(
        recipe["image_size"], interpolation="bicubic", crop_pct=recipe["crop_pct"], normalize=False
    )
    return lambda content, name: torch.as_tensor(made(decode(content, name))).contiguous()


# ---- timm's steps on arrays (H, W, 3) uint8 --------------------------------------------------------------------------

Step = Callable[..., np.ndarray]


def on_arrays(step: Any) -> Step:
    """A step of timm's: the same draws, and the same pixels but where `warp` says otherwise."""
    if isinstance(step, transforms.RandomHorizontalFlip):
        return functools.partial(flip, step.p)
    if not hasattr(step, "ops"):
        return by_pil(step)
    for operation in step.ops:
        if operation.name in WARPS:
            operation.aug_fn = functools.partial(warp, WARPS[operation.name])
        else:
            through = by_table if operation.name.removesuffix("Increasing") in BY_VALUE else by_pil
            operation.aug_fn = through(operation.aug_fn)
    return step


def by_pil(step: Callable[..., Image.Image]) -> Step:
    return lambda image, *arguments, **how: np.asarray(step(Image.fromarray(image), *arguments, **how))


def by_table(operation: Callable[..., Image.Image]) -> Step:
    """Of an operation that makes of each value another one, whatever the image: PIL does it to all 256 values."""
    import cv2

    values = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 256, 3))
    return lambda image, *arguments, **how: cv2.LUT(image, np.asarray(operation(values, *arguments, **how)))


def flip(probability: float, image: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.flip(image, 1) if torch.rand(1) < probability else image


# an operation by these is a table of values
BY_VALUE = {"Brightness", "Invert", "Posterize", "Solarize", "SolarizeAdd"}


WARPS: dict[
    str, Callable[[int, int, float], list[float]]
] = {  # timm's, as a matrix from the new pixels' places to the old ones'
    "ShearX": lambda width, height, factor: [1, factor, 0, 0, 1, 0],
    "ShearY": lambda width, height, factor: [1, 0, 0, factor, 1, 0],
    "TranslateXRel": lambda width, height, share: [1, 0, share * width, 0, 1, 0],
    "TranslateYRel": lambda width, height, share: [1, 0, 0, 0, 1, share * height],
    "Rotate": lambda width, height, degrees: around(width / 2, height / 2, math.radians(degrees)),
}


def around(x: float, y: float, angle: float) -> list[float]:
    cos, sin = math.cos(angle), math.sin(angle)
    return [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y]


def warp(
    matrix_of: Callable[[int, int, float], list[float]], image: np.ndarray, amount: float, **how: Any
) -> np.ndarray:
    """timm's shears, translations and rotations by OpenCV, which is several times as fast as PIL; its bicubic kernel is a little sharper.
    They were most of the work of the policy."""
    import cv2

    asked = how["resample"]
    kind = random.choice(asked) if isinstance(asked, list | tuple) else asked
    height, width, _ = image.shape
    a, b, c, d, e, f = matrix_of(width, height, amount)
    # PIL counts places from the corners of pixels, OpenCV from their centres
    matrix = np.array([[a, b, a / 2 + b / 2 + c - 0.5], [d, e, d / 2 + e / 2 + f - 0.5]])
    flags = cv2.WARP_INVERSE_MAP | (cv2.INTER_CUBIC if kind == Image.Resampling.BICUBIC else cv2.INTER_LINEAR)
    filled = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": how["fillcolor"]}
    return cv2.warpAffine(image, matrix, (width, height), flags=flags, **filled)


# ---- files -----------------------------------------------------------------------------------------------------------


def decode_quickly(content: bytes, name: str) -> np.ndarray:
    """`decode` as an array (H, W, 3) uint8. A JPEG is read by OpenCV, to the same pixels (of CMYK to within 1 of 255) and without PIL's copies."""
    import cv2

    if content[:2] == b"\xff\xd8":
        how = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(content, np.uint8), how)
        if image is not None:
            return image
    return np.array(decode(content, name))


def decode(content: bytes, name: str) -> Image.Image:
    """An RGB image of the bytes of a file. Raises UserError, also where they end too soon."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name} cannot be read as an image ({error}): mend or replace the file") from error
