"""Check a data set, or list what of it cannot be used.

    python -m hypotheses.data check task=coco [paths.coco=FOLDER] [scale=paper ...]     # exit code 2 where there are errors
    python -m hypotheses.data quarantine task=coco [...]     # files that can be left out one by one: results/quarantine/coco.json
    python -m hypotheses.data subset task=coco scale=pilot   # the training images that a scale takes, a name a line

The options are those of a run, at paper scale unless another one is named.
"""

import json
import sys
from pathlib import Path

from hypotheses.config import Config, compose
from hypotheses.data import layouts, preflight, quarantine, sources
from hypotheses.data.preflight.findings import Finding, grouped
from hypotheses.errors import UserError, command, nearest
from hypotheses.run import check_space

VERBS = ("check", "quarantine", "subset")


def main(arguments: list[str] | None = None) -> int:
    verb, *overrides = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if verb in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0
    if verb not in VERBS:
        raise UserError(f"no command '{verb}'{nearest(verb, VERBS)}")
    if not any(word.startswith(("scale=", "mode=")) for word in overrides):
        overrides = [*overrides, "scale=paper"]
    work = {"check": check, "quarantine": write_list, "subset": list_subset}[verb]
    return work(compose(overrides))


def check(config: Config) -> int:
    """Print what is found; the exit code."""
    result = preflight.check(config, speed=True)
    findings = list(result.findings)
    try:
        check_space(config, ("outputs", "results"))  # in paths.data only what was found is kept, of which more is said
    except UserError as error:
        findings.append(Finding("space", config["paths"]["outputs"], str(error)))
    show(result, findings)
    errors = [finding for finding in findings if finding.error]
    if any(finding.single for finding in errors):
        print(f"what can be left out one by one: {preflight.command(config, 'quarantine')}")
    return 2 if errors else 0


def write_list(config: Config) -> int:
    """Write the list of what is left out, and print the rest of what is found; the exit code."""
    if not preflight.published(config):
        scale, root = config["scale"]["name"], config["paths"]["data"]
        raise UserError(f"the data of scale={scale} are drawn: delete {root}/demo, and they are made again")
    result, before = preflight.check(config), quarantine.read(config)
    show(result, result.findings)
    files = preflight.to_quarantine(result, before)
    quarantine.write(config, files)
    for name in sorted(before.keys() - files):
        print(f"taken off the list: {name}")
    print(f"{preflight.amount(len(files), 'file')} in quarantine: {quarantine.path(config)}")
    return 2 if any(not finding.single for finding in result.errors) else 0


def list_subset(config: Config) -> int:
    """Print the names of the images, or for ImageNet the classes, that are trained on; the exit code."""
    data, root = config["recipe"]["data"], Path(config["paths"].get(config["recipe"]["data"]["source"], ""))
    out = quarantine.read(config)
    if data["source"] == "imagenet" and data["classes"]:
        names = sources.wanted(data["classes"])
    elif data["source"] in ("coco", "ade20k") and data.get("train_images"):
        layouts.check(data["source"], root, True, out)
        if data["source"] == "coco":
            file, folder = layouts.COCO["train"]
            there = [image["file_name"] for image in json.loads((root / file).read_bytes())["images"]]
        else:
            folder = f"images/{layouts.ADE20K['train']}"
            there = [file.name for file in layouts.list_files(data["source"], root, folder, ".jpg")]
        gone = {Path(name).stem for name in out if name.split("/")[-2] == Path(folder).name}  # with a mask its image
        names = [name for name in sorted(layouts.chosen(there, data["train_images"])) if Path(name).stem not in gone]
    else:
        raise UserError(f"scale={config['scale']['name']}: task={config['task']['name']} takes all that there is there")
    print(*names, sep="\n")
    return 0


def show(result: preflight.Result, findings: list[Finding]) -> None:
    print(*grouped(findings), sep="\n", end="\n" if findings else "")
    print(result.summary)


if __name__ == "__main__":
    command(main, "interrupted: what was decoded is kept; the same command goes on")
