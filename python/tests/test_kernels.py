"""Functions as kernels: what their signatures say, how they are called, and what a run reports."""

import functools
import math
import os
import signal
import subprocess
import sys

import pytest

import assay
from assay._library import facts, parse
from assay._report import failure_text

torch = pytest.importorskip("torch")

import kernels  # noqa: E402
from kernels import right_torch  # noqa: E402

FORWARD = "attention b=2 h=4/2 l=7x9 d=8/5 dtype=f32 causal scale=0.25"


def attention(function=None, **options):
    return assay.kernel("attention", **options)(function or right_torch)


def test_what_a_signature_says():
    features = set(kernels.mine.features)
    assert {"attention", "causal", "scale", "gqa", "dtype=bf16", "layout=padded"} <= features
    assert not features & {
        "window",
        "bool",
        "backward",
        "out",
        "layout=reversed",
        "layout=distant",
        "lengths",
    }
    assert features <= set(facts()["features"])
    assert "out" in attention().features and "bool" in attention().features
    few = attention(dtypes=("f16",), without=("gqa", "causal"))
    assert "dtype=f32" not in few.features and not {"gqa", "causal"} & set(few.features)
    anything = attention(lambda q, k, v, **rest: None)
    assert {"dropout", "docs", "alibi", "sink", "offset=lengths"} <= set(anything.features)
    assert "backward" in attention(gradients="autograd").features


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: attention(3), "is no function"),
        (lambda: attention(lambda q, k: q), "takes 2 tensors by position"),
        (lambda: attention(lambda q, k, v, *, tau: q), "argument 'tau' without a default"),
        (lambda: attention(lambda q, k, v, attn_mask: q), "no attention gives; here it is mask ("),
        (
            lambda: attention(lambda q, k, v, causal, is_causal: q),
            "'causal' and 'is_causal', which",
        ),
        (lambda: attention(lambda q, k, v, softcp: q), "no attention gives; did you mean softcap"),
        (lambda: attention(lambda q, k, v, *, dropout: q), "'dropout' alone"),
        (lambda: assay.kernel("atention")(right_torch), "'atention' is none of"),
        (lambda: assay.kernel(right_torch), "write @assay.kernel"),
        (lambda: attention(layout="sbhd"), "layout: 'sbhd'"),
        (lambda: attention(dtypes=("f8",)), "dtypes: 'f8'"),
        (lambda: attention(without=("windows",)), "without: 'windows'"),
        (lambda: attention(framework="theano"), "framework: 'theano'"),
        (lambda: attention(gradients="jvp"), "gradients: 'jvp'"),
        (lambda: attention(device="cuda:77").features, "device: 'cuda:77'"),
        (lambda: assay.check(kernels.mine), "one of suite= and case="),
        (lambda: assay.check(kernels.mine, suite="smoke", case=FORWARD), "both suite= and case="),
        (lambda: attention(dtypes=()), "dtypes: () holds no dtype"),
        (lambda: attention(name="a\nb"), "name: 'a.*' is no text of printable"),
        (lambda: assay.check(kernels.mine, suite="smock"), "unknown suite 'smock'"),
        (lambda: assay.check(kernels.mine, suite="smoke", seed=-1), "seed: -1"),
        (lambda: assay.check(kernels.mine, case="attention b=x"), "expected an integer"),
        (lambda: assay.check(kernels.mine, case=[]), "holds no case"),
    ],
)
def test_bad_input_is_refused_by_name(make, words):
    with pytest.raises(assay.InputError, match=words.replace("(", r"\(").replace(")", r"\)")):
        make()


def test_a_module_takes_what_its_forward_takes():
    class Module(torch.nn.Module):
        def forward(self, q, k, v, causal=False):
            return right_torch(q, k, v, causal=causal)[0]

    class Anything(torch.nn.Module):
        def forward(self, *tensors):
            return right_torch(*tensors)[0]

    assert "causal" in attention(Module()).features and "scale" not in attention(Module()).features
    assert attention(Module()).judge("attention b=1 h=1 l=3 d=4 causal")["outcome"] == "pass"
    assert "causal" not in attention(Anything()).features
    assert attention(Anything()).judge("attention b=1 h=1 l=3 d=4")["outcome"] == "pass"

    class Foreign(torch.nn.Module):
        def forward(self, q, k, v, dropout_p):
            return q

    with pytest.raises(assay.InputError, match="'dropout_p' without .* here it is dropout and"):
        attention(Foreign())


def test_names_of_other_libraries_are_known():
    def theirs(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, softmax_scale=None):
        assert attn_mask is None and dropout_p == 0 and softmax_scale is not None
        return right_torch(q, k, v, causal=is_causal, scale=softmax_scale)

    kernel = attention(theirs)
    assert {"causal", "scale"} <= set(kernel.features) and "dropout" not in kernel.features
    case = "attention b=1 h=1 l=9 d=4 causal scale=0.3"
    assert kernel.judge(case)["outcome"] == "pass"
    assert "'dropout_p' always had its default: here it is dropout and dropout_seed" in repr(
        assay.check(kernel, case=case)
    )

    def wrong(q, k, v, is_causal=False):
        return right_torch(q, k, v)

    assert attention(wrong).judge("attention b=1 h=1 l=9 d=4 causal")["outcome"] == "fail"


