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
import importlib.util
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
    """The kernel of FILE.py::FUNCTION. The module is kept by its file: two may have one name."""
    file, _, name = where.partition("::")
    specification = importlib.util.spec_from_file_location(file, file)
    module = sys.modules[file] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return getattr(module, name)


def rows_of(kernel, suites, seed):
    rows = collections.defaultdict(Row)
    for suite in suites:
        report = assay.check(kernel, suite=suite, seed=seed, threads=0, shrink=False)
        for result in report:
            if result["outcome"] != "unsupported":
                rows[result.get("dtype", "?")].add(result)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernels", nargs="+", metavar="FILE.py::FUNCTION")
    parser.add_argument("--suite", action="append", required=True)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    print(
        "| kernel | dtype | passed | convention | other | error/bound of O, LSE, dQ, dK, dV | s | z |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    told = []
    for where in asked.kernels:
        name = where.partition("::")[2]
        for dtype, row in sorted(rows_of(kernel_of(where), asked.suite, asked.seed).items()):
            print(f"| {name} | {dtype} | {row.text()} |", flush=True)
            told += [f"{name}: {line}" for line in row.told]
            told += [f"{name}: z {row.z:.2f}: {row.asked}"] if row.asked else []
    print("\n".join(told), flush=True)


main()
