"""assay.identify of numpy functions whose arithmetic is known."""

import pytest

import assay

np = pytest.importorskip("numpy")

BINARY32 = "24 bits, rounded to nearest (binary32)"


def f16(x):
    return x.astype(np.float16).astype(np.float32)


def bf16(x):
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def in_order(terms):
    total = np.zeros_like(terms[0])
    for term in terms:
        total = total + term
    return total


def in_half(terms):
    total = np.zeros_like(terms[0])
    for term in terms:
        total = f16(total + term)
    return total


def pairwise(terms):
    while len(terms) > 1:
        terms = terms[0::2] + terms[1::2]
    return terms[0]


def by_halves(terms):
    while len(terms) > 1:
        terms = terms[: len(terms) // 2] + terms[len(terms) // 2 :]
    return terms[0]


def in_lanes(terms):
    return pairwise(in_order(terms.reshape(-1, 8, *terms.shape[1:])))


def in_tiles(terms):
    return in_order(in_order(terms.reshape(-1, 16, *terms.shape[1:]).swapaxes(0, 1)))


def from_last(terms):
    return in_order(terms[::-1])


def emulated(add=in_order, weights=None, scores=None, divided=False, unrounded_sum=False):
    """Attention in binary32, which adds and rounds as it is told."""

    @np.errstate(over="ignore", invalid="ignore")
    def function(q, k, v, *, scale):
        dtype = q.dtype
        q, k, v = (t.astype(np.float32) for t in (q, k, v))
        products = q.transpose(3, 0, 1, 2)[..., None] * k.transpose(3, 0, 1, 2)[..., None, :]
        s = add(products) * np.float32(scale)
        s = s if scores is None else scores(s)
        m = s.max(-1, keepdims=True)
        exact = np.exp(s - m)
        w = exact if weights is None or divided else weights(exact)
        total = add((exact if unrounded_sum else w).transpose(3, 0, 1, 2))
        if divided:
            w = weights(w / total[..., None])
        o = add(w.transpose(3, 0, 1, 2)[..., None] * v.transpose(2, 0, 1, 3)[:, :, :, None])
        if not divided:
            o = o / total[..., None]
        return o.astype(dtype), m[..., 0] + np.log(total)

    return assay.kernel("attention", framework="numpy", name="emulated")(function)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize(
    "add, order",
    [
        (in_order, "one {} after another"),
        (from_last, "one {} after another, from the last to the first"),
        (pairwise, "in pairs, neighbours first"),
        (by_halves, "in pairs, places half the length apart"),
        (
            in_lanes,
            "8 lanes ({}s 8 apart), each in order, then the lanes in pairs, neighbours first",
        ),
        (in_tiles, "tiles of 16 {}s, each summed by itself, one {} after another"),
    ],
)
def test_orders_of_sums(add, order, dtype):
    told = assay.identify(emulated(add), dtype)
    assert told["P V, order of sums"] == order.replace("{}", "key")
    assert told["Q K, order of sums"] == order.replace("{}", "column")
    assert told["P V, sums"] == told["Q K, sums"] == BINARY32
    assert told["P"] == told["scores"] == "not rounded"


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize(
    "options, subject, answer",
    [
        (dict(weights=f16), "P", "f16"),
        (dict(weights=bf16), "P", "bf16"),
        (dict(weights=f16, divided=True), "P", "f16, after it was divided by the row sum"),
        (dict(weights=bf16, divided=True), "P", "bf16, after it was divided by the row sum"),
        (dict(weights=f16), "row sum", "of weights rounded to f16"),
        (dict(weights=bf16), "row sum", "of weights rounded to bf16"),
        (dict(weights=bf16, unrounded_sum=True), "row sum", "of weights that are not rounded"),
        (dict(scores=f16), "scores", "f16"),
        (dict(scores=bf16), "scores", "bf16"),
        (dict(scores=bf16), "P", "not rounded"),
        (dict(add=in_half), "P V, sums", "11 bits, rounded to nearest (binary16)"),
    ],
)
def test_formats(options, subject, answer, dtype):
    told = assay.identify(emulated(**options), dtype)
    assert told[subject] == answer


def test_every_statement_has_its_input():
    told = assay.identify(emulated(), "f32")
    assert len(told.statements) >= 8 and all(s.answer and s.input for s in told.statements)
    assert "exp" in told and "row sum" not in told
    text = str(told)
    for s in told.statements:
        assert s.subject in text and s.input in text
        assert s.answer in told._repr_html_()
    assert told.case == "attention b=1 h=1 l=64x128 d=64 dtype=f32"
    with pytest.raises(KeyError, match="'P V, sums'"):
        told["PV"]


def test_a_function_of_torch_without_lse():
    torch = pytest.importorskip("torch")

    def mine(q, k, v):
        return torch.softmax(q @ k.transpose(2, 3) * q.shape[3] ** -0.5, 3) @ v

    told = assay.identify(assay.kernel(framework="torch", operation="attention")(mine), "f32")
    assert told["P V, sums"] == told["Q K, sums"] == BINARY32
    half = assay.identify(
        assay.kernel(framework="torch", operation="attention")(
            lambda q, k, v: mine(q.float(), k.float(), v.float()).to(q.dtype)
        ),
        "bf16",
    )
    assert half["P"] == "not rounded"
    assert any(why.startswith("row sum: only LSE shows it") for why in half.not_told)


def test_shapes_are_tried_until_one_is_taken():
    def wide_alone(q, k, v, *, scale):
        if q.shape[3] != 128:
            raise NotImplementedError("heads of 128 alone")
        return emulated()(q, k, v, scale=scale)

    mine = assay.kernel("attention", framework="numpy")(wide_alone)
    assert " d=128 " in assay.identify(mine, "f32").case
    one_row = assay.kernel(
        "attention",
        framework="numpy",
        supports=lambda case: case["shape"]["rows"] == 1 or "many rows",
    )(emulated().function)
    assert " l=1x128 " in assay.identify(one_row, "f32").case
    none = assay.kernel("attention", framework="numpy", supports=lambda case: "never")(wide_alone)
    with pytest.raises(assay.Unsupported, match="none of the shapes[^$]*l=64x128 d=64[^$]*never"):
        assay.identify(none, "f32")


def test_a_function_that_does_what_none_may_do_fails():
    def raises(q, k, v):
        raise ValueError("no such tile")

    def changes(q, k, v):
        q += 1
        return v[:, :, : q.shape[2]].copy()

    for function, words in ((raises, "raised ValueError: no such tile"), (changes, "changed")):
        mine = assay.kernel("attention", framework="numpy")(function)
        with pytest.raises(assay.Failure, match=words):
            assay.identify(mine, "f16")

    def interrupted(q, k, v):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assay.identify(assay.kernel("attention", framework="numpy")(interrupted), "f16")


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: assay.identify(3, "f32"), "function: 3 is no function"),
        (lambda: assay.identify(emulated(), "f64"), "dtype: 'f64' is none of f32, f16, bf16"),
        (lambda: assay.identify(emulated(), "bf16"), "no dtype=bf16"),
        (lambda: assay.identify(emulated(), "f32", device="cuda:77"), "device: 'cuda:77'"),
        (
            lambda: assay.identify(assay.kernel("decode")(lambda q, k, v, t, n: q), "f32"),
            "is a kernel of decode",
        ),
    ],
)
def test_bad_input_is_refused_by_name(make, words):
    with pytest.raises((assay.InputError, assay.Unsupported), match=words):
        make()


