"""The runner: one config in, one record out. Skip if recorded, else build, train, evaluate, write.

    python -m hypotheses.run task=imagenet backbone=mambaout_atto_ssm seed=1
    python -m hypotheses.run task=imagenet backbone=mambaout_tiny mode=eval weights=timm/mambaout_tiny.in1k

It knows no library, and of the hypotheses only what was registered when a run began. Nothing heavy is imported before it is needed.
"""

import contextlib
import faulthandler
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import hydra

from hypotheses import (
    allocator,
    attempts,
    bootstrap,
    claims,
    data,
    experiment,
    pretrained,
    provenance,
    record,
    stopping,
    tracking,
)
from hypotheses.checkpoint import Checkpoints
from hypotheses.config import CONF, Config, explain, of_grid, resolve
from hypotheses.data import preflight
from hypotheses.errors import UserError, one_line
from hypotheses.metrics import METRICS

# a sweep says by these variables which run it asked for, and by which code
EXPECTED, EXPECTED_CODE = "HYPOTHESES_IDENTITY", "HYPOTHESES_CODE"
NEEDED_BYTES = 200 * 2**20  # free space below which no run is started


def run(config: Config) -> record.Record | None:
    """Make sure that the record of a run exists, and return it; None on the processes of a run that do not write it."""
    main_process = os.environ.get("RANK", "0") == "0"
    allocator.keep_memory()
    check_space(config)
    images, start = data.prepare(config), pretrained.find(config)
    if start:
        check_origin(config, start.file, "pretrained")
    digest = start.sha256 if start else None
    address = record.address(config)
    if done := record.find(config, images.fingerprint, digest):
        if main_process:
            print(f"{address}: {already(os.getpid())} {record.path(config)}")
        return done
    check_devices(config)
    if main_process:
        preflight.require(config)

    import torch

    from hypotheses import cost, tasks
    from hypotheses.tasks import common

    network = cost.of_run(config)  # a network that cannot be built is known before processes are started for it
    results = Path(config["paths"]["results"])
    registered, kept = (experiment.register(results), provenance.keep(results)) if main_process else ({}, {})
    if launches_others(config):
        launch(config)
        return record.find(config, images.fingerprint, digest)

    if threads := config["hardware"]["threads"]:
        torch.set_num_threads(threads)
    share = common.divide(config["recipe"]["batch_size"], world_size(), config["hardware"]["max_batch_per_device"])
    folder = Path(config["paths"]["outputs"], address)
    identity, device = record.identity(config, images.fingerprint, digest), device_name(config)
    made = record.provenance(config, device)  # now, since the files may change while it trains
    made_by = {key: made[key] for key in ("code", "packages", "kernels", "threads", "device", "commit")} | {
        "processes": world_size(),
        "images": share.images,
    }
    if os.environ.get(EXPECTED, identity) != identity:
        raise UserError(
            f"conf/ or the data were changed while the sweep ran: type the sweep's command again ({address})"
        )
    if os.environ.get(EXPECTED_CODE, made["code"]) != made["code"]:
        raise UserError(f"src/ was changed while the sweep ran: type the sweep's command again ({address})")
    with stopping.handled(), contextlib.ExitStack() as held, contextlib.ExitStack() as attempt:
        claim = held.enter_context(claims.held(folder)) if main_process else None
        if world_size() == 1 and (done := record.find(config, images.fingerprint, digest)):
            print(f"{address}: {already(os.getpid())} {record.path(config)}")  # by whoever held it until now
            return done
        guard = claim.check if claim else lambda: None
        every = config["hardware"]["checkpoint_seconds"]
        checkpoints = Checkpoints(folder, identity, made_by, every, config["resume"], guard, main_process)
        begun: record.Record = {
            "address": address,
            "identity": identity,
            "config": {key: config[key] for key in record.IDENTITY},
            "data_fingerprint": images.fingerprint,
            "cost": network,
            "provenance": made,
        }
        # entered before the attempt, so that what waits for W&B comes after the attempt's end
        told = held.enter_context(tracking.live(config, begun)) if main_process else None
        if main_process:
            (folder / "heartbeat.json").unlink(missing_ok=True)  # of an earlier attempt
            attempt.enter_context(attempts.noted(results, address))
        if (found := checkpoints.find()) and main_process:
            print(f"{address}: goes on from its checkpoint of step {found.step}")
        task = tasks.load(config["task"]["name"])
        job = task.build(tasks.Run(config, images, folder, str(start.file) if start else None, checkpoints, told=told))
        task.train(job)
        metrics = task.evaluate(job)
        if not main_process:
            return None
        result: record.Record = begun | {
            "metrics": metrics,
            "curve": task.curve(job),
            "seconds": round(checkpoints.elapsed(), 1),
            "provenance": made
            | {
                "kept": kept,
                "machine": provenance.machine(),
                "flags": provenance.flags(),
                "pretrained": digest,
                "left_out": list(images.left_out),
                "registered": registered,
                "peak_memory_bytes": peak_memory(config),
                "waited_for_data": job.report.waiting.figure(),
                "attempts": checkpoints.attempts(),
            },
        }
        target = record.path(config)
        try:
            drawn = task.pictures(job)
        except Exception as error:  # a picture is no reason to lose a run
            print(f"note: no pictures were drawn ({type(error).__name__}: {error})", file=sys.stderr)
            drawn = None
        guard()
        artefacts = {
            "predictions": bootstrap.write(bootstrap.path(target), task.predictions(job)),
            "weights": record.sha256(folder / "weights.pt"),
            "rows": record.keep(folder / "metrics.jsonl", target.with_suffix(".jsonl")),
        }
        if drawn:
            record.write_aside(target.with_suffix(".jpg"), drawn)
            artefacts["pictures"] = record.sha256(target.with_suffix(".jpg"))
        result["provenance"] |= {"predictions": artefacts["predictions"], "artefacts": artefacts}
        record.write(target, result)  # the last file of a run: where it is, everything is
        attempt.close()
        checkpoints.clear()
        shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        print(f"{address}: {shown}; {result['seconds']:.0f} seconds; {target}", flush=True)
        if told:
            told.recorded(result, target)
    return result


