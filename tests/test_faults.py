"""What goes wrong in a sweep is told, classed and survived; docs/faults.md lists it."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hypotheses import attempts, checkpoint, claims, failures, record, standing, sweep
from hypotheses.config import ROOT, compose
from hypotheses.errors import UserError
from hypotheses.run import run
from hypotheses.selection import Selection

ARMS = ["mambaout_atto", "mambaout_atto_identity"]
FAULTY = "mambaout_atto_identity"


@pytest.fixture
def small(hypothesis, paths, tmp_path, capsys, monkeypatch):
    """Sweep two arms and one seed at smoke scale, with a fault in one of them; (exit code, what was printed)."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'tests' / 'faults'}:{os.environ.get('PYTHONPATH', '')}")

    def run(fault: str | None = None, *more: str, seeds: int = 1, stale: str | None = None):
        if fault:
            monkeypatch.setenv("FAULT", f"{fault},2,{FAULTY},{tmp_path / 'flag'}")
        overrides = [*paths, "hardware=cpu", "hardware.checkpoint_seconds=0", *more]
        code = sweep.sweep(Selection(hypothesis, "smoke", seeds, ARMS, ["imagenet"], 2, stale, overrides))
        return code, capsys.readouterr().out

    return run


# what torchrun prints where one of its processes has ended, and it ends the others
TORCHRUN = """[1]:
  time      : 2026-11-25_15:40:34
  exitcode  : -15 (pid: 32302)
  traceback : Signal 15 (SIGTERM) received by PID 32302
-------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-25_15:40:34
  rank      : 0 (local_rank: 0)
  exitcode  : {code} (pid: 32301)
"""


def address(arm: str = FAULTY, seed: int = 0) -> str:
    return f"smoke/imagenet/{arm}/seed_{seed}"


def records(folder: Path) -> list[record.Record]:
    return [record.read(file) for file in sorted((folder / "results" / "records").rglob("*.json"))]


@pytest.mark.parametrize(
    ("fault", "kind", "how"),
    [
        ("SIGKILL", "killed", "killed by SIGKILL"),
        pytest.param("SIGTERM", "killed", "stopped: nothing was recorded", marks=pytest.mark.slow),
        pytest.param("SIGSEGV", "crash", "killed by SIGSEGV", marks=pytest.mark.slow),
        pytest.param("hang", "hang", "no heartbeat for 30 s", marks=pytest.mark.slow),
    ],
)
def test_what_may_have_been_chance_goes_on_from_its_checkpoint(fault, kind, how, small, tmp_path):
    code, shown = small(fault, *(["hardware.hang_seconds=30"] if fault == "hang" else []))
    assert code == 0, shown
    limit = failures.RETRIES[kind]
    assert f"{address()}: {kind.upper()}, {how}" in shown and f"goes on, try 1 of {limit}" in shown
    made = {r["config"]["backbone"]["name"]: r for r in records(tmp_path)}
    assert [a["step"] for a in made[FAULTY]["provenance"]["attempts"]] == [0, 1]
    ends = attempts.ends(tmp_path / "results", address())
    assert ends[-1] == (attempts.RECORDED, "") and len(ends) == 2
    assert how in ends[0][0] or fault == "SIGTERM"
    if fault == "hang":
        log = (tmp_path / "outputs" / address() / "log.txt").read_text()
        assert "most recent call first" in log and "sitecustomize.py" in log  # where it hung


