"""Where a run stands, asked of the files that it has left: so a plan, a status and a sweep say the same of it.

    recorded     it has finished, by the code and software of now
    stale        it has finished, by other code or software
    running      a living process holds it
    dead         its process has ended without a word: it goes on from its checkpoint, if it has one
    failed       its latest attempt has ended with an error
    interrupted  its latest attempt was asked to stop
    waiting      nobody has begun it

Nothing heavy is imported here.
"""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypotheses import attempts, checkpoint, claims, data, failures, pretrained, record
from hypotheses.config import Config
from hypotheses.errors import UserError
from hypotheses.record import Record

RECORDED, STALE, RUNNING, DEAD, FAILED = "recorded", "stale", "running", "dead", "failed"
INTERRUPTED, WAITING, CONFLICT = "interrupted", "waiting", "conflict"


@dataclasses.dataclass(frozen=True)
class Standing:
    """Of one run.

    why      in words, where there is more to say than the state
    record   of one that has finished
    beat     its latest heartbeat: step, steps, seconds, seconds_left, shown
    step     of the checkpoint it can go on from; 0 for none
    foreign  of the checkpoint of other code, in words, from which it goes on at the user's word alone
    failure  the class of its latest failure, as in failures.py
    tail     the last lines of its log
    identity of the run, where the fingerprint of its data is known"""

    config: Config
    state: str
    why: str = ""
    record: Record | None = None
    beat: dict[str, Any] = dataclasses.field(default_factory=dict)
    step: int = 0
    failure: str = ""
    tail: list[str] = dataclasses.field(default_factory=list)
    identity: str = ""
    foreign: str = ""

    @property
    def address(self) -> str:
        return record.address(self.config)

    @property
    def cell(self) -> str:
        return cell(self.config)


def cell(config: Config) -> str:
    """The runs that take about as long as each other: those of a task and arm."""
    return f"{config['task']['name']} {record.arm(config)}"


def folder(config: Config) -> Path:
    """Of a run's log, heartbeat, claims and checkpoints."""
    return Path(config["paths"]["outputs"], record.address(config))


def heartbeat(place: Path) -> dict[str, Any]:
    """The latest heartbeat in the folder of a run; empty where there is none."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((place / "heartbeat.json").read_text())
        return found if isinstance(found, dict) else {}
    return {}


def of(config: Config, fingerprint: str | None = None, start: str | None = None) -> Standing:
    """Where the run of a config stands. Without the fingerprint of its data a record is not compared with them."""
    identity = record.identity(config, fingerprint, start) if fingerprint else ""
    found = look(config, fingerprint, start)
    if found.state in (RECORDED, STALE, CONFLICT):
        return dataclasses.replace(found, identity=identity)
    step, foreign = going_on(config, identity)
    return dataclasses.replace(found, identity=identity, step=step, foreign=foreign)


def of_all(configs: Sequence[Config], plan: bool = False) -> list[Standing]:
    """Where runs stand, with their data made or found, each once. For a `plan` only where there is a record or a checkpoint to compare
    with, and what cannot be found is no error but the state of its run. Raises UserError."""
    fingerprints: dict[str, str] = {}
    if (
        not plan
    ):  # those that cannot be made first: what is missing is said before others are drawn, which takes minutes
        for config in sorted(configs, key=lambda c: c["recipe"]["data"]["source"] not in data.PUBLISHED):
            if (key := data.depends_on(config)) not in fingerprints:
                fingerprints[key] = data.prepare(config).fingerprint
    found = []
    for config in configs:
        if plan and not record.path(config).exists() and not checkpoint.listed(folder(config) / "checkpoints"):
            found.append(of(config))
            continue
        try:
            if (key := data.depends_on(config)) not in fingerprints:
                fingerprints[key] = data.prepare(config).fingerprint
            start = pretrained.find(config)
            found.append(of(config, fingerprints[key], start.sha256 if start else None))
        except UserError as error:
            if not plan:
                raise
            found.append(Standing(config, CONFLICT, str(error)))
    return found


def going_on(config: Config, identity: str) -> tuple[int, str]:
    """The step of the checkpoint that a run would go on from, 0 for none; and what speaks against it, in words."""
    for entry in checkpoint.listed(folder(config) / "checkpoints"):
        if config["resume"] == "never" or (identity and entry["identity"] != identity):
            continue
        installed = {name: record.version(name) for name in entry["attempts"][-1].get("packages", {})}
        odd = checkpoint.foreign(entry, {"code": record.code_fingerprint(), "packages": installed})
        if odd and config["resume"] == "same":
            return 0, f"its checkpoint of step {entry['step']} is of other {' and '.join(odd)}"
        return entry["step"], ""
    return 0, ""


def look(config: Config, fingerprint: str | None, start: str | None) -> Standing:
    """All but the checkpoint; `start` is the sha256 of the weights that the run starts from."""
    place, address = folder(config), record.address(config)
    target = record.path(config)
    if target.exists():
        try:
            if fingerprint is None:
                found = record.read(target)
                changed = record.differences(found["config"], {key: config[key] for key in record.IDENTITY})
                odd = [f"{key}: recorded {old}, asked {new}" for key, old, new in changed]
                if odd:
                    return Standing(config, CONFLICT, "left by another configuration: " + "; ".join(odd))
            else:
                found = record.find(config, fingerprint, start)
                assert found
        except UserError as error:
            return Standing(config, CONFLICT, str(error))
        changed = record.stale(found)
        why = f"by other {', '.join(changed)}" if changed else ""
        return Standing(config, STALE if changed else RECORDED, why, found)
    beat = heartbeat(place)
    tail = failures.tail(place / "log.txt")
    if said := claims.holder(place):
        return Standing(config, RUNNING, f"process {said.get('pid')} on {said.get('host')}", None, beat, tail=tail)
    ends = attempts.ends(Path(config["paths"]["results"]), address)
    if not ends:
        return Standing(config, WAITING)
    how, kind = ends[-1]
    if how == attempts.UNENDED:
        return Standing(config, DEAD, "ended without a word", None, beat, failure="killed", tail=tail)
    if how == attempts.INTERRUPTED:
        return Standing(config, INTERRUPTED, "", None, beat)
    if how == attempts.RECORDED:
        return Standing(config, WAITING, "its record was taken away")
    return Standing(config, FAILED, how, None, beat, failure=kind or "code", tail=tail)