def gradients_of(rounds, add=in_order, by_head=False):
    """The gradients of attention in binary32. P and dS are rounded before they are multiplied."""

    @np.errstate(over="ignore", invalid="ignore")
    def function(q, k, v, o, lse, do, *, scale):
        dtype, group = q.dtype, q.shape[1] // k.shape[1]
        q, k, v, o, do = (t.astype(np.float32) for t in (q, k, v, o, do))
        k, v = (np.repeat(t, group, 1) for t in (k, v))

        def product(x, y):  # [B, H, I, N] times [B, H, N, D]
            return add(x.transpose(3, 0, 1, 2)[..., None] * y.transpose(2, 0, 1, 3)[:, :, :, None])

        def of_heads(t):
            heads = t.reshape(t.shape[0], -1, group, *t.shape[2:]).swapaxes(0, 2).swapaxes(1, 2)
            return add(heads.astype(dtype).astype(np.float32) if by_head else heads).astype(dtype)

        p = np.exp(product(q, k.swapaxes(2, 3)) * np.float32(scale) - lse[..., None])
        ds = p * (product(do, v.swapaxes(2, 3)) - (do * o).sum(-1, keepdims=True))
        p, ds = rounds(p), rounds(ds)
        dq = product(ds, k) * np.float32(scale)
        dk = product(ds.swapaxes(2, 3), q) * np.float32(scale)
        dv = product(p.swapaxes(2, 3), do)
        return dq.astype(dtype), of_heads(dk), of_heads(dv)

    return assay.kernel("backward", framework="numpy", name="gradients")(function)


