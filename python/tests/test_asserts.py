"""assert_attention and its kin: right answers, wrong ones, and bad input."""

import math
import os
import re
import subprocess

import pytest

import assay

torch = pytest.importorskip("torch")

from kernels import right_torch  # noqa: E402


def test_right_answers_pass(small):
    result = assay.assert_attention(small.pop("o"), **small)
    assert result["outcome"] == "pass"
    assert result["elements"]["compared"] == {"O": 2 * 4 * 9 * 5, "LSE": 2 * 4 * 9}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_passes(dtype):
    torch.manual_seed(5)
    q, k, v = (torch.randn(1, 2, 12, 16).to(dtype) for _ in range(3))
    o, lse = right_torch(q, k, v)
    assay.assert_attention(o, q=q, k=k, v=v, lse=lse)


def test_masks_compose():
    torch.manual_seed(7)
    q, k, v = (torch.randn(2, 3, 6, 4) for _ in range(3))
    bias, mask = torch.randn(3, 6, 6), torch.rand(2, 1, 6, 6) > 0.3
    lengths = torch.tensor([4, 6])
    o, lse = right_torch(q, k, v, causal=True, bias=bias, mask=mask, lengths=lengths)
    asked = dict(q=q, k=k, v=v, lse=lse, causal=True, bias=bias, mask=mask, lengths=lengths)
    assay.assert_attention(o, **asked)
    for left_out in ("causal", "bias", "mask", "lengths"):
        with pytest.raises(assay.Failure):
            assay.assert_attention(o, **{name: t for name, t in asked.items() if name != left_out})


def test_tokens_of_a_cache():
    torch.manual_seed(9)
    q, k, v = torch.randn(1, 2, 3, 16), torch.randn(1, 2, 9, 16), torch.randn(1, 2, 9, 16)

    def e4m3(x):
        step = 2.0 ** (x.abs().clamp(min=2**-6).log2().floor() - 3)
        return ((x / step).round() * step).clamp(-448, 448)

    def stored(tokens, read=lambda scale: scale):
        scale = tokens.abs().amax(-1, keepdim=True) / 448
        return e4m3(tokens / scale) * read(scale)

    o, lse = right_torch(q, stored(k), stored(v))
    asked = dict(q=q, k=k, v=v, lse=lse, store="f8e4m3:f32")
    assay.assert_attention(o, **asked)
    with pytest.raises(assay.Failure):
        assay.assert_attention(o, **{**asked, "store": None})
    o, lse = right_torch(q, stored(k, lambda s: 2 ** s.log2().ceil()), stored(v))
    with pytest.raises(assay.Failure):
        assay.assert_attention(o, **{**asked, "lse": lse})
    scales = dict(k_scales=torch.full([1], 0.01), v_scales=torch.full([1], 0.01))
    o, lse = right_torch(q, *(e4m3(t / scales["k_scales"]) * scales["k_scales"] for t in (k, v)))
    assay.assert_attention(o, **{**asked, "lse": lse, "store": "f8e4m3:f32-tensor"}, **scales)
    with pytest.raises(assay.InputError, match="store"):
        assay.assert_attention(o, **{**asked, "store": "f8 e4m3"})


def test_a_failure_says_where_in_under_ten_lines(small):
    o = small.pop("o").clone()
    o[1, 2, 3, 4] += 1e-3
    with pytest.raises(assay.Failure) as failure:
        assay.assert_attention(o, **small)
    text = str(failure.value)
    assert len(text.splitlines()) < 10
    assert "O[b=1, h=2, row=3, column=4]" in text
    for word in ("got", "exact", "bound", "reproduce", "proved: 1 of"):
        assert word in text
    assert isinstance(failure.value, AssertionError)
    assert failure.value.result["elements"]["outside"] == 1


def one_batch(small):
    return {name: small[name][:1] for name in ("q", "k", "v", "lse")}


def too_large():
    """A factor that the wide bound of f16 does not show, and evidence does."""
    torch.manual_seed(3)
    q, k, v = (torch.randn(1, 2, 40, 32).half() for _ in range(3))
    o, lse = right_torch(q, k, v)
    return dict(o=(o.float() * 1.01).half(), q=q, k=k, v=v, lse=lse)