def already(process: int) -> str:
    """What a process says that found its run recorded. Two sweeps may start one each for a run, and both write to the run's log."""
    return f"already recorded, nothing to do for process {process}:"


def evaluate(config: Config) -> dict[str, Any] | None:
    """Measure given weights on the validation split and write results/evaluations/<address>.json, which no verdict reads.

    The same file, config, data and code are not measured twice. None on the processes that do not write.
    """
    main_process = os.environ.get("RANK", "0") == "0"
    allocator.keep_memory()
    check_space(config)
    check_devices(config)

    from hypotheses import cost, tasks
    from hypotheses.backbones import weights

    source, task = config["weights"], tasks.load(config["task"]["name"])
    network = cost.of_run(config)
    # a file that does not fit is known before the data are read and processes are started
    digest = task.fit(config)
    check_origin(config, weights.locate(source), "weights")
    images = data.prepare(config)
    names = (config["scale"]["name"], config["task"]["name"], config["backbone"]["name"])
    recipe = config["recipe"]
    file = f"{digest[:12]}_{size_name(recipe)}{'_multi_scale' if recipe.get('multi_scale') else ''}.json"
    target = Path(config["paths"]["results"], "evaluations", *names, file)
    asked = {
        "config": {key: config[key] for key in record.IDENTITY},
        "data_fingerprint": images.fingerprint,
        "weights_sha256": digest,
    }
    if done := evaluated(target, asked, config):
        if main_process:
            print(f"{summary(done)}; evaluated before by the same code, nothing to do ({target})")
        return done
    if main_process:
        preflight.require(config)
    if launches_others(config):
        launch(config)
        return evaluated(target, asked, config)
    import torch

    if threads := config["hardware"]["threads"]:
        torch.set_num_threads(threads)
    started = time.monotonic()
    folder = Path(config["paths"]["outputs"], "evaluations", *names)
    metrics = task.evaluate(task.build(tasks.Run(config, images, folder)))
    if not main_process:
        return None
    result = asked | {
        "weights": source,
        "metrics": metrics,
        "cost": network,
        "seconds": round(time.monotonic() - started, 1),
        "provenance": record.provenance(config, device_name(config)),
    }
    record.write_aside(target, json.dumps(result, indent=1, sort_keys=True) + "\n")
    print(f"{summary(result)}; {target}")
    return result


