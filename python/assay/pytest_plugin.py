"""Kernels as tests: `pytest --assay=SUITE`.

Every kernel that `assay.kernel` made at the top of a test module becomes a group of tests, one for
each case of the suite. The id of a test is its case line, so it says what is asked; with
`-k` and with the id on the command line it runs alone:

    pytest --assay=smoke kernels_test.py
    pytest 'kernels_test.py::mine[attention b=1 h=1 l=2 d=1 dtype=f32 causal]'

A case that the kernel does not do is skipped, with the reason; the summary counts them. A run in
which nothing was compared fails.

`--assay-ledger=FILE` names the failures that are known. A line holds an issue (#12, a word as
ABC-12, or an address), the name of the kernel, and the case line. Such a case is expected to fail,
runs whichever suite is chosen, and fails the run as soon as it passes.
"""

from __future__ import annotations

import re
from typing import Any, Dict, Iterator, List, Optional

import pytest

from ._check import Isolated
from ._kernel import Kernel
from ._library import parse, suite as suite_of
from ._report import failure_text, is_right, told_together
from .errors import InputError

_ISSUE = re.compile(r"^(#\d+|[A-Za-z][\w.-]*-\d+|https?://\S+|[\w.-]+/[\w.-]+#\d+)$")


def pytest_addoption(parser: Any) -> None:
    group = parser.getgroup("assay", "kernels that assay judges")
    group.addoption(
        "--assay",
        metavar="SUITE",
        help="make every case of this suite a test of every kernel: plain, "
        "smoke, standard, padding, backward, decode, caches, paths, products, models or tiny",
    )
    group.addoption(
        "--assay-case",
        metavar="LINE",
        action="append",
        default=[],
        help="a case line instead of a suite (repeatable)",
    )
    group.addoption(
        "--assay-seed",
        metavar="N",
        type=int,
        default=1,
        help="of the inputs of the suite (default: 1)",
    )
    group.addoption(
        "--assay-device",
        metavar="DEVICE",
        help="where the inputs lie, instead of the kernel's own device",
    )
    group.addoption(
        "--assay-threads",
        metavar="N",
        type=int,
        default=1,
        help="of the judge; 0: all (default: 1)",
    )
    group.addoption(
        "--assay-evidence",
        choices=("fail", "warn", "off"),
        default="fail",
        help="what errors are that are inside their bounds, but that no arithmetic makes "
        "(default: fail)",
    )
    group.addoption(
        "--assay-isolate",
        action="store_true",
        help="run kernels in processes of their own, which may crash or hang",
    )
    group.addoption(
        "--assay-timeout",
        metavar="SECONDS",
        type=float,
        default=120,
        help="of one case with --assay-isolate (default: 120)",
    )
    group.addoption(
        "--assay-shrink",
        metavar="SECONDS",
        type=float,
        default=10,
        help="how long a failure is made smaller; 0: not (default: 10)",
    )
    group.addoption(
        "--assay-ledger", metavar="FILE", help="known failures: lines of ISSUE KERNEL CASE-LINE"
    )


class Known:
    """The ledger: issues by kernel and case."""

    def __init__(self, path: Optional[str]):
        self.entries: Dict[str, Dict[str, str]] = {}
        if path is None:
            return
        try:
            with open(path, encoding="utf-8") as file:
                lines = file.read().splitlines()
        except OSError as e:
            raise pytest.UsageError(f"--assay-ledger={path}: {e.strerror}") from None
        for number, text in enumerate(lines, 1):
            words = text.split(None, 2)
            if not words or words[0] == "#":
                continue
            if len(words) < 3 or not _ISSUE.match(words[0]):
                raise pytest.UsageError(
                    f"{path}:{number}: {text!r} is not ISSUE KERNEL CASE-LINE, with an issue as "
                    "#12, ABC-12 or an address"
                )
            try:
                case = parse(words[2])["case"]
            except InputError as e:
                raise pytest.UsageError(f"{path}:{number}: {e}") from None
            if case in self.entries.setdefault(words[1], {}):
                raise pytest.UsageError(f"{path}:{number}: {words[1]} and this case stand twice")
            self.entries[words[1]][case] = words[0]

    def of(self, kernel: str) -> Dict[str, str]:
        return self.entries.get(kernel, {})


class State:
    def __init__(self, known: Known):
        self.known = known
        self.tally = Tally()
        self.unsupported: List[
            str
        ] = []  # features, one for each case of a suite that was not drawn
        self.kernels: List[str] = []


def pytest_configure(config: Any) -> None:
    config._assay = State(Known(config.getoption("assay_ledger")))
    config.addinivalue_line("markers", "assay: a case that assay judges")
    config.pluginmanager.register(config._assay.tally, "assay-tally")


def _asked_by_id(config: Any, name: str) -> List[str]:
    """The case lines in ids on the command line: FILE::NAME[LINE]."""
    marker = f"::{name}["
    return [
        argument.split(marker, 1)[1][:-1]
        for argument in config.args
        if marker in argument and argument.endswith("]")
    ]


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: Any, name: str, obj: Any) -> Optional[List[Any]]:
    if not isinstance(obj, Kernel):
        return None
    if obj.name != name and getattr(collector.obj, obj.name, None) is obj:
        return []  # a second name for the same kernel
    return list(_items(collector, name, obj))


