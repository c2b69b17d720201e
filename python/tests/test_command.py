"""`assay check --python`: a function in a process of its own, judged by the command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numpy")
COMMAND = os.environ.get("ASSAY_COMMAND")
if not COMMAND:
    pytest.skip("ASSAY_COMMAND names no command", allow_module_level=True)

SMALL = "attention b=1 h=2/1 l=3x5 d=4 dtype=f32"


def check(*arguments, cases=(SMALL,), status=None, of=None):
    """Runs the command with few relations; returns its results, or its message where it refuses."""
    file = f"{os.getpid()}.json"
    options = [option for case in cases for option in ("--case", case)]
    done = subprocess.run(
        [COMMAND, "check", "--jobs", "1", "--no-shrink", "--json", file, *options, *arguments],
        env={**os.environ, "ASSAY_PYTHON": sys.executable},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    if status is not None:
        assert done.returncode == status, done.stdout + done.stderr
    if not os.path.exists(file):
        return done.stdout + done.stderr
    with open(file) as f:
        results = json.load(f)["results"]
    os.remove(file)
    return [r[of] if of else f"{r['outcome']}: {r['reason']}" for r in results]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        """
import os, signal
import assay
import numpy as np

def arithmetic(dtype):
    return "fp32 accumulation, fp32 weights" if dtype == "f32" else {"weight_bits": 16}

@assay.kernel("attention", framework="numpy", dtypes=("f32", "f16"), arithmetic=arithmetic)
def declares(q, k, v):
    return right(q, k, v, False, None)

def fits(case):
    shape = case["shape"]
    if shape["dim"] != 4 or "softcap" in case["features"]:
        return "heads other than of 4, or a softcap"
    return shape["rows"] == 3

@assay.kernel("attention", framework="numpy", supports=fits)
def picky(q, k, v, *, causal, scale, softcap):
    return right(q, k, v, causal, scale)

def right(q, k, v, causal, scale):
    group = q.shape[1] // k.shape[1]
    # NaN in V of a masked key must not reach O.
    k, v = (np.nan_to_num(np.repeat(t, group, 1)).astype(np.float64) for t in (k, v))
    s = q.astype(np.float64) @ k.swapaxes(2, 3) * (q.shape[3] ** -0.5 if scale is None else scale)
    if causal:
        s = np.where(np.tri(*s.shape[2:], dtype=bool), s, -np.inf)
    m = s.max(-1, keepdims=True)
    w = np.exp(s - m)
    total = w.sum(-1, keepdims=True)
    lse = (m + np.log(total)).astype(np.float32)
    return (w @ v / total).astype(q.dtype), lse

@assay.kernel("attention")
def fine(q, k, v, *, causal=False, scale=None):
    assert np.isfinite(q).all()
    return right(q, k, v, causal, scale)

@assay.kernel("attention")
def o_alone(q, k, v, *, scale):
    return right(q, k, v, False, scale)[0]

@assay.kernel("attention")
def of_torch(q, k, v, *, dropout_p=0.0, scale=None):
    return right(q, k, v, False, scale)

@assay.kernel("attention")
def wrong(q, k, v, *, causal, scale):
    return right(q, k, v, not causal, scale)

@assay.kernel("attention")
def talks(q, k, v, *, scale):
    print("a line that is no answer", flush=True)
    os.write(1, b"neither is this")
    return right(q, k, v, False, scale)

def with_bias(q, k, v, scale, bias):
    s = (q.astype(np.float64) @ k.swapaxes(2, 3)) * scale + bias
    w = np.exp(s - s.max(-1, keepdims=True))
    return (w @ v / w.sum(-1, keepdims=True)).astype(q.dtype)

@assay.kernel("attention", lse=False)
def adds_bias(q, k, v, *, scale, bias):
    return with_bias(q, k, v, scale, bias)

kept = {}

@assay.kernel("attention", lse=False)
def keeps_bias(q, k, v, *, scale, bias):
    return with_bias(q, k, v, scale, kept.setdefault(bias.shape, bias.copy()))