def test_a_failure_by_evidence_says_so():
    with pytest.raises(assay.Failure) as failure:
        assay.assert_attention(**too_large())
    text = str(failure.value)
    assert len(text.splitlines()) < 10 and "is wrong by evidence" in text and "proved" not in text
    for words in (
        r"errors of O\[b=0, h=\d, row=\d+\] are s = [\d.]+ times the typical ones; limit [\d.]+, median",
        r"O is too large by a factor: 0.01 of it, z = \d+; limit [\d.]+ for \d+ questions",
        r"80 rows asked, \d+ replicates of .*, seed 1",
    ):
        assert re.search(words, text), text
    warned = assay.assert_attention(**too_large(), evidence="warn")
    assert warned["outcome"] == "pass" and "by evidence" in warned["reason"]
    assert "evidence" not in assay.assert_attention(**too_large(), evidence="off")["reason"]
    with pytest.raises(assay.InputError, match="evidence: 'no' is none of fail, warn, off"):
        assay.assert_attention(**too_large(), evidence="no")


def test_conventions_are_told_or_declared(tmp_path):
    torch.manual_seed(11)
    q, k, v = (torch.randn(1, 2, 6, 4) for _ in range(3))
    mask = torch.ones(6, 6).tril().bool() & (torch.arange(6) >= 2)  # two rows of left padding
    added = torch.zeros(6, 6).masked_fill(~mask, torch.finfo(torch.float32).min)
    o = torch.softmax(q @ k.transpose(-1, -2) / 2 + added, -1) @ v
    asked = dict(q=q, k=k, v=v, mask=mask[None, None])
    with pytest.raises(assay.Failure, match="differs by convention: masked-rows:mean-of-v") as told:
        assay.assert_attention(o, **asked)
    assert told.value.result["outcome"] == "convention"
    assert told.value.result["differs"] == ["masked-rows:mean-of-v"]
    for declared in ("masked-rows:mean-of-v", {"masked-rows": "mean-of-v"}):
        assert assay.assert_attention(o, **asked, conventions=declared)["outcome"] == "pass"
    file = tmp_path / "wrong.safetensors"
    with pytest.raises(assay.Failure, match="a fully masked row of O is not 0"):
        assay.assert_attention(o, **asked, conventions="masked-rows:zero", save=file)
    assert "is not 0" in assay.verify(file).results[0]["reason"]
    for wrong in ("rows:zero", {"masked-rows": "minus"}, 3):
        with pytest.raises(assay.InputError, match="conventions: "):
            assay.assert_attention(o, **asked, conventions=wrong)


def test_a_declared_arithmetic_is_the_contract(small, tmp_path):
    rung = "fp32 accumulation, fp32 weights, fast exp2"
    o = small.pop("o")
    assert assay.assert_attention(o, **small, arithmetic=rung)["contract"] == rung
    fields = {"weight_bits": 16, "tile": 32, "exp_ulp": 2.0}
    told = assay.assert_attention(o, **small, arithmetic=fields)["contract"]
    assert told == "declared: weight_bits=16 tile=32 exp_ulp=2.0"
    wrong = o * 1.0003  # f16 weights may err so much, and f32 weights may not
    assay.assert_attention(wrong, **small, arithmetic={"weight_bits": 16}, evidence="off")
    with pytest.raises(assay.Failure, match="proved: .* under fp32 accumulation"):
        assay.assert_attention(wrong, **small, arithmetic=rung, evidence="off")
    # The line that reproduces holds what was declared.
    file = str(tmp_path / "wrong.safetensors")
    with pytest.raises(assay.Failure) as failure:
        assay.assert_attention(wrong, **small, arithmetic=rung, evidence="off", save=file)
    again = str(failure.value).partition("reproduce ")[2].splitlines()[0]
    assert again == f"assay.verify({file!r}, arithmetic={rung!r})"
    report = eval(again)
    assert not report.ok and report.results[0]["contract"] == rung
    for arithmetic, words in (
        ("f8 sums", "'f8 sums', which is none for f32: fp32 accumulation, fp32 weights; "),
        ({"weights": 16}, "'weights=16' is no FIELD=NUMBER; the fields are dot_roundoff, "),
        ({"exp_ulp": math.nan}, "exp_ulp"),
        ({"tile": "a"}, "'a' is no finite number"),
        ({"exp_ulp": 1e9}, "outside"),
        ("", "arithmetic: is empty"),
        (16, "neither a name nor a dictionary"),
    ):
        with pytest.raises(assay.InputError, match=re.escape(words)):
            assay.assert_attention(o, **small, arithmetic=arithmetic)


