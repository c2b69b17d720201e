"""Flash attention in Triton, forward: causal, grouped heads, any length, f16, bf16 and f32.

    pytest -p assay.pytest_plugin --assay=plain examples/triton/flash_attention.py

`attention` is right. `MISTAKES` are what people get wrong; `broken(NAME)` is the kernel with one
of them, which Assay finds.
"""

import assay
import torch
import triton
import triton.language as tl

MISTAKES = (
    "none",
    "tail unmasked",
    "tail tile dropped",
    "strict causality",
    "accumulator not rescaled",
    "heads by modulo",
    "log2 e rounded",
    "tf32 for f32",
    "weights in 8 bits",
)


@triton.jit
def forward(
    q, k, v, o, lse, scale, rows, keys, group, kv_heads,
    qb, qh, qi, kb, kh, kj, vb, vh, vj, ob, oh, oi, lb, lh,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr,
    CAUSAL: tl.constexpr, M: tl.constexpr, N: tl.constexpr, MISTAKE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of M rows of one head; keys come in tiles of N."""
    tile, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_head = head % kv_heads if MISTAKE == 5 else head // group
    i = tile * M + tl.arange(0, M)
    d, dv = tl.arange(0, DP), tl.arange(0, DVP)
    q_tile = tl.load(
        q + batch * qb + head * qh + i[:, None] * qi + d[None, :],
        mask=(i[:, None] < rows) & (d[None, :] < D),
        other=0.0,
    )
    log2e = 1.4427 if MISTAKE == 6 else 1.4426950408889634
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    accumulated = tl.zeros([M, DVP], tl.float32)
    end = keys // N * N if MISTAKE == 2 else keys
    for start in range(0, end, N):
        j = start + tl.arange(0, N)
        in_k = (j[None, :] < keys) & (d[:, None] < D)
        k_tile = tl.load(
            k + batch * kb + kv_head * kh + j[None, :] * kj + d[:, None], mask=in_k, other=0.0
        )
        scores = tl.dot(q_tile, k_tile, input_precision=PRECISION) * scale
        if MISTAKE != 1:
            scores = tl.where(j[None, :] < keys, scores, float("-inf"))
        if CAUSAL:
            if MISTAKE == 3:
                seen = (j[None, :] < i[:, None]) | (i[:, None] == 0)
            else:
                seen = j[None, :] <= i[:, None]
            scores = tl.where(seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        safe = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2((scores - safe[:, None]) * log2e)
        rescale = tl.exp2((top - safe) * log2e)
        total = total * rescale + tl.sum(weights, 1)
        if MISTAKE != 4:
            accumulated = accumulated * rescale[:, None]
        in_v = (j[:, None] < keys) & (dv[None, :] < DV)
        v_tile = tl.load(
            v + batch * vb + kv_head * vh + j[:, None] * vj + dv[None, :], mask=in_v, other=0.0
        )
        if MISTAKE == 8:
            weights = weights.to(tl.float8e4nv).to(tl.float32)
        accumulated += tl.dot(weights.to(v_tile.dtype), v_tile, input_precision=PRECISION)
        top = new_top
    lost = total == 0
    out = tl.where(lost[:, None], 0.0, accumulated / tl.where(lost, 1.0, total)[:, None])
    tl.store(
        o + batch * ob + head * oh + i[:, None] * oi + dv[None, :],
        out.to(o.dtype.element_ty),
        mask=(i[:, None] < rows) & (dv[None, :] < DV),
    )
    tl.store(
        lse + batch * lb + head * lh + i,
        tl.where(lost, float("-inf"), top + tl.log(total)),
        mask=i < rows,
    )


def run(q, k, v, causal, scale, mistake="none"):
    """O in the dtype of q, and LSE in f32."""
    q, k, v = (t if t.stride(3) == 1 or t.shape[3] == 1 else t.contiguous() for t in (q, k, v))
    b, h, rows, d = q.shape
    keys, dv = v.shape[2:]
    o = torch.empty(b, h, rows, dv, dtype=q.dtype, device=q.device)
    lse = torch.empty(b, h, rows, dtype=torch.float32, device=q.device)
    if o.numel() == 0:
        return o, lse.fill_(float("-inf"))
    padded, padded_v = (max(16, triton.next_power_of_2(n)) for n in (d, dv))
    tile = 32 if q.dtype == torch.float32 or padded > 128 else 64
    exact = q.dtype == torch.float32 and mistake != "tf32 for f32"
    forward[(triton.cdiv(rows, tile), h, b)](
        q, k, v, o, lse, scale, rows, keys, h // k.shape[1], k.shape[1],
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *o.stride()[:3], *lse.stride()[:2],
        D=d, DV=dv, DP=padded, DVP=padded_v, CAUSAL=causal, M=tile, N=tile,
        MISTAKE=MISTAKES.index(mistake), PRECISION="ieee" if exact else "tf32",
    )  # fmt: skip
    return o, lse


@assay.kernel("attention", device="cuda", dtypes=("f32", "f16", "bf16"), without=("layout=bshd",))
def attention(q, k, v, *, causal, scale):
    return run(q, k, v, causal, scale)


def broken(mistake):
    """The kernel with one of MISTAKES."""

    def function(q, k, v, *, causal, scale):
        return run(q, k, v, causal, scale, mistake)

    return assay.kernel("attention", device="cuda", dtypes=("f32", "f16", "bf16"), name=mistake)(
        function
    )
