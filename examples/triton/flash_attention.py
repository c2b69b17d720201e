"""Flash attention in Triton, forward and backward: causal, grouped heads, f16, bf16 and f32.

    pytest -p assay.pytest_plugin --assay=plain examples/triton/flash_attention.py
    TRITON_INTERPRET=1 assay check --python examples/triton/flash_attention.py::attention --suite tiny

`attention` is right, with its gradients. MISTAKES and GRADIENT_MISTAKES are what people get wrong;
`broken(NAME)` and `broken_gradients(NAME)` are the kernels with one of them, which Assay finds.
"""

import os

import assay
import torch
import triton
import triton.language as tl

MISTAKES = (
    "tail unmasked",
    "tail tile dropped",
    "strict causality",
    "accumulator not rescaled",
    "heads by modulo",
    "log2 e rounded",
    "tf32 for f32",
    "weights in 8 bits",
)
GRADIENT_MISTAKES = (
    "tail tile dropped",
    "strict causality",
    "heads by modulo",
    "log2 e rounded",
    "tf32 for f32",
    "weights in 8 bits",
    "one head of a group alone",
    "delta left out",
    "scale of dk left out",
)
# Triton runs its kernels on the host where it is told to interpret them.
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
_DTYPES = ("f32", "f16", "bf16")
_COLUMNS = 256  # a tile of more does not fit into shared memory

# Sizes and strides are no constants: one compiled kernel serves all of them.
_NUMBERS = ["rows", "keys", "group", "kv_heads", "d", "dv"]
_NUMBERS += ["qb", "qh", "qi", "kb", "kh", "kj", "vb", "vh", "vj"]


@triton.jit
def read(base, row, rows, stride, column, columns):
    """A tile of a matrix; 0 beyond its ends."""
    return tl.load(
        base + row[:, None] * stride + column[None, :],
        mask=(row[:, None] < rows) & (column[None, :] < columns),
        other=0.0,
    )


@triton.jit
def visible(i, j, rows, keys, CAUSAL: tl.constexpr, MISTAKE: tl.constexpr):
    """Which row i sees which key j."""
    if MISTAKE == "tail unmasked":
        seen = (i < rows) & (j >= 0)
    else:
        seen = (i < rows) & (j < keys)
    if CAUSAL:
        if MISTAKE == "strict causality":
            seen = seen & (j < i)
        else:
            seen = seen & (j <= i)
    return seen


