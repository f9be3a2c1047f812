"""Published weights into our networks: from a file, an address or the hub, through one mapping of names.

    load(model, source)                         all of a Classifier
    load(backbone, source, backbone_only=True)  a backbone under another head

A source is a file (.pth, .pt, .bin, .safetensors), an http(s) address, or a hub id such as timm/mambaout_tiny.in1k.
FORMATS lists what is recognised by the names of its tensors. A file must fit in every name and shape: what does not is a
UserError, and the model is left as it was. Files are read as weights only, so nothing in them is ever run.
"""

import argparse
import contextlib
import hashlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hypotheses.errors import UserError
from hypotheses.record import sha256

# format: (a name that only it has, [(its names, ours)]). The first rule that matches a whole name decides; all names are
# mapped in one pass, since `head.norm` is the norm before the head's MLP in timm and the one inside it in the official code
FORMATS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "outputs/.../weights.pt of a run": (r"backbone\..+", [(r"(backbone|head)\.(.+)", r"\1.\2")]),
    "the official MambaOut": (
        r"downsample_layers\..+",
        [
            (r"(downsample_layers|stages)\.(.+)", r"backbone.\1.\2"),
            (r"norm\.(\w+)", r"head.norm.\1"),
            (r"head\.norm\.(\w+)", r"head.norm2.\1"),
            (r"head\.(fc1|fc2)\.(\w+)", r"head.\1.\2"),
        ],
    ),
    "timm's MambaOut": (  # with features_only=True its stages are named stages_0, and there is no head
        r"stem\..+|stages_0\..+",
        [
            (r"stem\.(.+)", r"backbone.downsample_layers.0.\1"),
            (r"stages[._](\d+)\.downsample\.(.+)", r"backbone.downsample_layers.\1.\2"),
            (r"stages[._](\d+)\.blocks\.(.+)", r"backbone.stages.\1.\2"),
            (r"head\.norm\.(\w+)", r"head.norm.\1"),
            (r"head\.pre_logits\.fc\.(\w+)", r"head.fc1.\1"),
            (r"head\.pre_logits\.norm\.(\w+)", r"head.norm2.\1"),
            (r"head\.fc\.(\w+)", r"head.fc2.\1"),
        ],
    ),
    "timm's ViT": (
        r"patch_embed\.proj\..+",
        [
            (r"patch_embed\.proj\.(\w+)", r"backbone.patch_embed.\1"),
            (r"pos_embed", r"backbone.pos_embed"),
            (r"blocks\.(\d+)\.(norm1|norm2|attn\.qkv|attn\.proj)\.(\w+)", r"backbone.blocks.\1.\2.\3"),
            (r"blocks\.(\d+)\.mlp\.(fc1|fc2)\.(\w+)", r"backbone.blocks.\1.\2.\3"),
            (r"fc_norm\.(\w+)", r"head.norm.\1"),
            (r"head\.(\w+)", r"head.fc.\1"),
        ],
    ),
}
SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")  # by which a missing file is told from a hub id
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # of a hub id, the first that is there
SHOWN = 10  # of what does not fit


def load(model: nn.Module, source: str, backbone_only: bool = False) -> str:
    """Put the weights of a source into a model; returns the sha256 of the file.

    model          a Classifier, or with `backbone_only` a backbone without its head; then the file's head is left out

    Raises UserError where the file cannot be had or read, or does not fit; the model is then unchanged.
    """
    file = locate(source)
    model.load_state_dict(fit(read(file), model, source, backbone_only))
    return sha256(file)


# ---- from a source to tensors ----------------------------------------------------------------------------------------


def locate(source: str) -> Path:
    """The file of a source, downloaded into the library's cache where it is not on this machine yet."""
    if re.match(r"https?://", source):
        return from_address(source)
    file = Path(source).expanduser()
    if file.is_file():
        return file
    if file.is_dir():
        raise UserError(f"weights={source} is a folder: name the file in it")
    repository = re.fullmatch(r"(?:hf-hub:)?([\w.-]+/[\w.-]+)", source)
    if repository and not source.endswith(SUFFIXES):
        return from_hub(repository[1])
    raise UserError(f"weights={source}: no such file; give a file, an https:// address or a hub id (timm/NAME)")


def from_address(address: str) -> Path:
    digest = hashlib.sha256(address.encode()).hexdigest()[:12]  # files of different addresses can have the same name
    file = Path(torch.hub.get_dir(), "checkpoints", f"{digest}_{Path(address.split('?')[0]).name}")
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(file))
        except Exception as error:  # of urllib, http and ssl
            raise UserError(f"cannot download {address} ({error}): get it by other means, then weights=PATH") from error
    return file


def from_hub(repository: str) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError, RepositoryNotFoundError

    address = f"https://huggingface.co/{repository}/resolve/main/{HUB_FILES[0]}"
    try:
        for name in HUB_FILES:
            with contextlib.suppress(LocalEntryNotFoundError):
                return Path(hf_hub_download(repository, name, local_files_only=True))
        for name in HUB_FILES:
            with contextlib.suppress(RemoteEntryNotFoundError):
                get_hf_file_metadata(hf_hub_url(repository, name))  # asks once, where a download would try for long
                return Path(hf_hub_download(repository, name))
        cause = f"there is no {' or '.join(HUB_FILES)}"
    except RepositoryNotFoundError:
        cause = "no such repository"
    except Exception as error:  # of the network, in the names of the hub's own HTTP library
        cause = (str(error) or type(error).__name__).splitlines()[0]
    raise UserError(f"cannot get {repository} from the hub ({cause}): download {address}, then weights=PATH")