@pytest.mark.parametrize(
    ("fault", "kind", "how"),
    [
        pytest.param("memory", "memory", "out of memory", marks=pytest.mark.slow),
        pytest.param("nan", "nan", "training diverged: the loss is nan", marks=pytest.mark.slow),
        pytest.param("code", "code", "ZeroDivisionError: a mistake", marks=pytest.mark.slow),
        pytest.param("full", "disk", "cannot write at /somewhere: No space left on device", marks=pytest.mark.slow),
    ],
)
def test_what_would_come_again_is_not_tried_again_and_stops_nothing_else(fault, kind, how, small, tmp_path):
    code, shown = small(fault)
    assert code == 1
    assert re.search(rf"{address()}: FAILED \({kind}\), .*{how}.*; its log: .*log\.txt", shown), shown
    assert [r["config"]["backbone"]["name"] for r in records(tmp_path)] == ["mambaout_atto"]
    ((said, known),) = attempts.ends(tmp_path / "results", address())
    assert known == kind and (how.split(":")[0] in said or fault in ("nan", "full", "memory"))
    found = standing.of(compose(["scale=smoke", f"backbone={FAULTY}", f"paths.results={tmp_path / 'results'}",
                                 f"paths.outputs={tmp_path / 'outputs'}"]))  # fmt: skip
    assert (found.state, found.failure) == ("failed", kind) and how in found.tail[-1]
    code, shown = small()  # the same command, the cause gone
    assert code == 0 and "2 runs, 1 recorded, 1 to run, 1 of them from a checkpoint" in shown


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_is_given_up(small, tmp_path, monkeypatch):
    monkeypatch.setenv("FAULT", f"SIGKILL,1,{FAULTY},-")  # every time
    code, shown = small()
    assert code == 1 and shown.count("KILLED, killed by SIGKILL; goes on, try") == failures.RETRIES["killed"]
    assert f"{address()}: FAILED (killed), killed by SIGKILL" in shown
    assert attempts.ends(tmp_path / "results", address()) == 3 * [("killed by SIGKILL", "killed")]


@pytest.mark.parametrize(
    ("code", "log", "ooms", "kind"),
    [
        (-9, "", 0, "killed"),
        (-9, "", 1, "memory"),
        (-11, "", 0, "crash"),
        (-7, "", 0, "crash"),
        (143, "stopped", 0, failures.STOPPED),
        (1, "Traceback\nKeyError: 'x'", 0, "code"),
        (1, "error: training diverged: the loss is inf", 0, "nan"),
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried", 0, "memory"),
        (1, "RuntimeError: DataLoader worker (pid 5) is killed by signal: Killed. ", 0, "memory"),
        (1, "RuntimeError: DataLoader worker (pid 5) is killed by signal: Bus error. ", 0, "crash"),
        (1, "RuntimeError: DataLoader worker (pid 5) is killed by signal: Terminated. ", 0, "killed"),
        (
            1,
            "error: /x: another process is at this run now (process 3 on a); wait\n" + TORCHRUN.format(code=75),
            0,
            failures.BUSY,
        ),
        (2, "error: cannot write at /x: Read-only file system. Make room", 0, "disk"),
        (2, "error: no disk space: 4 MB free", 0, "disk"),
        (2, "error: no images at /nowhere/train", 0, "input"),
        (75, "error: /x: another process is at this run now (process 3 on a); wait", 0, failures.BUSY),
        (1, "bar  1/9\rbar  2/9\rerror: out of memory (x): make", 0, "memory"),
        (1, TORCHRUN.format(code=-9), 0, "killed"),
        (1, TORCHRUN.format(code=-11), 0, "crash"),
        (1, TORCHRUN.format(code=143), 0, failures.STOPPED),
        (1, TORCHRUN.format(code=1), 0, "code"),
        (1, "error: training diverged: the loss is nan\nE1 [launcher] failed (exitcode: 1) local_rank: 0", 0, "nan"),
    ],
)
def test_classes_of_failures(code, log, ooms, kind):
    assert failures.classify(code, log, ooms) == kind


def test_every_class_says_what_it_is_and_how_often_it_is_tried():
    assert failures.MEANING.keys() == failures.RETRIES.keys()


# ---- two sweeps ------------------------------------------------------------------------------------------------------


