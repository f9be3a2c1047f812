"""What W&B is told of a run. The records are the truth, and W&B shows them: what is told is a list of messages, and the same ones are
told while a run trains and again by `make publish`, from its record.

open     id, name, group, job type, tags and configuration
row      a validation: trainer/global_step, train/loss, lr, time/seconds, val/<metric>
content  of a whole run or of a verdict: summary, pictures, tables, page
end      exit code

A process of its own (tracker.py) hands them to wandb, so that nothing of it can change, stop or hold up a run: neither generators nor
signals, output, memory or time. Where it fails the run says so once and goes on.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hypotheses import experiment, stopping
from hypotheses.config import Config
from hypotheses.record import Record

STEP = "trainer/global_step"  # the axis of everything
NAMES = {"step": STEP, "train_loss": "train/loss", "val_loss": "val/loss", "lr": "lr", "seconds": "time/seconds"}
PROJECT = "ssm-for-vision"  # unless WANDB_PROJECT names another one
SHARED = "HYPOTHESES_TRACKER"  # variable with the socket of a sweep's tracker, which its runs share
PATIENCE = {"offline": 30.0, "online": 60.0}  # seconds that the end of a run waits for W&B, at most
LEAVE = 5.0  # seconds that a run which has failed, or was stopped, waits
SEND = 2.0  # seconds that a message may take before W&B is given up

DONE = b"done\n"  # what a tracker answers to an end that is written or sent; else why it has given up
ENDED = "its process has ended"

Message = dict[str, Any]


# ---- what is told ----------------------------------------------------------------------------------------------------


def run_id(address: str, identity: str) -> str:
    """Of a run: a function of what it is and never of the clock, as W&B takes it (64 characters at most)."""
    digest = hashlib.sha256(f"{address} {identity}".encode()).hexdigest()[:12]
    return f"{re.sub(r'[^A-Za-z0-9_]+', '-', address)[:51]}-{digest}"


def opening(run: Mapping[str, Any]) -> Message:
    """Of a record, or of what of it is known when its run begins."""
    scale, task, name, seed = run["address"].split("/")
    made = run["provenance"]
    serves = hypotheses(scale, task, name, int(seed.removeprefix("seed_")))
    group = f"hypothesis_{serves[0]}_{scale}" if serves else f"{scale}_others"
    tags = [*(f"H{number}" for number in serves), task, name, scale, made["device"]]
    keys = ("commit", "dirty", "code", "python", "packages", "platform", "device", "hardware", "kernels", "threads")
    return {
        "open": {
            "id": run_id(run["address"], run["identity"]),
            "name": run["address"],
            "group": group,
            "job_type": "train",
            "tags": [tag[:64] for tag in tags],
            "config": run["config"]
            | {"arm": name}
            | {key: run[key] for key in ("identity", "data_fingerprint", "cost")}
            | {"provenance": {key: made.get(key) for key in keys}},
        }
    }


def hypotheses(scale: str, task: str, backbone: str, seed: int) -> list[str]:
    """The numbers of the hypotheses whose sweeps have such a run."""
    found = []
    for number in experiment.numbers():
        asked = experiment.load(number)
        arms = asked.scales[scale].all() if scale in asked.scales and task in asked.tasks else []
        of_control = asked.positive_control and task == asked.positive_control.task
        memory = asked.memory_runs(scale) if of_control and scale in asked.scales else []
        if (backbone in arms and seed < asked.looks[-1]) or (backbone, seed) in memory:
            found.append(number)
    return found


def row(values: Mapping[str, float]) -> Message:
    """Of a row of metrics.jsonl. Epochs, which not every runner counts, are left out."""
    return {"row": {NAMES.get(key, f"val/{key}"): value for key, value in values.items() if key != "epoch"}}


def content(found: Record, file: Path) -> Message:
    """Of a record that lies in `file`."""
    steps = [values["step"] for values in rows(found, file) if "step" in values]
    pictures = file.with_suffix(".jpg")
    made = found["provenance"]
    return {
        "summary": {f"final/{name}": value for name, value in found["metrics"].items()}
        | {f"cost/{name}": value for name, value in found["cost"].items()}
        | {"time/total_seconds": found["seconds"], "memory/peak_bytes": made.get("peak_memory_bytes")},
        "step": steps[-1] if steps else None,
        "pictures": str(pictures) if pictures.exists() else None,
    }


def rows(found: Record, file: Path) -> list[dict[str, float]]:
    """The rows of a run as it kept them beside its record; of an older record without them, its curve, which has neither rate nor
    time, and in classification no steps."""
    kept = file.with_suffix(".jsonl")
    if not kept.exists():
        return found["curve"]
    return [json.loads(line) for line in kept.read_text().splitlines()]


def story(found: Record, file: Path) -> list[Message]:
    """All that is told of a finished run."""
    told = [row(values) for values in rows(found, file) if "step" in values]
    return [opening(found), *told, {"content": content(found, file)}, {"end": 0}]


# ---- to whom ---------------------------------------------------------------------------------------------------------


class Live:
    """The way to a tracker: that of a sweep, or one of this run's own. Without one (mode "off", or it has failed) it does nothing."""

    def __init__(self, mode: str, results: Path):
        self.mode, self.results = mode, results
        self.channel: socket.socket | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.ended = False
        if mode == "off":
            return
        try:
            self.channel = of_sweep() or self.start()
            self.channel.settimeout(SEND)
            self.send(hello={"mode": mode, "results": str(results), "pid": os.getpid()})
        except OSError as error:
            self.give_up(f"{type(error).__name__}: {error}")

    def start(self) -> socket.socket:
        """A tracker of this run's own."""
        mine, its = socket.socketpair()
        with its:
            self.process = spawn(stdin=its.fileno())
        return mine

    def send(self, **message: Any) -> None:
        if not self.channel or self.ended:
            return
        try:
            self.channel.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            self.give_up(self.last_words() or f"{type(error).__name__}: {error}")
        self.ended = "end" in message

    def tell(self, make: Callable[[], Sequence[Message]]) -> None:
        """Send what `make` returns. Where it cannot be made, that is no reason to stop the run either."""
        if self.channel:
            try:
                messages = make()
            except Exception as error:
                self.give_up(f"{type(error).__name__}: {error}")
                return
            for message in messages:
                self.send(**message)

    def row(self, values: Mapping[str, float]) -> None:
        self.send(**row(values))

    def recorded(self, found: Record, file: Path) -> None:
        """The run is whole. Being asked to stop is then no reason to fail: W&B is given up, and the run is done."""
        try:
            self.tell(lambda: [{"content": content(found, file)}, {"end": 0}])
            self.close()
        except (KeyboardInterrupt, stopping.Stopped):
            self.give_up("stopped, after it was recorded")
            if self.process:
                self.process.kill()
            self.close()

    def last_words(self) -> str:
        """Why the tracker has closed the channel, where it could still say so."""
        with contextlib.suppress(OSError):
            if self.channel:
                self.channel.settimeout(0.1)
                return reason(self.channel.recv(1024))
        return ""

    def give_up(self, why: str) -> None:
        print(f"note: W&B is told no more of this run ({why}); make publish tells it all", file=sys.stderr)
        if self.channel:
            self.channel.close()
        self.channel = None

    def close(self) -> None:
        """Wait for what was told to be written or sent, with a limit: a short one where the tracker is a sweep's and goes on. A run that
        was not recorded has failed. Closed again, it does nothing."""
        patience = PATIENCE.get(self.mode, 0.0) if self.ended else LEAVE
        patience = patience if self.process else min(patience, LEAVE)
        self.send(end=1)
        try:
            if self.channel:
                self.channel.settimeout(patience)
                if (said := self.channel.recv(1024)) != DONE:
                    self.give_up(reason(said) or ENDED)
        except TimeoutError:
            if self.process:
                self.give_up(f"it takes longer than {patience:g} s")
        except OSError:  # reset, with messages that it has not heard
            self.give_up(ENDED)
        finally:
            if self.channel:
                self.channel.close()
            if self.process:
                end(self.process, 2.0)
            self.channel = self.process = None


