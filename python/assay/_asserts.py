"""Verdicts on tensors that are there already: assert_attention and its kin, record, verify."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

from ._arguments import (
    by_name,
    finite,
    flag,
    float32_text,
    is_whole,
    one_line,
    one_of,
    plain,
    whole,
)
from ._library import (
    Arithmetic,
    Conventions,
    ask_json,
    conventions_text,
    encoded,
    library,
    named_array,
    options_of,
    parse,
)
from ._report import Report, Result, failure_text, is_right
from ._safetensors import write
from ._tensors import Tensor, framework_of, read
from .errors import Failure, InputError

Window = Union[None, int, Tuple[int, int]]

# What a record calls by another name.
RECORDED = {
    "keep": "mask",
    "w.codes": "codes",
    "w.scales": "scales",
    "w.extra": "extra",
    "a.codes": "a_codes",
    "a.scales": "a_scales",
}
# The keywords that say which attention was asked.
_PROBLEM = (
    "causal",
    "scale",
    "softcap",
    "window",
    "offset",
    "mask",
    "bias",
    "lengths",
    "starts",
    "query_segment",
    "key_segment",
    "alibi_slopes",
    "sink",
    "dropout",
    "dropout_seed",
    "finite_min_masks",
    "conventions",
    "layout",
    "lse_base",
)
_IN_RECORDS = {ours: recorded for recorded, ours in RECORDED.items()}
_TENSORS_OF_RECORDS = (
    "q",
    "k",
    "v",
    "o",
    "lse",
    "do",
    "dlse",
    "dq",
    "dk",
    "dv",
    "d_bias",
    "d_sink",
)


# Whatever the library may name besides tensors.
_ARGUMENTS = {*_PROBLEM, *_TENSORS_OF_RECORDS, "store", "arithmetic", "w", "block_table"}


def attention_line(
    operation: str,
    *,
    causal: bool = False,
    scale: Optional[float] = None,
    softcap: Optional[float] = None,
    window: Window = None,
    offset: Any = None,
    dropout: float = 0.0,
    dropout_seed: Optional[int] = None,
    finite_min_masks: bool = False,
    store: Optional[str] = None,
    layout: str = "bhsd",
    lse_base: str = "natural",
    conventions: Conventions = None,
    **tensors: Any,
) -> Tuple[str, Dict[str, Any]]:
    """The line of a record, and the tensors that were given by keyword."""
    words = [operation]
    if one_of("layout", layout, ("bhsd", "bshd")) != "bhsd":
        words.append("layout=" + layout)
    if flag("causal", causal):
        words.append("causal")
    if flag("finite_min_masks", finite_min_masks):
        words.append("finite-min-masks")
    if store is not None:
        if not isinstance(store, str) or not re.fullmatch("[a-z0-9/:-]+", store):
            raise InputError("store", f"{store!r} is no way to store tokens, as 'f8e4m3:f32'")
        words.append("store=" + store)
    if scale is not None:
        words.append("scale=" + float32_text("scale", scale))
    if softcap is not None and finite("softcap", softcap) != 0:
        words.append("softcap=" + float32_text("softcap", softcap))
    if window is not None:
        pair = list(map(plain, window if isinstance(window, (tuple, list)) else (window, 0)))
        if len(pair) != 2 or not all(map(is_whole, pair)):
            raise InputError(
                "window", f"{window!r} is no pair of whole numbers (left, right), -1 for open"
            )
        words.append(f"window={pair[0]},{pair[1]}")
    if finite("dropout", dropout) != 0:
        seed = plain(dropout_seed)
        if not is_whole(seed):
            raise InputError(
                "dropout_seed",
                f"{dropout_seed!r} is no whole number; dropout needs the seed of Philox",
            )
        words.append(f"dropout={float32_text('dropout', dropout)}:{seed}")
    found = {name: t for name, t in tensors.items() if t is not None}
    if offset is not None:
        offset = plain(offset)
        if offset == "end" if isinstance(offset, str) else is_whole(offset):
            words.append(f"offset={offset}")
        elif framework_of(offset) is None:
            raise InputError(
                "offset", f"{offset!r} is neither a whole number, nor 'end', nor a tensor [B]"
            )
        else:
            found["offset"] = offset
    if one_of("lse_base", lse_base, ("natural", "base2")) != "natural" and "lse" in found:
        words.append("lse=" + lse_base)
    meant = conventions_text(conventions)
    if meant is not None:
        words.append("convention=" + meant)
    return " ".join(words), {_IN_RECORDS.get(name, name): t for name, t in found.items()}


def _read_all(given: Dict[str, Any]) -> List[Tuple[str, Tensor]]:
    return [(name, read(RECORDED.get(name, name), t)) for name, t in given.items()]


# What the library has against a tensor or a word of the line: "tensor keep is F32, ...".
_SAID = re.compile(
    r"(?:column \d+: )?(?:tensor (?P<tensor>[a-z_.]+)|(?!a )(?P<word>[a-z_]+))"
    r"(?: = |[=:] ?| |(?=\[))"
)


def refusal(said: str, name: str) -> InputError:
    """The refusal of the library under the name that the caller gave the tensor or the keyword."""
    said = said[len(name) + 2 :] if said.startswith(name + ": ") else said
    found = _SAID.match(said)
    if found:
        named = found["tensor"] or found["word"]
        argument = RECORDED.get(named, named)
        if found["tensor"] or argument in _ARGUMENTS:
            rest = said[found.end() :]
            return InputError(argument, said if rest.startswith(("and ", "[")) else rest)
    return InputError(name, said)


_AXES = {
    "bhsd": ("batch", "heads", "positions", "columns"),
    "bshd": ("batch", "positions", "heads", "columns"),
}


def _check_extents(given: Dict[str, Tensor], layout: str) -> None:
    """Refuses tensors with other axes than q, and a q or an o without elements.

    The library takes three axes of one tensor beside four of another, if there is one batch.
    """
    if "q" not in given or "o" not in given or len(given["q"].shape) not in (3, 4):
        return  # the library says so
    axes = len(given["q"].shape)
    for name in ("q", "k", "v", "o", "do", "dq", "dk", "dv"):
        t = given.get(name)
        if t is not None and len(t.shape) != axes:
            raise InputError(name, f"{t} has {len(t.shape)} axes, and q has {axes}")
    for name in ("q", "o"):
        shape = given[name].shape
        if 0 in shape and axes == 4:
            axis = shape.index(0)
            raise InputError(
                name,
                f"{given[name]} has no element: axis {axis}, {_AXES[layout][axis]}, is 0",
            )


def judge_record(
    line: str, given: Dict[str, Any], *, name: str = "function", **options: Any
) -> Result:
    """Judges tensors against the line of a record; returns the result.

    `options` are those of the judge: threads, rows, evidence, arithmetic.
    """
    tensors = _read_all(given)
    array = named_array([(n, t.c()) for n, t in tensors])
    judging = options_of(name=name, **options)
    try:
        return Result(
            ask_json(
                library.assay_judge_record, encoded("line", line), array, len(tensors), judging
            )
        )
    except InputError as e:
        raise refusal(e.message, name) from None


_JUDGING = ("threads", "rows", "evidence", "arithmetic")


def _assert(
    line: str,
    given: Dict[str, Any],
    name: str,
    save: Optional[Union[str, Path]],
    options: Dict[str, Any],
) -> Result:
    one_line("name", name)
    result = judge_record(line, given, name=name, **options)
    if is_right(result):
        return result
    if result["outcome"] == "inconclusive":
        raise Failure(f"{name}: nothing was judged by its bound: {result['reason']}", [result])
    folder = os.environ.get("ASSAY_SAVE")
    if save is None and folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        prefix = re.sub(r"[^\w.-]", "_", name)[:100] + "-"
        handle, save = tempfile.mkstemp(prefix=prefix, suffix=".safetensors", dir=folder)
        os.close(handle)
    if save is not None:
        write_record(save, line, given, argument="save")
        again = f"assay verify '{save}'"
        if options.get("arithmetic") is not None:  # the command tries the ladder
            again = f"assay.verify({str(save)!r}, arithmetic={options['arithmetic']!r})"
    else:
        again = "set ASSAY_SAVE=FOLDER, run again, and assay verify the file that is written there"
    raise Failure(failure_text(name, result, again), [result])


def _assert_of(operation: str, asked: Dict[str, Any]) -> Result:
    """Judges what the arguments of assert_attention and its kin say, by their names."""
    asked.update(asked.pop("problem", {}))
    options = {option: asked.pop(option) for option in _JUDGING}
    name, save = asked.pop("name"), asked.pop("save")
    line, given = attention_line(operation, **asked)
    given = {key: read(RECORDED.get(key, key), t) for key, t in given.items()}
    _check_extents(given, asked.get("layout", "bhsd"))
    return _assert(line, given, name, save, options)


@by_name()
def assert_attention(
    o: Any,
    *,
    q: Any,
    k: Any,
    v: Any,
    lse: Any = None,
    causal: bool = False,
    scale: Optional[float] = None,
    softcap: Optional[float] = None,
    window: Window = None,
    offset: Any = None,
    mask: Any = None,
    bias: Any = None,
    lengths: Any = None,
    starts: Any = None,
    query_segment: Any = None,
    key_segment: Any = None,
    alibi_slopes: Any = None,
    sink: Any = None,
    dropout: float = 0.0,
    dropout_seed: Optional[int] = None,
    finite_min_masks: bool = False,
    store: Optional[str] = None,
    k_scales: Any = None,
    v_scales: Any = None,
    conventions: Conventions = None,
    layout: str = "bhsd",
    lse_base: str = "natural",
    threads: int = 1,
    rows: int = 0,
    evidence: str = "fail",
    arithmetic: Arithmetic = None,
    save: Optional[Union[str, Path]] = None,
    name: str = "assert_attention",
) -> Result:
    """Proves that o is attention of q, k and v, or raises Failure. No reference, no tolerance.

    Every element is compared with an enclosure of its exact value; the bound of the difference is
    derived from the arithmetic of the kernel (a ladder from fp32 on) and from the data.

    Args:
        o: [B, Hq, Lq, Dv], in f32, f16 or bf16.
        q, k, v: [B, Hq, Lq, D], [B, Hkv, Lk, D], [B, Hkv, Lk, Dv]. Hq is a multiple of Hkv.
        lse: [B, Hq, Lq] in f32; it is judged if it is given.
        causal: row i sees keys j <= i + offset.
        scale: of the scores; 1 / sqrt(D) by default.
        softcap: c > 0: scores become c tanh(t / c).
        window: (left, right) keys around i + offset; -1 is open; a number n means (n, 0).
        offset: a number, "end" (Lk - Lq), or a tensor [B]; for causal, window and ALiBi.
        mask: boolean, broadcasts to [B, Hq, Lq, Lk]; True keeps.
        bias: broadcasts likewise; is added to the scaled scores.
        lengths, starts: [B], the valid keys of each sequence.
        query_segment, key_segment: [B, Lq], [B, Lk] in i32: a row sees the keys of its segment.
        alibi_slopes, sink: [Hq] in f32.
        dropout, dropout_seed: probability, and the key of Philox4x32-10.
        finite_min_masks: the most negative finite number of the bias's dtype means -inf.
        store: k and v are tokens as they were appended to a cache that stores them so: "f8e4m3/32",
            "f8e4m3:f32" (docs/records.md). The kernel read what the cache made of them.
        k_scales, v_scales: the scales of store="...:f32-page" and "...:f32-tensor".
        conventions: what the kernel means where nobody agreed, as {"masked-rows": "mean-of-v"}
            (docs/semantics.md, Conventions). Where nothing is declared, outputs that are right by
            another convention say so in the text of the failure.
        layout: "bhsd", or "bshd" if q, k, v and o are [batch, positions, heads, columns].
        lse_base: "natural" or "base2".
        threads: of the judge; 0: all.
        rows: judge so many rows of each head; 0: all.
        evidence: what follows if every error is inside its bound, but not one that an arithmetic
            makes (docs/evidence.md): "fail", "warn" or "off".
        arithmetic: what the kernel declares, to be held to that alone: a rung of the ladder
            ("fp32 accumulation, weights in f16"), or a dictionary with fields of assay_arithmetic
            of kernel.h ({"weight_bits": 16, "tile": 32}).
        save: a file that takes the tensors of a failure, for `assay verify`. With the variable
            ASSAY_SAVE=FOLDER in the environment every failure is kept there.

    Returns:
        The result, with the fields of docs/results.md.
    """
    return _assert_of("attention", locals())


@by_name(*_PROBLEM)
def assert_backward(
    dq: Any,
    dk: Any,
    dv: Any,
    *,
    do: Any,
    o: Any,
    q: Any,
    k: Any,
    v: Any,
    lse: Any = None,
    dlse: Any = None,
    d_bias: Any = None,
    d_sink: Any = None,
    threads: int = 1,
    rows: int = 0,
    evidence: str = "fail",
    arithmetic: Arithmetic = None,
    save: Optional[Union[str, Path]] = None,
    name: str = "assert_backward",
    **problem: Any,
) -> Result:
    """Proves that dq, dk and dv are the gradients of <do, o> + <dlse, lse>, or raises Failure.

    Args:
        dq, dk, dv: in the shapes of q, k and v.
        do, o: [B, Hq, Lq, Dv]; o and lse are what the forward pass stored, and are judged as well.
        dlse: [B, Hq, Lq] in f32, for a loss that depends on lse.
        d_bias, d_sink: in f32, in the shape of the bias and [Hq].
        problem: the keywords of assert_attention that say what was asked (causal, ...).
    """
    return _assert_of("backward", locals())


@by_name(*_PROBLEM)
def assert_decode(
    o: Any,
    *,
    q: Any,
    k_pages: Any,
    v_pages: Any,
    block_table: Any,
    lengths: Any,
    lse: Any = None,
    threads: int = 1,
    rows: int = 0,
    evidence: str = "fail",
    arithmetic: Arithmetic = None,
    save: Optional[Union[str, Path]] = None,
    name: str = "assert_decode",
    **problem: Any,
) -> Result:
    """Proves that o is attention of q over keys and values in pages, or raises Failure.

    Args:
        q, o: [B, Hq, Lq, D], [B, Hq, Lq, Dv]: the rows are the last tokens without `offset`.
        k_pages, v_pages: [pages, Hkv, size, D], [pages, Hkv, size, Dv]; with layout="bshd"
            [pages, size, Hkv, D], and q and o [B, Lq, Hq, D].
        block_table: [B, pages of a sequence] in i32 or i64: token j of sequence b is slot j % size
            of the page block_table[b, j // size]. Entries of pages without tokens are not read.
        lengths: [B], the tokens of each sequence.
        problem: the keywords of assert_attention that say what was asked (causal, window, ...).
    """
    return _assert_of("decode", locals())


@by_name()
def assert_product(
    c: Any,
    *,
    w: str,
    codes: Any,
    scales: Any = None,
    extra: Any = None,
    a: Any = None,
    a_format: Optional[str] = None,
    a_codes: Any = None,
    a_scales: Any = None,
    tensor_scale: float = 1.0,
    a_tensor_scale: float = 1.0,
    k: Optional[int] = None,
    threads: int = 1,
    rows: int = 0,
    evidence: str = "fail",
    save: Optional[Union[str, Path]] = None,
    name: str = "assert_product",
) -> Result:
    """Proves that c is the product of a and low-bit weights, or raises Failure.

    Args:
        c: [m, n] in f32, f16 or bf16.
        w: the format, and its group size where that is free: "mxfp4", "nvfp4", "fp4:128",
            "fp4-sparse", "f8e4m3:0" (no scales), "f8e5m2", "int8:32", "int4".
        codes, scales, extra: the bytes of the weights, as docs/formats.md lays them out.
        a: [m, k]; or a_format, a_codes, a_scales and k, if A is low-bit too.
        tensor_scale, a_tensor_scale: of nvfp4.
    """
    out = read("c", c)
    if len(out.shape) != 2:
        raise InputError("c", f"{out} has {len(out.shape)} extents, not 2")
    given: Dict[str, Any] = {"c": out, "w.codes": _bytes("codes", codes)}
    for key, t in (
        ("w.scales", scales),
        ("w.extra", extra),
        ("a.codes", a_codes),
        ("a.scales", a_scales),
    ):
        if t is not None:
            given[key] = _bytes(RECORDED[key], t)
    if a is not None:
        given["a"] = read("a", a)
        if len(given["a"].shape) != 2:
            raise InputError("a", f"{given['a']} has {len(given['a'].shape)} extents, not 2")
        k = given["a"].shape[1]
    elif a_format is None and a_codes is None:
        raise InputError("a", "is missing: a [m, k], or a_format, a_codes and k of a low-bit one")
    if k is None:
        raise InputError("k", "is needed where a is low-bit")
    sizes = f"m={out.shape[0]} n={out.shape[1]} k={whole('k', k, 2**40, '2^40')}"
    line = f"product {sizes} w={encoded('w', w).decode()}"
    if finite("tensor_scale", tensor_scale) != 1.0:
        line += " tensor-scale=" + float32_text("tensor_scale", tensor_scale)
    if a_format is not None:
        line += f" a={encoded('a_format', a_format).decode()}"
    if finite("a_tensor_scale", a_tensor_scale) != 1.0:
        line += " a-tensor-scale=" + float32_text("a_tensor_scale", a_tensor_scale)
    options = dict(threads=threads, rows=rows, evidence=evidence)
    return _assert(line, given, name, save, options)


def _bytes(argument: str, t: Any) -> Tensor:
    """The bytes of a tensor of any dtype and shape, in row-major order."""
    packed = read(argument, t).packed()
    return read(argument, packed)


# ---- Files ----


def write_record(
    path: Union[str, Path],
    line: str,
    given: Dict[str, Any],
    case: Optional[str] = None,
    argument: str = "path",
) -> None:
    """Writes one record as a safetensors file (docs/records.md), whole or not at all."""
    if line.startswith("decode"):
        raise InputError(
            "operation", "decode has no record: store k and v as they are read from the pages"
        )
    metadata = {"assay": "1", "record": line}
    if case is not None:
        metadata["case"] = case
    write(path, metadata, _read_all(given), argument)


@by_name(*_PROBLEM, *_TENSORS_OF_RECORDS)
def record(
    path: Union[str, Path],
    operation: str = "attention",
    *,
    case: Optional[str] = None,
    kernel: Optional[str] = None,
    **given: Any,
) -> None:
    """Writes inputs and outputs of a kernel into a file that `assay verify` judges, on any machine.

        assay.record("dump.safetensors", q=q, k=k, v=v, o=o, lse=lse, causal=True)

    Args:
        path: the file; it is written whole and renamed.
        operation: "attention" or "backward".
        case: the case line from which the inputs were made; they are then compared with it.
        kernel: a name for reports, without spaces.
        given: the tensors and keywords of assert_attention or assert_backward.
    """
    one_of("operation", operation, ("attention", "backward"))
    line, tensors = attention_line(operation, **given)
    if kernel is not None:
        if not encoded("kernel", kernel) or any(c.isspace() for c in kernel):
            raise InputError("kernel", f"{kernel!r} is no name without spaces")
        line += " kernel=" + kernel
    if case is not None:
        parse(case)  # refuses what is none
    write_record(path, line, tensors, case)


@by_name()
def verify(
    path: Union[str, Path],
    *,
    threads: int = 1,
    rows: int = 0,
    evidence: str = "fail",
    arithmetic: Arithmetic = None,
    conventions: Conventions = None,
) -> Report:
    """Judges the records of a file, as `assay verify` does.

    `evidence`, `arithmetic` and `conventions` are those of assert_attention; what the line of a
    record declares counts first.

    Returns a Report; nothing is raised for a wrong record.
    """
    answer = ask_json(
        library.assay_judge_file,
        encoded("path", str(path)),
        options_of(
            threads=threads,
            rows=rows,
            evidence=evidence,
            arithmetic=arithmetic,
            conventions=conventions,
        ),
        argument="path",
    )
    return Report(str(path), [Result(found) for found in answer["results"]])