def test_misspelt_options_of_a_case_are_refused():
    for function in (attention().judge, attention().check):
        with pytest.raises(assay.InputError, match="thread: is no keyword .* did you mean threads"):
            function("attention b=1 h=1 l=3 d=4", thread=2)
        with pytest.raises(assay.InputError, match="(line|case): is missing"):
            function()


def test_a_suite_without_caches_is_no_suite_of_a_decoding_kernel():
    kernel = assay.kernel("decode", framework="torch")(lambda q, k, v, table, lengths: q)
    with pytest.raises(assay.InputError, match="suite: 'decode' has no case with a .*'caches' has"):
        assay.check(kernel, suite="decode")
    kernel = assay.kernel("decode", framework="torch", dtypes=("f64",))(kernel.function)
    assert not assay.check(kernel, suite="caches", shrink=False).results  # none for its dtype


def test_a_right_kernel_passes():
    report = assay.check(kernels.mine, case=[FORWARD, "attention b=1 h=1 l=4 d=4 dtype=bf16"])
    assert report.ok and report.raise_for_failures() is report
    assert report.counts["pass"] == 2 and report.elements == 2 * 4 * 7 * 6 + 4 * 5
    assert report.results[0]["elements"]["compared"]["LSE"] == 2 * 4 * 7


