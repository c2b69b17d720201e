"""Kernels of jax and of cupy: on a GPU where there is one, jax on the host as well."""

import importlib.util
import os

import pytest

import assay

if not any(importlib.util.find_spec(name) for name in ("jax", "cupy")):
    pytest.skip("there is neither jax nor cupy", allow_module_level=True)

LINE = "attention b=2 h=4/2 l=9x17 d=16 dtype=f32 causal"
EXAMPLE = os.path.join(os.path.dirname(__file__), "..", "..", "examples", "jax")


def attend(np, q, k, v, causal):
    """Attention by the functions of numpy, which jax and cupy have as well."""
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    s = np.matmul(q, np.swapaxes(k, -1, -2)) / q.shape[-1] ** 0.5
    if causal:
        s = np.where(np.triu(np.ones(s.shape[-2:], dtype=bool), 1), -np.inf, s)
    m = s.max(-1, keepdims=True)
    w = np.exp(s - m)
    total = w.sum(-1, keepdims=True)
    return np.matmul(w, v) / total, (m + np.log(total))[..., 0]


def outcome(function, framework, device, line=LINE, **options):
    kernel = assay.kernel("attention", framework=framework, device=device, **options)(function)
    result = kernel.judge(line)
    return f"{result['outcome']}: {result['reason']}"


@pytest.fixture(params=["cpu", "cuda"])
def jax_on(request):
    jax = pytest.importorskip("jax")
    try:
        jax.devices("gpu" if request.param == "cuda" else "cpu")
    except RuntimeError:
        pytest.skip("jax has no GPU here")
    with jax.default_matmul_precision("highest"):
        yield jax.numpy, request.param


@pytest.fixture
def cupy():
    found = pytest.importorskip("cupy")
    if not found.is_available():
        pytest.skip("there is no GPU")
    return found


def test_jax(jax_on):
    np, device = jax_on

    def right(q, k, v, *, causal):
        return attend(np, q, k, v, causal)

    assert outcome(right, "jax", device).startswith("pass")
    assert outcome(
        lambda q, k, v, *, causal: right(q, k, v, causal=False), "jax", device
    ).startswith("fail: ")
    assert "not a jax.Array" in outcome(
        lambda q, k, v, *, causal: tuple(
            map(__import__("numpy").asarray, right(q, k, v, causal=causal))
        ),
        "jax",
        device,
    )


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_jax_in_16_bits(jax_on, dtype):
    np, device = jax_on

    def right(q, k, v, *, causal):
        o, lse = attend(np, *(t.astype(np.float32) for t in (q, k, v)), causal)
        return o.astype(q.dtype), lse

    assert outcome(right, "jax", device, LINE.replace("f32", dtype)).startswith("pass")


def test_a_device_that_jax_has_not(jax_on):
    with pytest.raises(assay.InputError, match="device: 'cuda:77'"):
        outcome(lambda q, k, v: q, "jax", "cuda:77")


def test_the_attention_of_jax(jax_on):
    np, device = jax_on
    if device == "cpu":
        pytest.skip("the example is of a GPU")
    from assay._load import load

    for name, dtypes in (("xla", ("f32", "f16", "bf16")), ("cudnn", ("f16", "bf16"))):
        kernel = load(f"{EXAMPLE}/attention_kernels.py::{name}")
        lines = [
            f"{operation} b=2 h=4/2 l=128 d=64 dtype={dtype}{rest}"
            for operation in ("attention", "backward")
            for dtype in dtypes
            for rest in ("", " causal")
        ]
        report = assay.check(kernel, case=lines, threads=0, shrink=False)
        assert report.ok and report.counts["pass"] == len(lines), report


def test_tf32_is_named(jax_on):
    np, device = jax_on
    if device == "cpu":
        pytest.skip("TF32 is of a GPU")
    from assay._load import load

    kernel = load(f"{EXAMPLE}/attention_kernels.py::xla_tf32")
    assert "all 24 bits" not in str(assay.identify(kernel, "f32")["Q K, inputs"])


def test_cupy(cupy):
    def right(q, k, v, *, causal):
        return attend(cupy, q, k, v, causal)

    def in_double(q, k, v, *, causal):
        o, lse = attend(cupy, *(t.astype("float64") for t in (q, k, v)), causal)
        return o.astype("float32"), lse.astype("float32")

    def told(function, line=LINE):
        return outcome(function, "cupy", "cuda", line)

    assert told(in_double).startswith("pass")
    assert told(in_double, LINE + " layout=padded").startswith("pass")
    assert told(lambda q, k, v, *, causal: right(q, k, v, causal=False)).startswith("fail: ")
    assert "not a cupy array" in told(
        lambda q, k, v, *, causal: tuple(t.get() for t in in_double(q, k, v, causal=causal))
    )

    def in_place(q, k, v, *, causal):
        answer = in_double(q, k, v, causal=causal)
        q *= 2
        return answer

    assert told(in_place) == "fail: the input q was changed in place"

    def leaves_out(q, k, v, *, causal):
        o, lse = in_double(q, k, v, causal=causal)
        made = cupy.empty_like(o)
        made[:, :, :-1] = o[:, :, :-1]
        return made, lse

    assert told(leaves_out).startswith("fail: ")

    side = cupy.cuda.Stream(non_blocking=True)

    def elsewhere(q, k, v, *, causal):
        with side:
            answer = in_double(q, k, v, causal=causal)
        side.synchronize()
        return answer

    assert "stream" in told(elsewhere)


def test_a_device_that_cupy_has_not(cupy):
    with pytest.raises(assay.InputError, match="device: 'cuda:77'"):
        outcome(lambda q, k, v: q, "cupy", "cuda:77")
    with pytest.raises(assay.InputError, match="device: 'cpu'"):
        outcome(lambda q, k, v: q, "cupy", "cpu")
