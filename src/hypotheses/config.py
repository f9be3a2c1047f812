"""Composition, once and at the top: the Hydra groups of conf/ become the plain values of one run."""

import re
from pathlib import Path
from typing import Any

from hypotheses.errors import UserError, nearest

ROOT = Path(__file__).resolve().parents[2]  # of the project
CONF = ROOT / "conf"
BUILT_TASKS = ("imagenet",)

Config = dict[str, Any]


def compose(overrides: list[str]) -> Config:
    """The resolved configuration that `python -m hypotheses.run <overrides>` would use. Raises UserError."""
    import hydra

    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return resolve(hydra.compose("config", overrides=overrides))
    except Exception as error:
        raise explain(error) from error


def resolve(cfg: Any) -> Config:
    """Plain values from Hydra's composed config: interpolations resolved, folders made absolute, choices checked."""
    from omegaconf import OmegaConf

    config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    task = config["task"]["name"]
    if task not in BUILT_TASKS:
        raise UserError(f"task={task} is not built yet; built: {', '.join(BUILT_TASKS)}")
    seed, tag = config["seed"], config["tag"]
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise UserError(f"seed={seed}: give a whole number from 0")
    if tag is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", str(tag)):
        raise UserError(f"tag={tag}: use letters, digits, - and _ only")
    config["paths"] = {key: str((ROOT / Path(path).expanduser()).resolve()) for key, path in config["paths"].items()}
    return config


def explain(error: Exception) -> Exception:
    """Hydra's and OmegaConf's errors of a wrong option, key or file as a UserError; others as they are."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if isinstance(error, UserError):
        return error
    text = str(error)
    if missing := re.search(r"Could not find '([\w/.-]+)/([^'/]+)'", text):
        group, option = missing.groups()
        options = [p.stem for p in (CONF / group).glob("*.yaml")]
        return UserError(f"no {group} '{option}'{nearest(option, options)}")
    if no_group := re.search(r"Could not override '(\w+)'", text):
        groups = [p.name for p in CONF.iterdir() if p.is_dir()]
        return UserError(f"no key or group '{no_group[1]}'{nearest(no_group[1], groups)}")
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