@assay.kernel("attention", framework="torch", dtypes=("bf16",), gradients="autograd", lse=False)
def eager(q, k, v, *, causal, scale):
    """Attention as models write it out: every tensor between two operations is in bf16."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)

    def product(a, b):  # as on a GPU: torch 1.13 adds in bf16 on a CPU
        return (a.float() @ b.float()).to(q.dtype)

    scores = (product(q, k.transpose(-2, -1)).float() * scale).to(q.dtype)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -float("inf"))
    return product(torch.softmax(scores.float(), -1).to(q.dtype), v)


# Scores that are stored before the scale and after it, and gradients of weights that are stored,
# show where no other rounding hides them.
@pytest.mark.parametrize(
    "line",
    [
        "attention b=2 h=3/1 l=96 d=24 dtype=bf16 causal scores=tile-peaks seed=15",
        "backward b=3 h=5 l=130x257 d=32 dtype=bf16 causal scores=signed-zeros"
        " grad=signed-zeros seed=5",
        "backward b=1 h=2 l=77 d=80/48 dtype=bf16 causal values=ones grad=ramp seed=1",
    ],
)
def test_an_eager_kernel_in_bf16_passes(line):
    result = eager.judge(line)
    assert result["outcome"] == "pass", result["reason"]


def test_the_function_gets_what_the_line_says():
    seen = []

    def function(
        q,
        k,
        v,
        *,
        causal,
        scale,
        softcap,
        window,
        offset,
        bias,
        mask,
        lengths,
        starts,
        sink,
        alibi_slopes,
        query_segment,
        key_segment,
        dropout,
        dropout_seed,
        finite_min_masks,
        out_dtype,
    ):
        seen.append(locals())
        raise NotImplementedError("enough")

    kernel = attention(function)
    line = (
        "attention b=2 h=4/2 l=7x9 d=8/5 dtype=f16 out=f32 causal offset=2 "
        "softcap=30 window=3,-1 bias=normal@hij "
        "bool=random lengths=9,4 starts=1,0 docs=3,4 alibi sink=0.5 dropout=0.25:7"
    )
    result = kernel.judge(line)
    assert result["outcome"] == "unsupported" and result["reason"] == "enough"
    got = seen[0]
    assert got["q"].shape == (2, 4, 7, 8) and got["q"].dtype == torch.float16
    assert got["k"].shape == (2, 2, 9, 8) and got["v"].shape == (2, 2, 9, 5)
    assert (got["causal"], got["offset"], got["softcap"], got["window"]) == (True, 2, 30.0, (3, -1))
    assert got["scale"] == pytest.approx(8**-0.5) and got["out_dtype"] == torch.float32
    assert got["bias"].shape == got["mask"].shape == (2, 4, 7, 9) and got["bias"].stride(0) == 0
    assert got["mask"].dtype == torch.bool
    assert got["lengths"].tolist() == [9, 4] and got["starts"].tolist() == [1, 0]
    assert got["query_segment"].shape == (2, 7) and got["key_segment"].shape == (2, 9)
    assert got["alibi_slopes"].shape == got["sink"].shape == (4,)
    assert (got["dropout"], got["dropout_seed"], got["finite_min_masks"]) == (0.25, 7, False)
    kernel.judge("attention b=2 h=2 l=3x9 d=4 causal offset=lengths lengths=9,4")
    assert seen[-1]["offset"].tolist() == [6, 1] and seen[-1]["bias"] is None


def test_layouts():
    def bshd(q, k, v, *, causal, scale):
        assert q.shape[1:] == (7, 4, 8)
        o, lse = right_torch(*(t.transpose(1, 2) for t in (q, k, v)), causal=causal, scale=scale)
        return o.transpose(1, 2), lse

    assert attention(bshd, layout="bshd").judge(FORWARD)["outcome"] == "pass"
    for layout in ("bshd", "packed", "padded", "strided"):
        assert kernels.mine.judge(f"{FORWARD} layout=q:{layout},k:{layout}")["outcome"] == "pass"


def test_outputs_in_any_form():
    def o_alone(q, k, v, *, causal, scale):
        return right_torch(q, k, v, causal=causal, scale=scale)[0]

    def by_name(q, k, v, *, causal, scale):
        o, lse = right_torch(q, k, v, causal=causal, scale=scale)
        return {"lse": lse[..., None], "o": o}

    result = attention(o_alone).judge(FORWARD)
    assert result["outcome"] == "pass" and "LSE" not in result["elements"]["compared"]
    result = attention(by_name).judge(FORWARD)
    assert result["outcome"] == "pass" and "LSE" in result["elements"]["compared"]


def test_a_failure_is_made_smaller():
    report = assay.check(kernels.late_by_one, case=FORWARD, shrink_seconds=3600)
    (failure,) = report.failures
    assert parse(failure["shrunk"])["shape"]["keys"] == 2 and "causal" in failure["shrunk"]
    assert (
        failure["shrunk"] in failure["reproduce"]
        and "kernels.py::late_by_one" in failure["reproduce"]
    )
    with pytest.raises(assay.Failure) as error:
        report.raise_for_failures()
    assert len(str(error.value).splitlines()) < 10 and failure["reproduce"] in str(error.value)


def test_gradients_by_autograd_and_by_a_function():
    line = "backward b=1 h=4/2 l=5x6 d=4/3 dtype=f32 causal scale=0.5"

    def by_hand(q, k, v, o, lse, do, *, causal, scale):
        with torch.enable_grad():
            leaves = [t.detach().clone().requires_grad_() for t in (q, k, v)]
            again, _ = right_torch(*leaves, causal=causal, scale=scale)
            return torch.autograd.grad(again, leaves, do)

    def forward(q, k, v, *, causal, scale):
        return right_torch(q, k, v, causal=causal, scale=scale)

    for kernel in (
        attention(forward, gradients="autograd"),
        attention(forward, gradients=by_hand),
        assay.kernel("backward")(by_hand),
    ):
        result = kernel.judge(line)
        assert result["outcome"] == "pass", result["reason"]
        assert set(result["elements"]["compared"]) >= {"O", "dQ", "dK", "dV"}

    def with_dlse(q, k, v, o, lse, do, *, causal, scale, dlse):
        with torch.enable_grad():
            leaves = [t.detach().clone().requires_grad_() for t in (q, k, v)]
            again = right_torch(*leaves, causal=causal, scale=scale)
            return torch.autograd.grad(
                again, leaves, (do, torch.zeros_like(lse) if dlse is None else dlse)
            )

    for kernel in (attention(forward, gradients=with_dlse), assay.kernel("backward")(with_dlse)):
        assert "dlse" in kernel.features
        for case in (line, line + " dlse=normal"):
            assert kernel.judge(case)["outcome"] == "pass"
    assert "dlse" not in attention(forward, gradients=by_hand).features
    ignoring = assay.kernel("backward")(
        lambda *t, causal, scale, dlse: by_hand(*t, causal=causal, scale=scale)
    )
    assert ignoring.judge(line + " dlse=normal")["outcome"] == "fail"
    wrong = assay.kernel("backward")(
        lambda *t, causal, scale: [g * 1.001 for g in by_hand(*t, causal=causal, scale=scale)]
    )
    assert wrong.judge(line)["outcome"] == "fail"
    detached = attention(
        lambda q, k, v, *, scale: right_torch(q, k.detach(), v, scale=scale), gradients="autograd"
    )
    assert "does not depend on k" in detached.judge("backward b=1 h=1 l=3 d=4")["reason"]


def test_decode_over_pages():
    def decode(q, k_pages, v_pages, block_table, lengths, *, causal, scale):
        size = k_pages.shape[2]
        keys = int(lengths.max())
        k, v = (
            torch.zeros(q.shape[0], p.shape[1], keys, p.shape[3], dtype=p.dtype)
            for p in (k_pages, v_pages)
        )
        for b, n in enumerate(lengths.tolist()):
            for j in range(n):
                page = block_table[b, j // size]
                k[b, :, j], v[b, :, j] = k_pages[page, :, j % size], v_pages[page, :, j % size]
        hidden = torch.zeros(q.shape[2], keys, dtype=torch.bool)
        if causal:
            hidden = torch.ones(q.shape[2], keys).triu(keys - q.shape[2] + 1).bool()
        return right_torch(q, k, v, scale=scale, mask=~hidden, lengths=lengths)

    kernel = assay.kernel("decode", framework="torch")(decode)
    for line in (
        "attention b=2 h=4/2 l=1x9 d=8 causal offset=end cache=paged:4",
        "attention b=2 h=4/2 l=1x9 d=8 causal offset=end cache=paged:4 pages=halves",
        "attention b=2 h=4/2 l=3x9 d=8 causal offset=end cache=paged:4 pages=rows",
        "attention b=1 h=1 l=5x9 d=4 causal offset=end cache=contiguous chunks=2,1",
    ):
        result = kernel.judge(line)
        assert result["outcome"] == "pass", result["reason"]
    assert kernel.judge("attention b=1 h=1 l=2 d=4")["outcome"] == "unsupported"
    assert (
        kernel.judge("attention b=1 h=1 l=1x9 d=9 offset=end cache=latent:4:16+4")["outcome"]
        == "unsupported"
    )
    shifted = assay.kernel("decode", framework="torch")(
        lambda q, k, v, table, lengths, *, causal, scale: decode(
            q, k, v, table.flip(1), lengths, causal=causal, scale=scale
        )
    )
    assert (
        shifted.judge("attention b=2 h=4/2 l=1x9 d=8 causal offset=end cache=paged:4")["outcome"]
        == "fail"
    )


INT8_ALONE = [f for f in facts()["features"] if f[:2] == "w=" and f != "w=int8"]


def int8_product(a, codes, *, scales, extra, k, n, group, out_dtype):
    w = codes.view(torch.int8).reshape(k, n).double()
    expanded = [
        t.reshape(-1, n).double().repeat_interleave(group, 0)[:k]
        for t in (scales.view(torch.float16), extra.view(torch.int8))
    ]
    return (a.double() @ ((w - expanded[1]) * expanded[0])).to(out_dtype)


def test_products():
    product = assay.kernel("product", framework="torch", without=INT8_ALONE)(int8_product)
    for line in (
        "product m=3 n=8 k=40 w=int8:32",
        "product m=1 n=5 k=64 w=int8:64 dtype=bf16 out=f32",
    ):
        result = product.judge(line)
        assert result["outcome"] == "pass", result["reason"]
    assert product.judge("product m=3 n=8 k=32 w=mxfp4")["reason"] == "w=mxfp4"


def test_a_product_declares_its_sums():
    def rounded(a, codes, *, scales, extra, k, n, group, out_dtype):  # weights in f16
        w = int8_product(
            torch.eye(k),
            codes,
            scales=scales,
            extra=extra,
            k=k,
            n=n,
            group=group,
            out_dtype=torch.float16,
        )
        return (a.double() @ w.double()).to(out_dtype)

    def declaring(function, arithmetic):
        return assay.kernel(
            "product", framework="torch", without=INT8_ALONE, arithmetic=arithmetic
        )(function)

    line = "product m=5 n=16 k=256 w=int8:32 dtype=f16"
    by_dtype = lambda dtype: "fp32 sums, any order" if dtype == "f16" else {"order": 1}
    right, wrong = declaring(int8_product, by_dtype), declaring(rounded, by_dtype)
    for result in (right.judge(line), wrong.judge(line)):
        assert result["contract"] == "fp32 sums, any order" and result["arithmetic"]["declared"]
    assert right.judge(line)["outcome"] == "pass"
    assert right.judge(line.replace(" dtype=f16", ""))["contract"] == "declared: order=1"
    assert wrong.judge(line)["outcome"] == "fail"
    undeclared = declaring(rounded, None).judge(line)  # the ladder has a rung for it
    assert undeclared["outcome"] == "pass", undeclared["reason"]
    assert "rounded to the dtype of A" in undeclared["contract"]
    assert declaring(rounded, {"weight_bits": 16}).judge(line)["outcome"] == "pass"
    by_block = declaring(rounded, {"weight_bits": 16, "block": 16, "roundoff": 2.0**-23})
    result = by_block.judge(line + " out=f32")  # typical errors are those of rounded weights, too
    assert result["outcome"] == "pass" and result["evidence"]["rows"]["C"]["s"] > 0.1
    coarse = declaring(int8_product, {"roundoff": 2.0**-8}).judge(line)
    assert coarse["outcome"] == "pass" and "roundoff" in coarse["evidence"]["not_asked"]
    for arithmetic, words in (
        ("quick", "which is none for f32: fp32 sums by group, any order; "),
        ({"tile": 4}, "^arithmetic: 'tile=4' is no FIELD=NUMBER; the fields are roundoff"),
        ({"order": 1, "block": 16}, "order = 1 goes with neither block"),
    ):
        with pytest.raises(assay.InputError, match=words):
            declaring(int8_product, arithmetic)


@pytest.mark.parametrize("w, group", [("mxfp4", 32), ("nvfp4", 16), ("fp4", 128), ("f8e4m3:0", 0)])
def test_the_group_of_a_format_is_told(w, group):
    told = []

    @assay.kernel("product", framework="torch")
    def product(a, codes, *, group):
        told.append(group)
        raise NotImplementedError

    line = f"product m=3 n=16 k=128 w={w}"
    product.judge(line)
    assert told == [group] and assay.Case(line).inputs("torch")["group"] == group


def test_numpy_kernels():
    np = pytest.importorskip("numpy")

    def function(q, k, v, *, causal, scale):
        o, lse = right_torch(
            *(torch.from_numpy(np.ascontiguousarray(t)) for t in (q, k, v)),
            causal=causal,
            scale=scale,
        )
        return o.numpy(), lse.numpy()

    kernel = attention(function, framework="numpy")
    assert "layout=reversed" in kernel.features and "dtype=bf16" not in kernel.features
    assert kernel.judge(FORWARD + " layout=reversed")["outcome"] == "pass"
    assert kernel.judge(FORWARD.replace("f32", "f16"))["outcome"] == "pass"
    assert kernel.judge(FORWARD.replace("f32", "bf16"))["outcome"] == "unsupported"


def test_buffers_alone():
    def mean(q, k, v):  # scores are equal where keys are 0
        rows, keys, columns = q.shape[2], k.shape[2], v.shape[3]
        weights = [
            [
                math.exp(
                    sum(q[0, 0, i, d] * k[0, 0, j, d] for d in range(q.shape[3]))
                    * q.shape[3] ** -0.5
                )
                for j in range(keys)
            ]
            for i in range(rows)
        ]
        import array

        flat = [
            sum(w * v[0, 0, j, c] for j, w in enumerate(row)) / sum(row)
            for row in weights
            for c in range(columns)
        ]
        return memoryview(array.array("f", flat)).cast("B").cast("f", shape=[1, 1, rows, columns])

    kernel = attention(mean, framework="buffer")
    assert kernel.judge("attention b=1 h=1 l=3x4 d=2/5")["outcome"] == "pass"


def test_supports_is_asked():
    asked = []

    def supports(case):
        asked.append(case)
        return True if case["shape"]["dim"] == 8 else "d other than 8"

    kernel = attention(supports=supports)
    report = assay.check(kernel, case=[FORWARD, "attention b=1 h=1 l=2 d=4"])
    assert report.counts["pass"] == 1 and report.counts["unsupported"] == 1
    assert report.results[1]["reason"] == "d other than 8" and len(asked) >= 2
    with pytest.raises(assay.Failure, match="nothing was proved"):
        assay.check(kernel, case="attention b=1 h=1 l=2 d=4").raise_for_failures()


def test_a_suite_is_drawn_for_the_kernel():
    report = assay.check(kernels.mine, suite="tiny")
    assert report.ok and report.counts["unsupported"] == 0
    assert {u["why"] for u in report.unsupported} >= {"window", "product"}
    assert f"{len(report.unsupported)} cases of the whole suite" in report.summary()


def test_a_report_shows_itself():
    report = assay.check(
        kernels.late_by_one,
        case=[FORWARD, "attention b=1 h=1 l=2 d=1"],
        pictures=True,
        shrink=False,
    )
    page = report._repr_html_()
    assert "<table>" in page and "fail" in page and "&#x27;" in page and "<svg" in page
    assert "2 cases" in repr(report) and "reproduce" in repr(report)


def test_a_result_shows_itself():
    result = kernels.late_by_one.judge("attention b=1 h=1 l=2 d=1 causal")
    page = result._repr_html_()
    assert isinstance(result, dict) and "<table>" in page and "<pre>" in page
    assert "is wrong at" in page and "assay check --candidate" in page and "proved: " in page
    right = kernels.mine.judge(FORWARD)._repr_html_()
    assert "pass" in right and "<pre>" not in right


def test_a_loop_of_ones_own():
    judged = 0
    for case in assay.cases("smoke", kernel=kernels.mine):
        if judged == 3:
            break
        i = case.inputs("torch")
        o, lse = right_torch(i["q"], i["k"], i["v"], causal=i["causal"], scale=i["scale"])
        assert case.check(o=o, lse=lse)["outcome"] in ("pass", "suspect")
        with pytest.raises(assay.Failure):
            case.check(o=o + 1, lse=lse)
        with pytest.raises(assay.InputError, match="tensor out is no output"):
            case.check(o=o, out=o)
        judged += 1
    assert judged == 3


def test_a_declared_arithmetic_is_that_of_every_case():
    asked = []

    def arithmetic(dtype):
        asked.append(dtype)
        return "fp32 accumulation, fp32 weights" if dtype == "f32" else {"weight_bits": 16}

    kernel = attention(arithmetic=arithmetic)
    assert kernel.judge(FORWARD)["contract"] == "fp32 accumulation, fp32 weights"
    half = kernel.judge(FORWARD.replace("f32", "f16"))
    assert half["contract"] == "declared: weight_bits=16"
    assert half["arithmetic"]["declared"]
    assert half["arithmetic"]["attention"]["weight_dtype"] == "f16"
    assert set(asked) == {"f32", "f16"}
    strict = attention(
        lambda q, k, v, *, causal: tuple(t * 1.0003 for t in right_torch(q, k, v, causal=causal)),
        arithmetic="fp32 accumulation, fp32 weights",
        name="strict",
    )
    result = strict.judge("attention b=1 h=1 l=4 d=4 causal")
    assert result["outcome"] == "fail" and "fp32 weights" in result["contract"]
    with pytest.raises(assay.InputError, match="which is none for f32: fp32 accumulation"):
        attention(arithmetic="quick")
    with pytest.raises(assay.InputError, match="none for bf16: fp32 accumulation, fp32 weights"):
        attention(arithmetic="fp32 accumulation, weights in f16", dtypes=("bf16", "f32"))
    with pytest.raises(assay.InputError, match="^arithmetic: 'weights=3' is no FIELD=NUMBER"):
        attention(arithmetic={"weights": 3})
    assert attention(arithmetic="fp32 accumulation, weights in f16").arithmetic


def test_evidence_fails_warns_or_is_off():
    kernel = attention(
        lambda q, k, v: (right_torch(q, k, v)[0].float().mul(1.01).to(q.dtype)), lse=False
    )
    line = "attention b=1 h=2 l=40 d=32 dtype=f16"
    outcomes = {}
    for evidence in ("fail", "warn", "off"):
        (result,) = assay.check(kernel, case=line, evidence=evidence, shrink=False)
        outcomes[evidence] = result["outcome"] == "fail", "by evidence" in result["reason"]
    assert outcomes == {"fail": (True, True), "warn": (False, True), "off": (False, False)}
    case = assay.Case(line)
    i = case.inputs("torch")
    wrong = kernel(i["q"], i["k"], i["v"])
    assert case.judge(o=wrong, evidence="off")["outcome"] != "fail"
    with pytest.raises(assay.Failure, match="wrong by evidence"):
        case.check(o=wrong)


def test_relations_can_be_asked():
    result = kernels.mine.judge(FORWARD, relations=True)
    told = {name: r["result"] for name, r in result["relations"].items()}
    assert told["negated-values"] == "held" and told["threads"] == "held"
    # NaN in V of a masked key is multiplied by 0 here, which is a convention.
    assert result["outcome"] == "pass" and told["unseen-keys-nan"] == "not applicable"
    assert "NaN at a masked key spreads" in result["relations"]["unseen-keys-nan"]["why"]


def test_a_process_of_its_own():
    fine = "attention b=1 h=1 l=3 d=4"
    assert assay.check(kernels.mine, case=[fine, FORWARD], isolate=True).ok
    for kernel, words in (
        (kernels.crashes, "killed by signal 11"),
        (kernels.leaves, "exited with status 7"),
    ):
        report = assay.check(kernel, case=[fine, fine], isolate=True)
        assert [r["outcome"] for r in report] == ["fail", "fail"] and words in report.results[0][
            "reason"
        ]
    report = assay.check(kernels.hangs, case=fine, isolate=True, timeout=5)
    assert "did not finish within 5 s" in report.results[0]["reason"]
    with pytest.raises(assay.InputError, match="isolate"):
        assay.check(lambda q, k, v: q, case=fine, isolate=True)


SCRIPT = """
import assay, torch