@pytest.mark.parametrize("rounds, answer", [(f16, "f16"), (bf16, "bf16"), (None, "not rounded")])
def test_gradients(rounds, answer):
    told = assay.identify(gradients_of(rounds or (lambda x: x)), "f16")
    assert told.case == "backward b=1 h=1 l=128 d=64 dtype=f16"
    assert told["P before dV"] == told["dS before dK"] == answer
    assert told["dV, order of sums"] == "one row after another"
    assert told["dQ, order of sums"] == "one key after another"
    assert told["dV, sums"] == told["dK, sums"] == told["dQ, sums"] == told["dP, sums"] == BINARY32
    assert told["dV, grouped heads"] == "added before they are rounded"


def test_grouped_heads_that_are_rounded():
    told = assay.identify(gradients_of(lambda x: x, by_head=True), "f16")
    assert told["dV, grouped heads"] == "each rounded to f16, then added in more bits"


def test_gradients_by_autograd():
    torch = pytest.importorskip("torch")

    @assay.kernel("attention", framework="torch", gradients="autograd")
    def mine(q, k, v):
        return torch.softmax(q @ k.transpose(2, 3) * q.shape[3] ** -0.5, 3) @ v

    told = assay.identify(mine, "f32", gradients=True)
    assert told["P before dV"] == told["dS before dK"] == "not rounded"
    with pytest.raises(assay.InputError, match="gradients: .* has none"):
        assay.identify(emulated(), "f32", gradients=True)


def product_of(dequantize, by_group):
    """A product with int8 weights in binary32, one term after another."""

    def function(a, codes, *, scales, extra, format, group, m, n, k):
        if format != "int8":
            raise NotImplementedError(format)
        q = codes.view(np.int8).reshape(k, n).astype(np.float32)
        groups = -(-k // group)
        zeros = extra.view(np.int8).reshape(groups, n).astype(np.float32)
        s = scales.view(np.float16).reshape(groups, n).astype(np.float32)
        c = np.zeros((m, n), np.float32)
        for t in range(groups):
            w = q[t * group : (t + 1) * group] - zeros[t]
            w = w if by_group else dequantize(w * s[t])
            total = np.zeros_like(c) if by_group else c
            for i in range(len(w)):
                total = total + a[:, t * group + i, None].astype(np.float32) * w[i]
            c = c + total * s[t] if by_group else total
        return c.astype(a.dtype)

    return assay.kernel("product", framework="numpy", name="product")(function)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_products(dtype):
    told = assay.identify(product_of(f16, False), dtype, w="int8")
    assert told["A W, order of sums"] == "one term after another"
    assert told["A W, sums"] == BINARY32
    assert told["scale"] == "multiplied in before the sum"
    assert told["weights"] == "rounded to f16"
    assert ("products" in told) == (dtype == "f32")
    told = assay.identify(product_of(None, True), dtype, w="int8:64")
    assert told["A W, order of sums"].startswith("tiles of 64 terms, each summed by itself")
    assert told["scale"] == "multiplied into the sum of each group"
    assert told["weights"] == "not rounded"
    if dtype == "f32":
        assert told["products"] == "rounded before they are added"
    with pytest.raises(assay.Unsupported, match="int4"):
        assay.identify(product_of(f16, False), dtype, w="int4")


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: assay.identify(product_of(f16, False), "f32"), "w: None"),
        (lambda: assay.identify(emulated(), "f32", w="int8"), "w: 'int8'"),
        (lambda: assay.identify(product_of(f16, False), "f32", w="int9"), "w: .*int9"),
        (lambda: assay.identify(product_of(f16, False), "f32", w="int8 m=3"), "w: .*m=3"),
        (lambda: assay.identify(product_of(f16, False), "f32", w="mxfp4", a="mxfp4"), "a=mxfp4"),
    ],
)
def test_bad_input_of_products_is_refused_by_name(make, words):
    with pytest.raises(assay.InputError, match=words):
        make()