@triton.jit(do_not_specialize=_NUMBERS)
def forward(
    q, k, v, o, lse, scale, rows, keys, group, kv_heads, d, dv,
    qb, qh, qi, kb, kh, kj, vb, vh, vj,
    DP: tl.constexpr, DVP: tl.constexpr, CAUSAL: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    MISTAKE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of M rows of one head; keys come in tiles of N. O and LSE are contiguous."""
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    first = (batch * group * kv_heads + head) * rows
    kv_head = head % kv_heads if MISTAKE == "heads by modulo" else head // group
    log2e = 1.4427 if MISTAKE == "log2 e rounded" else 1.4426950408889634
    i = tl.program_id(0) * M + tl.arange(0, M)
    x = tl.arange(0, DP)
    y = tl.arange(0, DVP)
    q_tile = read(q + batch * qb + head * qh, i, rows, qi, x, d)
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    accumulated = tl.zeros([M, DVP], tl.float32)
    end = keys // N * N if MISTAKE == "tail tile dropped" else keys
    for start in range(0, end, N):
        j = start + tl.arange(0, N)
        k_tile = read(k + batch * kb + kv_head * kh, j, keys, kj, x, d)
        v_tile = read(v + batch * vb + kv_head * vh, j, keys, vj, y, dv)
        seen = visible(i[:, None], j[None, :], rows, keys, CAUSAL, MISTAKE)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * scale
        scores = tl.where(seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        # A row that has seen no key yet has no maximum; -inf minus -inf would be NaN.
        safe = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2((scores - safe[:, None]) * log2e)
        rescale = tl.exp2((top - safe) * log2e)
        total = total * rescale + tl.sum(weights, 1)
        if MISTAKE != "accumulator not rescaled":
            accumulated = accumulated * rescale[:, None]
        if MISTAKE == "weights in 8 bits":
            weights = weights.to(tl.float8e4nv).to(tl.float32)
        accumulated += tl.dot(weights.to(v_tile.dtype), v_tile, input_precision=PRECISION)
        top = new_top
    lost = total == 0
    divisor = tl.where(lost, 1.0, total)
    out = tl.where(lost[:, None], 0.0, accumulated / divisor[:, None])
    tl.store(
        o + (first + i[:, None]) * dv + y[None, :],
        out.to(o.dtype.element_ty),
        mask=(i[:, None] < rows) & (y[None, :] < dv),
    )
    row_lse = tl.where(lost, float("-inf"), top + tl.log(divisor))
    tl.store(lse + first + i, row_lse, mask=i < rows)


@triton.jit(do_not_specialize=_NUMBERS)
def gradients_of_rows(
    q, k, v, o, do, lse, delta, dq, scale, rows, keys, group, kv_heads, d, dv,
    qb, qh, qi, kb, kh, kj, vb, vh, vj,
    DP: tl.constexpr, DVP: tl.constexpr, CAUSAL: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    MISTAKE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ of one tile of M rows, and delta = <dO, O> of each row. Outputs, O and dO are contiguous."""
    head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    first = (batch * group * kv_heads + head) * rows
    kv_head = head % kv_heads if MISTAKE == "heads by modulo" else head // group
    log2e = 1.4427 if MISTAKE == "log2 e rounded" else 1.4426950408889634
    i = tl.program_id(0) * M + tl.arange(0, M)
    x = tl.arange(0, DP)
    y = tl.arange(0, DVP)
    q_tile = read(q + batch * qb + head * qh, i, rows, qi, x, d)
    o_tile = read(o + first * dv, i, rows, dv, y, dv)
    do_tile = read(do + first * dv, i, rows, dv, y, dv)
    row_lse = tl.load(lse + first + i, mask=i < rows, other=0.0)
    row_delta = tl.sum(do_tile.to(tl.float32) * o_tile.to(tl.float32), 1)
    if MISTAKE == "delta left out":
        row_delta = row_delta * 0.0
    tl.store(delta + first + i, row_delta, mask=i < rows)
    of_q = tl.zeros([M, DP], tl.float32)
    end = keys // N * N if MISTAKE == "tail tile dropped" else keys
    for start in range(0, end, N):
        j = start + tl.arange(0, N)
        k_tile = read(k + batch * kb + kv_head * kh, j, keys, kj, x, d)
        v_tile = read(v + batch * vb + kv_head * vh, j, keys, vj, y, dv)
        seen = visible(i[:, None], j[None, :], rows, keys, CAUSAL, MISTAKE)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * scale
        weights = tl.where(seen, tl.exp2((scores - row_lse[:, None]) * log2e), 0.0)
        of_weights = tl.dot(do_tile, tl.trans(v_tile), input_precision=PRECISION)
        of_scores = weights * (of_weights - row_delta[:, None])
        of_q += tl.dot(of_scores.to(k_tile.dtype), k_tile, input_precision=PRECISION)
    tl.store(
        dq + (first + i[:, None]) * d + x[None, :],
        (of_q * scale).to(dq.dtype.element_ty),
        mask=(i[:, None] < rows) & (x[None, :] < d),
    )


@triton.jit(do_not_specialize=_NUMBERS)
def gradients_of_keys(
    q, k, v, do, lse, delta, dk, dv_out, scale, rows, keys, group, kv_heads, d, dv,
    qb, qh, qi, kb, kh, kj, vb, vh, vj,
    DP: tl.constexpr, DVP: tl.constexpr, CAUSAL: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    MISTAKE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dK and dV of one tile of N keys, summed over the rows of all query heads of the group."""
    kv_head = tl.program_id(1).to(tl.int64)
    batch = tl.program_id(2).to(tl.int64)
    log2e = 1.4427 if MISTAKE == "log2 e rounded" else 1.4426950408889634
    j = tl.program_id(0) * N + tl.arange(0, N)
    x = tl.arange(0, DP)
    y = tl.arange(0, DVP)
    k_tile = read(k + batch * kb + kv_head * kh, j, keys, kj, x, d)
    v_tile = read(v + batch * vb + kv_head * vh, j, keys, vj, y, dv)
    of_k = tl.zeros([N, DP], tl.float32)
    of_v = tl.zeros([N, DVP], tl.float32)
    end = rows // M * M if MISTAKE == "tail tile dropped" else rows
    first_member = group - 1 if MISTAKE == "one head of a group alone" else 0
    for member in range(first_member, group):
        if MISTAKE == "heads by modulo":
            head = member * kv_heads + kv_head
        else:
            head = kv_head * group + member
        first = (batch * group * kv_heads + head) * rows
        for start in range(0, end, M):
            i = start + tl.arange(0, M)
            q_tile = read(q + batch * qb + head * qh, i, rows, qi, x, d)
            do_tile = read(do + first * dv, i, rows, dv, y, dv)
            row_lse = tl.load(lse + first + i, mask=i < rows, other=0.0)
            row_delta = tl.load(delta + first + i, mask=i < rows, other=0.0)
            seen = visible(i[None, :], j[:, None], rows, keys, CAUSAL, MISTAKE)
            scores = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION) * scale
            weights = tl.where(seen, tl.exp2((scores - row_lse[None, :]) * log2e), 0.0)
            of_weights = tl.dot(v_tile, tl.trans(do_tile), input_precision=PRECISION)
            of_scores = weights * (of_weights - row_delta[None, :])
            of_k += tl.dot(of_scores.to(q_tile.dtype), q_tile, input_precision=PRECISION)
            if MISTAKE == "weights in 8 bits":
                weights = weights.to(tl.float8e4nv).to(tl.float32)
            of_v += tl.dot(weights.to(do_tile.dtype), do_tile, input_precision=PRECISION)
    if MISTAKE != "scale of dk left out":
        of_k = of_k * scale
    at = (batch * kv_heads + kv_head) * keys + j[:, None]
    inside = j[:, None] < keys
    tl.store(dk + at * d + x[None, :], of_k.to(dk.dtype.element_ty), mask=inside & (x[None, :] < d))
    tl.store(
        dv_out + at * dv + y[None, :],
        of_v.to(dv_out.dtype.element_ty),
        mask=inside & (y[None, :] < dv),
    )


def _rows_together(t):
    """The tensor, copied unless the elements of a row lie one behind the other."""
    return t if t.stride(3) == 1 or t.shape[3] == 1 else t.contiguous()


def _numbers(q, k, v):
    group = q.shape[1] // k.shape[1]
    sizes = (q.shape[2], k.shape[2], group, k.shape[1], q.shape[3], v.shape[3])
    return sizes + q.stride()[:3] + k.stride()[:3] + v.stride()[:3]


def _constants(q, v, causal, mistake):
    padded, padded_v = (max(16, triton.next_power_of_2(t.shape[3])) for t in (q, v))
    widest = max(padded, padded_v)
    tile = 64 if widest <= 64 and q.dtype != torch.float32 else 32 if widest <= 128 else 16
    exact = q.dtype == torch.float32 and mistake != "tf32 for f32"
    return dict(
        DP=padded, DVP=padded_v, CAUSAL=causal, M=tile, N=tile, MISTAKE=mistake,
        PRECISION="ieee" if exact else "tf32", num_warps=4, num_stages=1,
    )  # fmt: skip


def run(q, k, v, causal, scale, mistake="none"):
    """O in the dtype of q, and LSE in f32."""
    q, k, v = (_rows_together(t) for t in (q, k, v))
    b, h, rows, _ = q.shape
    o = torch.empty(b, h, rows, v.shape[3], dtype=q.dtype, device=q.device)
    lse = torch.empty(b, h, rows, dtype=torch.float32, device=q.device)
    if lse.numel() > 0:
        constants = _constants(q, v, causal, mistake)
        forward[(triton.cdiv(rows, constants["M"]), h, b)](
            q, k, v, o, lse, scale, *_numbers(q, k, v), **constants
        )
    return o, lse


def run_gradients(q, k, v, o, lse, do, causal, scale, mistake="none"):
    """dQ, dK and dV in the dtype of q."""
    q, k, v = (_rows_together(t) for t in (q, k, v))
    o, lse, do = (t.contiguous() for t in (o, lse, do))
    b, h, rows, _ = q.shape
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    delta = torch.empty_like(lse)
    constants, numbers = _constants(q, v, causal, mistake), _numbers(q, k, v)
    if lse.numel() > 0:
        gradients_of_rows[(triton.cdiv(rows, constants["M"]), h, b)](
            q, k, v, o, do, lse, delta, dq, scale, *numbers, **constants
        )
    if dk.numel() > 0:
        gradients_of_keys[(triton.cdiv(k.shape[2], constants["N"]), k.shape[1], b)](
            q, k, v, do, lse, delta, dk, dv, scale, *numbers, **constants
        )
    return dq, dk, dv


def fits(case):
    """Whether the kernels do a case; a text says why not."""
    columns = max(case["shape"]["dim"], case["shape"]["value_dim"])
    return True if columns <= _COLUMNS else f"heads of more than {_COLUMNS} columns"


def gradients(q, k, v, o, lse, do, *, causal, scale):
    return run_gradients(q, k, v, o, lse, do, causal, scale)


@assay.kernel("attention", device=DEVICE, dtypes=_DTYPES, supports=fits, gradients=gradients)
def attention(q, k, v, *, causal, scale):
    return run(q, k, v, causal, scale)


def broken(mistake):
    """The forward kernel with one of MISTAKES."""
    if mistake not in MISTAKES:
        raise ValueError(f"mistake: {mistake!r} is none of {', '.join(MISTAKES)}")

    def function(q, k, v, *, causal, scale):
        return run(q, k, v, causal, scale, mistake)

    return assay.kernel("attention", device=DEVICE, dtypes=_DTYPES, name=mistake)(function)


def broken_gradients(mistake):
    """The backward kernels with one of GRADIENT_MISTAKES; the forward kernel is right."""
    if mistake not in GRADIENT_MISTAKES:
        raise ValueError(f"mistake: {mistake!r} is none of {', '.join(GRADIENT_MISTAKES)}")

    def function(q, k, v, o, lse, do, *, causal, scale):
        return run_gradients(q, k, v, o, lse, do, causal, scale, mistake)

    return assay.kernel("backward", device=DEVICE, dtypes=_DTYPES, name=mistake)(function)
