"""How each attempt at a run ended is told, also where it could not say so itself."""

import signal
import subprocess
import sys

import pytest

from hypotheses import attempts
from hypotheses.config import compose
from hypotheses.errors import UserError
from hypotheses.run import run

ADDRESS = "demo/imagenet/mambaout_atto/seed_0"


def attempt(results, error=None):
    with attempts.noted(results, ADDRESS):
        if error:
            raise error


def test_every_end_is_kept_in_order(tmp_path):
    assert attempts.read(tmp_path, ADDRESS) == []
    for error in (
        FloatingPointError("the loss is nan\nat step 3"),
        KeyboardInterrupt(),
        SystemExit(143),
        UserError("no room"),
    ):
        with pytest.raises(type(error)):
            attempt(tmp_path, error)
    attempt(tmp_path)
    assert attempts.read(tmp_path, ADDRESS) == [
        "FloatingPointError: the loss is nan at step 3",
        "interrupted",
        "interrupted",
        "UserError: no room",
        "recorded",
    ]


def test_a_killed_process_is_seen_by_its_silence(tmp_path):
    script = (
        "import os, signal; from pathlib import Path; from hypotheses import attempts\n"
        f"with attempts.noted(Path({str(tmp_path)!r}), {ADDRESS!r}): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    attempt(tmp_path)
    assert attempts.read(tmp_path, ADDRESS) == [attempts.UNENDED, attempts.RECORDED]


def test_a_line_that_was_cut_short_hides_nothing_else(tmp_path):
    attempt(tmp_path)
    with open(attempts.path(tmp_path, ADDRESS), "a") as file:
        file.write('{"begu')
    with pytest.raises(FloatingPointError):
        attempt(tmp_path, FloatingPointError("nan"))
    assert attempts.read(tmp_path, ADDRESS) == [attempts.RECORDED, "FloatingPointError: nan"]


@pytest.mark.parametrize("odd", [b"5\n", b"[]\n", b"\xff\xfe\n", b"{}\n", b"null\n"])
def test_what_is_no_line_of_ours_is_passed_over(tmp_path, odd):
    attempt(tmp_path)
    with open(attempts.path(tmp_path, ADDRESS), "ab") as file:
        file.write(odd)
    attempt(tmp_path)
    assert attempts.read(tmp_path, ADDRESS) == [attempts.RECORDED] * 2


def test_a_run_notes_its_own_and_a_reused_record_adds_none(tmp_path, paths):
    config = compose(["scale=smoke", "hardware=cpu", *paths])
    made = run(config)
    assert made and made["provenance"]["peak_memory_bytes"] > 50 * 2**20
    assert run(config) == made
    assert attempts.read(tmp_path / "results", made["address"]) == [attempts.RECORDED]