def begin(paths: list[str], *more: str) -> subprocess.Popen[str]:
    code = (
        "from hypotheses import experiment, sweep; from hypotheses.selection import Selection; import sys;"
        f"sys.exit(sweep.sweep(Selection(experiment.load('1'), 'smoke', 3, {ARMS!r}, ['imagenet'], 1, None,"
        f" {[*paths, 'hardware=cpu', *more]!r})))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.slow
def test_two_sweeps_at_once_share_the_work(paths, tmp_path):
    both = [begin(paths), begin(paths)]
    said = [sweeping.communicate(timeout=300)[0] for sweeping in both]
    assert [sweeping.returncode for sweeping in both] == [0, 0], said
    assert len(records(tmp_path)) == 6
    for arm in ARMS:
        for seed in range(3):  # nothing was run twice
            assert attempts.read(tmp_path / "results", address(arm, seed)) == [attempts.RECORDED]
    trained = [len(re.findall(r"top1_percent [\d.]+, \d+ s", text)) for text in said]
    assert sum(trained) == 6 and min(trained) >= 1, said
    for text in said:
        assert (
            len(re.findall(r"smoke/imagenet/\S+: top1_percent", text))
            + int(
                re.search(r"(\d+) recorded", text)[1]  # type: ignore[index]
            )
            == 6
        ), text


@pytest.mark.slow
def test_what_a_killed_sweep_leaves_is_finished_by_another(paths, tmp_path):
    """Its child goes on alone, and the other sweep waits for it."""
    first = begin(paths)
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("claims/*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    second = begin(paths)
    said = second.communicate(timeout=300)[0]
    assert second.returncode == 0, said
    assert len(records(tmp_path)) == 6
    first.communicate()


def race(folder: Path, wins: "multiprocessing.queues.Queue[int]", ready: "multiprocessing.synchronize.Barrier") -> None:
    ready.wait()
    try:
        claims.claim(folder)
        wins.put(os.getpid())
        time.sleep(1.0)
    except UserError:
        wins.put(0)


def test_of_many_that_claim_at_once_one_wins(tmp_path):
    context = multiprocessing.get_context("fork")
    for number in range(5):
        wins, ready, folder = context.Queue(), context.Barrier(8), tmp_path / str(number)
        folder.mkdir()
        racers = [context.Process(target=race, args=(folder, wins, ready)) for _ in range(8)]
        for racer in racers:
            racer.start()
        won = [wins.get(timeout=30) for _ in racers]
        for racer in racers:
            racer.join()
        assert sum(pid > 0 for pid in won) == 1


def test_a_claim_says_who_holds_it_and_is_free_after(tmp_path):
    with claims.held(tmp_path) as mine:
        assert mine.holds()
        with pytest.raises(UserError, match=rf"another process is at this run now \(process {os.getpid()} on "):
            claims.claim(tmp_path)
    assert claims.holder(tmp_path) is None
    with claims.held(tmp_path) as again:
        assert again.number == mine.number + 1 and not mine.holds()
        with pytest.raises(claims.TakenOverError):
            mine.check()


def dead_claim(folder: Path, **said: object) -> Path:
    """A claim that somebody has left."""
    file = claims.claim_file(folder, 7)
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(claims.me() | said))
    return file


def test_the_claim_of_a_dead_process_is_free_at_once(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead_claim(tmp_path, pid=gone.pid, born="1")
    assert claims.holder(tmp_path) is None
    with claims.held(tmp_path) as mine:
        assert mine.number == 8


def test_a_process_number_that_was_given_to_another_process_is_no_holder(tmp_path):
    dead_claim(tmp_path, born="12345")
    assert claims.holder(tmp_path) is None


def test_a_process_of_another_machine_lives_as_long_as_it_touches_its_claim(tmp_path):
    file = dead_claim(tmp_path, place="elsewhere", host="elsewhere", pid=1)
    assert claims.holder(tmp_path)["host"] == "elsewhere"  # type: ignore[index]
    with pytest.raises(UserError, match="process 1 on elsewhere"):
        claims.claim(tmp_path)
    then = time.time() - claims.SILENT - 1
    os.utime(file, (then, then))
    assert claims.holder(tmp_path) is None


def test_a_clock_that_was_set_back_makes_no_dead_process_immortal(tmp_path, monkeypatch):
    """The claim's time lies in the future: then it is watched whether it is touched still."""
    monkeypatch.setattr(claims, "WATCHED", 2.0)
    file = dead_claim(tmp_path, place="elsewhere", host="elsewhere")
    then = time.time() + 86_400
    os.utime(file, (then, then))
    assert claims.holder(tmp_path) is None
    os.utime(file, (then, then))
    toucher = subprocess.Popen(
        [sys.executable, "-c", "import os, sys, time\nfor i in range(40): os.utime(sys.argv[1], (2e9 + i,) * 2); time.sleep(0.1)", file]
    )  # fmt: skip
    time.sleep(0.5)
    assert claims.holder(tmp_path) is not None
    toucher.wait()


def test_who_was_taken_for_dead_and_comes_back_ends(tmp_path):
    """It notices at its next beat that a higher claim is there, and writes nothing more."""
    code = (
        f"from pathlib import Path; from hypotheses import claims; import time; claims.BEAT = 0.2\n"
        f"claims.claim(Path({str(tmp_path)!r})); print('held', flush=True); time.sleep(60); print('came back')"
    )
    sleeper = subprocess.Popen([sys.executable, "-c", code], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert sleeper.stdout and sleeper.stdout.readline() == "held\n"
    claims.claim_file(tmp_path, 2).write_text(json.dumps(claims.me()))
    out, said = sleeper.communicate(timeout=30)
    assert sleeper.returncode == 75 and "another process has taken over" in said and "came back" not in out


@pytest.mark.parametrize("content", ["", "{", "[]", "5"])
def test_a_claim_that_its_maker_died_over_is_free(tmp_path, content):
    dead_claim(tmp_path).write_text(content)
    assert claims.holder(tmp_path) is None
    with claims.held(tmp_path):
        pass


# ---- what changes while a sweep runs ---------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path):
    """A copy of the project, since its files are what is changed."""
    copy = tmp_path / "copy"
    for folder in ("src", "conf", "experiments"):
        shutil.copytree(ROOT / folder, copy / folder)
    return copy


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        pytest.param(
            "conf/recipe/imagenet_paper.yaml",
            "weight_decay: 0.05",
            "weight_decay: 0.5",
            "conf/ or the data were changed",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "src/hypotheses/tasks/common.py",
            "return math.isfinite",
            "",
            "src/ was changed while the sweep ran",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_files_that_are_changed_meanwhile_are_noticed(file, old, new, said, project, paths, tmp_path):
    """No run is trained by something else than what the sweep has begun with."""
    target = project / file
    script = (
        "import sys; from pathlib import Path; from hypotheses import experiment, sweep\n"
        "from hypotheses.selection import Selection\n"
        "begin = sweep.start\n"
        "def start(*arguments):\n"
        f"    if arguments[0]['seed'] == 1: f = Path({str(target)!r}); f.write_text(f.read_text() + {new!r}.join(['', 'x = 1']) "
        f"if {file.endswith('.py')} else f.read_text().replace({old!r}, {new!r}))\n"
        "    return begin(*arguments)\n"
        "sweep.start = start\n"
        "sys.exit(sweep.sweep(Selection(experiment.load('1'), 'smoke', 3, ['mambaout_atto'], ['imagenet'], 1, None,"
        f" {[*paths, 'hardware=cpu']!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=300,
        env={**os.environ, "PYTHONPATH": str(project / "src")},
    )  # fmt: skip
    assert done.returncode == 1 and said in done.stdout, done.stdout + done.stderr
    assert len(records(tmp_path)) < 3
    assert {r["provenance"]["code"] for r in records(tmp_path)} == {record.code_fingerprint()}


def test_comments_make_no_run_stale(project):
    def fingerprint() -> str:
        code = "from hypotheses import record; print(record.code_fingerprint())"
        env = {**os.environ, "PYTHONPATH": str(project / "src")}
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True).stdout

    file = project / "src/hypotheses/tasks/recall.py"
    before, text = fingerprint(), file.read_text()
    file.write_text(text.replace('"""', '"""Another word. ', 1) + "\n\n# a comment\n")
    assert fingerprint() == before
    file.write_text(text + "\nx = 1\n")
    assert fingerprint() != before


# ---- records of other code -------------------------------------------------------------------------------------------


def test_runs_of_other_code_wait_for_the_user_s_word(small, tmp_path):
    assert small()[0] == 0
    file = tmp_path / "results" / "records" / f"{address()}.json"
    old = record.read(file)
    old["provenance"]["packages"]["torch"] = "1.0"
    assert re.fullmatch(r"torch 1\.0, now [\d.]+\S*", record.stale(old)[0])
    old["provenance"]["code"] = "other"
    record.write(file, old)
    with pytest.raises(
        UserError, match=rf"1 of 2 runs were recorded by other code .*{address()} .*STALE=reuse .*STALE=rerun"
    ):
        small()
    code, shown = small(stale="reuse")
    assert code == 0 and "0 to run" in shown and "1 recorded runs were made by other code" in shown
    code, shown = small(stale="rerun")
    assert code == 0 and "1 recorded, 1 to run" in shown
    assert record.read(file)["provenance"]["code"] == record.code_fingerprint()
    moved = tmp_path / "results" / "replaced" / f"{address()}_1"
    assert {f.name for f in moved.iterdir()} == {"seed_0.json", "seed_0.npz", "seed_0.jpg", "seed_0.jsonl"}
    assert record.read(moved / "seed_0.json") == old


@pytest.mark.slow
def test_signals_in_a_sweep_reach_the_runs_as_a_request_to_stop(paths, tmp_path):
    """Ctrl-C: the run in progress writes a checkpoint, and the same command goes on from it."""
    slow = begin(paths, "hardware.checkpoint_seconds=1000")
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("heartbeat.json")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    slow.send_signal(signal.SIGTERM)
    said = slow.communicate(timeout=60)[0]
    assert slow.returncode == 130 and "the same command goes on with the rest" in said, said
    again = begin(paths)
    said = again.communicate(timeout=300)[0]
    assert again.returncode == 0 and len(records(tmp_path)) == 6, said


def test_only_what_an_attempt_has_printed_itself_says_how_it_failed(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("error: no disk space: 4 MB free\n")
    since = log.stat().st_size
    with open(log, "a") as file:
        file.write("Traceback\nKeyError: 'x'\n")
    assert failures.classify(1, "\n".join(failures.tail(log, 60, since))) == "code"
    assert failures.tail(log, 3) == ["error: no disk space: 4 MB free", "Traceback", "KeyError: 'x'"]


@pytest.mark.slow
def test_runs_that_were_interrupted_under_other_code_wait_for_the_user_s_word(small, tmp_path, monkeypatch):
    monkeypatch.setattr(failures, "RETRIES", failures.RETRIES | {"killed": 0})
    assert small("SIGKILL")[0] == 1
    index = tmp_path / "outputs" / address() / "checkpoints" / "index.json"
    entries = json.loads(index.read_text())
    entries[0]["attempts"][-1]["code"] = "other"
    index.write_text(json.dumps(entries))
    with pytest.raises(
        UserError,
        match=rf"1 runs were interrupted under other code .*{address()}: its checkpoint of step 1 is of other code",
    ):
        small()
    code, shown = small(None, "resume=any")
    assert code == 0 and "1 to run, 1 of them from a checkpoint" in shown


@pytest.mark.slow
def test_what_another_sweep_has_recorded_with_other_code_is_not_taken(small, tmp_path, monkeypatch):
    """It appears while this one works."""
    assert small()[0] == 0
    kept = tmp_path / "kept"
    (tmp_path / "results" / "records" / f"{address()}.json").rename(kept)
    old = record.read(kept)
    old["provenance"]["code"] = "other"
    begin = sweep.Work.start_some

    def appear(self: sweep.Work) -> None:
        record.write(tmp_path / "results" / "records" / f"{address()}.json", old)
        begin(self)

    monkeypatch.setattr(sweep.Work, "start_some", appear)
    code, shown = small()
    assert code == 1 and f"{address()}: FAILED (input), recorded by another sweep with other code" in shown


# ---- the rest of docs/faults.md --------------------------------------------------------------------------------------


@pytest.fixture
def tmpfs(tmp_path):
    """Mount small file systems; they are gone after the test."""
    made = []

    def mount(name: str, options: str) -> Path:
        place = tmp_path / name
        place.mkdir(parents=True, exist_ok=True)
        if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place]).returncode:
            pytest.skip("mounting a file system needs root")
        made.append(place)
        return place

    yield mount
    for place in reversed(made):
        subprocess.run(["umount", "--lazy", place], check=True)


def test_a_disk_that_fills_up_in_a_sweep_fails_the_runs_that_it_meets_and_loses_none(
    small, tmpfs, tmp_path, monkeypatch
):
    """There was room when the sweep began, and there is none when its runs do."""
    disk = tmpfs("outputs", "size=260m")
    ballast = disk / "ballast"
    monkeypatch.setattr(sweep, "check_space", lambda config: ballast.write_bytes(bytes(259 * 2**20)))
    code, shown = small()
    assert code == 1 and re.search(r"FAILED \(disk\), .*(cannot write|no disk space)", shown), shown
    assert records(tmp_path) == []
    ballast.unlink()
    monkeypatch.setattr(sweep, "check_space", lambda config: None)
    code, shown = small()
    assert code == 0 and len(records(tmp_path)) == 2


def test_results_that_cannot_be_written_are_said_before_anything_is_trained(tmpfs, paths, one_line_error):
    place = tmpfs("results", "size=1m,ro")
    said = one_line_error("hypotheses.sweep", "1", *paths[:2], f"paths.results={place}")
    assert f"cannot write to {place} (Read-only file system): set paths.results=FOLDER" in said


@pytest.mark.slow
def test_results_that_become_read_only_on_the_way_lose_no_record(small, tmpfs, tmp_path):
    place = tmpfs("results", "size=300m")
    assert small()[0] == 0
    before = records(tmp_path)
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    with pytest.raises(UserError, match=r"cannot write to .* \(Read-only file system\)"):
        small(seeds=2)
    assert records(tmp_path) == before
    subprocess.run(["mount", "-o", "remount,rw", place], check=True)
    assert small(seeds=2)[0] == 0 and len(records(tmp_path)) == 4


@pytest.mark.slow
def test_a_record_that_is_cut_short_is_named_and_nothing_is_run(small, tmp_path):
    assert small()[0] == 0
    file = tmp_path / "results" / "records" / f"{address()}.json"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(
        UserError, match=rf"{file} is not a valid record .*: restore it, or delete it and make sweep runs it again"
    ):
        small(seeds=2)
    assert len(list((tmp_path / "results" / "records").rglob("*.json"))) == 2
    file.unlink()
    code, shown = small()
    assert code == 0 and "1 recorded, 1 to run" in shown


@pytest.mark.parametrize("task", ["imagenet", "coco", "ade20k"])
def test_an_image_that_cannot_be_read_in_the_middle_of_an_epoch(task, tmp_path, paths):
    """It ends the run with the file's name, and after it is mended the run goes on from its checkpoint."""
    if task == "imagenet":  # read from files, one by one, as a set that is too large for the memory is
        rng = np.random.default_rng(0)
        for split, count in (("train", 20), ("val", 5)):
            for name in range(10):
                folder = tmp_path / "images" / split / f"n{name}"
                folder.mkdir(parents=True)
                for i in range(count if split == "train" else 1):
                    Image.fromarray(rng.integers(0, 255, (40, 40, 3), "uint8")).save(folder / f"{i}.JPEG")
        more = [f"paths.imagenet={tmp_path / 'images'}", "recipe.data={source: imagenet, classes: null}", "recipe.in_memory=false",
                "scale=smoke", "recipe.batch_size=20"]  # fmt: skip
    else:
        more = [
            "scale=demo",
            "tag=short",
            "recipe.data.train_images=24",
            "recipe.data.val_images=4",
            "recipe.batch_size=4",
        ]
        more += ["recipe.schedule={warmup_steps: 2, milestones: []}", "recipe.epochs=1"] if task == "coco" else []
        more += (
            ["recipe.schedule={warmup_steps: 2}", "recipe.steps=6", "recipe.validate_every=6"]
            if task == "ade20k"
            else []
        )
    config = compose(
        [
            f"task={task}",
            *more,
            *paths,
            "hardware=cpu",
            "hardware.threads=1",
            "hardware.workers=0",
            "hardware.checkpoint_seconds=0",
        ]
    )
    broken: list[tuple[Path, bytes]] = []
    written = checkpoint.Checkpoints.keep

    def spoil(self, target, step):
        written(self, target, step)
        if step == 3 and not broken:
            for file in sorted((tmp_path / ("images" if task == "imagenet" else "data")).rglob("*")):
                if "train" in str(file) and file.suffix in (".JPEG", ".jpg", ".png") and "annotations" not in str(file):
                    broken.append((file, file.read_bytes()))
                    file.write_bytes(broken[-1][1][: len(broken[-1][1]) // 3])

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoint.Checkpoints, "keep", spoil)
        with pytest.raises(UserError, match="cannot be read") as error:
            run(config)
    assert any(str(file) in str(error.value) for file, _ in broken) and "mend or replace" in str(error.value)
    ((how, kind),) = attempts.ends(tmp_path / "results", record.address(config))
    assert kind == "input" and how.startswith("UserError: ")
    for file, content in broken:
        file.write_bytes(content)
    made = run(config)
    assert made and made["provenance"]["attempts"][1]["step"] >= 3


@pytest.mark.slow
def test_a_clock_that_is_set_back_changes_nothing(small, tmp_path, monkeypatch):
    """Each run sees the time of day jump back by a day at its second step; heartbeats, claims and minutes go by other clocks."""
    code, shown = small("clock")
    assert code == 0, shown
    made = records(tmp_path)
    assert len(made) == 2 and all(0 < r["seconds"] < 300 for r in made)
    assert attempts.read(tmp_path / "results", address()) == [attempts.RECORDED]


@pytest.mark.slow
def test_ctrl_c_twice_ends_everything_at_once(paths, tmp_path):
    """Though a run in progress hangs and would take the whole time of grace."""
    environment = {"PYTHONPATH": str(ROOT / "tests" / "faults"), "FAULT": f"hang,1,{ARMS[0]},{tmp_path / 'flag'}"}
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from hypotheses import experiment, sweep; from hypotheses.selection import Selection; import sys;"
        f"sys.exit(sweep.sweep(Selection(experiment.load('1'), 'smoke', 1, {ARMS[:1]!r}, ['imagenet'], 1, None,"
        f" {[*paths, 'hardware=cpu']!r})))"
    )
    sweeping = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "flag").exists():
        assert time.monotonic() < deadline and sweeping.poll() is None
        time.sleep(0.05)
    sweeping.send_signal(signal.SIGINT)
    time.sleep(1.0)
    begun = time.monotonic()
    sweeping.send_signal(signal.SIGINT)
    said = sweeping.communicate(timeout=60)[1]
    assert time.monotonic() - begun < 10 and sweeping.returncode == 130, said
    assert "Ctrl-C again to kill them" in said and "killing them: they go on from" in said
    assert "interrupted: 0 of 1 runs done" in said and "Traceback" not in said
    assert str(tmp_path) not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout


def test_the_table_of_faults_names_tests_and_classes_that_are_there():
    text = (ROOT / "docs" / "faults.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", text))
    defined = {
        name
        for file in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }
    assert named and named <= defined, named - defined
    times = {0: "never", 1: "once", 2: "twice"}
    for name, meaning in failures.MEANING.items():
        assert f"| {name} | {meaning} | {times[failures.RETRIES[name]]} |" in text