def read(file: Path) -> dict[str, Tensor]:
    """Tensors by name, as the file has them, from under `state_dict` or `model` where they are nested."""
    with open(file, "rb") as content:
        is_safetensors = content.read(9)[8:] == b"{"  # a header of JSON after its length
    try:
        if is_safetensors:
            from safetensors.torch import load_file

            held = load_file(file)
        else:
            # timm's training checkpoints hold their arguments beside the weights; a Namespace is plain data
            with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
                warnings.simplefilter("ignore")
                held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{file} is refused: reading it would run code ({code[1]}); it must hold plain tensors, as "
                "torch.save(model.state_dict(), PATH) writes them"
            ) from error
        raise UserError(
            f"{file} is not a whole file of weights: delete it and get it again (a .safetensors, or a dict of tensors "
            "written by torch.save)"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
    if not isinstance(held, dict) or not all(isinstance(tensor, Tensor) for tensor in held.values()):
        raise UserError(f"{file} holds no dict of tensors, nor has one under state_dict or model: save that alone")
    return {str(name): tensor for name, tensor in held.items()}


# ---- from their names to ours ----------------------------------------------------------------------------------------


def our_names(state: Mapping[str, Tensor], source: str) -> dict[str, str | None]:
    """{a name in the file: the same tensor's name in a Classifier, or None where no rule knows it}."""
    for mark, rules in FORMATS.values():
        if any(re.fullmatch(mark, name) for name in state):
            return {
                name: next(
                    (match.expand(ours) for theirs, ours in rules if (match := re.fullmatch(theirs, name))), None
                )
                for name in state
            }
    starts = ", ".join(list(state)[:3]) or "nothing"
    raise UserError(f"{source} holds weights of no known network ({starts}, ...); known: {', '.join(FORMATS)}")


def fit(state: Mapping[str, Tensor], model: nn.Module, source: str, backbone_only: bool = False) -> dict[str, Tensor]:
    """A file's tensors under the names of `model`, every one of them there, finite and of the right shape.

    Raises UserError with a list of what does not fit. `model` and `backbone_only` as in `load`.
    """
    prefix = "backbone." if backbone_only else ""
    wanted = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    names = our_names(state, source)
    if "pos_embed" in state and ("cls_token" in state or odd_token(state["pos_embed"], wanted)):
        raise UserError(
            f"{source} is a ViT with a class token; ours reads out the mean over the patches (global_pool='avg', "
            "class_token=False in timm), which its weights were not trained for"
        )
    given: dict[str, Tensor] = {}
    unexpected, misfits = [], []
    classes = None  # of the file, where it has another number
    matrices = [name for name, tensor in wanted.items() if name.startswith("head.") and tensor.ndim == 2]
    classifier = (*(matrices[-1:]), *(name.removesuffix("weight") + "bias" for name in matrices[-1:]))
    for theirs, tensor in state.items():
        ours = names[theirs]
        if backbone_only and ours and ours.startswith("head."):
            continue
        if ours not in wanted or ours in given:
            unexpected.append(f"unexpected {theirs}")
            continue
        target = wanted[ours]
        if ours == "backbone.pos_embed" and tensor.shape == (1, target[0, 0].numel(), target.shape[1]):
            tensor = tensor.transpose(1, 2).reshape(target.shape)  # (1, L, C) -> (1, C, h, w), row by row
        given[ours] = tensor
        if tensor.shape != target.shape:
            if ours in classifier and tensor.shape[1:] == target.shape[1:]:
                classes = tensor.shape[0], target.shape[0]
            else:
                misfits.append(f"{theirs} is {tuple(tensor.shape)}, not {tuple(target.shape)}")
        elif not tensor.is_floating_point() or tensor.layout != torch.strided:
            misfits.append(f"{theirs} holds {tensor.dtype}, no plain floating-point numbers")
        elif not tensor.isfinite().all():
            misfits.append(f"{theirs} holds values that are not finite")
    problems = [f"missing {name}" for name in wanted if name not in given] + unexpected + misfits
    if classes:
        problems.insert(
            0,
            f"the file has {classes[0]} classes, the recipe {classes[1]}: evaluate it at the scale of its training "
            "(scale=paper for the 1000 of ImageNet)",
        )
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(f"{source} does not fit this network: {'; '.join(problems[:SHOWN])}{more}")
    return {name.removeprefix(prefix): tensor for name, tensor in given.items()}


def odd_token(positions: Tensor, wanted: Mapping[str, Tensor]) -> bool:
    """Whether a file has positions (1, L, C) for one token more than our grid has, as with a class token."""
    target = wanted.get("backbone.pos_embed")
    return target is not None and positions.ndim == 3 and positions.shape[1] == target[0, 0].numel() + 1
