"""What a run of cases found."""

from __future__ import annotations

import html
import json
from typing import Any, Dict, Iterator, List, Optional

from ._arguments import kept_default
from ._library import ask_json, facts, library
from .errors import Failure

_ORDER = ("pass", "suspect", "fail", "error", "inconclusive", "unsupported", "convention")
_SHOWN = 3  # failures that a text shows
_OF_KEYS = ("dK", "dV")  # outputs whose rows are keys


def place_of(element: Dict[str, Any]) -> str:
    output = element["output"]
    column = f", column={element['column']}" if "column" in element else ""
    if output == "C":  # which has no batch and no head
        return f"C[row={element['row']}{column}]"
    row = "key" if output in _OF_KEYS else "row"
    return f"{output}[b={element['b']}, h={element['h']}, {row}={element['row']}{column}]"


def _compared(result: Dict[str, Any]) -> int:
    return sum(result["elements"]["compared"].values()) if "elements" in result else 0


def _number(x: Any) -> str:
    return x if isinstance(x, str) else f"{x:.9g}"


def _times(ratio: float) -> str:
    """A ratio; one that is just above 1 is not written as 1."""
    if not 1 < ratio < 10:
        return f"{ratio:.3g}"
    digits = 4
    while float(f"{ratio:.{digits}g}") == 1:
        digits += 1
    return f"{ratio:.{digits}g}"


def is_right(result: Dict[str, Any]) -> bool:
    """Whether something was compared, and nothing was wrong."""
    return result["outcome"] in ("pass", "suspect") or (
        result["outcome"] == "convention" and not is_wrong(result)
    )


def is_wrong(result: Dict[str, Any]) -> bool:
    if result["outcome"] == "convention":
        fails = {row["name"] for row in facts()["conventions"] if row["fails"]}
        return any(name.split(":")[0] in fails for name in result["differs"])
    return result["outcome"] in ("fail", "error")


def _evidence_lines(evidence: Dict[str, Any]) -> List[str]:
    """The row and the fault that are furthest beyond their limits, and what was asked."""
    lines = []
    rows = [(row["s"] / row["limit"], output, row) for output, row in evidence["rows"].items()]
    if rows:
        _, output, row = max(rows, key=lambda ranked: ranked[0])
        place = "column" if row.get("of_column") else "key" if output in _OF_KEYS else "row"
        head = "" if output == "C" else f"b={row['b']}, h={row['h']}, "
        lines.append(
            f"  errors of {output}[{head}{place}={row['row']}] are s = "
            f"{row['s']:.3g} times the typical ones; limit {row['limit']:.3g}, "
            f"median of all rows {row['median']:.3g}"
        )
    if evidence["filters"]:
        found = evidence["filters"][0]
        lines.append(
            f"  {found['fault']}: {found['share']:.3g} of it, z = {found['z']:.3g}; "
            f"limit {evidence['z_limit']:.3g} for {evidence['questions']} questions"
        )
    lines.append(
        f"  {evidence['rows_asked']} rows asked, {evidence['replicates']} replicates of "
        f"{evidence['arithmetic']}, seed {evidence['seed']}"
    )
    return lines


def cause_of(result: Dict[str, Any]) -> str:
    """What the errors of a failure look like; empty where no fault was looked for."""
    diagnosis = result.get("diagnosis")
    if not diagnosis:
        return ""
    if diagnosis.get("not_asked"):
        return f"no fault was looked for: {diagnosis['not_asked']}"
    likes = []
    for found in diagnosis["explanations"]:
        same = found.get("same")
        also = f", which is the same here as {', '.join(same)}" if same else ""
        likes.append(found["words"] + also)
    if not likes:
        return f"looks like none of {diagnosis['tried']} known faults that would show"
    return f"looks like: {'; or '.join(likes)}"


def told_together(results: List[Dict[str, Any]]) -> Dict[str, Any]:
    """What the failing cases share and no passing one has, and the failures by cause."""
    summary: Dict[str, Any] = ask_json(
        library.assay_judge_summary, json.dumps(results).encode(), argument="results"
    )
    return summary


