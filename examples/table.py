"""How right kernels are: a row of a table for each kernel and dtype.

    python3 examples/table.py --suite smoke --suite backward --seed 2 \\
        examples/torch/attention_kernels.py::flash examples/jax/attention_kernels.py::xla

A row says how many cases passed of those that were judged; those that differ by a convention, and
those that fail, each with its line below the table; the largest error/bound by output; and how near
evidence came to its limits: the largest s of a row and z of a question, as parts of their limits,
with the question and its case below the table.
"""

import argparse
import collections
import importlib
import os
import sys

import assay

OUTPUTS = ("O", "LSE", "dQ", "dK", "dV")


class Row:
    def __init__(self):
        self.outcomes = collections.Counter()
        self.ratio = collections.defaultdict(float)
        self.s = self.z = 0.0
        self.asked = ""  # the question with the largest z, and its case
        self.told = []

    def add(self, result):
        self.outcomes[result["outcome"]] += 1
        if result["outcome"] in ("fail", "error", "convention", "inconclusive"):
            self.told.append(f"{result['outcome']}: {result['case']}: {result['reason']}")
        for output, worst in result.get("worst", {}).items():
            if isinstance(worst["ratio"], float):
                self.ratio[output] = max(self.ratio[output], worst["ratio"])
        evidence = result.get("evidence", {})
        for row in evidence.get("rows", {}).values():
            self.s = max(self.s, row["s"] / row["limit"])
        for found in evidence.get("filters", []):
            if abs(found["share"]) >= found["least"]:  # less is rounding
                z = abs(found["z"]) / evidence["z_limit"]
                if z > self.z:
                    self.z, self.asked = z, f"{found['fault']}: {result['case']}"

    def text(self):
        passed = self.outcomes["pass"] + self.outcomes["suspect"]
        judged = sum(self.outcomes.values())
        ratios = " ".join(f"{self.ratio[o]:.2f}" if o in self.ratio else "-" for o in OUTPUTS)
        others = f"{self.outcomes['convention']} | {judged - passed - self.outcomes['convention']}"
        return f"{passed} of {judged} | {others} | {ratios} | {self.s:.2f} | {self.z:.2f}"


def kernel_of(where):
    """The kernel of FILE.py::FUNCTION. The path begins at this folder: files may share a name."""
    file, _, name = where.partition("::")
    sys.path.insert(0, os.getcwd())
    return getattr(importlib.import_module(os.path.splitext(file)[0].replace(os.sep, ".")), name)


def reports_of(kernel, asked):
    for suite in asked.suite:
        yield assay.check(kernel, suite=suite, seed=asked.seed, threads=0, shrink=False)
    if asked.cases:
        with open(asked.cases) as file:
            lines = [line for line in map(str.strip, file) if line and not line.startswith("#")]
        yield assay.check(kernel, case=lines, threads=0, shrink=False)


def rows_of(kernel, asked):
    rows = collections.defaultdict(Row)
    for report in reports_of(kernel, asked):
        for result in report:
            if result["outcome"] != "unsupported":
                rows[result.get("dtype", "?")].add(result)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernels", nargs="+", metavar="FILE.py::FUNCTION")
    parser.add_argument("--suite", action="append", default=[])
    parser.add_argument("--cases", metavar="FILE", help="case lines, one a line")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    print(
        "| kernel | dtype | passed | convention | other | error/bound of O, LSE, dQ, dK, dV | s | z |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    told = []
    for where in asked.kernels:
        name = where.partition("::")[2]
        for dtype, row in sorted(rows_of(kernel_of(where), asked).items()):
            print(f"| {name} | {dtype} | {row.text()} |", flush=True)
            told += [f"{name}: {line}" for line in row.told]
            told += [f"{name}: z {row.z:.2f}: {row.asked}"] if row.asked else []
    print("\n".join(told), flush=True)


main()
