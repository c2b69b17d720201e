"""Kernels on a GPU: streams, other devices, the frameworks' own kernels, and one in Triton."""

import os
import sys

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


@pytest.mark.parametrize(
    "backend", ["MATH", "EFFICIENT_ATTENTION", "FLASH_ATTENTION", "CUDNN_ATTENTION"]
)
def test_the_kernels_of_torch(backend):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def sdpa(q, k, v, *, causal, scale):
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
            )

    kernel = assay.kernel(
        "attention", device="cuda", dtypes=("f16", "bf16"), without=("gqa", "head-dims", "empty")
    )(sdpa)
    for dtype in ("f16", "bf16"):
        for rest in ("", " causal", " scale=0.25"):
            result = kernel.judge(f"attention b=2 h=4 l=128 d=64 dtype={dtype}{rest}")
            assert result["outcome"] in ("pass", "suspect"), (rest, result["reason"])


def test_a_triton_kernel_and_its_mistakes():
    pytest.importorskip("triton")
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, os.path.join(here, "..", "..", "examples", "triton"))
    import flash_attention

    lines = [
        f"attention b=2 h=6/2 l=130x257 d=64 dtype={dtype} {rest}"
        for dtype in ("f32", "f16", "bf16")
        for rest in ("", "causal", "scores=growing", "scores=huge causal values=head-number")
    ]
    report = assay.check(flash_attention.attention, case=lines, shrink=False)
    assert report.ok, report
    for mistake in flash_attention.MISTAKES[1:]:
        report = assay.check(flash_attention.broken(mistake), case=lines, shrink=False)
        assert report.failures, mistake
