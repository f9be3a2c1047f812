"""Composition, once and at the top: the Hydra groups of conf/ become the plain values of one run."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypotheses.errors import UserError, nearest

ROOT = Path(__file__).resolve().parents[2]  # of the project
CONF = ROOT / "conf"

Config = dict[str, Any]


# ---- what a config may hold: every key, with its type ----------------------------------------------------------------


@dataclasses.dataclass
class Hardware:
    """conf/hardware/; see auto.yaml for what each key means."""

    name: str
    accelerator: str
    devices: int
    nodes: int
    threads: int | None
    workers: int | None
    max_batch_per_device: int
    hang_seconds: float
    checkpoint_seconds: float


@dataclasses.dataclass
class Cluster:
    """conf/cluster/; see slurm.yaml for what each key means."""

    name: str
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    time: int
    gpus_per_node: int | None
    cpus_per_task: int | None
    mem: str | None
    signal: int
    array_parallelism: int | None
    max_requeues: int
    parameters: dict[str, Any] | None


@dataclasses.dataclass
class Optimizer:
    """AdamW."""

    lr: float
    betas: list[float]
    eps: float
    weight_decay: float


@dataclasses.dataclass
class Schedule:
    """Linear warm-up from warmup_lr, then half a cosine to min_lr."""

    warmup_epochs: int
    warmup_lr: float
    min_lr: float


@dataclasses.dataclass
class ImageNetRecipe:
    """conf/recipe/imagenet_*.yaml; see imagenet_paper.yaml for what each key means."""

    name: str
    num_classes: int
    image_size: int
    data: dict[str, Any]
    in_memory: bool
    mean: list[float]
    std: list[float]
    epochs: int
    batch_size: int
    optimizer: Optimizer
    schedule: Schedule
    label_smoothing: float
    drop_path: float
    augment: dict[str, Any] | None
    mix: dict[str, Any] | None
    precision: str
    validate_every: int
    compile: bool
    channels_last: bool
    gradient_checkpointing: bool
    crop_pct: float = 1.0


@dataclasses.dataclass
class RecallRecipe(ImageNetRecipe):
    """conf/recipe/recall_*.yaml: an ImageNetRecipe of strips, whose image_size is height and width."""

    image_size: list[int]  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclasses.dataclass
class CocoSchedule:
    """Linear warm-up from warmup_factor of the rate over warmup_steps, then `gamma` times the rate at each milestone (epoch)."""

    warmup_steps: int
    warmup_factor: float
    milestones: list[int]
    gamma: float


@dataclasses.dataclass
class PolySchedule:
    """Linear warm-up from warmup_factor of the rate over warmup_steps, then a polynomial of that power down to 0."""

    warmup_steps: int
    warmup_factor: float
    power: float


@dataclasses.dataclass
class DenseRecipe:
    """What detection and segmentation share; see coco_paper.yaml for what each key means."""

    name: str
    num_classes: int
    image_size: list[int]
    data: dict[str, Any]
    pretrained: str
    resize: list[int]
    flip: float
    batch_size: int
    optimizer: Optimizer
    drop_path: Any  # a number; in the files also a table of them by backbone
    model: dict[str, Any]
    precision: str
    validate_every: int
    compile: bool
    channels_last: bool
    gradient_checkpointing: bool


@dataclasses.dataclass
class CocoRecipe(DenseRecipe):
    """conf/recipe/coco_*.yaml."""

    epochs: int
    schedule: CocoSchedule


@dataclasses.dataclass
class Ade20kRecipe(DenseRecipe):
    """conf/recipe/ade20k_*.yaml; see ade20k_paper.yaml for what each key means."""

    steps: int
    schedule: PolySchedule
    ratios: list[float]
    crop: list[int]
    photometric: bool
    multi_scale: dict[str, Any] | None


SWITCHES = ("compile", "channels_last", "gradient_checkpointing")  # of a recipe; see config.yaml
PATCH = 4  # of MambaOut, as published
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
RECIPES: dict[str, Any] = {
    "imagenet": ImageNetRecipe,
    "recall": RecallRecipe,
    "coco": CocoRecipe,
    "ade20k": Ade20kRecipe,
}
SOURCES = {  # of images, by task
    "imagenet": ("digits", "imagenet", "random"),
    "recall": ("strips",),
    "coco": ("scenes", "coco"),
    "ade20k": ("scenes", "ade20k"),
}
MODES = ("train", "eval")
RESUME = ("same", "any", "never")
WANDB = {name: name for name in ("offline", "online", "off")} | {  # and what W&B itself calls them in WANDB_MODE
    "dryrun": "offline", "run": "online", "shared": "online", "disabled": "off", "False": "off", "": "offline",
}  # fmt: skip
PATHS = {"data", "imagenet", "coco", "ade20k", "outputs", "results"}
KEYS = {
    "task", "backbone", "scale", "recipe", "mode", "weights", "pretrained", "hardware", "cluster", "seed", "tag", "resume",
    "paths", "wandb",
}  # fmt: skip


# ---- composition -----------------------------------------------------------------------------------------------------


def compose(overrides: list[str]) -> Config:
    """The resolved configuration that `python -m hypotheses.run <overrides>` would use. Raises UserError."""
    return compose_seeds(overrides, [None])[0]


def compose_seeds(overrides: list[str], seeds: list[int] | list[None]) -> list[Config]:
    """The configurations of runs that differ in their seed alone, None for the one in `overrides`: Hydra, which takes a tenth of a second,
    is asked once. Raises UserError."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    outer = GlobalHydra.instance().hydra  # that of the command line, where a run asks for another one's config
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            composed, found = hydra.compose("config", overrides=overrides), []
            for seed in seeds:
                if seed is not None:
                    composed.seed = seed
                found.append(resolve(composed))
            return found
    except Exception as error:
        raise explain(error) from error
    finally:
        GlobalHydra.instance().hydra = outer


