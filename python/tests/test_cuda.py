"""Kernels on a GPU: streams, other devices, the frameworks' own kernels, and those in Triton."""

import collections
import os
import sys
import threading
import time

import pytest

import assay

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)

from kernels import right_torch  # noqa: E402

LINE = "attention b=2 h=4/2 l=33x65 d=64 dtype=f16 causal"


def judge(function, line=LINE, **options):
    result = assay.kernel("attention", device="cuda", framework="torch", **options)(function).judge(
        line
    )
    return f"{result['outcome']}: {result['reason']}"


def right(q, k, v, *, causal):
    return right_torch(q, k, v, causal=causal)


def test_a_right_function_passes():
    assert judge(right).startswith("pass")
    assert judge(right, LINE + " layout=packed").startswith("pass")


def test_work_on_a_stream_of_its_own():
    side = torch.cuda.Stream()

    def elsewhere(q, k, v, *, causal):
        with torch.cuda.stream(side):
            answer = right(q, k, v, causal=causal)
        side.synchronize()
        return answer

    told = judge(elsewhere)
    assert told.startswith("fail: ") and ("stream" in told or "outside" in told), told


def test_work_that_is_queued_after_the_return():
    writers = []

    def returns_early(q, k, v, *, causal):
        o, lse = right(q, k, v, causal=causal)
        made = torch.empty_like(o)
        torch.cuda.synchronize()

        def write():
            time.sleep(0.5)
            made.copy_(o)

        writers.append(threading.Thread(target=write))
        writers[-1].start()
        return made, lse

    told = judge(returns_early)
    for writer in writers:
        writer.join()
    assert told.startswith("fail: "), told


def test_an_output_on_the_host():
    told = judge(lambda q, k, v, *, causal: tuple(t.cpu() for t in right(q, k, v, causal=causal)))
    assert told == "fail: o lies on cpu, and the inputs on cuda"


def test_elements_that_nobody_wrote():
    def leaves_out(q, k, v, *, causal):
        o, lse = right(q, k, v, causal=causal)
        made = torch.empty(o.shape, dtype=o.dtype, device=o.device)
        made[:, :, :-1] = o[:, :, :-1]
        return made, lse

    assert judge(leaves_out).startswith("fail: ")


# ---- The kernels of torch ----

# (backend, dtypes, whether it has grouped heads)
BACKENDS = [
    ("MATH", ("f32", "f16", "bf16"), True),
    ("EFFICIENT_ATTENTION", ("f32", "f16", "bf16"), False),
    ("FLASH_ATTENTION", ("f16", "bf16"), True),
    ("CUDNN_ATTENTION", ("f16", "bf16"), True),
]


def all_right(kernel, lines):
    """Judges every line, and none may be declined: a test that compares nothing proves nothing."""
    report = assay.check(kernel, case=lines, threads=0, shrink=False)
    assert report.ok, report
    judged = report.counts["pass"] + report.counts["suspect"]
    assert judged == len(lines), [r["reason"] for r in report if r["outcome"] != "pass"]


def lines_of(dtypes, heads, operation="attention"):
    return [
        f"{operation} b=2 h={heads} l={length} d=64 dtype={dtype}{rest}"
        for dtype in dtypes
        for length, rest in (("128", ""), ("128", " causal"), ("96x160", " scale=0.25"))
    ]


@pytest.mark.parametrize("backend, dtypes, grouped", BACKENDS)
def test_the_kernels_of_torch(backend, dtypes, grouped):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def sdpa(q, k, v, *, causal, scale):
        more = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=causal, scale=scale, **more
            )

    # The sums of a backward pass are atomic, or in the order of the blocks that come first.
    kernel = assay.kernel(
        "attention",
        device="cuda",
        dtypes=dtypes,
        gradients="autograd",
        deterministic=False,
        name=backend.lower(),
    )(sdpa)
    all_right(kernel, lines_of(dtypes, "4"))
    all_right(kernel, lines_of(dtypes, "4", "backward"))
    if grouped:
        all_right(kernel, lines_of(dtypes, "4/2"))
        all_right(kernel, lines_of(dtypes, "4/2", "backward"))


def seen_causally(b, h, i, j):
    return i >= j


