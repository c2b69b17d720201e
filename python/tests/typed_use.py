"""The package as the code of a user sees it, for the checker of types alone: python.types.

A line with a wrong type must be an error: its comment is one that the checker needs.
"""

from typing import Any

import assay
from assay import flashinfer


@assay.kernel("attention", dtypes=("f16",))
def mine(q: Any, k: Any, v: Any, *, causal: bool, scale: float) -> Any:
    return q


def uses(o: Any, q: Any) -> None:
    result: assay.Result = assay.assert_attention(o, q=q, k=q, v=q, causal=True, window=(3, 0))
    report: assay.Report = assay.check(mine, suite="smoke", device="cuda").raise_for_failures()
    elements: int = report.elements
    case: assay.Case = next(assay.cases("smoke", kernel=mine))
    again: assay.Result = case.check(o=o) or mine.judge(case.line) or mine.check(case)
    told: str = assay.identify(mine, "bf16")["P"]
    definition: flashinfer.Definition = flashinfer.load_definition("D.json")
    print(result, elements, again, told, definition)
    assay.assert_attention(o, q=q, k=q, v=q, causal="yes")  # type: ignore[arg-type]
    assay.assert_attention(o, q=q, k=q)  # type: ignore[call-arg]
    assay.check(mine, sweet="smoke")  # type: ignore[call-arg]
    assay.record("x", q=q, kernel=1)  # type: ignore[arg-type]