def evaluated(target: Path, asked: dict[str, Any], config: Config) -> dict[str, Any] | None:
    """The result of an evaluation of the same file, config and data by the same code, software and device; else None."""
    now = record.provenance(config, device_name(config))
    try:
        done = json.loads(target.read_text())
        same = all(done["provenance"][key] == now[key] for key in ("code", "packages", "kernels", "device"))
        same &= all(done[key] == value for key, value in asked.items())
        return done if same and {"metrics", "seconds", "weights"} <= done.keys() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none there, or not one of ours: made again
        return None


def summary(result: dict[str, Any]) -> str:
    config, found = result["config"], dict(result["metrics"])
    images, task = found.pop("val_images"), config["task"]["name"]
    shown = [f"{m.title} {found[name]:.2f} %" for name, m in METRICS[task].items() if name in found]
    return (
        f"{config['backbone']['name']}, {result['weights']}: {', '.join(shown)}, {images} images of {size_name(config['recipe'])} pixels, "
        f"{result['seconds']:.0f} seconds"
    )


def size_name(recipe: Config) -> str:
    """The size that images are evaluated at: 224, or 512x2048."""
    size = recipe.get("resize", recipe["image_size"])
    return "x".join(map(str, size)) if isinstance(size, list) else str(size)


def check_origin(config: Config, file: Path, key: str) -> None:
    """Raise where outputs/.../<backbone>/seed_<k>/weights.pt, given as `key`, would be measured as another arm (a causal ViT has
    the same shapes), or on images drawn from another seed (it was trained on some)."""
    *_, arm, seed, _ = ("", "", "", *file.resolve().parts)
    if not (trained := re.fullmatch(r"seed_(\d+)", seed)):
        return
    backbone = arm.split("+")[0]
    if backbone != config["backbone"]["name"]:
        raise UserError(f"{key}={file} are of a run of another backbone: add backbone={backbone}")
    if config["recipe"]["data"]["source"] not in data.PUBLISHED and int(trained[1]) != config["seed"]:
        raise UserError(
            f"{key}={file} are of seed {trained[1]}, and its images for training can be among those that "
            f"seed={config['seed']} evaluates on: add seed={trained[1]}"
        )


def check_space(config: Config, names: tuple[str, ...] = ("data", "outputs", "results")) -> None:
    """Raise before the work where the folders cannot be written to or have no room."""
    for name in names:
        folder = Path(config["paths"][name])
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(f"cannot write to {folder} ({error.strerror}): set paths.{name}=FOLDER") from error
        free = shutil.disk_usage(folder).free
        if free < NEEDED_BYTES:
            raise UserError(
                f"no disk space: {free >> 20} MB free at {folder}, {NEEDED_BYTES >> 20} MB needed; "
                f"make room or set paths.{name}=FOLDER"
            )