def test_nan_is_a_failure(small):
    o = small.pop("o").clone()
    o[0, 0, 0, 0] = math.nan
    with pytest.raises(assay.Failure):
        assay.assert_attention(o, **small)


def test_a_failure_is_saved_for_verify(small, tmp_path, monkeypatch):
    o = small.pop("o") + 1
    with pytest.raises(assay.Failure, match="assay verify '"):
        assay.assert_attention(o, **small, save=tmp_path / "wrong.safetensors")
    assert not assay.verify(tmp_path / "wrong.safetensors").ok
    monkeypatch.setenv("ASSAY_SAVE", str(tmp_path / "kept"))
    with pytest.raises(assay.Failure) as failure:
        assay.assert_attention(o, **small)
    (saved,) = (tmp_path / "kept").iterdir()
    assert str(saved) in str(failure.value)
    command = os.environ.get("ASSAY_COMMAND")
    if command:
        done = subprocess.run([command, "verify", str(saved)], stdout=subprocess.PIPE, text=True)
        assert done.returncode == 1 and "outside its bound" in done.stdout


def test_record_and_verify(small, tmp_path):
    path = tmp_path / "dump.safetensors"
    assay.record(path, kernel="mine", **small)
    report = assay.verify(path)
    assert report.ok and len(report) == 1 and report.results[0]["candidate"] == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["dump.safetensors"]
    with pytest.raises(assay.InputError, match="keys"):
        assay.record(path, keys=small["k"], **small)
    with pytest.raises(assay.InputError, match="case: "):
        assay.record(path, case="attention x", **small)
    with pytest.raises(assay.InputError, match="No such file"):
        assay.verify(tmp_path / "none.safetensors")


def test_gradients():
    torch.manual_seed(11)
    q, k, v = (torch.randn(1, 2, 7, 4, requires_grad=True) for _ in range(3))
    o, lse = right_torch(q, k, v, causal=True)
    do = torch.randn_like(o)
    dq, dk, dv = torch.autograd.grad(o, (q, k, v), do)
    asked = dict(do=do, o=o, q=q, k=k, v=v, lse=lse, causal=True)
    result = assay.assert_backward(dq, dk, dv, **asked)
    assert set(result["elements"]["compared"]) == {"O", "LSE", "dQ", "dK", "dV"}
    with pytest.raises(assay.Failure, match="dK"):
        assay.assert_backward(dq, dk * 1.01, dv, **asked)
    with pytest.raises(assay.InputError, match="tau"):
        assay.assert_backward(dq, dk, dv, **asked, tau=1)


