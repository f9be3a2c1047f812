"""What W&B keeps here, in a terminal and without a network: `wandb leet` on results/wandb; and where the report's page is.

python -m hypotheses.dashboard [paths.results=FOLDER]
"""

import os
import sys
from collections.abc import Sequence

from hypotheses import report
from hypotheses.errors import Parser, UserError, command
from hypotheses.tracker import FOLDER


def main(arguments: Sequence[str] | None = None) -> int:
    about = "Open W&B's own view of the runs that are kept here, and say where the page of the report is."
    parser = Parser(prog="make dashboard", description=about, usage="make dashboard [ARGS='paths.results=FOLDER']")
    parser.add_argument("paths", nargs="*", help="paths.results=FOLDER")
    overrides = parser.parse_args(arguments).paths
    report.check_paths("dashboard", overrides)
    results = report.results_folder(overrides)
    page, folder = results / "report" / "index.html", results / "wandb"
    print(f"the report, for a browser: {page}{'' if page.exists() else ' (not written yet: make report)'}", flush=True)
    runs = [f for f in folder.glob("*run-*") if FOLDER.fullmatch(f.name)]
    if not runs:
        raise UserError(
            f"no W&B runs in {folder}: make sweep HYP=1 leaves them, and WANDB_MODE=offline make publish HYP=1 makes them of its records"
        )
    leet = [sys.executable, "-m", "wandb", "leet", str(folder)]
    if not sys.stdout.isatty():
        print(f"{len(runs)} W&B runs, shown where this is typed in a terminal: {' '.join(leet)}")
        return 0
    os.environ["WANDB_MODE"] = "offline"  # so that it reports to nobody
    os.execv(sys.executable, leet)


if __name__ == "__main__":
    command(main)