def of_grid() -> list[str] | None:
    """The overrides of this run where it is one of a grid, Hydra's multirun; else None."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return list(HydraConfig.get().overrides.task)
    return None


def resolve(cfg: Any) -> Config:
    """Plain values from Hydra's composed config: interpolations resolved, folders made absolute, choices checked."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    task = cfg.task.name
    if "name" not in cfg.recipe:
        scales = sorted(p.stem.split("_")[1] for p in (CONF / "recipe").glob(f"{task}_*.yaml"))
        raise UserError(f"task={task} has no scale={cfg.scale.name}: choose one of {', '.join(scales)}")
    for key in cfg:
        if key not in KEYS:
            raise UserError(f"no key '{key}'{nearest(str(key), KEYS)}")
    if task != "imagenet" and isinstance(size := cfg.recipe.image_size, int):
        raise UserError(
            f"recipe.image_size={size}: task={task} takes height and width, [96, 96]; a dose, which sets it, is for task=imagenet"
        )
    typed = {}
    for part, schema in (("recipe", RECIPES[task]), ("hardware", Hardware), ("cluster", Cluster)):
        try:
            typed[part] = OmegaConf.merge(OmegaConf.structured(schema), cfg[part])
        except OmegaConfBaseException as error:
            raise UserError(f"{part}.{error.full_key}: {str(error).splitlines()[0]}") from error
    config: Any = OmegaConf.to_container(OmegaConf.merge(cfg, typed), resolve=True, throw_on_missing=True)
    # a switch that is off is as if it were not there: so what was run before there was such a switch keeps its identity
    for key in SWITCHES:
        if not config["recipe"][key]:
            del config["recipe"][key]
    if config["backbone"].get("family") == "mambaout" and config["backbone"].get("patch") == PATCH:
        del config["backbone"]["patch"]  # likewise
    seed, tag = config["seed"], config["tag"]
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise UserError(f"seed={seed}: give a whole number from 0")
    if tag is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", str(tag)):
        raise UserError(f"tag={tag}: use letters, digits, - and _ only")
    mode, weights = config["mode"]["name"], config["weights"]
    if mode not in MODES:
        raise UserError(f"mode.name={mode}: choose one of {', '.join(MODES)}")
    if config["resume"] not in RESUME:
        raise UserError(f"resume={config['resume']}: choose one of {', '.join(RESUME)}")
    if (asked := str(config["wandb"])) not in WANDB:
        raise UserError(f"wandb={asked} (or WANDB_MODE={asked}): choose one of offline, online, off")
    config["wandb"] = WANDB[asked]
    if mode == "eval" and weights is None:
        raise UserError(
            "mode=eval needs weights to evaluate: add weights=SOURCE, a file, an https:// address or a hub id such as "
            "timm/mambaout_tiny.in1k"
        )
    if mode == "train" and weights is not None:
        raise UserError(
            f"weights={weights}: training starts from its seed; add mode=eval to evaluate them, or leave weights out"
        )
    if weights is not None and not isinstance(weights, str):
        raise UserError(f"weights={weights}: give a file, an https:// address or a hub id such as timm/NAME")
    recipe, hardware, cluster = config["recipe"], config["hardware"], config["cluster"]
    if config["pretrained"] is not None:
        if "pretrained" not in recipe or mode == "eval":
            raise UserError(
                f"pretrained={config['pretrained']}: it is what training of coco and ade20k starts from; leave it out"
            )
        recipe["pretrained"] = str(config["pretrained"])
    optimizer, schedule = recipe["optimizer"], recipe["schedule"]
    counts = ("num_classes", "batch_size", "validate_every", "epochs", "steps")
    checks = [(f"recipe.{k}", recipe[k], 1) for k in counts if k in recipe]
    checks += [(f"hardware.{k}", hardware[k], 1) for k in ("nodes", "max_batch_per_device", "threads")]
    checks += [(f"hardware.{k}", hardware[k], 0) for k in ("workers", "hang_seconds", "checkpoint_seconds")]
    limits = ("time", "gpus_per_node", "cpus_per_task", "signal", "array_parallelism")
    checks += [(f"cluster.{k}", cluster[k], 1) for k in limits] + [("cluster.max_requeues", cluster["max_requeues"], 0)]
    checks += [(f"recipe.schedule.{k}", v, 0) for k, v in schedule.items() if k != "milestones"]
    checks += [(f"recipe.optimizer.{k}", optimizer[k], 0) for k in ("lr", "eps", "weight_decay")]
    for key in ("image_size", "resize", "crop"):
        sides = recipe.get(key, [])
        checks += [(f"recipe.{key}", side, 1) for side in (sides if isinstance(sides, list) else [sides])]
        if isinstance(sides, list) and key in recipe and len(sides) != 2:
            raise UserError(f"recipe.{key}={sides}: give two numbers of pixels")
    for key, value, least in checks:
        if value is not None and value < least:
            raise UserError(f"{key}={value}: give a number from {least}")
    if not is_dense(task):
        if schedule["warmup_epochs"] >= recipe["epochs"]:
            raise UserError(
                f"recipe.schedule.warmup_epochs={schedule['warmup_epochs']}: give fewer than epochs={recipe['epochs']}"
            )
        if len(recipe["mean"]) != 3 or len(recipe["std"]) != 3:
            raise UserError("recipe.mean and recipe.std: give three numbers each, for red, green and blue")
    else:
        recipe["drop_path"] = of_backbone(recipe["drop_path"], config["backbone"])
        check_dense(task, recipe)
    if recipe["precision"] not in PRECISIONS:
        raise UserError(f"recipe.precision={recipe['precision']}: choose one of {', '.join(PRECISIONS)}")
    if cluster["mem"] is not None and not re.fullmatch(r"[1-9]\d*[KMGT]?", cluster["mem"]):
        raise UserError(
            f"cluster.mem={cluster['mem']}: give a number of megabytes, or one with K, M, G or T after it: 64G"
        )
    if cluster["signal"] >= 60 * cluster["time"]:
        raise UserError(
            f"cluster.signal={cluster['signal']}: give fewer seconds than cluster.time={cluster['time']} minutes have"
        )
    if hardware["devices"] < 1 and hardware["devices"] != -1:
        raise UserError(f"hardware.devices={hardware['devices']}: give a number from 1, or -1 for all")
    if hardware["devices"] == -1 and hardware["accelerator"] == "cpu":
        raise UserError(
            "hardware.accelerator=cpu has no -1 for all devices: say how many processes, hardware.devices=2"
        )
    if recipe["data"].get("source") == "scenes":
        for split in ("train_images", "val_images"):
            if not isinstance(recipe["data"].get(split), int) or recipe["data"][split] < 1:
                raise UserError(f"recipe.data.{split}={recipe['data'].get(split)}: say how many scenes, from 1")
    if recipe["data"].get("source") in ("coco", "ade20k"):
        number = recipe["data"].get("train_images")
        if number is None:
            recipe["data"].pop("train_images", None)  # as with the switches
        elif type(number) is not int or number < 1:
            raise UserError(
                f"recipe.data.train_images={number}: say of how many training images, from 1, or null for all"
            )
        if odd := sorted(recipe["data"].keys() - {"source", "train_images"}):
            raise UserError(f"recipe.data.{odd[0]}: no such key{nearest(odd[0], ('source', 'train_images'))}")
    if recipe["data"].get("source") not in SOURCES[task]:
        raise UserError(
            f"recipe.data.source={recipe['data'].get('source')}: choose one of {', '.join(SOURCES[task])} for task={task}"
        )
    if task == "recall":
        check_strips(recipe)
    config["paths"] = {key: str((ROOT / Path(path).expanduser()).resolve()) for key, path in config["paths"].items()}
    return config


