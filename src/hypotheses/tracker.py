"""The process that hands what tracking.py tells to wandb, which is imported here and in publish.py alone.

    python -m hypotheses.tracker                a run's own: messages come from standard input, a socket, a line of JSON each
    python -m hypotheses.tracker --listen FD    of a sweep: as many runs as connect, until standard input is closed

A run whose messages end without an `end` was killed. The answer to an `end` is "done", when everything is written or sent. Of a run that
wandb does not take the answer is why, and its channel is closed.
"""

import contextlib
import json
import os
import re
import selectors
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hypotheses.tracking import DONE, PROJECT, STEP, Message

STATS = 5.0  # seconds between two system metrics
KILLED = 255  # exit code of a run that could not say how it ended
# seconds after which a run is given up that cannot be opened or ended: a server that is not there could hold it up for days
LAST = 300.0
FOLDER = re.compile(r"(?:offline-)?run-\d{8}_\d{6}-(.+)")
WHOLE = "whole.json"  # in the folder of a run that is kept to its end: its summary
DROPPED: list[threading.Thread] = []
SAID = set[str]()  # the same of every run of a sweep is said once
ALIEN = ("RUN_ID", "RESUME", "SWEEP_ID", "NAME", "RUN_GROUP", "JOB_TYPE", "TAGS", "NOTES", "SERVICE", "DIR", "DISABLED")


class Writer:
    """Hands the messages about one run to wandb, which keeps them in results/wandb/. Each of them is there once: what an earlier
    attempt has left is moved to results/wandb/earlier/, since wandb cannot go on with a run that it keeps offline, and the rows of
    that attempt are told again by the one that goes on."""

    starting = threading.Lock()
    refused = ""  # why a run could not be opened, after which no other one is tried: each could take wandb's 90 seconds

    def __init__(self, mode: str, results: Path, pid: int | None, folder: Path | None = None):
        """`pid` of the process whose use of the machine is measured; None: of none. `folder` is where wandb/ is made, the results by
        default."""
        self.mode, self.results, self.pid, self.folder = mode, results, pid, folder or results
        self.run: Any = None
        self.summary: dict[str, Any] | None = None  # of a run of training

    def hear(self, message: Message) -> None:
        for kind, what in message.items():
            getattr(self, f"on_{kind}")(what)

    def on_open(self, about: dict[str, Any]) -> None:
        self.check()
        import wandb

        if self.folder == self.results:
            put_aside(self.results / "wandb", about["id"], about["job_type"] == "train")
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_save_requirements=False,
            x_disable_stats=self.pid is None,
            x_stats_pid=self.pid or os.getpid(),
            x_stats_track_process_tree=True,
            x_stats_sampling_interval=STATS,
        )
        with self.starting:
            self.check()
            try:
                self.run = wandb.init(
                    project=os.environ.get("WANDB_PROJECT") or PROJECT,
                    entity=os.environ.get("WANDB_ENTITY") or None,
                    dir=str(self.folder),
                    mode=self.mode,  # type: ignore[arg-type]
                    reinit="create_new",
                    resume=None,  # what a server has of this id is written over, whole
                    settings=settings,
                    **about,
                )
            except Exception as error:
                if not deleted(error):
                    Writer.refused = text(error)
                raise
        if about["job_type"] == "train":
            self.run.define_metric("*", step_metric=STEP)
            self.summary = {}

    def check(self) -> None:
        if self.refused:
            raise RuntimeError(f"no run is opened any more, since an earlier one could not be: {self.refused}")

    def on_row(self, values: dict[str, float]) -> None:
        self.run.log(values)

    def on_content(self, found: dict[str, Any]) -> None:
        import wandb

        if pictures := found.get("pictures"):
            step = {STEP: found["step"]} if found["step"] is not None else {}
            self.run.log(step | {"val/pictures": wandb.Image(pictures)})
        for name, table in found.get("tables", {}).items():
            # not a row of the history, where numbers of rows and columns would be drawn as curves
            self.run.summary[f"tables/{name}"] = wandb.Table(columns=table["columns"], data=table["rows"])
        if found.get("page"):
            self.run.log({"report": wandb.Html(Path(found["page"]).read_text(), inject=False)})
        self.run.summary.update(found["summary"])
        if self.summary is not None:
            self.summary = found["summary"]

    def on_end(self, code: int) -> None:
        if self.run:
            folder = Path(self.run.settings.sync_dir)
            self.run.finish(exit_code=code)
            if code == 0 and self.summary and self.folder == self.results:
                (folder / WHOLE).write_text(json.dumps(self.summary))
        self.run = None


