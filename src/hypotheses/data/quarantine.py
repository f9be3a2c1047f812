"""Files of a published data set that are left out, in all arms alike: results/quarantine/<task>.json.

`python -m hypotheses.data quarantine` writes the list, and nothing else does. What it names is part of the data's fingerprint.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from hypotheses.config import Config
from hypotheses.errors import UserError
from hypotheses.record import write_aside


def path(config: Config) -> Path:
    return Path(config["paths"]["results"], "quarantine", f"{config['task']['name']}.json")


def read(config: Config) -> dict[str, str]:
    """Names relative to the data's folder, each with the reason; empty where there is no list."""
    file = path(config)
    if not file.exists():
        return {}
    try:
        listed = json.loads(file.read_text())["files"]
        return {str(entry["file"]): str(entry["reason"]) for entry in listed}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is no list of files ({type(error).__name__}: {error}): delete it, then write it again with "
            f"python -m hypotheses.data quarantine task={config['task']['name']}"
        ) from error


def write(config: Config, files: Mapping[str, str]) -> None:
    """Write the list; an empty one is removed."""
    if not files:
        path(config).unlink(missing_ok=True)
        return
    listed = [{"file": name, "reason": files[name]} for name in sorted(files)]
    write_aside(path(config), json.dumps({"task": config["task"]["name"], "files": listed}, indent=1) + "\n")
