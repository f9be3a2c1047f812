"""Tell W&B of a finished sweep, from its records: every run whole, under the id that it has always had, the verdict, and a workspace
that shows them. What was sent before, whole or in part, is written over, so that it can be typed as often as one likes.

    python -m hypotheses.publish 1 [--scale demo] [--project P] [--entity E] [paths.results=FOLDER]
    WANDB_MODE=offline python -m hypotheses.publish 1    # to results/wandb/, for results without one or of another machine

Nothing of this has ever met W&B's own server: docs/tracking.md says what was tested instead.
"""

import argparse
import contextlib
import csv
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypotheses import record, report, tracking
from hypotheses.errors import Parser, UserError, command
from hypotheses.metrics import METRICS
from hypotheses.report import Section, wording
from hypotheses.tracker import Writer, deleted, is_whole, prepare
from hypotheses.tracking import PROJECT, STEP, Message

# ---- the verdict -----------------------------------------------------------------------------------------------------


def verdict_story(s: Section, results: Path) -> list[Message]:
    """All that is told of a hypothesis at a scale: what was decided, the numbers of each contrast, the gates, the tables of the report
    and its page, as they lie in results/report/."""
    summary: dict[str, Any] = {"verdict": s.verdict.outcome, "headline": wording.headline(s)}
    gates = []
    for bed in s.verdict.beds:
        for c in bed.contrasts:
            numbers = {"mean": c.mean, "low": c.low, "high": c.high, "seeds": c.n}
            summary |= {f"{bed.task}/{c.treatment}_over_{c.control}/{name}": value for name, value in numbers.items()}
        gates += [[bed.task, g.name, "passed" if g.passed else "failed", g.detail] for g in bed.gates]
    tables = {"gates": {"columns": ["task", "gate", "outcome", "detail"], "rows": gates}}
    for file in sorted((results / "report" / "tables").glob(f"{s.name}_*.csv")):
        with open(file, newline="", encoding="utf-8") as content:
            columns, *rows = csv.reader(content)
        tables[file.stem.removeprefix(f"{s.name}_")] = {"columns": columns, "rows": rows}
    page = results / "report" / "index.html"
    about = {
        "id": f"verdict-{s.name}",
        "name": f"verdict: hypothesis {s.hypothesis.hypothesis}, {s.scale}",
        "group": s.name,
        "job_type": "report",
        "tags": [f"H{s.hypothesis.hypothesis}", s.scale, *s.hypothesis.tasks],
        "config": {"claim": s.hypothesis.claim, "rule_sha256": s.hypothesis.sha256, "scale": {"name": s.scale}},
    }
    content = {"summary": summary, "tables": tables, "page": str(page) if page.exists() else None}
    return [{"open": about}, {"content": content}, {"end": 0}]


# ---- the workspace ---------------------------------------------------------------------------------------------------


