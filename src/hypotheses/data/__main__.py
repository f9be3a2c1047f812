"""Check a data set, or list what of it cannot be used.

    python -m hypotheses.data check task=coco [paths.coco=FOLDER] [scale=paper ...]     # exit code 2 where there are errors
    python -m hypotheses.data quarantine task=coco [...]     # files that can be left out one by one: results/quarantine/coco.json

The options are those of a run, at paper scale unless another one is named.
"""

import sys

from hypotheses.config import compose
from hypotheses.data import preflight, quarantine
from hypotheses.data.preflight.findings import Finding, grouped
from hypotheses.errors import UserError, command, nearest
from hypotheses.run import check_space

VERBS = ("check", "quarantine")


def main(arguments: list[str] | None = None) -> int:
    verb, *overrides = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if verb in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0
    if verb not in VERBS:
        raise UserError(f"no command '{verb}'{nearest(verb, VERBS)}")
    if not any(word.startswith(("scale=", "mode=")) for word in overrides):
        overrides = [*overrides, "scale=paper"]
    config = compose(overrides)
    result = preflight.check(config, speed=verb == "check")
    findings = list(result.findings)
    if verb == "check":
        try:
            check_space(
                config, ("outputs", "results")
            )  # in paths.data only what was found is kept, which is said there
        except UserError as error:
            findings.append(Finding("space", config["paths"]["outputs"], str(error)))
    print(*grouped(findings), sep="\n", end="\n" if findings else "")
    print(result.summary)
    left = [finding for finding in findings if finding.error]
    if verb == "quarantine":
        if not preflight.published(config):
            raise UserError(
                f"the data of scale={config['scale']['name']} are drawn: delete {result.data.root}, and they are made again"
            )
        before = quarantine.read(config)
        files = preflight.to_quarantine(result, before)
        quarantine.write(config, files)
        for name in sorted(before.keys() - files):
            print(f"taken off the list: {name}")
        print(f"{preflight.amount(len(files), 'file')} in quarantine: {quarantine.path(config)}")
        left = [finding for finding in left if not finding.single]
    elif any(finding.single for finding in left):
        print(f"what can be left out one by one: {preflight.command(config, 'quarantine')}")
    return 2 if left else 0


if __name__ == "__main__":
    command(main, "interrupted: what was decoded is kept; the same command goes on")