def failure_text(name: str, result: Dict[str, Any], again: str) -> str:
    """A failure in under ten lines: proved or by evidence, where, and how to see it again."""
    first = result.get("first_failure")
    lines = [f"{name}: {result['reason'].splitlines()[0]}"]
    if result.get("by_evidence"):
        lines = [
            f"{name} is wrong by evidence: errors are inside their bounds, and no arithmetic "
            "makes such errors"
        ]
        lines += _evidence_lines(result["evidence"])
    elif first is not None:
        lines = [
            f"{name} is wrong at {place_of(first)}: {first.get('why') or 'outside its bound'}",
            f"  got   {_number(first['got'])}",
            f"  exact {_number(first['exact'])}",
            f"  bound {_number(first['bound'])}"
            + (
                ""
                if isinstance(first["ratio"], str)
                else f"; the error is {_times(first['ratio'])} times the bound"
            ),
            f"  proved: {result['elements']['outside']} of {_compared(result)} elements "
            f"outside, under {result['contract']}",
        ]
    if result.get("differs") and result["outcome"] == "fail":
        lines.append(f"  judged under {', '.join(result['differs'])}, which nobody declared")
    cause = cause_of(result)
    told = cause.startswith("looks like: ")
    if told:
        lines.append(f"  {cause}")
    if result.get("shrunk"):
        lines.append(f"  case      {result['case']}")
    if again:
        lines.append(f"  reproduce {again}")
    if cause and not told:  # that no cause was found helps least
        lines.append(f"  {cause}")
    return "\n".join(lines)


class Report:
    """The results of cases, in their order.

    Attributes:
        title: what was judged.
        results: one dictionary a case, with the fields of docs/results.md.
        unsupported: {"case", "why"} of the cases of the suite that need a feature that the kernel
            does not have; they are counted, and never a pass.
        left: arguments of the function that kept their defaults, and how Assay says what other
            libraries mean by them.
    """

    def __init__(
        self,
        title: str,
        results: List[Dict[str, Any]],
        unsupported: Optional[List[Dict[str, str]]] = None,
        suite: str = "",
        seconds: float = 0,
        left: Optional[Dict[str, str]] = None,
    ):
        self.title, self.results, self.suite, self.seconds = title, results, suite, seconds
        self.unsupported, self.left = unsupported or [], left or {}

    def __iter__(self) -> Iterator[Dict[str, Any]]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    @property
    def counts(self) -> Dict[str, int]:
        """Cases by outcome."""
        found = {outcome: 0 for outcome in _ORDER}
        for result in self.results:
            found[result["outcome"]] += 1
        return found

    @property
    def failures(self) -> List[Dict[str, Any]]:
        return [r for r in self.results if is_wrong(r)]

    @property
    def elements(self) -> int:
        """How many elements were compared."""
        return sum(_compared(r) for r in self.results)

    @property
    def ok(self) -> bool:
        """Whether something was compared and nothing was wrong."""
        return not self.failures and any(is_right(r) for r in self.results)

    def summary(self) -> str:
        counts = ", ".join(f"{n} {outcome}" for outcome, n in self.counts.items() if n)
        text = f"{self.title}: {len(self.results)} cases: {counts or 'none'}; "
        text += f"{self.elements} elements compared"
        if self.unsupported:
            features = sorted({u["why"] for u in self.unsupported})
            text += (
                f"; {len(self.unsupported)} cases of the whole suite need a feature that the "
                "kernel does not have "
                f"({', '.join(features)})"
            )
        for name, ours in self.left.items():
            text += f"; {kept_default(name, ours)}"
        return text

    def raise_for_failures(self) -> "Report":
        """Raises Failure if a case failed or nothing was compared; returns the report otherwise."""
        __tracebackhide__ = True  # pytest shows the code of the caller
        if self.ok:
            return self
        if not self.failures:
            raise Failure(f"{self.summary()}: nothing was proved", [])
        first = self.failures[0]
        texts = [failure_text(self.title, first, first["reproduce"])]
        if len(self.failures) > 1:
            texts.append(f"  and {len(self.failures) - 1} more of {len(self.results)} cases")
            texts += [f"  {line}" for line in self._shared()]
        raise Failure("\n".join(texts), self.failures)

    def _shared(self) -> List[str]:
        """What the failing cases have in common, in a sentence, if anything."""
        sentence = told_together(self.results)["shared"]["sentence"] if self.failures else ""
        return [sentence] if sentence else []

    def __repr__(self) -> str:
        lines = [self.summary()]
        if self.failures:
            told = told_together(self.results)
            lines += [told["shared"]["sentence"]] if told["shared"]["sentence"] else []
            by_line = {r["case"]: r for r in self.failures}
            causes = [c for c in told["causes"] if c["case"] in by_line]
            for cause in causes[:_SHOWN]:  # failures of one cause are told once
                r = by_line[cause["case"]]
                if cause["cases"] > 1:
                    lines.append(f"{cause['cases']} x {cause['outcome']}: {cause['reason']}")
                lines.append(failure_text(self.title, r, r["reproduce"]))
            if len(causes) > _SHOWN:
                lines.append(f"and {len(causes) - _SHOWN} more causes")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """For notebooks: a table of the cases, the failures first."""
        rows = [_row(r) for r in sorted(self.results, key=lambda r: not is_wrong(r))]
        told = "".join(f"<p>{html.escape(line)}</p>" for line in [self.summary(), *self._shared()])
        return f"{told}{_table(rows)}"