def is_dense(task: str) -> bool:
    """Whether a task is detection or segmentation, and no classification."""
    return issubclass(RECIPES[task], DenseRecipe)


def check_dense(task: str, recipe: Config) -> None:
    """Raise on values that a recipe of detection or segmentation cannot have."""
    if not 0 <= recipe["flip"] <= 1:
        raise UserError(f"recipe.flip={recipe['flip']}: give a share from 0 to 1")
    if task == "coco" and not all(0 < m < recipe["epochs"] for m in recipe["schedule"]["milestones"]):
        raise UserError(
            f"recipe.schedule.milestones={recipe['schedule']['milestones']}: give epochs below epochs={recipe['epochs']}"
        )
    if recipe.get("compile") and recipe["data"].get("source") == "coco":
        raise UserError(
            "recipe.compile=true: COCO's images have too many sizes to compile the network for each; leave it out"
        )
    if task == "ade20k":
        warmup = recipe["schedule"]["warmup_steps"]
        if warmup >= recipe["steps"]:
            raise UserError(f"recipe.schedule.warmup_steps={warmup}: give fewer than steps={recipe['steps']}")
        if len(recipe["ratios"]) != 2 or not 0 < recipe["ratios"][0] <= recipe["ratios"][1]:
            raise UserError(f"recipe.ratios={recipe['ratios']}: give the least and the largest share of recipe.resize")
        sizes = recipe["multi_scale"]
        if sizes is not None and (set(sizes) != {"scales", "flip"} or not sizes["scales"]):
            raise UserError(f"recipe.multi_scale={sizes}: give scales=[0.5, 1.0, ...] and flip=true or false, or null")