@contextlib.contextmanager
def live(config: Config, begun: Mapping[str, Any]) -> Iterator[Live]:
    """Tell of a run while it trains; `begun` is what of its record is known."""
    told = Live(config["wandb"], Path(config["paths"]["results"]))
    try:
        told.tell(lambda: [opening(begun)])
        yield told
    finally:
        told.close()


def tell(make: Callable[[], Sequence[Message]], mode: str, results: Path) -> None:
    """Tell at once all that `make` returns."""
    told = Live(mode, results)
    try:
        told.tell(make)
    finally:
        told.close()


def reason(said: bytes) -> str:
    return "" if said == DONE else " ".join(said.decode(errors="replace").split())


def of_sweep() -> socket.socket | None:
    """A connection to the tracker that the sweep of this run has started; None where there is none."""
    if not (place := os.environ.get(SHARED)):
        return None
    channel = socket.socket(socket.AF_UNIX)
    try:
        channel.connect(place)
    except OSError:  # it has ended, or is one of another machine
        channel.close()
        return None
    return channel


@contextlib.contextmanager
def shared(mode: str) -> Iterator[None]:
    """One tracker for all runs that are started inside: so the second or two of processor time that wandb takes to start are spent once.
    Where it cannot be, each run starts its own."""
    if mode == "off":
        yield
        return
    with contextlib.ExitStack() as stack:
        process = None
        with contextlib.suppress(OSError):  # such as a path that is too long for a socket
            folder = tempfile.mkdtemp(prefix="hypotheses_")  # of this user alone
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            place = os.path.join(folder, "tracker")
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(place)
            listener.listen(64)
            process = spawn("--listen", str(listener.fileno()), stdin=subprocess.PIPE, pass_fds=[listener.fileno()])
            listener.close()
            os.environ[SHARED] = place
        try:
            yield
        finally:
            os.environ.pop(SHARED, None)
            if process:
                assert process.stdin
                process.stdin.close()  # which it takes for the end
                try:
                    whole = end(process, PATIENCE[mode])
                except KeyboardInterrupt:  # the runs have ended before
                    process.kill()
                    process.wait()
                    whole = False
                if not whole:
                    print("note: W&B took too long to end, and was left; make publish tells it all", file=sys.stderr)


def spawn(*arguments: str, stdin: int, pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """A tracker. Ctrl-C does not reach it: it ends with those that it listens to."""
    command = [sys.executable, "-m", "hypotheses.tracker", *arguments]
    return subprocess.Popen(command, stdin=stdin, stdout=subprocess.DEVNULL, pass_fds=pass_fds, start_new_session=True)


def end(process: subprocess.Popen[bytes], patience: float) -> bool:
    """Wait for a tracker that has nothing more to hear; whether it has ended by itself, else it is killed."""
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True
