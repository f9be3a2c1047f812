"""The weights that a backbone starts from in detection and segmentation: those of an ImageNet run of the same backbone and seed,
published ones, or none."""

import dataclasses
from pathlib import Path

from hypotheses import record
from hypotheses.config import Config, compose
from hypotheses.errors import UserError


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """source  as the recipe names it
    file, sha256  of the weights"""

    source: str
    file: Path
    sha256: str


def find(config: Config) -> Pretrained | None:
    """What the backbone of a run starts from; None where it starts from its seed.

    Raises UserError where the weights are not there, with how to get them.
    """
    source = config["recipe"].get("pretrained", "none")
    if source == "none" or config["mode"]["name"] == "eval":
        return None
    if source == "imagenet":
        file = of_imagenet(config)
    else:
        from hypotheses.backbones import weights  # imports torch

        file = weights.locate(source)
    return Pretrained(source, file, record.sha256(file))


def of_imagenet(config: Config) -> Path:
    """outputs/<scale>/imagenet/<backbone>/seed_<k>/weights.pt of a finished run."""
    of_run = config | {"task": {"name": "imagenet"}, "tag": None}
    file = Path(config["paths"]["outputs"], record.address(of_run), "weights.pt")
    if not record.path(of_run).exists() or not file.exists():
        raise UserError(
            f"pretrained=imagenet: no finished run {record.address(of_run)} with its weights at {file}; make it with "
            f"python -m hypotheses.run task=imagenet scale={config['scale']['name']} backbone={config['backbone']['name']} "
            f"seed={config['seed']}, or add pretrained=none, or pretrained=timm/NAME or a file"
        )
    found = record.read(record.path(of_run))
    names = [f"{group}={config[group]['name']}" for group in ("scale", "backbone")]
    registered = compose(["task=imagenet", *names, f"seed={config['seed']}"])
    asked = {key: registered[key] for key in record.IDENTITY} | {"backbone": config["backbone"]}
    if odd := [f"{key} was {was}, not {now}" for key, was, now in record.differences(found["config"], asked)]:
        raise UserError(
            f"pretrained=imagenet: {record.path(of_run)} is of another recipe than the arms of a pair must share ({'; '.join(odd)}): "
            f"delete it and run it again, or name its weights: pretrained={file}"
        )
    return file