@assay.kernel("attention", framework="torch")
def mine(q, k, v):
    return q

print("loaded", flush=True)
assay.check(mine, case=["attention b=1 h=1 l=2 d=1"] * 50, isolate=True)
"""


def test_a_process_of_its_own_starts_no_other(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, told = process.communicate(timeout=600)
        last = told.splitlines()[-1]
        assert process.returncode == 1 and "InputError: isolate: " in last, told
        assert 'put the call under `if __name__ == "__main__":` (' + str(script) in last
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert told.count("loaded") == 1  # what the worker's file prints is no answer


def test_a_file_that_cannot_be_loaded_again_is_one_error(tmp_path, monkeypatch):
    (tmp_path / "once.py").write_text(
        "import os, assay\nos.mkdir('made')\nmine = assay.kernel('attention')(lambda q, k, v: q)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import once

    with pytest.raises(assay.InputError, match="once.py: FileExistsError"):
        assay.check(once.mine, case=["attention b=1 h=1 l=2 d=1"] * 3, isolate=True)
    with pytest.raises(assay.InputError, match="is no function at the top of a file"):
        assay.check(functools.partial(right_torch), case=FORWARD, isolate=True)


def test_a_scale_of_two_roots_is_typical_of_fp32():
    """The math attention of torch multiplies Q and K by the root of the scale each."""

    @assay.kernel(
        "attention",
        framework="torch",
        gradients="autograd",
        lse=False,
        arithmetic="fp32 accumulation, fp32 weights",
    )
    def attend(q, k, v, *, causal, scale):
        s = (q * math.sqrt(scale)) @ (k * math.sqrt(scale)).transpose(-1, -2)
        if causal:
            s = s.masked_fill(torch.ones(s.shape[-2:]).triu(1).bool(), -math.inf)
        return s.softmax(-1) @ v

    line = "backward b=1 h=1 l=41x383 d=192/128 dtype=f32 causal scores=heavy-tail values=ramp"
    for seed in (7, 150, 151):
        attend.check(f"{line} seed={seed}")


def test_orders_that_differ_between_keys_are_typical_of_fp32():
    """The edges of a matrix product of a CPU sum in another order than the rest of it does."""

    @assay.kernel("attention", framework="torch", lse=False, dtypes=("f32",))
    def attend(q, k, v, *, causal, scale):
        q, d = q * scale, q.shape[-1]
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        terms = q[:, :, :, None] * k[:, :, None]  # [B, H, Lq, Lk, D]
        forward, backward = terms[..., 0].clone(), terms[..., d - 1].clone()
        for at in range(1, d):
            forward += terms[..., at]
            backward += terms[..., d - 1 - at]
        s = torch.where(torch.arange(k.shape[2]) % 16 < 8, forward, backward)
        if causal:
            s = s.masked_fill(torch.ones(s.shape[-2:]).triu(1).bool(), -math.inf)
        return s.softmax(-1) @ v

    for seed in (1, 2, 18):
        line = f"attention b=2 h=3/1 l=96 d=17/33 causal scores=subset values=one-hot seed={seed}"
        attend.check(line, threads=0)


def test_a_plain_loop_over_scaled_columns_is_typical():
    """torch's math attention on a CPU: Q and K are multiplied by the root of the scale, and their
    products are summed one after the other. Where terms are alike, no other order rounds so."""

    @assay.kernel("attention", framework="torch", lse=False, dtypes=("f16",))
    def attend(q, k, v, *, causal, scale):
        root = torch.tensor(scale).sqrt()
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1).float() for x in (k, v))
        a, b = (q.float() * root)[..., None, :], (k * root)[:, :, None]
        s = torch.zeros(*q.shape[:3], k.shape[2])
        for at in range(q.shape[3]):
            s = (s.double() + a[..., at].double() * b[..., at].double()).float()
        if causal:
            s = s.masked_fill(torch.ones(s.shape[-2:]).triu(1).bool(), -math.inf)
        return (s.softmax(-1) @ v).half()

    line = "attention b=2 h=3/1 l=41x383 d=192/128 dtype=f16 causal scores=far-negative values="
    for rest in ("signed-zeros seed=10081", "normal seed=5", "biased seed=6"):
        result = attend.judge(line + rest, threads=0)
        assert result["outcome"] in ("pass", "inconclusive"), result["reason"]
        assert result["evidence"]["rows"]["O"]["s"] > 0.1  # it was asked


def summed_by_tensor_cores(a, b):
    """a b of f16 numbers in binary32, 16 terms at a time, rounded towards zero."""
    total = torch.zeros(*a.shape[:-1], b.shape[-1])
    for at in range(0, a.shape[-1], 16):
        part = a[..., at : at + 16].double() @ b[..., at : at + 16, :].double()
        exact = total.double() + part
        near = exact.float()
        beyond = near.double().abs() > exact.abs()
        total = torch.where(beyond, torch.nextafter(near, torch.zeros(())), near)
    return total


class Flash(torch.autograd.Function):
    """Flash attention as GPUs compute it in f16: the scale and log2 e are one rounded constant, and
    the backward pass computes its weights anew, from an LSE in binary32."""

    @staticmethod
    def weights(q, k, scale, subtracted):
        s = summed_by_tensor_cores(q, k.transpose(2, 3))
        hidden = torch.ones(s.shape[2:]).triu(1).bool()
        log2_e = torch.tensor(1.4426950408889634)
        folded = torch.tensor(scale) * log2_e
        if subtracted is None:  # the maximum, which a forward pass subtracts
            top = s.masked_fill(hidden, -math.inf).amax(3, keepdim=True)
            subtracted, top = top * folded, top * torch.tensor(scale)
        else:
            subtracted, top = subtracted * log2_e, None
        x = (s.double() * folded.double() - subtracted.double()).float()
        return torch.exp2(x).masked_fill(hidden, 0), top

    @staticmethod
    def forward(ctx, q, k, v, scale):
        p, top = Flash.weights(q, k, scale, None)
        total = p.sum(3, keepdim=True)
        o = (summed_by_tensor_cores(p.half(), v) / total).half()
        ctx.save_for_backward(q, k, v, o, top + total.log())
        ctx.scale = scale
        return o

    @staticmethod
    def backward(ctx, d_o):
        q, k, v, o, lse = ctx.saved_tensors
        p, _ = Flash.weights(q, k, ctx.scale, lse)
        dp = summed_by_tensor_cores(d_o, v.transpose(2, 3))
        ds = (p * (dp - (d_o.float() * o.float()).sum(3, keepdim=True))).half()
        dq = summed_by_tensor_cores(ds, k) * ctx.scale
        dk = summed_by_tensor_cores(ds.transpose(2, 3), q) * ctx.scale
        dv = summed_by_tensor_cores(p.half().transpose(2, 3), d_o)
        return dq.half(), dk.half(), dv.half(), None


def test_gradients_of_large_scores_are_typical_of_f16():
    """Scores of 200,000 are rounded by so much that most errors are far below what is typical."""

    @assay.kernel("attention", framework="torch", gradients="autograd", lse=False, dtypes=("f16",))
    def attend(q, k, v, *, causal, scale):
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        return Flash.apply(q, k, v, scale)

    line = "backward b=2 h=3/1 l=96 d=32 dtype=f16 causal"
    for rest in (
        "scores=far-positive values=cancel grad=ramp seed=9",
        "scores=far-negative grad=ramp seed=18",
        "scores=far-negative values=cancel grad=ramp seed=204",
        "scores=far-negative values=cancel grad=ramp seed=205",
    ):
        attend.check(f"{line} {rest}")


def test_weights_in_bf16_are_typical_where_one_key_has_nearly_all():
    """Most outputs are exact then, and exact ones do not say that an arithmetic is too coarse."""

    @assay.kernel("attention", framework="torch", lse=False, dtypes=("bf16",))
    def attend(q, k, v, *, causal, scale):
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1).float() for x in (k, v))
        s = q.float() @ k.transpose(2, 3) * scale
        if causal:
            s = s.masked_fill(torch.ones(s.shape[2:]).triu(1).bool(), -math.inf)
        p = torch.exp(s - s.amax(3, keepdim=True))
        return (p.bfloat16().float() @ v / p.sum(3, keepdim=True)).bfloat16()

    attend.check(
        "attention b=2 h=6/2 l=41x383 d=64 dtype=bf16 scale=0.25 causal scores=heavy-tail "
        "values=cancel seed=390"
    )


def test_a_kernel_is_found_by_the_name_that_its_module_has():
    report = assay.check(kernels.made, case="attention b=1 h=2 l=3 d=4", isolate=True)
    assert report.ok, report
    assert report.title == "another name"
    assert report.results[0]["candidate"].endswith("kernels.py::made")


def test_a_lost_device_costs_one_case():
    fine, bad = "attention b=1 h=2 l=3 d=4", "attention b=1 h=3 l=3 d=4"
    outcomes = ["pass", "fail", "pass", "fail", "pass"]
    for isolate in (False, True):
        report = assay.check(
            kernels.loses_the_device, case=[fine, bad, fine, bad, fine], isolate=isolate
        )
        assert [r["outcome"] for r in report] == outcomes, report
        assert "illegal memory access" in report.results[1]["reason"]

    @assay.kernel("attention", framework="torch")
    def nowhere(q, k, v, *, causal):
        nowhere.tool.is_lost = lambda: True
        raise RuntimeError("CUDA error")

    report = assay.check(nowhere, case=[fine, fine])
    assert [r["outcome"] for r in report] == ["fail", "error"]
    assert "the device answers no more since 'attention b=1 h=2" in report.results[1]["reason"]


def test_exceptions_are_results():
    fine = "attention b=1 h=1 l=3 d=4"
    assert kernels.raises.judge(fine)["reason"] == "the function raised ValueError: no such tile"
    assert kernels.declines.judge(fine)["outcome"] == "unsupported"

    def interrupted(q, k, v):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attention(interrupted).judge(fine)

    def leaving(q, k, v):
        raise SystemExit(3)

    assert "SystemExit" in attention(leaving).judge(fine)["reason"]


def test_a_report_tells_failures_of_one_cause_once():
    lines = [
        f"attention b=1 h=1 l={n} d=4 dtype=f32{more}"
        for n in range(4, 18)
        for more in ("", " causal")
    ]
    report = assay.check(kernels.late_by_one, case=lines, shrink=False)
    assert report.counts["fail"] == 14 and report.counts["pass"] == 14
    told = repr(report)
    assert "all 14 failing cases have causal; none of 14 passing ones has it" in told
    assert told.count("looks like: the causal diagonal is one key late") == 1
    assert "14 x fail, proved: " in told
    with pytest.raises(assay.Failure, match="looks like: the causal") as raised:
        report.raise_for_failures()
    assert "all 14 failing cases have causal" in str(raised.value)
    assert "looks like: the causal" in report._repr_html_()


def test_a_ratio_above_one_is_not_written_as_one():
    from assay._report import _times

    for ratio, text in (
        (1.003, "1.003"),
        (1.0002, "1.0002"),
        (1 + 2**-52, "1.0000000000000002"),
        (1.0, "1"),
        (0.99999, "1"),
        (2.5, "2.5"),
        (13.6123, "13.6"),
        (1e30, "1e+30"),
    ):
        assert _times(ratio) == text


def test_that_no_cause_was_found_comes_last():
    result = kernels.raises.judge(FORWARD)
    result["diagnosis"] = {"explanations": [], "tried": 117}
    none = failure_text("mine", result, "again").splitlines()
    assert none[-2:] == [
        "  reproduce again",
        "  looks like none of 117 known faults that would show",
    ]
    result["diagnosis"]["explanations"] = [{"words": "a fault"}]
    found = failure_text("mine", result, "again").splitlines()
    assert found[-2:] == ["  looks like: a fault", "  reproduce again"]


def test_places_of_elements():
    from assay._report import place_of

    element = {"b": 0, "h": 1, "row": 2, "column": 3}
    assert place_of({"output": "O", **element}) == "O[b=0, h=1, row=2, column=3]"
    assert place_of({"output": "dV", **element}) == "dV[b=0, h=1, key=2, column=3]"
    assert place_of({"output": "C", **element}) == "C[row=2, column=3]"
