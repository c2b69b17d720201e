"""Suites of cases on a kernel, in this process or in one of its own."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Union

from ._kernel import Kernel
from ._load import child_environment, how_it_ended
from ._library import parse, suite as suite_of
from ._report import Report, Result
from ._arguments import by_name, called, flag, seconds, texts
from .errors import InputError

_SHRUNK = 3  # the first failures tell most of what failures can tell
_WORKER = "ASSAY_WORKER"  # the variable that a process of isolate=True and its children have


def _lines(
    kernel: Kernel, suite: Optional[str], case: Union[None, str, Sequence[str]], seed: int
) -> Dict[str, Any]:
    if suite is None and case is None:
        raise InputError("suite", "one of suite= and case= is needed")
    if suite is not None and case is not None:
        raise InputError("suite", "both suite= and case= were given; one is needed")
    if suite is not None:
        drawn = suite_of(suite, seed, kernel.features)
        whole_suite = drawn["cases"] + [u["case"] for u in drawn["unsupported"]]
        if kernel.operation == "decode" and not any(" cache=" in line for line in whole_suite):
            raise InputError(
                "suite",
                f"{suite!r} has no case with a cache, and {kernel.name} decodes from one; "
                "suite='caches' has them",
            )
        return {"cases": drawn["cases"], "unsupported": drawn["unsupported"]}
    cases = [case] if isinstance(case, str) else texts("case", case)
    if not cases:
        raise InputError("case", "holds no case")
    return {"cases": [parse(line)["case"] for line in cases], "unsupported": []}


@by_name()
def check(
    function: Union[Kernel, Callable[..., Any]],
    *,
    suite: Optional[str] = None,
    case: Union[None, str, Sequence[str]] = None,
    seed: int = 1,
    device: Optional[str] = None,
    threads: int = 1,
    relations: bool = False,
    pictures: bool = False,
    evidence: str = "fail",
    shrink: bool = True,
    shrink_seconds: float = 20,
    isolate: bool = False,
    timeout: float = 120,
    progress: Optional[Callable[[Dict[str, Any]], None]] = None,
) -> Report:
    """Judges a kernel on a suite or on cases. Returns a Report; in a notebook it shows itself.

        report = assay.check(mine, suite="smoke", device="cuda")
        report.raise_for_failures()

    Args:
        function: made by `assay.kernel`; a plain function is a kernel of attention.
        suite: "plain", "smoke", "standard", "padding", "backward", "decode", "caches", "paths",
            "products", "models" or "tiny". It is drawn for what the kernel has.
        case: a case line or several, instead of a suite; `assay notation` explains them.
        seed: of the inputs of a suite.
        device: where the inputs lie, instead of the kernel's own.
        threads: of the judge; 0: all.
        relations: ask for metamorphic relations too.
        pictures: keep what a notebook draws of a failure.
        evidence: what follows if every error is inside its bound, but not one that the arithmetic
            makes (docs/evidence.md): "fail", "warn" or "off".
        shrink, shrink_seconds: make the first failures smaller, each for so many seconds.
        isolate: run the kernel in a process of its own, which may crash or hang. The kernel must be
            a function of a module or of a file. Once a failure of this process has cost it the
            device, as a fault of the device's memory does, the other cases run in this way.
        timeout: of one case there, in seconds.
        progress: is called with every result.
    """
    if _WORKER in os.environ:  # the file of the kernel is loaded, and would start the next process
        raise InputError(
            "isolate",
            "the process that runs the kernel loads its file, which calls assay.check again: put "
            'the call under `if __name__ == "__main__":`',
        )
    k = (function if isinstance(function, Kernel) else Kernel(function)).on(device)
    flag("shrink", shrink)
    flag("isolate", isolate)
    seconds("shrink_seconds", shrink_seconds)
    seconds("timeout", timeout)
    called("progress", progress)
    start = time.monotonic()
    lines = _lines(k, suite, case, seed)
    judge: Dict[str, Any] = dict(
        threads=threads, relations=relations, pictures=pictures, evidence=evidence
    )
    results: List[Dict[str, Any]] = []

    def take(result: Dict[str, Any]) -> None:
        results.append(result)
        if progress is not None:
            progress(result)

    def shrink_first(**how: Any) -> None:
        for result in [r for r in results if r["outcome"] == "fail"][:_SHRUNK] if shrink else []:
            k.shrink(result, seconds=shrink_seconds, **how)

    def take_isolated(cases: Sequence[str]) -> None:
        with Isolated(k, timeout, judge) as worker:
            for line in cases:
                take(worker.judge(line))
            shrink_first(judging=worker.judge)

    if isolate:
        take_isolated(lines["cases"])
    else:
        for line in lines["cases"]:
            take(k.judge(line, **judge))
            if results[-1]["outcome"] == "fail" and k.tool.is_lost():
                # A fault of the device's memory ends all work of its process.
                rest = lines["cases"][len(results) :]
                try:
                    take_isolated(rest)
                except InputError:  # no other process can find the function
                    for left in rest:
                        take(k._not_run(left, f"the device answers no more since {line!r}"))
                break
        else:
            shrink_first(threads=threads, evidence=evidence)
    elapsed = time.monotonic() - start
    return Report(k.name, results, lines["unsupported"], suite or "", elapsed, k.left)


class Isolated:
    """A kernel in a process of its own. A crash, an exit or a hang costs one case."""

    def __init__(self, kernel: Kernel, timeout: float, options: Dict[str, Any]):
        import inspect

        try:
            source = inspect.getsourcefile(inspect.unwrap(kernel.function))
        except TypeError:  # an object that is called
            source = None
        held = kernel._held_as
        if source is None or not os.path.exists(source) or held is None:
            raise InputError(
                "isolate",
                f"{kernel.name} is no function at the top of a file, for another process",
            )
        self.kernel, self.timeout, self.options = kernel, timeout, options
        self.where = f"{os.path.abspath(source)}::{held}"
        self.process: Optional[subprocess.Popen] = None

    def __enter__(self) -> "Isolated":
        return self

    def __exit__(self, *_: Any) -> None:
        self._end()

    def _start(self) -> subprocess.Popen:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "assay._worker",
                self.where,
                self.kernel._device or "",
                self.kernel.tool.name,
                json.dumps(self.options),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**child_environment(), _WORKER: "1"},
        )

    def _end(self) -> int:
        if self.process is None:
            return 0
        process, self.process = self.process, None
        process.kill()
        status = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass
        return status

    def judge(self, line: str) -> Dict[str, Any]:
        """Judges one case; what ends the process is the result."""
        if self.process is None:
            self.process = self._start()
        process = self.process
        try:
            process.stdin.write(line.encode() + b"\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        except BrokenPipeError:
            pass  # the end of its output says so
        answer = self._answer(process)
        if answer is None:
            self._end()
            return self._failed(line, f"the function did not finish within {self.timeout:g} s")
        if not answer.endswith(b"\n"):
            status = process.wait()
            self._end()
            why = f"the function's process {how_it_ended(status)} in the middle of the case"
            return self._failed(line, why)
        told = json.loads(answer)
        if isinstance(told, dict):
            raise InputError(**told)
        result, lost = told
        if lost:
            self._end()
        return Result(result)

    def _answer(self, process: subprocess.Popen) -> Optional[bytes]:
        """A line of the process; None if it is late, without a line's end if the process ended."""
        found, end = b"", time.monotonic() + self.timeout
        descriptor = process.stdout.fileno()  # type: ignore[union-attr]
        with selectors.DefaultSelector() as ready:
            ready.register(descriptor, selectors.EVENT_READ)
            while not found.endswith(b"\n"):
                if not ready.select(max(0, end - time.monotonic())):
                    return None
                piece = os.read(descriptor, 1 << 20)
                if not piece:
                    return found
                found += piece
        return found

    def _failed(self, line: str, reason: str) -> Dict[str, Any]:
        return self.kernel._not_run(line, reason, "fail")