def deleted(error: BaseException) -> bool:
    """Whether a server refuses a run alone, since somebody has deleted it there: an id is never free again."""
    return "created and deleted" in str(error)


def text(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def of_run(folder: Path, run: str) -> list[Path]:
    return [f for f in folder.glob("*run-*") if (name := FOLDER.fullmatch(f.name)) and name[1] == run]


def is_whole(folder: Path, run: str, summary: dict[str, Any]) -> bool:
    """Whether a run is kept, to its end and with this summary."""
    for found in of_run(folder, run):
        with contextlib.suppress(OSError, ValueError):
            if json.loads((found / WHOLE).read_text()) == summary:
                return True
    return False


def put_aside(folder: Path, run: str, keep: bool) -> None:
    """Make room for a run: what there is of its id is kept in earlier/, for its system metrics, or removed. What cannot be moved stays."""
    for old in of_run(folder, run):
        if not keep:
            shutil.rmtree(old, ignore_errors=True)
            continue
        with contextlib.suppress(OSError):
            (folder / "earlier").mkdir(exist_ok=True)
            os.replace(old, folder / "earlier" / old.name)


def prepare(results: Path) -> None:
    """What wandb keeps besides runs lies in results/wandb/ too, and what this process was given about a run of its own is not for these."""
    for name in ("CACHE", "DATA", "ARTIFACT"):
        os.environ.setdefault(f"WANDB_{name}_DIR", str(results / "wandb" / name.lower()))
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    for name in ALIEN:
        os.environ.pop(f"WANDB_{name}", None)
    os.environ.pop("WANDB_MODE", None)  # it is said with each run


def listen(channel: socket.socket) -> None:
    """Hear one run to its end."""
    with channel:
        try:
            hear(channel)
        except Exception as error:  # whatever wandb raises
            said = f"note: W&B failed ({text(error)}); no run is changed by it"
            if said not in SAID:
                print(said, file=sys.stderr, flush=True)
            SAID.add(said)
            with contextlib.suppress(OSError):
                channel.sendall(text(error).encode() + b"\n")


def hear(channel: socket.socket) -> None:
    writer = None
    with channel.makefile("rb") as lines:
        for message in parsed(lines):
            if hello := message.pop("hello", None):
                prepare(Path(hello["results"]))
                writer = Writer(hello["mode"], Path(hello["results"]), hello["pid"])
            elif writer and "open" in message:
                limited(writer, message)
            elif writer and "end" in message:
                limited(writer, message)
                with contextlib.suppress(OSError):  # a run of a sweep does not wait for long
                    channel.sendall(DONE)
                return
            elif writer:
                writer.hear(message)
    if writer:
        limited(writer, {"end": KILLED})


def limited(writer: Writer, message: Message) -> None:
    """Hand on a message that may take too long, and then drop this one run: the others of a sweep go on. Raises what wandb raises, and
    TimeoutError."""
    raised: list[Exception] = []

    def hand_on() -> None:
        try:
            writer.hear(message)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=hand_on, daemon=True)
    thread.start()
    thread.join(LAST)
    if thread.is_alive():
        DROPPED.append(thread)
        why = f"W&B takes longer than {LAST:g} s to {'open' if 'open' in message else 'end'} a run"
        if "open" in message:
            Writer.refused = Writer.refused or why
        raise TimeoutError(why)
    if raised:
        raise raised[0]


def parsed(lines: Iterable[bytes]) -> Iterable[Message]:
    """Whole messages; what a run that was killed has left of one is none."""
    for line in lines:
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def serve(listener: socket.socket) -> list[threading.Thread]:
    """Hear every run that connects, until standard input is closed."""
    threads = []
    with listener, selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if listener in ready:
                channel, _ = listener.accept()
                threads.append(threading.Thread(target=listen, args=(channel,), daemon=True))
                threads[-1].start()
            elif 0 in ready and not os.read(0, 1):
                return threads


def main(arguments: list[str]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):  # a cluster signals every process
        signal.signal(number, signal.SIG_IGN)
    if arguments:
        for thread in serve(socket.socket(fileno=int(arguments[1]))):
            thread.join()
    else:
        listen(socket.socket(fileno=0))
    if DROPPED or SAID:  # wandb's own exit would wait for the dropped, and tell at length what was said in a line
        os._exit(1 if DROPPED else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
