"""A Triton kernel without a GPU: TRITON_INTERPRET=1 runs it on the host."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAM = """
import assay, flash_attention

lines = [
    f"attention b=1 h=2/1 l={length} d=16 dtype={dtype}{more}"
    for dtype in ("f32", "f16") for length in ("17x33", "8x5") for more in ("", " causal")
]
report = assay.check(flash_attention.attention, case=lines, shrink=False)
assert report.ok and report.counts["pass"] == len(lines), report
lines = [f"backward b=1 h=2/1 l=9x20 d=16 dtype=f32{more}" for more in ("", " causal")]
report = assay.check(flash_attention.attention, case=lines, shrink=False)
assert report.ok and report.counts["pass"] == len(lines), report
wrong = assay.check(flash_attention.broken("strict causality"),
    case="attention b=1 h=1 l=17 d=16 dtype=f32 causal", shrink=False)
assert wrong.counts["fail"] == 1, wrong
print("judged")
"""


def test_the_example_is_judged_without_a_gpu():
    paths = [os.path.join(HERE, "..", "..", "examples", "triton"), os.environ.get("PYTHONPATH")]
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("this NumPy makes no number of an array, and Triton's interpreter cannot loop")
    assert done.returncode == 0 and "judged" in done.stdout, done.stderr
