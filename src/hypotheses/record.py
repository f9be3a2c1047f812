"""What a run leaves behind: one JSON record. This file owns its address, its identity, its writer and its reader.

Address   <scale>/<task>/<backbone>/seed_<k>, a function of the config and never of the clock
Identity  a hash of what decides the result: task, backbone, scale, recipe, seed, the data's fingerprint and that of the
          weights it starts from, if any; folders, workers and devices are not in it
"""

import ast
import functools
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from hypotheses.config import ROOT, Config, of_grid
from hypotheses.errors import UserError

IDENTITY = ("task", "backbone", "scale", "recipe", "seed")
KEYS = {
    "address",
    "identity",
    "config",
    "data_fingerprint",
    "metrics",
    "cost",
    "curve",
    "seconds",
    "provenance",
    "checksum",
}
PACKAGES = ("torch", "torchvision", "lightning", "timm", "numpy", "scipy", "scikit-learn")
MM = ("onedl-mmengine", "onedl-mmcv", "pycocotools", "opencv-python-headless")
TASK_PACKAGES = {"coco": (*MM, "onedl-mmdetection"), "ade20k": (*MM, "onedl-mmsegmentation")}

SOURCES = ("src", "conf", "experiments", "requirements.lock")  # what of the project decides a result

Record = dict[str, Any]


def arm(config: Config) -> str:
    """A backbone, and the tag of its variant or dose if it has one: mambaout_atto+d24_p2_32px."""
    return config["backbone"]["name"] + (f"+{config['tag']}" if config["tag"] else "")


def address(config: Config) -> str:
    return f"{config['scale']['name']}/{config['task']['name']}/{arm(config)}/seed_{config['seed']}"


def identity(config: Config, data_fingerprint: str, pretrained: str | None = None) -> str:
    """`pretrained` is the sha256 of the weights that the run starts from, wherever they lie."""
    parts = decides(config, data_fingerprint, pretrained)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def decides(config: Config, data_fingerprint: str, pretrained: str | None) -> dict[str, Any]:
    """What decides a run's result."""
    parts = {key: config[key] for key in IDENTITY} | {"data": data_fingerprint}
    if pretrained:
        parts["recipe"] = config["recipe"] | {"pretrained": pretrained}
    return parts


def path(config: Config) -> Path:
    return Path(config["paths"]["results"], "records", address(config) + ".json")