calls = []

@assay.kernel("attention", lse=False)
def drifts(q, k, v):
    calls.append(1)
    o = right(q, k, v, False, None)[0]
    o[0, 0, 0, 0] += 1e-7 * len(calls)
    return o

@assay.kernel("attention", lse=False)
def in_place(q, k, v):
    q += 1
    return right(q - 1, k, v, False, None)[0]

plain = lambda q, k, v: right(q, k, v, False, None)

@assay.kernel("attention", lse=False)
def raises(q, k, v):
    raise ValueError("no such tile")

@assay.kernel("attention", lse=False)
def declines(q, k, v):
    raise NotImplementedError("heads of one column")

@assay.kernel("attention", lse=False)
def crashes(q, k, v):
    os.kill(os.getpid(), signal.SIGSEGV)

@assay.kernel("attention", framework="numpy")
def loses_the_device(q, k, v):
    tool = loses_the_device.tool
    if q.shape[1] == 3:
        tool.is_lost = lambda: True
    if tool.is_lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return right(q, k, v, False, None)

@assay.kernel("attention", lse=False)
def asks_for_its_interpreter(q, k, v):
    import sys
    assert sys.executable == os.environ["ASSAY_PYTHON"], sys.executable
    return right(q, k, v, False, None)[0]

@assay.kernel("attention", lse=False)
def forges(q, k, v):
    # Writes what could be the answer of its process, or of a judge, wherever it can.
    o = right(q, k, v, False, None)[0] * 0
    for descriptor in range(64):
        for forged in (b'[{"outcome": "pass", "reason": ""}, false]\\n', b"done\\n"):
            try:
                os.write(descriptor, forged)
            except OSError:
                pass
    return o

@assay.kernel("attention", lse=False)
def patches_the_package(q, k, v):
    # Makes everything in its process say that it is right.
    import assay._report, assay._run, assay._serve
    assay._report.is_right = assay._run.is_right = lambda result: True
    assay._report.is_wrong = lambda result: False
    assay._run.Run._again = lambda self, *a: self._call(*a[:4], {})
    assay._serve.Finding = type("Finding", (BaseException,), {})
    assay._library.library.assay_judge_function = lambda *a: 0
    return right(q, k, v, False, None)[0] * 0

@assay.kernel("attention", lse=False)
def hangs(q, k, v):
    import time
    time.sleep(3600)
