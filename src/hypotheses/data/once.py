"""Data that the project makes itself: written once, whole, and noticed when they were changed since."""

import fcntl
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hypotheses.record import write_aside


def prepare(root: Path, settings: Mapping[str, Any], write: Callable[[Path], str]) -> str:
    """Make sure that `root` holds what `write` makes, and return its fingerprint.

    write     fills the empty folder that it is given and returns a hash of what the files hold
    settings  what decides that; kept in manifest.json

    A folder that was left half-written or was changed since is noticed by the hash of its files in manifest.json, and made
    again. Safe against other processes that ask at the same time.
    """
    manifest = root / "manifest.json"
    root.parent.mkdir(parents=True, exist_ok=True)
    with open(root.parent / f".{root.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if root.exists():
            try:
                known = json.loads(manifest.read_text())
                if known["settings"] == settings and known["files"] == hash_files(root):
                    return known["fingerprint"]
            except (OSError, ValueError, KeyError, TypeError):
                pass  # no whole manifest: the folder was left half-written
            print(f"{root} is incomplete or not as it was made: making it again", file=sys.stderr)
            shutil.rmtree(root)
        partial = root.parent / f".{root.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        fingerprint = write(partial)
        known = {"settings": settings, "fingerprint": fingerprint, "files": hash_files(partial)}
        write_aside(partial / manifest.name, json.dumps(known, indent=1) + "\n")
        partial.rename(root)
    return fingerprint


def hash_files(root: Path) -> str:
    """A hash of the names and bytes of all files under root but the manifest."""
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p != root / "manifest.json"):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def version(settings: Mapping[str, Any], *code: Path) -> str:
    """A short name for what is drawn, apart from the seed: its settings and the code that draws it."""
    text = json.dumps(settings, sort_keys=True).encode() + b"".join(file.read_bytes() for file in code)
    return hashlib.sha256(text).hexdigest()[:8]