def _items(collector: Any, name: str, kernel: Kernel) -> Iterator["CaseItem"]:
    config = collector.config
    state: State = config._assay
    try:
        kernel = kernel.on(config.getoption("assay_device"))
        lines = [
            parse(line)["case"]
            for line in _asked_by_id(config, name) + config.getoption("assay_case")
        ]
        if config.getoption("assay") is not None:
            drawn = suite_of(
                config.getoption("assay"), config.getoption("assay_seed"), kernel.features
            )
            lines += drawn["cases"]
            state.unsupported += [u["why"] for u in drawn["unsupported"]]
            lines += state.known.of(name)
            state.kernels.append(name)
    except InputError as e:
        raise pytest.UsageError(f"{name}: {e}") from None
    for line in dict.fromkeys(lines):
        yield CaseItem.from_parent(
            collector,
            name=f"{name}[{line}]",
            kernel=kernel,
            line=line,
            issue=state.known.of(name).get(line),
        )


class CaseItem(pytest.Item):
    """One case of one kernel."""

    def __init__(self, *, kernel: Kernel, line: str, issue: Optional[str], **keywords: Any):
        super().__init__(**keywords)
        self.kernel, self.line = kernel, line
        self.told: Optional[Dict[str, Any]] = None  # of its result, for the summary
        self.add_marker("assay")
        if issue is not None:
            self.add_marker(pytest.mark.xfail(reason=f"known: {issue}", strict=True, raises=Wrong))

    def runtest(self) -> None:
        option = self.config.getoption
        judge = {"threads": option("assay_threads"), "evidence": option("assay_evidence")}
        if option("assay_isolate"):
            with Isolated(self.kernel, option("assay_timeout"), judge) as worker:
                result = worker.judge(self.line)
                self._shrink(result, judging=worker.judge)
        else:
            result = self.kernel.judge(self.line, **judge)
            self._shrink(result, **judge)
        self.told = {name: result[name] for name in _TOLD if name in result}
        outcome = result["outcome"]
        compared = sum(result["elements"]["compared"].values()) if "elements" in result else 0
        self.user_properties += [("outcome", outcome), ("elements", compared)]
        if outcome in ("unsupported", "inconclusive"):
            pytest.skip(f"{outcome}: {result['reason']}")
        if outcome == "convention" and is_right(result):
            self.warn(pytest.PytestWarning(result["reason"]))
        if not is_right(result):
            raise Wrong(failure_text(self.kernel.name, result, result["reproduce"]))

    def _shrink(self, result: Dict[str, Any], **options: Any) -> None:
        seconds = self.config.getoption("assay_shrink")
        if result["outcome"] == "fail" and seconds > 0:
            self.kernel.shrink(result, seconds=seconds, **options)

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        if isinstance(excinfo.value, Wrong):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> Any:
        return self.path, None, self.name


class Wrong(AssertionError):
    """A case that failed."""


# The fields of a result from which the summary tells what failing cases share.
_TOLD = ("case", "candidate", "reproduce", "dtype", "outcome", "reason", "shrunk", "diagnosis")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Iterator[None]:
    """The report carries the result, also from a process of xdist."""
    outcome = yield
    if call.when == "call" and getattr(item, "told", None) is not None:
        outcome.get_result().assay_told = item.told  # type: ignore[attr-defined]


class Tally:
    """What the reports of all processes say: with xdist the tests run elsewhere."""

    def __init__(self) -> None:
        self.elements = self.compared = 0
        self.told: Dict[str, List[Dict[str, Any]]] = {}  # results by kernel
        self.elsewhere: Dict[str, List[str]] = {"unsupported": [], "kernels": []}

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: Any) -> None:
        """A process of xdist ended; each of them has collected the same tests."""
        self.elsewhere = getattr(node, "workeroutput", {}).get("assay", self.elsewhere)

    def pytest_runtest_logreport(self, report: Any) -> None:
        properties = dict(report.user_properties)
        if report.when == "call" and "elements" in properties:
            self.elements += properties["elements"]
            self.compared += properties["outcome"] in ("pass", "suspect", "fail", "convention")
        told = getattr(report, "assay_told", None)
        if told is not None:
            self.told.setdefault(told["candidate"], []).append(told)

    def shared(self) -> List[str]:
        """For each kernel what its failing cases have, and no passing one has."""
        sentences = []
        for candidate, results in self.told.items():
            sentence = told_together(results)["shared"]["sentence"]
            if sentence:
                sentences.append(f"{candidate.rpartition('::')[2]}: {sentence}")
        return sentences


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: Any, exitstatus: Any) -> None:
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["assay"] = {
            "unsupported": config._assay.unsupported,
            "kernels": config._assay.kernels,
        }
    if (
        config.getoption("assay") is None
        or hasattr(config, "workerinput")
        or config.option.collectonly
    ):
        return
    if exitstatus in (0, 5) and config._assay.tally.compared == 0:
        session.exitstatus = 1  # nothing passes vacuously


def pytest_terminal_summary(terminalreporter: Any, exitstatus: Any, config: Any) -> None:
    state: State = config._assay
    for sentence in state.tally.shared():
        terminalreporter.write_line(f"assay: {sentence}")
    if config.getoption("assay") is None or config.option.collectonly:
        return
    unsupported = state.unsupported or state.tally.elsewhere["unsupported"]
    kernels = state.kernels or state.tally.elsewhere["kernels"]
    text = f"assay: {state.tally.compared} cases compared, {state.tally.elements} elements"
    if unsupported:
        text += (
            f"; {len(unsupported)} cases of the whole suite need features that the kernel does "
            "not have: "
            f"{', '.join(sorted(set(unsupported)))}"
        )
    terminalreporter.write_line(text)
    unknown = [kernel for kernel in state.known.entries if kernel not in kernels]
    if unknown:
        terminalreporter.write_line(
            f"assay: the ledger names kernels that were not collected: {', '.join(unknown)}"
        )
    if state.tally.compared == 0:
        terminalreporter.write_line(
            "assay: nothing was compared, so the run fails: no kernel was found, or none of "
            "its cases could be judged"
        )
