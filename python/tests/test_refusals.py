"""What is refused is an InputError, whatever the value; and nothing is printed or left behind."""

import os
import subprocess
import sys

import pytest

import assay

torch = pytest.importorskip("torch")

import kernels  # noqa: E402
from kernels import right_torch  # noqa: E402

LINE = "attention b=1 h=1 l=2 d=1"
WRONG = (
    object(),
    "x",
    "",
    b"x",
    "a\0b",
    "\ud800",
    -1,
    2**80,
    1.5,
    float("nan"),
    True,
    (),
    [1],
    ("a", "b"),
    {"a": 1},
    lambda: None,
    torch.zeros(2),
    torch.zeros(1, 1, 2, 1, dtype=torch.complex64),
)


def attention(**change):
    q, k, v = torch.zeros(1, 1, 2, 1), torch.zeros(1, 1, 3, 1), torch.zeros(1, 1, 3, 1)
    o, _ = right_torch(q, k, v)
    return dict(o=o, q=q, k=k, v=v, **change)


def backward(**change):
    given = attention()
    zeros = {f"d{name}": torch.zeros_like(given[name]) for name in "oqkv"}
    return {**given, **zeros, **change}


def decode(**change):
    q, pages = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 4, 1)
    table, lengths = torch.zeros(1, 1, dtype=torch.int32), torch.tensor([3])
    return dict(
        o=q, q=q, k_pages=pages, v_pages=pages, block_table=table, lengths=lengths, **change
    )


def product(**change):
    bytes_ = torch.zeros(32, dtype=torch.uint8)
    return dict(c=torch.zeros(1, 1), w="f8e4m3:0", a=torch.zeros(1, 32), codes=bytes_, **change)


def suite(**change):
    return dict(suite="tiny", features=kernels.mine.features, **change)


def identified(**change):
    return dict(function=kernels.mine, dtype="f32", **change)


def checked(**change):
    return dict(function=kernels.mine, case=LINE, shrink=False, **change)


def made(**change):
    return dict(operation="attention", **change)


def verified(**change):
    return {"path": "none.safetensors", **change}


def recorded(**change):
    return {"path": "dump.safetensors", **attention(), **change}


def call(function, arguments):
    """Calls it, and a kernel that was made judges a case."""
    if function is assay.kernel:
        return function(**arguments)(right_torch).judge(LINE)
    return list(function(**arguments)) if function is assay.cases else function(**arguments)


_PROBLEM = (
    "causal scale softcap window offset mask bias lengths starts query_segment key_segment "
    "alibi_slopes sink dropout dropout_seed finite_min_masks conventions layout lse_base"
)
_JUDGED = " threads rows evidence arithmetic save name"
EVERY = [
    (
        assay.assert_attention,
        attention,
        "o q k v lse store k_scales v_scales " + _PROBLEM + _JUDGED,
    ),
    (assay.assert_backward, backward, "dq dk dv do o q k v lse dlse d_bias d_sink" + _JUDGED),
    (
        assay.assert_decode,
        decode,
        "o q k_pages v_pages block_table lengths lse causal window" + _JUDGED,
    ),
    (
        assay.assert_product,
        product,
        "c w codes scales extra a a_format a_codes a_scales tensor_scale a_tensor_scale k "
        "threads rows evidence save name",
    ),
    (assay.cases, suite, "suite seed features kernel"),
    (assay.identify, identified, "function dtype w a gradients device"),
    (
        assay.check,
        checked,
        "function suite case seed device threads relations pictures evidence shrink shrink_seconds "
        "isolate timeout progress",
    ),
    (
        assay.kernel,
        made,
        "operation device framework layout dtypes without supports lse deterministic gradients "
        "arithmetic conventions name",
    ),
    (assay.verify, verified, "path threads rows evidence arithmetic conventions"),
    (assay.record, recorded, "path operation case kernel o q causal scale window"),
]


@pytest.mark.parametrize(
    "function, right, keyword",
    [(f, right, keyword) for f, right, keywords in EVERY for keyword in keywords.split()],
    ids=lambda value: getattr(value, "__name__", None) or str(value),
)
def test_a_wrong_value_is_refused_or_means_something(
    function, right, keyword, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # where save= writes
    for value in WRONG:
        if callable(value) and keyword in ("supports", "arithmetic", "progress"):
            continue  # what a function of the user raises is its own
        try:
            call(function, {**right(), keyword: value})
        except (assay.InputError, assay.Failure, assay.Unsupported):
            pass
        except Exception as e:
            raise AssertionError(f"{keyword}={value!r} raises {type(e).__name__}: {e}") from e


PROGRAM = """
import array, logging, sys, threading
import assay

def view(values, shape):
    return memoryview(array.array("f", values)).cast("B").cast("f", shape=shape)

q, k, v = view([0] * 4, [1, 1, 2, 2]), view(range(6), [1, 1, 3, 2]), view([3, 6, 9], [1, 1, 3, 1])
assay.assert_attention(view([6, 6], [1, 1, 2, 1]), q=q, k=k, v=v)
try:
    assay.assert_attention(view([6, 7], [1, 1, 2, 1]), q=q, k=k, v=v)
    raise SystemExit("nothing was raised")
except assay.Failure:
    pass

@assay.kernel("attention", framework="buffer")
def zeros(q, k, v):
    return view([0] * (q.shape[2] * v.shape[3]), [1, 1, q.shape[2], v.shape[3]])

report = assay.check(zeros, case="attention b=1 h=1 l=4x4 d=2", shrink_seconds=1)
assert report.failures
assert not logging.root.handlers and threading.active_count() == 1
assert not {"torch", "numpy", "hypothesis", "pytest"} & set(sys.modules)
"""


def test_nothing_is_printed_or_left_behind():
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", PROGRAM],
        env=dict(os.environ),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