def test_gradients_of_a_loss_that_depends_on_lse():
    torch.manual_seed(12)
    q, k, v = (torch.randn(1, 2, 7, 4, requires_grad=True) for _ in range(3))
    o, lse = right_torch(q, k, v, causal=True)
    do, dlse = torch.randn_like(o), torch.randn_like(lse)
    dq, dk, dv = torch.autograd.grad((o, lse), (q, k, v), (do, dlse))
    asked = dict(do=do, o=o, q=q, k=k, v=v, lse=lse, causal=True)
    assay.assert_backward(dq, dk, dv, dlse=dlse, **asked)
    with pytest.raises(assay.Failure, match="dQ"):
        assay.assert_backward(dq, dk, dv, **asked)


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_decode_from_pages(layout):
    torch.manual_seed(13)
    lengths, size = torch.tensor([5, 9]), 4
    k, v = torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    q = torch.randn(2, 4, 1, 8)
    o, _ = right_torch(q, k, v, lengths=lengths)
    table = torch.tensor([[5, 1, -1], [0, 3, 4]], dtype=torch.int32)
    pages = [torch.full((6, 2, size, 8), math.nan) for _ in range(2)]
    for b in range(2):
        for j in range(int(lengths[b])):
            for tokens, paged in zip((k, v), pages):
                paged[table[b, j // size], :, j % size] = tokens[b, :, j]
    asked = dict(q=q, k_pages=pages[0], v_pages=pages[1])
    if layout == "bshd":
        o = o.transpose(1, 2)
        asked = {name: t.transpose(1, 2) for name, t in asked.items()}
    asked.update(block_table=table, lengths=lengths, layout=layout)
    assay.assert_decode(o, **asked)
    with pytest.raises(assay.Failure):
        assay.assert_decode(o + 0.01, **asked)
    asked["block_table"] = torch.tensor([[5, 9, -1], [0, 3, 4]], dtype=torch.int32)
    with pytest.raises(assay.InputError, match=r"block_table\[0, 1\] is 9"):
        assay.assert_decode(o, **asked)


def test_products():
    case = next(iter(assay.cases("products", features=["product", "dtype=f32", "w=int8"])))
    i = case.inputs("torch")
    codes = i["codes"].view(torch.int8).reshape(i["k"], i["n"]).double()
    group = i["group"]
    scales = (
        i["scales"]
        .view(torch.float16)
        .reshape(-1, i["n"])
        .double()
        .repeat_interleave(group, 0)[: i["k"]]
    )
    zeros = (
        i["extra"]
        .view(torch.int8)
        .reshape(-1, i["n"])
        .double()
        .repeat_interleave(group, 0)[: i["k"]]
    )
    c = (i["a"].double() @ ((codes - zeros) * scales)).float()
    asked = dict(
        w=f"int8:{group}", a=i["a"], codes=i["codes"], scales=i["scales"], extra=i["extra"]
    )
    assay.assert_product(c, **asked)
    with pytest.raises(assay.Failure, match="wrong at C"):
        assay.assert_product(c * 1.001, **asked)
    left_out = {name: t for name, t in asked.items() if name != "a"}
    with pytest.raises(assay.InputError, match="a: is missing: a .m, k., or a_format, a_codes"):
        assay.assert_product(c, **left_out)
    with pytest.raises(assay.InputError, match="k: is needed where a is low-bit"):
        assay.assert_product(c, **left_out, a_format="f8e4m3", a_codes=i["codes"])
    with pytest.raises(assay.InputError, match="no such format"):
        assay.assert_product(c, **{**asked, "w": "int9"})
    for name in ("codes", "scales", "extra"):
        with pytest.raises(assay.InputError, match=f"^{name}: has .* bytes") as error:
            assay.assert_product(c, **{**asked, name: i[name].view(torch.uint8).flatten()[1:]})
        assert error.value.argument == name
    with pytest.raises(assay.InputError, match="^scales: object is no tensor"):
        assay.assert_product(c, **{**asked, "scales": object()})


def test_bad_input_is_refused_by_name(small):
    good = dict(small)
    o = good.pop("o")

    def refused(words, o=o, **change):
        with pytest.raises(assay.InputError) as error:
            assay.assert_attention(o, **{**good, **change})
        assert re.search(words, str(error.value)), str(error.value)
        assert error.value.argument in {"o", *change}, error.value.argument

    refused("q: list is no tensor", q=[1, 2])
    refused("k: None|k", k=None)
    refused(r"^k: is \[2, 2, 9, 7\]", k=good["k"][..., :7])
    refused("^q: has 3 heads, k 2", q=good["q"][:, :3])
    refused("q: dtype torch.complex64", q=good["q"].to(torch.complex64))
    refused("^q: is I32", q=good["q"].to(torch.int32))
    refused("layout meta|meta", q=good["q"].to("meta"))
    refused("sparse", q=good["q"].to_sparse())
    refused("6 extents, not 1 to 4|extents", q=good["q"][None, None])
    refused("causal: 1 is neither True nor False", causal=1)
    refused("scale: nan is no finite number", scale=math.nan)
    refused("^scale: inf is not a finite number", scale=1e300)
    refused("softcap: 'x'", softcap="x")
    refused("window: \\(1, 2, 3\\)", window=(1, 2, 3))
    refused("^window: -7", window=(-7, 2))
    refused("offset: 'begin'", offset="begin")
    refused("offset: 1.5 is neither a whole number, nor 'end', nor a tensor", offset=1.5)
    refused("offset: True is neither a whole number", offset=True)
    refused("window: True is no pair", window=True)
    refused("scale: True is no finite number", scale=True)
    refused("scale: .*True.* is no finite number", scale=torch.tensor(True))
    refused("scale: tensor", scale=torch.tensor([0.5]))
    refused("scale: tensor", scale=torch.tensor(0.5, device="meta"))
    refused("causal: tensor", causal=torch.tensor(1))
    refused("layout: 'bsdh'", layout="bsdh")
    refused("lse_base: 'e'", lse_base="e")
    refused("dropout_seed: None", dropout=0.5, dropout_seed=None)
    refused("threads: -1", threads=-1)
    refused("rows: 1.5", rows=1.5)
    refused("^lse: has shape", lse=good["lse"][0])
    refused(r"^mask: has shape \[5\]", mask=torch.ones(5, dtype=torch.bool))
    refused("^mask: is F32", mask=torch.ones(9, 9))
    refused("^mask: object is no tensor", mask=object())
    refused("^store: expected one of f64", store="f9")
    refused("^lengths: holds 10", lengths=torch.tensor([10, 1]))
    refused("^lengths: has 3", lengths=torch.tensor([1, 1, 1]))
    refused("^o: is ", o=o[:1])
    refused("^q: is missing; ", q=None)
    refused("^o: is missing; ", o=None)
    refused("^o: f32 .* has 3 axes, and q has 4", o=o[0], **one_batch(good))
    refused(
        r"^q: f32 \[2, 4, 9, 0\] on cpu has no element: axis 3, columns, is 0",
        q=good["q"][..., :0],
        k=good["k"][..., :0],
    )
    refused("^q: .*: axis 1, positions, is 0", q=good["q"][:, :0], layout="bshd")
    for name in ("a\nb", "\x1b[31m", 3):
        refused("^name: .* is no text of printable characters", name=name)
    segments = torch.zeros(2, 9, dtype=torch.int32)
    refused("^query_segment: query_segment and key_segment must come", query_segment=segments)
    refused("^save: /nonexistent/x: No such file", o=o + 1, save="/nonexistent/x")
    refused("^save: 3 is no path", o=o + 1, save=3)
    refused("tolerance: is no keyword of assert_attention; here it is arithmetic", tolerance=1e-3)


def test_a_masked_array_is_refused(small):
    np = pytest.importorskip("numpy")
    q = np.ma.masked_array(small["q"].numpy(), mask=small["q"].numpy() > 1)
    with pytest.raises(assay.InputError, match="q: a masked array of numpy") as error:
        assay.assert_attention(**{**small, "q": q})
    assert error.value.argument == "q"


def test_any_name_can_be_kept(small, tmp_path, monkeypatch):
    monkeypatch.setenv("ASSAY_SAVE", str(tmp_path))
    with pytest.raises(assay.Failure):
        assay.assert_attention(small.pop("o") + 1, **small, name="mine/" + "x" * 300)
    (saved,) = tmp_path.iterdir()
    assert saved.name.startswith("mine_xxx")


def test_numbers_of_numpy_and_torch_are_numbers(small):
    np = pytest.importorskip("numpy")
    torch.manual_seed(3)
    q, k, v = small["q"], small["k"], small["v"]
    o, lse = right_torch(q, k, v, causal=True, scale=0.25)
    asked = dict(q=q, k=k, v=v, lse=lse)
    for number in (np.float32, np.float64, np.asarray, torch.tensor):
        assay.assert_attention(o, **asked, causal=np.bool_(True), scale=number(0.25))
    for number in (np.int64, np.int32, torch.tensor):
        far, none = number(100), number(0)
        assay.assert_attention(
            o,
            **asked,
            causal=True,
            scale=0.25,
            window=(far, far),
            offset=none,
            softcap=none,
            dropout=none,
            threads=number(1),
            arithmetic={"weight_bits": number(16), "exp_ulp": np.float32(2)},
        )
        assay.assert_attention(o, **asked, causal=True, scale=0.25, window=far)
    with pytest.raises(assay.InputError, match="causal: 1 is neither True nor False"):
        assay.assert_attention(o, **asked, causal=1)


def test_calls_that_do_not_fit_are_refused_by_name(small):
    o, q, k, v = (small[name] for name in "oqkv")
    asked = dict(q=q, k=k, v=v)
    attention, backward = assay.assert_attention, assay.assert_backward
    decode, product, kernel = assay.assert_decode, assay.assert_product, assay.kernel
    for call, argument, words in (
        (lambda: attention(o, **asked, casual=True), "casual", "did you mean causal?"),
        (lambda: attention(o, **asked, is_causal=True), "is_causal", "here it is causal"),
        (lambda: attention(o, **asked, sm_scale=1.0), "sm_scale", "here it is scale"),
        (lambda: attention(o, **asked, attn_mask=None), "attn_mask", "here it is mask (boolean, "),
        (lambda: attention(o, **asked, zebra=1), "zebra", "there are o, q, k, v, lse, causal, "),
        (lambda: attention(o, q=q, k=k), "v", "is missing; assert_attention needs o, q, k, v"),
        (lambda: attention(o, q, k, v), "q", "is given by position; assert_attention takes o so"),
        (lambda: attention(o, o=o, **asked), "o", "is given by position and by name"),
        (lambda: backward(q, k, v, o=o, **asked, dout=o), "dout", "here it is do"),
        (lambda: backward(q, k, v, o=o, do=o, **asked, casual=1), "casual", "did you mean causal?"),
        (lambda: decode(o, q=q, k_cache=k), "k_cache", "here it is k_pages"),
        (
            lambda: decode(o, q=q, k_pages=k, v_pages=v, block_table=None),
            "lengths",
            "is missing; assert_decode needs o, q, k_pages, v_pages, block_table, lengths",
        ),
        (lambda: product(o, w="int4", code=q), "code", "did you mean codes?"),
        (lambda: kernel("attention", dtype=("f16",)), "dtype", "did you mean dtypes?"),
        (lambda: kernel("attention", "cpu"), "device", "takes operation so"),
        (lambda: assay.record("x", qq=q), "qq", "did you mean q?"),
        (lambda: assay.record("x", output=o), "output", "here it is o"),
        (lambda: assay.check(right_torch, suit="tiny"), "suit", "did you mean suite?"),
        (lambda: assay.verify("x", thread=1), "thread", "did you mean threads?"),
        (
            lambda: assay.identify(right_torch),
            "dtype",
            "is missing; identify needs function, dtype",
        ),
    ):
        with pytest.raises(assay.InputError, match=re.escape(words)) as error:
            call()
        assert error.value.argument == argument and str(error.value).startswith(argument + ": ")


def test_help_is_a_manual():
    import pydoc

    text = pydoc.render_doc(assay, renderer=pydoc.plaintext)
    # Python 3.13 gives each parameter of a long signature a line of its own.
    signatures = " ".join(text.split()).replace("( ", "(")
    assert " assert_attention(o: 'Any', *, q: 'Any', k: 'Any', v: 'Any', lse" in signatures
    assert "    kernel(operation: 'str' = 'attention', **options: 'Any')" in text
    for name in (n for n in assay.__all__ if not n.startswith("_")):
        assert name in text, name
        value = getattr(assay, name)
        if callable(value):
            assert (value.__doc__ or "").strip(), f"{name} has no docstring"
            assert value.__doc__.splitlines()[0].endswith((".", ":", ",")), name
