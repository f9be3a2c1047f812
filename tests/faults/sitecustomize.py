"""Put first on PYTHONPATH, this makes something go wrong in a run that a sweep has started, in the middle of it.

FAULT=<kind>,<step>,<arm>,<flag>: at the beginning of that step of a run of that arm, once: the file `flag` says that it was done. Every time
where flag is -.
"""

import os
import sys

if "FAULT" in os.environ and "hypotheses.run" in " ".join(sys.orig_argv):
    kind, step, arm, flag = os.environ["FAULT"].split(",")
    if f"backbone={arm}" in sys.orig_argv and not os.path.exists(flag):
        from hypotheses import stopping

        wait_for_step, seen = stopping.wait_for_step, [0]

        def now() -> None:
            import ctypes
            import gc
            import resource
            import signal
            import time

            if kind in ("SIGKILL", "SIGTERM", "SIGSEGV", "SIGINT"):
                if kind == "SIGSEGV":
                    ctypes.string_at(0)
                os.kill(os.getpid(), getattr(signal, kind))
            elif kind == "hang":
                time.sleep(10_000)
            elif kind.startswith("pause"):
                time.sleep(float(kind.removeprefix("pause")))
            elif kind == "memory":
                import torch

                resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
                torch.ones(2**30)
            elif kind == "nan":
                import torch

                for parameter in [p for p in gc.get_objects() if isinstance(p, torch.nn.Parameter)]:
                    parameter.data.fill_(float("nan"))
            elif kind == "code":
                raise ZeroDivisionError("a mistake")
            elif kind == "clock":
                then, wall = time.time() - 86_400, time.monotonic()
                time.time = lambda: then + time.monotonic() - wall
            elif kind == "full":
                raise OSError(28, "No space left on device", "/somewhere")

        def faulty(waits: bool) -> None:
            wait_for_step(waits)
            seen[0] += waits
            if waits and seen[0] == int(step) and not os.path.exists(flag):
                if flag != "-":
                    open(flag, "w").close()
                now()

        stopping.wait_for_step = faulty