def check_strips(recipe: Config) -> None:
    """Raise on strips that cannot be drawn, or are of another size than the recipe says."""
    strips = {key: value for key, value in recipe["data"].items() if key != "source"}
    least = {"train_images": 10, "val_images": 10, "cell": 1, "cells": 1, "marked": 1}  # a strip of each class
    for key, value in least.items():
        if type(strips.get(key)) is not int or strips[key] < value:
            raise UserError(f"recipe.data.{key}={strips.get(key)}: give a whole number from {value}")
    if strips["marked"] > strips["cells"]:
        raise UserError(f"recipe.data.marked={strips['marked']}: give at most cells={strips['cells']}")
    if recipe["num_classes"] != 10:
        raise UserError(f"recipe.num_classes={recipe['num_classes']}: strips are of the 10 digits; leave it out")
    if recipe["mix"] or recipe["augment"]:
        raise UserError("recipe.mix and recipe.augment: strips are taken as they are drawn; set both to null")
    height, width = recipe["image_size"]
    if (height, width) != (strips["cell"], strips["cell"] * strips["cells"]):
        raise UserError(
            f"recipe.image_size=[{height}, {width}]: {strips['cells']} cells of {strips['cell']} pixels are drawn: set them to each other"
        )


def of_backbone(table: Any, backbone: Config) -> float:
    """A number, or the entry of a table for a backbone: that of its family and size (mambaout_tiny for mambaout_tiny_ssm),
    else its `default`."""
    if isinstance(table, dict):
        size = "_".join(backbone["name"].split("_")[:2])
        table = table.get(size, table.get("default"))
    if isinstance(table, bool) or not isinstance(table, int | float) or not 0 <= table < 1:
        raise UserError(f"recipe.drop_path={table}: give a number from 0 and below 1")
    return float(table)