def workspace(s: Section, entity: str, project: str) -> Any:
    """What shows the runs of a hypothesis at a scale, as an object of wandb-workspaces; made without a network, and not yet saved."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    key = "arm" if s.arms.doses else "backbone.name"  # of which an arm has one for all its doses
    arm = wr.Config(key)
    sections = []
    for task, metric in s.hypothesis.metrics().items():
        title = METRICS[task][metric].title
        sections.append(
            ws.Section(
                name=f"{task}: {title}",
                is_open=True,
                panels=[
                    wr.LinePlot(
                        title=f"{title} in training, percent",
                        x=STEP,
                        y=[f"val/{metric}"],
                        groupby=arm,
                        groupby_rangefunc="minmax",
                    ),
                    wr.BarPlot(
                        title=f"{title} at the end, percent: mean and range over seeds",
                        metrics=[f"final/{metric}"],
                        groupby=arm,
                        groupby_rangefunc="minmax",
                    ),
                    wr.ScatterPlot(
                        title=f"{title} and cost",
                        x=wr.SummaryMetric("cost/macs"),
                        y=wr.SummaryMetric(f"final/{metric}"),
                        log_x=True,
                    ),
                ],
            )
        )
    plots = {"train/loss": "training loss", "lr": "learning rate", "time/seconds": "seconds since the start"}
    sections += [
        ws.Section(
            name="training",
            is_open=True,
            panels=[wr.LinePlot(title=title, x=STEP, y=[key], groupby=arm) for key, title in plots.items()],
        ),
        ws.Section(
            name="the same validation images of each arm",
            is_open=True,
            panels=[wr.MediaBrowser(title="annotated and predicted", num_columns=3, media_keys=["val/pictures"])],
        ),
        ws.Section(
            name="verdict",
            is_open=True,
            panels=[
                *(wr.WeavePanelSummaryTable(table_name=f"tables/{name}") for name in ["gates", *shown_tables(s)]),
                wr.MediaBrowser(title="report", media_keys=["report"]),
            ],
        ),
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"Hypothesis {s.hypothesis.hypothesis}, {s.scale} scale",
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=max(100, len(s.records))),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(
                expr.Tags().isin([f"H{s.hypothesis.hypothesis}"]),
                expr.Config("scale.name") == s.scale,
            ),
            groupby=[expr.Config("task.name"), expr.Config(key)],
            pinned_columns=[f"summary:final/{metric}" for metric in dict.fromkeys(s.hypothesis.metrics().values())],
        ),
    )


def shown_tables(s: Section) -> list[str]:
    kinds = ["slopes", "arms"] if s.arms.doses else ["arms"]
    return [f"{task}_{kind}" for task in s.hypothesis.metrics() for kind in kinds]


def save(made: Any, results: Path) -> str:
    """Save a workspace, over what was saved of it before from these results; its address."""
    file = results / "wandb" / "workspaces.json"
    known: dict[str, list[str]] = json.loads(file.read_text()) if file.exists() else {}
    key = f"{made.entity}/{made.project}/{made.name}"
    if key in known:
        made._internal_name, made._internal_id = known[key]
    made.save()
    known[key] = [made._internal_name, made._internal_id]
    record.write_aside(file, json.dumps(known, indent=1) + "\n")
    return made.url


# ---- to send ---------------------------------------------------------------------------------------------------------


def place(results: Path, one: record.Record) -> Path:
    return results / "records" / f"{one['address']}.json"


def stories(s: Section, results: Path) -> list[tuple[str, list[Message]]]:
    """By name, all that is told of a sweep."""
    found = [(one["address"], tracking.story(one, place(results, one))) for one in s.records]
    return [*found, (f"verdict of {s.name}", verdict_story(s, results))]


def publish(s: Section, results: Path, mode: str, entity: str) -> list[str]:
    """Tell W&B of a sweep; the names of what it does not take, since somebody has deleted it there. Raises UserError where it does not take
    a run for another reason, or the workspace."""
    import wandb

    (results / "wandb").mkdir(parents=True, exist_ok=True)
    told = stories(s, results)
    refused: list[str] = []
    with tempfile.TemporaryDirectory(dir=results / "wandb", prefix=".sending_") as folder:
        for number, (name, messages) in enumerate(told, 1):
            if mode == "offline" and there_already(messages, results):
                print(f"  {number} of {len(told)}: {name} is there already", flush=True)
                continue
            writer = Writer(mode, results, None, results if mode == "offline" else Path(folder))
            try:
                for message in messages:
                    writer.hear(message)
            except Exception as error:
                if deleted(error):
                    refused.append(name)
                    print(f"  {number} of {len(told)}: {name} was deleted in W&B, which refuses it", flush=True)
                    continue
                with contextlib.suppress(Exception):  # else what is left of it is told by a traceback at the end
                    wandb.teardown(exit_code=1)
                raise UserError(
                    f"W&B did not take {name} ({type(error).__name__}: {' '.join(str(error).split())}); {number - 1} of {len(told)} are "
                    "told: type the same command again to tell them all"
                ) from error
            print(f"  {number} of {len(told)}: {name}", flush=True)
    if mode == "offline":
        print(f"{len(told)} runs in {results / 'wandb'}: make dashboard shows them")
        return []
    project = os.environ["WANDB_PROJECT"]
    try:
        address = save(workspace(s, entity, project), results)
    except Exception as error:
        raise UserError(
            f"{len(told) - len(refused)} runs are sent, but not the workspace ({type(error).__name__}: {' '.join(str(error).split())}): type the same "
            "command again"
        ) from error
    print(f"{len(told) - len(refused)} runs in {entity}/{project}; {address}")
    return refused


def there_already(messages: list[Message], results: Path) -> bool:
    """Whether W&B keeps a finished run here as it was told while it trained: with its system metrics, which a record has not."""
    summary = next((m["content"]["summary"] for m in messages if "content" in m), {})
    return is_whole(results / "wandb", messages[0]["open"]["id"], summary)


def account() -> str:
    """The entity that is written to. Raises UserError where nobody is logged in, or the server does not know them."""
    import wandb

    how = "log in with .venv/bin/wandb login, or set WANDB_API_KEY; WANDB_BASE_URL names a server of your own"
    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        known = wandb.login(prompt=False, verify=True)
        entity = (os.environ.get("WANDB_ENTITY") or wandb.Api().default_entity) if known else None
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"no W&B at {server} for this account ({why}): check the network, or {how}. {KEPT}") from error
    if not known:
        raise UserError(f"no account for W&B at {server}: {how}. {KEPT}")
    if not entity:
        raise UserError(f"W&B at {server} names no entity for this account: add ARGS='--entity NAME'. {KEPT}")
    return entity


KEPT = "All runs stay in results/, and the same command sends them later; WANDB_MODE=offline writes them to results/wandb/ instead"


def main(arguments: Sequence[str] | None = None) -> int:
    options = Parser(add_help=False)
    options.add_argument(
        "--project",
        metavar="P",
        default=os.environ.get("WANDB_PROJECT") or PROJECT,
        help=f"default: WANDB_PROJECT, else {PROJECT}",
    )
    options.add_argument("--entity", metavar="E", help="a user or team; default: WANDB_ENTITY, else the account's own")
    given = argparse.Namespace()
    about = "Tell W&B of a finished sweep: every run whole, the verdict and a workspace."
    hypothesis, results, scale = report.read_arguments("publish", about, arguments, options, given)
    if hypothesis is None:
        raise UserError("say which hypothesis: make publish HYP=1")
    mode = os.environ.get("WANDB_MODE") or "online"
    if mode not in ("online", "offline"):
        raise UserError(f"WANDB_MODE={mode}: unset it to publish, or say offline for results/wandb/ alone")
    os.environ["WANDB_PROJECT"] = given.project
    if given.entity:
        os.environ["WANDB_ENTITY"] = given.entity
    found = report.section(hypothesis, results, scale or next(iter(hypothesis.scales)))
    if not found.records:
        raise UserError(f"no records of {found.name} in {results}: make sweep HYP={hypothesis.hypothesis} first")
    prepare(results)
    entity = account() if mode == "online" else ""
    page = results / "report" / "index.html"
    written = page.stat().st_mtime if page.exists() else 0.0
    if any(place(results, one).stat().st_mtime >= written for one in found.records):
        print(report.write(hypothesis, results, found.scale).splitlines()[-1])
    if refused := publish(found, results, mode, entity):
        print(
            f"error: W&B does not take {', '.join(refused)}: deleted there, and it never takes a deleted id again. Undelete it on the project's "
            "page and type the same command again, or send all to another one: ARGS='--project NAME'",
            file=sys.stderr,
        )
    return 1 if refused else 0


if __name__ == "__main__":
    command(main, "interrupted: the same command sends all of them again")
