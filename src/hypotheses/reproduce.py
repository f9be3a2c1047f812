"""Make one record again, in a folder of its own, and say whether it comes out the same.

    python -m hypotheses.reproduce demo/imagenet/mambaout_atto/seed_0 [paths.results=FOLDER] [hardware=cpu]

identical        every number of the curve, every metric, every prediction and every bit of the weights
within interval  not identical, and each metric lies in the 95 % interval over images of the recorded one
different        some metric lies outside
The first difference is named, and in what code, software and machine the two differ.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from hypotheses import bootstrap, pretrained, record
from hypotheses.config import Config, compose
from hypotheses.data import quarantine
from hypotheses.errors import Parser, UserError, command, nearest
from hypotheses.metrics import METRICS
from hypotheses.record import Record

IDENTICAL, WITHIN, DIFFERENT = "identical", "within interval", "different"
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Outcome:
    """first   difference, in words; empty where there is none
    metrics  by name: recorded, made again, and the interval over images of the recorded one
    unlike   in what the two were made otherwise"""

    says: str
    first: str
    metrics: dict[str, tuple[float, float, tuple[float, float] | None]]
    unlike: list[str]


def find(address: str, results: Path) -> Record:
    """The record of an address. Raises UserError with the nearest one."""
    address = address.removeprefix("results/").removeprefix("records/").removesuffix(".json").strip("/")
    file = results / "records" / f"{address}.json"
    if not file.exists():
        folder = results / "records"
        there = [f.relative_to(folder).with_suffix("").as_posix() for f in folder.rglob("*.json")]
        more = nearest(address, there) if len(there) <= 12 else nearest(address, there).split(" Choose")[0]
        raise UserError(f"RUN={address}: no such record in {results}{more if there else ': make a sweep first'}")
    return record.read(file)


def config_of(old: Record, overrides: list[str]) -> Config:
    """The config of a record's run, with its own recipe and threads, whatever conf/ says now."""
    names = {group: old["config"][group]["name"] for group in ("task", "backbone", "scale")}
    threads = [f"hardware.threads={old['provenance']['threads']}"]
    config = compose([*(f"{k}={v}" for k, v in names.items()), f"seed={old['config']['seed']}", *threads, *overrides])
    arm = old["address"].split("/")[2]
    return config | old["config"] | {"tag": arm.partition("+")[2] or None, "resume": "same", "wandb": "off"}


def compare(old: Record, new: Record, results: Path) -> Outcome:
    """How a record made again differs from the recorded one."""
    first = ""
    if old["data_fingerprint"] != new["data_fingerprint"]:
        first = "the data are others: their fingerprints differ"
    for number, (a, b) in enumerate(zip(old["curve"], new["curve"], strict=False), 1):
        changed = list(record.differences(a, b))
        if changed and not first:
            key, was, now = changed[0]
            first = f"row {number} of the curve, {key}: recorded {was!r}, now {now!r}"
    if len(old["curve"]) != len(new["curve"]) and not first:
        first = f"the curve has {len(new['curve'])} rows, recorded are {len(old['curve'])}"
    changed = list(record.differences(old["metrics"], new["metrics"]))
    if changed and not first:
        first = "{}: recorded {!r}, now {!r}".format(*changed[0])
    then, now = (r["provenance"] for r in (old, new))
    for name, was in (then.get("artefacts") or {"predictions": then.get("predictions")}).items():
        again = (now.get("artefacts") or {}).get(name)
        if was and name in ("predictions", "weights") and was != again and not first:
            first = f"the {name} are not the same bits"
    found = {}
    for name in METRICS[old["config"]["task"]["name"]]:
        if name in old["metrics"]:
            found[name] = (old["metrics"][name], new["metrics"][name], bootstrap.of_one(results, name, old, LEVEL))
    outside = [n for n, (_, now, around) in found.items() if around and not around[0] <= now <= around[1]]
    known = any(around for _, _, around in found.values())
    says = IDENTICAL if not first else WITHIN if known and not outside else DIFFERENT
    keys = ("code", "python", "packages", "kernels", "device", "threads")
    unlike = [f"{k}: {a}, now {b}" for k in keys for k, a, b in record.differences(then.get(k), now.get(k), k)]
    if "weights" not in then.get("artefacts", {}):
        unlike.append("its weights were not recorded then, and are not compared")
    return Outcome(says, first, found, unlike)


def text(address: str, outcome: Outcome, folder: Path) -> str:
    lines = [f"{address}: {outcome.says.upper()}"]
    for name, (was, now, around) in outcome.metrics.items():
        where = f", 95 % interval over images {around[0]:.2f} to {around[1]:.2f}" if around else ""
        lines.append(f"  {name}: recorded {was:.4g}, now {now:.4g}{where} (one run each)")
    if outcome.first:
        lines.append(f"  first difference: {outcome.first}")
    lines += [f"  made otherwise: {line}" for line in outcome.unlike]
    lines.append(f"  made again in {folder}")
    return "\n".join(lines)


def fresh(outputs: Path, address: str) -> Path:
    """A folder in which no record was made yet; one that was interrupted goes on."""
    number = 1
    while any((folder := outputs / "reproduced" / f"{address}_{number}").glob("results/records/**/*.json")):
        number += 1
    return folder


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(
        prog="make reproduce RUN=demo/imagenet/mambaout_atto/seed_0",
        description="Make one record again in a folder of its own, and say whether it comes out the same.",
        usage="make reproduce RUN=<scale>/<task>/<backbone>/seed_<k> [ARGS='paths.results=FOLDER hardware=cpu']",
    )
    parser.add_argument("address", help="of a record")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("overrides", nargs="*", help="hardware=..., paths.key=...")
    asked = parser.parse_intermixed_args(sys.argv[1:] if arguments is None else arguments)
    for override in asked.overrides:
        if override.split("=")[0].split(".")[0] not in ("hardware", "paths"):
            raise UserError(f"{override}: a record is made again as it was; only hardware and paths can be given")
    paths: dict[str, Any] = compose([o for o in asked.overrides if o.startswith("paths.")])["paths"]
    old = find(asked.address, Path(paths["results"]))
    config = config_of(old, asked.overrides)
    if config["hardware"]["devices"] != 1:
        raise UserError("a record is made again by one process: leave hardware.devices out")
    if start := pretrained.find(config):  # where it was found then, not in the folder of this one
        config["recipe"] = config["recipe"] | {"pretrained": str(start.file)}
    folder = fresh(Path(paths["outputs"]), old["address"])
    config["paths"] = config["paths"] | {"outputs": str(folder / "outputs"), "results": str(folder / "results")}
    quarantine.write(config, dict.fromkeys(old["provenance"].get("left_out", []), f"left out of {old['address']}"))

    from hypotheses.run import run

    new = run(config)
    if new is None:
        return 0
    outcome = compare(old, new, Path(paths["results"]))
    print(json.dumps(dataclasses.asdict(outcome), indent=1) if asked.json else text(old["address"], outcome, folder))
    return 1 if outcome.says == DIFFERENT else 0


if __name__ == "__main__":
    command(main)