def keys(tree: Any, at: str) -> Iterator[str]:
    """The address of every key of a tree that stands at `at`: recipe.optimizer, recipe.optimizer.lr, ..."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        if key != "defaults":
            yield f"{at}.{key}"
            yield from keys(value, f"{at}.{key}")


def keys_of(group: str) -> set[str]:
    """The addresses of all keys that files of a group of conf/ have; of one that cannot be read none."""
    from yaml import YAMLError, safe_load

    found: set[str] = set()
    for file in (CONF / group).glob("*.yaml"):
        with contextlib.suppress(YAMLError):
            found.update(keys(safe_load(file.read_text()), group))
    return found


def explain(error: Exception) -> Exception:
    """Hydra's and OmegaConf's errors of a wrong option, key or file as a UserError; others as they are."""
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if isinstance(error, UserError):
        return error
    text = str(error)
    if missing := re.search(r"Could not find '([\w/.-]+)/([^'/]+)'", text):
        group, option = missing.groups()
        options = [p.stem for p in (CONF / group).glob("*.yaml")]
        return UserError(f"no {group} '{option}'{nearest(option, options)}")
    if no_key := re.search(r"Could not override '([\w.]+)'", text):
        *group, key = no_key[1].split(".")
        if group[:2] == ["recipe", "model"]:
            return UserError(
                f"recipe.model does not change '{no_key[1].removeprefix('recipe.model.')}' yet: write +{no_key[1]}=... for a change "
                "of the library's base config"
            )
        known = keys_of(group[0]) if group else KEYS
        known = known or ({f"paths.{k}" for k in PATHS} if group[0] == "paths" else KEYS)
        if elsewhere := sorted(k for k in known if k.split(".")[-1] == key):
            return UserError(f"no key '{no_key[1]}'; did you mean {' or '.join(elsewhere)}?")
        return UserError(f"no key '{no_key[1]}'{nearest(no_key[1], known)}")
    if isinstance(error, OverrideParseException):
        return UserError(
            f"cannot read '{error.override}': {text.splitlines()[0]}; put quotes around special characters"
        )
    if isinstance(error, YAMLError):
        mark = getattr(error, "problem_mark", None)
        where = f"{mark.name}, line {mark.line + 1}" if mark else "a file of conf/"
        return UserError(f"{where}: not valid YAML ({getattr(error, 'problem', text)}); mend that line")
    if isinstance(error, HydraException | OmegaConfBaseException):
        first = " ".join(line.strip() for line in text.splitlines() if line.strip())
        cause = f": {' '.join(str(error.__cause__).split())}" if error.__cause__ else ""
        if str(error.__cause__) in text:
            cause = ""
        return UserError(f"{first}{cause} (see python -m hypotheses.run --help)")
    return error