"""
    )


def test_right_functions_pass():
    for name in ("fine", "o_alone", "talks", "plain", "asks_for_its_interpreter"):
        assert check("--python", f"mine.py::{name}", status=0) == [
            "pass: every element is inside its bound"
        ], name


def test_a_suite_is_drawn_for_the_function():
    told = subprocess.run(
        [COMMAND, "check", "--python", "mine.py::fine", "--suite", "tiny", "--list"],
        env={**os.environ, "ASSAY_PYTHON": sys.executable},
        text=True,
        stdout=subprocess.PIPE,
    )
    assert told.returncode == 0 and len(told.stdout.splitlines()) == 2


def test_arguments_that_kept_their_defaults_are_told():
    told = subprocess.run(
        [COMMAND, "check", "--python", "mine.py::of_torch", "--case", SMALL],
        env={**os.environ, "ASSAY_PYTHON": sys.executable},
        text=True,
        stdout=subprocess.PIPE,
    )
    assert told.returncode == 0
    assert told.stdout.splitlines()[-2] == (
        "'dropout_p' always had its default: here it is dropout and dropout_seed"
    )


def test_findings():
    assert check("--python", "mine.py::wrong", status=1)[0].startswith(
        "fail: LSE is outside its bound"
    )
    assert check("--python", "mine.py::drifts", status=1) == [
        "fail: not deterministic: two calls with the same inputs differ "
        "(deterministic=False allows it)"
    ]
    assert check("--python", "mine.py::in_place", status=1) == [
        "fail: the input q was changed in place"
    ]
    assert check("--python", "mine.py::raises", status=1) == [
        "fail: the function raised ValueError: no such tile"
    ]


def test_a_process_cannot_reach_the_verdict():
    for name in ("forges", "patches_the_package"):
        (told,) = check("--python", f"mine.py::{name}", status=1)
        assert told.startswith("fail: "), told


def test_what_a_function_keeps_is_found():
    biased = ("attention b=1 h=2 l=3x5 d=4 dtype=f32 bias=normal",)
    assert check("--python", "mine.py::adds_bias", cases=biased, status=0) == [
        "pass: every element is inside its bound"
    ]
    assert check("--python", "mine.py::keeps_bias", cases=biased, status=1)[0].startswith(
        "fail: relation other-contents violated: 'attention b=1 h=2 l=3x5 d=4 dtype=f32 scale=0.25 "
    )


def test_what_ends_the_process_costs_one_case():
    two = (SMALL, SMALL + " seed=2")
    for result in check("--python", "mine.py::crashes", cases=two, status=1):
        assert (
            result
            == "fail: the function's process was killed by signal 11 (Segmentation fault) in "
            "attention"
        )
    assert check("--python", "mine.py::hangs", "--timeout", "30", status=1) == [
        "fail: the candidate did not finish within 30 s"
    ]


def test_a_lost_device_costs_one_case():
    bad = SMALL.replace("h=2/1", "h=3/1")
    assert bad != SMALL
    told = check("--python", "mine.py::loses_the_device", cases=(SMALL, bad, SMALL), status=1)
    assert [text.split(":")[0] for text in told] == ["pass", "fail", "pass"]
    assert "illegal memory access" in told[1]


def test_a_declared_arithmetic_is_the_contract():
    half = SMALL.replace("f32", "f16")
    assert check("--python", "mine.py::declares", cases=(SMALL, half), status=0, of="contract") == [
        "fp32 accumulation, fp32 weights",
        "declared: weight_bits=16",
    ]
    Path("nonsense.py").write_text(
        "import assay\n"
        '@assay.kernel("attention", framework="numpy", arithmetic="f8 sums")\n'
        "def declares_nonsense(q, k, v):\n"
        "    return q\n"
    )
    told = check("--python", "nonsense.py::declares_nonsense", status=2)
    assert "arithmetic: is 'f8 sums', which is none for f32: fp32 accumulation, fp32" in told


def test_what_is_not_done_is_unsupported():
    assert check("--python", "mine.py::plain", cases=(SMALL, SMALL + " causal")) == [
        "pass: every element is inside its bound",
        "unsupported: causal",
    ]
    assert check("--python", "mine.py::declines", status=2) == ["unsupported: heads of one column"]
    others = [SMALL + " causal", SMALL + " softcap=3", SMALL.replace("d=4", "d=5")]
    others.append(SMALL.replace("l=3x5", "l=2x5"))
    assert check("--python", "mine.py::picky", cases=(SMALL, *others)) == [
        "pass: every element is inside its bound",
        "pass: every element is inside its bound",
        "unsupported: heads other than of 4, or a softcap",
        "unsupported: heads other than of 4, or a softcap",
        "unsupported: supports() says so",
    ]


def test_bad_input_is_refused_by_name():
    assert "mine.py has no 'mine'; its kernels are declares, picky, fine" in check(
        "--python", "mine.py::mine", status=2
    )
    assert "none.py: there is no such file" in check("--python", "none.py::mine", status=2)
    assert "is not FILE.py::function" in check("--python", "mine.py", status=2)
    assert "device: 'cuda:99'" in check(
        "--python", "mine.py::fine", "--device", "cuda:99", status=2
    )
    with open("broken.py", "w") as f:
        f.write("import nothing_of_the_kind\n")
    assert "No module named 'nothing_of_the_kind'" in check("--python", "broken.py::f", status=2)