def check_devices(config: Config) -> None:
    hardware = config["hardware"]
    if hardware["accelerator"] not in ("auto", "cpu", "gpu"):
        raise UserError(f"hardware.accelerator={hardware['accelerator']}: choose one of auto, cpu, gpu")
    if hardware["nodes"] > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        first = (CONF / "hardware" / "ddp_nodes.yaml").read_text().splitlines()[0].removeprefix("# ")
        raise UserError(f"hardware={hardware['name']} needs torchrun, started on every machine: {first}")
    if hardware["accelerator"] == "gpu":
        import torch

        if not torch.cuda.is_available():
            raise UserError(f"hardware={hardware['name']}: no GPU that torch can use here; use hardware=cpu")


def launches_others(config: Config) -> bool:
    """Whether this process should hand over to torchrun: several devices are asked for, and it is not one of theirs."""
    return config["hardware"]["devices"] != 1 and "TORCHELASTIC_RUN_ID" not in os.environ


def launch(config: Config) -> None:
    """Become torchrun with a process per device; where this is one run of a grid, which goes on, let torchrun do it meanwhile."""
    devices = config["hardware"]["devices"]
    if devices == -1:
        import torch

        devices = torch.cuda.device_count()
    if config["recipe"]["batch_size"] % devices:
        raise UserError(f"recipe.batch_size={config['recipe']['batch_size']}: choose a multiple of {devices} devices")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(devices), "-m", "hypotheses.run"]
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # torchrun would end at it, where its processes write a checkpoint
    if (chosen := of_grid()) is None:
        os.execv(sys.executable, [sys.executable, *command, *sys.argv[1:]])
    if code := subprocess.run([sys.executable, *command, *chosen]).returncode:
        raise UserError(f"torchrun ended with exit code {code}, see above")


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun


def peak_memory(config: Config) -> int:
    """The most bytes that this process has held: on a GPU what torch has allocated there, else its resident set."""
    import torch

    if config["hardware"]["accelerator"] != "cpu" and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def device_name(config: Config) -> str:
    """The GPUs or the processor, as a person would name them."""
    import torch

    processes = world_size()
    if config["hardware"]["accelerator"] != "cpu" and torch.cuda.is_available():
        return f"{processes} x {torch.cuda.get_device_name()}"
    return f"{processes} x CPU ({provenance.cpu()})"


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def compose_and_run(cfg: Any) -> None:
    chosen = of_grid()
    try:
        # in here too, since Hydra adds a line of its own to an exception that reaches it
        with contextlib.nullcontext() if chosen is not None else one_line(), explained():
            config = resolve(cfg)
            evaluate(config) if config["mode"]["name"] == "eval" else run(config)
    except Exception as error:
        if chosen is not None:  # the others of the grid go on, and Hydra raises the first one at its end
            print(f"error: {' '.join(chosen)}: {error}", file=sys.stderr, flush=True)
        raise


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn Hydra's and OmegaConf's errors into a UserError."""
    try:
        yield
    except Exception as error:
        raise explain(error) from error


def leave_at_once(code: int) -> NoReturn:
    """End a process of a run on several devices without ending the interpreter: gloo's threads may abort one that does while they run,
    and torchrun calls that a failed run."""
    from torch import distributed

    if code == 0 and distributed.is_initialized():
        with contextlib.suppress(RuntimeError):  # of one that has failed meanwhile, which says so itself
            distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    faulthandler.register(signal.SIGUSR2)  # on which a run that hangs says where
    several = "TORCHELASTIC_RUN_ID" in os.environ
    if several:
        stopping.end_with_parent()
    sys.modules["wandb"] = None  # type: ignore[assignment]  # timm would import it, which takes half a second, and might fail
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # so that Hydra raises, and does not print and exit
    code: Any = 0
    try:
        with one_line(), explained():
            compose_and_run()
    except KeyboardInterrupt:
        print("interrupted: nothing was recorded; the same command goes on with it", file=sys.stderr)
        code = 130
    except stopping.Stopped as stopped:
        print("stopped: nothing was recorded; the same command goes on with it", file=sys.stderr)
        code = stopped.code
    except SystemExit as said:  # of one_line
        code = said.code or 0
    if several:
        leave_at_once(code)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