class Result(Dict[str, Any]):
    """The result of a case: a dictionary with the fields of docs/results.md.

    In a notebook it shows itself, with the text of its failure.
    """

    def _repr_html_(self) -> str:
        text = ""
        if is_wrong(self):
            told = failure_text(self.get("candidate", "function"), self, self.get("reproduce", ""))
            text = f"<pre>{html.escape(told)}</pre>"
        return _table([_row(self)]) + text


_COLORS = {"pass": "#2a7", "suspect": "#b80", "fail": "#c33", "error": "#c33"}


def _row(r: Dict[str, Any]) -> str:
    ratios = [w["ratio"] for w in r.get("worst", {}).values() if not isinstance(w["ratio"], str)]
    told = f"<code>{html.escape(r['case'])}</code>"
    if r["outcome"] != "pass":
        told += f"<br>{html.escape(r['reason'].splitlines()[0])}"
    if is_wrong(r) and cause_of(r):
        told += f"<br>{html.escape(cause_of(r))}"
    if is_wrong(r) and r.get("reproduce"):
        told += f"<br><code>{html.escape(r['reproduce'])}</code>"
    return (
        f"<tr><td style='color:{_COLORS.get(r['outcome'], '#777')}'>{r['outcome']}</td>"
        f"<td style='text-align:left'>{told}</td>"
        f"<td>{_times(max(ratios)) if ratios else ''}</td><td>{_picture(r)}</td></tr>"
    )


def _table(rows: List[str]) -> str:
    return (
        "<table><tr><th>outcome</th><th>case</th><th>largest error/bound</th><th></th></tr>"
        f"{''.join(rows)}</table>"
    )


def _picture(result: Dict[str, Any]) -> str:
    """The worst map of a failure (rows down, columns across): red cells are outside their bound."""
    if result["outcome"] != "fail":
        return ""
    for entry in result.get("maps") or []:
        cells = entry.get("cells") if isinstance(entry, dict) else None
        if not cells:
            continue
        size = max(2, 160 // max(len(cells), len(cells[0])))
        drawn = []
        for y, row in enumerate(cells):
            for x, ratio in enumerate(row):
                if ratio is None:
                    continue
                wrong = isinstance(ratio, str) or ratio > 1
                drawn.append(
                    f"<rect x='{x * size}' y='{y * size}' width='{size}' height='{size}' "
                    f"fill='{'#c33' if wrong else '#2a7'}'/>"
                )
        width, height = len(cells[0]) * size, len(cells) * size
        return f"<svg width='{width}' height='{height}'>{''.join(drawn)}</svg>"
    return ""