def test_flex_attention():
    pytest.importorskip("triton")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)

    def flex(q, k, v, *, causal, scale):
        mask = None
        if causal:
            mask = create_block_mask(
                seen_causally, None, None, q.shape[2], k.shape[2], device=q.device
            )
        return compiled(q, k, v, block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])

    kernel = assay.kernel("attention", device="cuda", gradients="autograd", deterministic=False)(
        flex
    )
    dtypes = ("f32", "f16", "bf16")
    all_right(kernel, [f"attention b=2 h=4/2 l=128 d=64 dtype={t} causal" for t in dtypes])
    all_right(kernel, ["backward b=2 h=4 l=128 d=64 dtype=bf16 causal"])


# ---- The kernels of examples/triton ----

CASES = [
    f"b=2 h=6/2 l=130x257 d=64 dtype={dtype} {rest}".strip()
    for dtype in ("f32", "f16", "bf16")
    for rest in ("", "causal", "scores=huge causal values=head-number")
] + [
    # Sums that have few roundings show an exponential that is off by a few millionths.
    "b=1 h=2 l=40x65 d=1 dtype=f32",
    "b=1 h=2 l=40x65 d=8 dtype=f32 scores=heavy-tail",
    "b=2 h=4/2 l=33x70 d=20/24 dtype=bf16 causal layout=packed",
    "b=1 h=2 l=1 d=128/64 dtype=f16 causal",
    "b=1 h=1 l=5x9 d=256 dtype=f32 scale=0.5",
]
FORWARD = ["attention " + case for case in CASES]
BACKWARD = ["backward " + case for case in CASES]
# Each mistake, and the hypothesis that it is.
MISTAKES = {
    "tail unmasked": "zeros-behind-keys",
    "tail tile dropped": "tail-tile-dropped",
    "strict causality": "causal-early",
    "accumulator not rescaled": "values-not-rescaled",
    "heads by modulo": "kv-head-modulo",
    "log2 e rounded": "log2-e-rounded",
    "tf32 for f32": "tf32-products",
    "weights in 8 bits": "weights-in-f8e4m3",
}
GRADIENT_MISTAKES = {
    "tail tile dropped": "gradient-tails-dropped",
    "strict causality": "gradient-causal-early",
    "heads by modulo": "gradient-head-modulo",
    "log2 e rounded": "gradient-log2-e-rounded",
    "tf32 for f32": "gradient-tf32-products",
    "weights in 8 bits": "gradient-weights-in-f8e4m3",
    "one head of a group alone": "last-head-only",
    "delta left out": "delta-omitted",
    "scale of dk left out": "dk-unscaled",
}


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("triton")
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, os.path.join(here, "..", "..", "examples", "triton"))
    import flash_attention

    return flash_attention


def found(kernel, lines, cause):
    """A mistake is found by a case at least, and most failures that say a cause say the true one.
    Cases that pass show that the mistake is not everywhere."""
    report = assay.check(kernel, case=lines, threads=0, shrink=False)
    assert report.counts["error"] == report.counts["unsupported"] == 0, report
    assert report.counts["convention"] == 0, report
    assert report.failures, report
    causes = collections.Counter()
    for failure in report.failures:
        assert "raised" not in failure["reason"], failure["reason"]
        for told in failure.get("diagnosis", {}).get("explanations", [])[:1]:
            causes[told["hypothesis"]] += 1
    assert causes.most_common(1)[0][0] == cause, causes


def test_a_right_triton_kernel_passes(example):
    all_right(example.attention, FORWARD)


def test_its_gradients_pass(example):
    all_right(example.attention, BACKWARD)


def test_every_mistake_is_tried(example):
    assert list(example.MISTAKES) == list(MISTAKES)
    assert list(example.GRADIENT_MISTAKES) == list(GRADIENT_MISTAKES)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_a_triton_kernel_is_named(example, mistake):
    found(example.broken(mistake), FORWARD, MISTAKES[mistake])


@pytest.mark.parametrize("mistake", GRADIENT_MISTAKES)
def test_a_mistake_of_its_gradients_is_named(example, mistake):
    found(example.broken_gradients(mistake), BACKWARD, GRADIENT_MISTAKES[mistake])


def test_a_mistake_becomes_a_small_case(example):
    report = assay.check(example.broken("strict causality"), case=FORWARD[1], threads=0)
    (failure,) = report.failures
    assert "causal" in failure["shrunk"] and "strict causality" in failure["reproduce"]


def test_a_suite(example):
    report = assay.check(example.attention, suite="smoke", threads=0, shrink=False)
    assert report.ok, report