def write_aside(target: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: beside its target, then renamed. An OSError names the target."""
    target.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, target)
        except BaseException as error:
            os.unlink(file.name)
            if isinstance(error, OSError):
                error.filename = error.filename or str(target)
            raise


def sha256(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def keep(source: Path, target: Path) -> str:
    """Copy a file of a run to beside its record; its sha256."""
    write_aside(target, source.read_bytes())
    return sha256(target)


def checksum(record: Record) -> str:
    """A hash of everything else in a record."""
    rest = {key: value for key, value in record.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write(target: Path, record: Record) -> None:
    """Write a record with its checksum, which is set here."""
    record["checksum"] = checksum(record)
    assert set(record) == KEYS, set(record) ^ KEYS
    write_aside(target, json.dumps(record, indent=1, sort_keys=True) + "\n")


def read(source: Path) -> Record:
    """One record, whole and as it was written. Raises UserError where it is not."""
    record, problem = {}, None
    try:
        record = json.loads(source.read_text())
        if not isinstance(record, dict):
            problem = "no keys and values"
        elif missing := KEYS - set(record):
            problem = f"no {min(missing)}"
        elif record["checksum"] != checksum(record):
            problem = "changed since it was written"
    except ValueError as error:
        problem = str(error)
    if problem:
        raise UserError(
            f"{source} is not a valid record ({problem}): restore it, or delete it and make sweep runs it again"
        )
    return record


def find(config: Config, data_fingerprint: str, pretrained: str | None = None) -> Record | None:
    """The finished record of a run, or None. Raises UserError where another config has left one at its address."""
    target = path(config)
    if not target.exists():
        return None
    record = read(target)
    if record["identity"] == identity(config, data_fingerprint, pretrained):
        return record
    mine = decides(config, data_fingerprint, pretrained)
    theirs = decides(record["config"], record["data_fingerprint"], record["provenance"].get("pretrained"))
    changes = [f"{key}: recorded {old}, asked {new}" for key, old, new in differences(theirs, mine)]
    raise UserError(
        f"{target} was left by another configuration ({'; '.join(changes)}): "
        "add tag=NAME to give this run an address of its own, or delete that record"
    )


def differences(a: Any, b: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys in which two nested dicts differ, with both values; None for a key that is absent."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            yield from differences(a.get(key), b.get(key), f"{prefix}.{key}" if prefix else str(key))
    elif a != b:
        yield prefix, a, b


def table(records: list[Record]) -> Any:
    """A pandas DataFrame, one row per run: the config's names, metrics, cost, time and provenance as columns."""
    import pandas as pd

    rows = [
        {
            "scale": r["config"]["scale"]["name"],
            "task": r["config"]["task"]["name"],
            "backbone": r["config"]["backbone"]["name"],
            "seed": r["config"]["seed"],
            **r["metrics"],
            **r["cost"],
            "seconds": r["seconds"],
            "commit": r["provenance"]["commit"],
            "dirty": r["provenance"]["dirty"],
            "device": r["provenance"]["device"],
            "data_fingerprint": r["data_fingerprint"][:12],
            "address": r["address"],
        }
        for r in records
    ]
    return pd.DataFrame(rows)


def provenance(config: Config, device: str) -> dict[str, Any]:
    """Code, software and machine of this process. `device` as a person would name it."""
    import torch

    from hypotheses import backbones

    gpu = config["hardware"]["accelerator"] != "cpu" and torch.cuda.is_available()
    return {
        "commit": git("rev-parse", "HEAD") or "unknown",
        "dirty": bool(git("status", "--porcelain", "--", *SOURCES)),
        "code": code_fingerprint(),
        "python": platform.python_version(),
        "packages": {
            name: metadata.version(name) for name in (*PACKAGES, *TASK_PACKAGES.get(config["task"]["name"], ()))
        },
        "platform": platform.platform(),
        "device": device,
        "hardware": {key: config["hardware"][key] for key in ("devices", "nodes", "max_batch_per_device")},
        "kernels": backbones.kernels_used(config["backbone"], "cuda" if gpu else "cpu", config["recipe"]["precision"]),
        "threads": torch.get_num_threads(),
        "command": "python -m hypotheses.run " + " ".join(sys.argv[1:] if (chosen := of_grid()) is None else chosen),
    }


def code_fingerprint() -> str:
    """A hash of the source that decides a run's result: equal code gives equal hashes, committed or not. Of Python neither comments
    nor docstrings nor layout count."""
    package = Path(__file__).parent
    files = [package / name for name in ("checkpoint.py", "config.py", "run.py", "stopping.py")]
    for part in ("backbones", "data", "tasks"):
        files += [f for f in (package / part).rglob("*") if f.suffix in (".py", ".cpp", ".h")]
    digest = hashlib.sha256()
    for file in sorted(files):
        content = file.read_bytes()
        digest.update(file.relative_to(package).as_posix().encode() + b"\0")
        digest.update(substance(content) if file.suffix == ".py" else content)
    return digest.hexdigest()


@functools.lru_cache(maxsize=256)
def substance(source: bytes) -> bytes:
    """What of a Python source is run; all of it where it cannot be parsed."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return source
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree).encode()


def stale(record: Record) -> list[str]:
    """In what the code and software of a finished run differ from those of now; empty where they do not."""
    then, code = record["provenance"], code_fingerprint()
    found = [] if then["code"] == code else [f"code (of commit {then['commit'][:9]}{'*' * then['dirty']})"]
    for attempt in then.get("attempts", [])[:-1]:  # from whose checkpoint it went on
        if attempt["code"] != code and not found:
            found.append(f"code (of commit {attempt['commit'][:9]}, until a later step)")
    for name, was in then["packages"].items():
        if was != (now := version(name)):
            found.append(f"{name} {was}, now {now}")
    return found


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def replace(results: Path, address: str) -> Path:
    """Move a record, and what its run has left beside it, out of the way, to results/replaced/; where to."""
    source = results / "records" / address
    number = 1
    while (folder := results / "replaced" / f"{address}_{number}").exists():
        number += 1
    folder.mkdir(parents=True)
    for suffix in (".json", ".npz", ".jpg", ".jsonl"):
        if (file := source.parent / f"{source.name}{suffix}").exists():
            os.replace(file, folder / file.name)
    return folder


def git(*args: str) -> str | None:
    """A git command's output in the project; None without git or outside a checkout."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
