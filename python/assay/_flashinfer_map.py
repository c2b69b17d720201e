"""How definitions of FlashInfer-Trace are asked of the judge: by op_type, names and axes.

A definition that Assay has no words for is refused under a reason that names what is missing.
"""

from __future__ import annotations

import ctypes
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from ._arguments import float32_text
from ._library import width_of
from ._tensors import Tensor, copy, tensor_of
from .errors import InputError


class Unmapped(InputError):
    """A definition or a workload that cannot be judged; the message says why."""


class Question(NamedTuple):
    """One question of the judge: the line of a record, and its tensors."""

    line: str
    tensors: Dict[str, Tensor]
    where: str  # "sequence 3", or "" where there is one question


class Asked(NamedTuple):
    """The values of a workload by the names of its definition, and the outputs of a solution."""

    inputs: Dict[str, Any]  # a Tensor, a number, or None
    outputs: Dict[str, Tensor]
    layouts: Dict[str, List[str]]  # the axes of the inputs, by name
    causal: Optional[bool]

    def scale(self) -> List[str]:
        scale = self.inputs.get("sm_scale")
        return [] if scale is None else ["scale=" + float32_text("sm_scale", scale)]


class Mapping(NamedTuple):
    """What a definition of an operation holds, and how it is asked."""

    operation: str  # the op_type
    needs: Tuple[str, ...]
    questions: Callable[[Asked], Iterator[Question]]
    optional: Tuple[str, ...] = ()
    absent: Tuple[str, ...] = ()  # inputs that must not be there when the solution runs
    outputs: Tuple[str, ...] = ("output", "lse")
    # Of random inputs: offsets that split the rows of another tensor, and pages of a cache.
    splits: Dict[str, str] = {}
    pages: Dict[str, str] = {}
    scales: Tuple[str, ...] = ()  # of products
    lengths: Dict[str, Tuple[str, str]] = {}  # in tokens, of the tables of pages of a cache
    scratch: Tuple[str, ...] = ()  # inputs that a solution may write to
    ranks: Dict[str, int] = {}  # the number of axes, where it is another one than usual


# ---- Views ----


def part(t: Tensor, begin: int, end: int) -> Tensor:
    """The rows [begin, end) of a tensor."""
    address = t.address + begin * t.strides[0] * width_of(t.dtype)
    return Tensor(address, t.dtype, (end - begin,) + t.shape[1:], t.strides, t.owner)


def viewed(t: Tensor, axes: Sequence[Optional[int]]) -> Tensor:
    """The tensor with these of its axes, in this order; None is an axis of one."""
    shape = [1 if a is None else t.shape[a] for a in axes]
    strides = [0 if a is None else t.strides[a] for a in axes]
    return Tensor(t.address, t.dtype, shape, strides, t.owner)


def integers(name: str, t: Any) -> List[int]:
    """The numbers of an integer tensor with one axis."""
    if not isinstance(t, Tensor) or t.dtype not in ("i32", "i64") or len(t.shape) != 1:
        raise InputError(name, f"{t} is no tensor of i32 or i64 with one axis")
    kind = ctypes.c_int32 if t.dtype == "i32" else ctypes.c_int64
    return list((kind * t.shape[0]).from_buffer_copy(t.packed()))


def integer_tensor(numbers: Sequence[int], shape: Sequence[int], dtype: str = "i64") -> Tensor:
    kind = ctypes.c_int32 if dtype == "i32" else ctypes.c_int64
    return tensor_of(bytes((kind * len(numbers))(*numbers)), dtype, shape)


def spans(name: str, t: Any, end: int) -> List[Tuple[int, int]]:
    """The sequences of offsets: [0, 3, 3, 9] gives (0, 3), (3, 3), (3, 9)."""
    offsets = integers(name, t)
    rising = all(a <= b for a, b in zip(offsets, offsets[1:]))
    if not offsets or offsets[0] != 0 or not rising or offsets[-1] != end:
        raise InputError(name, f"{offsets[:8]} does not rise from 0 to {end}, the number of rows")
    return list(zip(offsets, offsets[1:]))


# ---- Attention ----

_BY_HEAD = (None, 1, 0, 2)  # [rows, heads, columns] as [1, heads, rows, columns]
_BY_ROW = (0, 1, None, 2)  # [batch, heads, columns] as [batch, heads, 1, columns]


def _outputs(outputs: Dict[str, Tensor], axes: Sequence[Optional[int]]) -> Dict[str, Tensor]:
    """O with these of its axes, and LSE, which has no columns."""
    found = {"o": viewed(outputs["output"], axes)}
    if "lse" in outputs:
        found["lse"] = viewed(outputs["lse"], axes[:3])
    return found


def _rows(outputs: Dict[str, Tensor], begin: int, end: int) -> Dict[str, Tensor]:
    return _outputs({name: part(t, begin, end) for name, t in outputs.items()}, _BY_HEAD)


def _line(asked: Asked, operation: str, causal: bool = False) -> str:
    words = [operation, *asked.scale()]
    if "lse" in asked.outputs:
        words.append("lse=base2")
    if causal:
        words.append("causal" if operation == "decode" else "causal offset=end")
    return " ".join(words)


def _ragged(asked: Asked) -> Iterator[Question]:
    q, k, v = (asked.inputs[name] for name in ("q", "k", "v"))
    queries = spans("qo_indptr", asked.inputs["qo_indptr"], q.shape[0])
    keys = spans("kv_indptr", asked.inputs["kv_indptr"], k.shape[0])
    if len(queries) != len(keys):
        raise InputError("kv_indptr", f"has {len(keys)} sequences, and qo_indptr {len(queries)}")
    line = _line(asked, "attention", True if asked.causal is None else asked.causal)
    for number, (rows, tokens) in enumerate(zip(queries, keys)):
        if rows[0] == rows[1]:
            continue
        tensors = {
            "q": viewed(part(q, *rows), _BY_HEAD),
            "k": viewed(part(k, *tokens), _BY_HEAD),
            "v": viewed(part(v, *tokens), _BY_HEAD),
            **_rows(asked.outputs, *rows),
        }
        yield Question(line, tensors, f"sequence {number}")


def _single_prefill(asked: Asked) -> Iterator[Question]:
    tensors = {name: viewed(asked.inputs[name], _BY_HEAD) for name in ("q", "k", "v")}
    tensors.update(_outputs(asked.outputs, _BY_HEAD))
    yield Question(_line(asked, "attention", bool(asked.causal)), tensors, "")


def _single_decode(asked: Asked) -> Iterator[Question]:
    row = (None, 0, None, 1)  # [heads, columns] as [1, heads, 1, columns]
    tensors = {name: viewed(asked.inputs[name], _BY_HEAD) for name in ("k", "v")}
    tensors.update(q=viewed(asked.inputs["q"], row), **_outputs(asked.outputs, row))
    yield Question(_line(asked, "attention"), tensors, "")


class _Pages(NamedTuple):
    """Keys and values [pages, heads, slots, columns], and the pages of each sequence."""

    k: Tensor
    v: Tensor
    lists: List[List[int]]
    lengths: List[int]

    def table(self) -> Dict[str, Tensor]:
        each = max([1] + [len(pages) for pages in self.lists])
        entries = [p for pages in self.lists for p in pages + [-1] * (each - len(pages))]
        return {
            "k_pages": self.k,
            "v_pages": self.v,
            "block_table": integer_tensor(entries, (len(self.lists), each)),
            "lengths": integer_tensor(self.lengths, (len(self.lengths),)),
        }

    def of(self, sequence: int) -> "_Pages":
        here = slice(sequence, sequence + 1)
        return self._replace(lists=self.lists[here], lengths=self.lengths[here])


def _lists(asked: Asked, slots: int) -> Tuple[List[List[int]], List[int]]:
    """The pages of each sequence, and its number of tokens."""
    indices = integers("kv_indices", asked.inputs["kv_indices"])
    found = [
        indices[begin:end]
        for begin, end in spans("kv_indptr", asked.inputs["kv_indptr"], len(indices))
    ]
    last = asked.inputs.get("kv_last_page_len")
    filled = [slots] * len(found) if last is None else integers("kv_last_page_len", last)
    fit = all(1 <= n <= slots or not pages for n, pages in zip(filled, found))
    if len(filled) != len(found) or not fit:
        raise InputError("kv_last_page_len", f"{filled[:8]}: one number from 1 to {slots} each")
    return found, [slots * (len(p) - 1) + n if p else 0 for p, n in zip(found, filled)]


def _cache(asked: Asked) -> _Pages:
    axes = ("num_pages", "num_kv_heads", "page_size", "head_dim")
    k, v = (
        viewed(asked.inputs[name], [asked.layouts[name].index(axis) for axis in axes])
        for name in ("k_cache", "v_cache")
    )
    return _Pages(k, v, *_lists(asked, k.shape[2]))


def _latent(asked: Asked) -> _Pages:
    """Keys are [ckv | kpe] of the pages that are used, and values the ckv of the same memory."""
    ckv, kpe = asked.inputs["ckv_cache"], asked.inputs["kpe_cache"]
    lists, lengths = _lists(asked, ckv.shape[1])
    used = sorted({page for pages in lists for page in pages})
    if used and not 0 <= used[0] <= used[-1] < ckv.shape[0]:
        raise InputError("kv_indices", f"{used[0]} to {used[-1]}: there are {ckv.shape[0]} pages")
    shape = (len(used), ckv.shape[1], ckv.shape[2] + kpe.shape[2])
    pool = tensor_of(
        b"\0" * (shape[0] * shape[1] * shape[2] * width_of(ckv.dtype)), ckv.dtype, shape
    )
    for number, page in enumerate(used):
        at = pool.address + number * pool.strides[0] * width_of(ckv.dtype)
        for source, column in ((ckv, 0), (kpe, ckv.shape[2])):
            one = viewed(part(source, page, page + 1), (1, 2))
            copy(
                one,
                Tensor(at + column * width_of(ckv.dtype), ckv.dtype, one.shape, pool.strides[1:]),
            )
    k = viewed(pool, (0, None, 1, 2))
    v = Tensor(k.address, k.dtype, k.shape[:3] + (ckv.shape[2],), k.strides, pool.owner)
    place = {page: number for number, page in enumerate(used)}
    return _Pages(k, v, [[place[page] for page in pages] for pages in lists], lengths)


def _absorbed(asked: Asked) -> Tensor:
    """[q_nope | q_pe] in one tensor."""
    nope, rope = asked.inputs["q_nope"], asked.inputs["q_pe"]
    shape = nope.shape[:2] + (nope.shape[2] + rope.shape[2],)
    made = tensor_of(
        b"\0" * (shape[0] * shape[1] * shape[2] * width_of(nope.dtype)), nope.dtype, shape
    )
    for source, column in ((nope, 0), (rope, nope.shape[2])):
        at = made.address + column * width_of(nope.dtype)
        copy(source, Tensor(at, nope.dtype, source.shape, made.strides))
    made.owner = (made.owner, made)
    return made


def _paged(asked: Asked, q: Tensor, pages: _Pages) -> Iterator[Question]:
    """One row for each sequence, or rows by qo_indptr, which are the last tokens."""
    if "qo_indptr" not in asked.inputs:
        if q.shape[0] != len(pages.lists):
            raise InputError("q", f"{q} has another number of sequences than {len(pages.lists)}")
        outputs = _outputs(asked.outputs, _BY_ROW)
        yield Question(
            _line(asked, "decode"), {"q": viewed(q, _BY_ROW), **outputs, **pages.table()}, ""
        )
        return
    queries = spans("qo_indptr", asked.inputs["qo_indptr"], q.shape[0])
    if len(queries) != len(pages.lists):
        raise InputError("qo_indptr", f"has {len(queries)} sequences, not {len(pages.lists)}")
    line = _line(asked, "decode", True if asked.causal is None else asked.causal)
    for number, rows in enumerate(queries):
        if rows[0] == rows[1]:
            continue
        tensors = {
            "q": viewed(part(q, *rows), _BY_HEAD),
            **_rows(asked.outputs, *rows),
            **pages.of(number).table(),
        }
        yield Question(line, tensors, f"sequence {number}")


def _gqa_paged(asked: Asked) -> Iterator[Question]:
    return _paged(asked, asked.inputs["q"], _cache(asked))


def _mla_paged(asked: Asked) -> Iterator[Question]:
    if asked.inputs.get("sm_scale") is None:
        raise Unmapped("sm_scale", "is missing; the columns of an absorbed Q do not tell it")
    return _paged(asked, _absorbed(asked), _latent(asked))


def _mla_joined(asked: Asked) -> Iterator[Question]:
    """Q and the cache hold [latent | rotary] already; the rows of a request are its last tokens."""
    scale = asked.inputs.get("bmm1_scale")
    if scale is None or asked.inputs.get("bmm2_scale", 1) != 1:
        raise Unmapped("bmm1_scale", "is missing, or bmm2_scale is another number than 1")
    query, cache = asked.inputs["query"], asked.inputs["kv_cache"]
    output = asked.outputs["output"]
    if len(cache.shape) not in (3, 4) or (len(cache.shape) == 4 and cache.shape[1] != 1):
        raise InputError("kv_cache", f"{cache} is not [pages, slots, columns]")
    k = viewed(cache, (0, None, 1, 2) if len(cache.shape) == 3 else (0, 1, 2, 3))
    by_head = (0, 2, 1, 3)
    words = ["decode", "scale=" + float32_text("bmm1_scale", scale)]
    if asked.causal is not False:  # of one row it says nothing
        words.append("causal")
    yield Question(
        " ".join(words),
        {
            "q": viewed(query, by_head),
            "o": viewed(output, by_head),
            "k_pages": k,
            "v_pages": Tensor(
                k.address, k.dtype, k.shape[:3] + output.shape[3:], k.strides, cache.owner
            ),
            "block_table": asked.inputs["block_tables"],
            "lengths": asked.inputs["seq_lens"],
        },
        "",
    )


# ---- Products ----


def _gemm_fp8(asked: Asked) -> Iterator[Question]:
    a, b, c = asked.inputs["A"], asked.inputs["B"], asked.outputs["C"]
    if len(b.shape) != 3 or b.shape[0] * b.shape[2] != a.shape[1] or b.shape[1] != c.shape[1]:
        raise InputError("B", f"{b} is not [K / block, N, block] for A {a} and C {c}")
    codes = viewed(b, (1, 0, 2)).packed()  # columns of B, with k ascending
    yield Question(
        f"product m={a.shape[0]} n={b.shape[1]} k={a.shape[1]} w=f8e4m3:0 a=f8e4m3:0",
        {
            "c": c,
            "w.codes": tensor_of(codes, "u8", (len(codes),)),
            "a.codes": tensor_of(a.packed(), "u8", (a.count(),)),
        },
        "",
    )


def _gemm_bf16_fp4(asked: Asked) -> Iterator[Question]:
    """Codes [N, K / 2] and scales [N, K / 16] are columns of W, as docs/formats.md has them."""
    a, b, scales = (asked.inputs[name] for name in ("A", "B", "b_descale"))
    c = asked.outputs["C"]
    n, k = c.shape[1], a.shape[1]
    if asked.inputs.get("block_size") not in (None, 16) or k % 16:
        raise Unmapped("block_size", f"is {asked.inputs.get('block_size')}, or does not divide {k}")
    if b.shape != (n, k // 2) or scales.shape != (n, k // 16):
        raise InputError("B", f"{b} and scales {scales} are not [N, K / 2] and [N, K / 16]")
    words = [f"product m={a.shape[0]} n={n} k={k} w=nvfp4"]
    alpha = asked.inputs.get("alpha")
    if alpha is not None:
        (number,) = memoryview(alpha.packed()).cast("f")
        words.append("tensor-scale=" + float32_text("alpha", number))
    yield Question(
        " ".join(words),
        {
            "a": a,
            "c": c,
            "w.codes": tensor_of(b.packed(), "u8", (b.count(),)),
            "w.scales": tensor_of(scales.packed(), "u8", (scales.count(),)),
        },
        "",
    )


_PAGED = ("k_cache", "v_cache", "kv_indptr", "kv_indices")
_MLA = ("q_nope", "q_pe", "ckv_cache", "kpe_cache", "kv_indptr", "kv_indices")
_SCALED = ("ckv_scale", "ckv_scale_arr", "kpe_scale")
_RAGGED = {"qo_indptr": "q", "kv_indptr": "k"}
_TABLE = {"kv_indptr": "kv_indices"}

MAPPINGS = (
    Mapping(
        "gqa_ragged",
        ("q", "k", "v", "qo_indptr", "kv_indptr"),
        _ragged,
        optional=("sm_scale", "return_lse"),
        splits=_RAGGED,
    ),
    Mapping(
        "gqa_paged",
        ("q", *_PAGED),
        _gqa_paged,
        optional=("sm_scale", "return_lse", "kv_last_page_len"),
        splits=_TABLE,
        pages={"kv_indices": "k_cache"},
    ),
    Mapping(
        "gqa_paged",
        ("q", *_PAGED, "qo_indptr"),
        _gqa_paged,
        optional=("sm_scale", "return_lse", "kv_last_page_len"),
        splits={**_TABLE, "qo_indptr": "q"},
        pages={"kv_indices": "k_cache"},
    ),
    Mapping(
        "mla_paged",
        _MLA,
        _mla_paged,
        optional=("sm_scale", "return_lse", "kv_last_page_len"),
        absent=_SCALED,
        splits=_TABLE,
        pages={"kv_indices": "ckv_cache"},
    ),
    Mapping(
        "mla_paged",
        (*_MLA, "qo_indptr"),
        _mla_paged,
        optional=("sm_scale", "return_lse", "kv_last_page_len"),
        absent=_SCALED,
        splits={**_TABLE, "qo_indptr": "q_nope"},
        pages={"kv_indices": "ckv_cache"},
    ),
    Mapping(
        "mla_paged",
        ("query", "kv_cache", "block_tables", "seq_lens"),
        _mla_joined,
        optional=(
            "workspace_buffer",
            "kv_lora_rank",
            "qk_rope_head_dim",
            "qk_nope_head_dim",
            "max_seq_len",
            "max_kv_len",
            "bmm1_scale",
            "bmm2_scale",
        ),
        absent=(
            "skip_softmax_threshold_scale_factor",
            "qo_indptr",
            "max_seq_len_q",
            "mask_type",
            "out_dtype",
        ),
        outputs=("output",),
        pages={"block_tables": "kv_cache"},
        lengths={"seq_lens": ("block_tables", "kv_cache")},
        scratch=("workspace_buffer",),
        ranks={"query": 4, "block_tables": 2, "seq_lens": 1, "output": 4},
    ),
    Mapping("single_prefill", ("q", "k", "v"), _single_prefill, optional=("sm_scale",)),
    Mapping("single_decode", ("q", "k", "v"), _single_decode, optional=("sm_scale",)),
    Mapping("gemm_fp8", ("A", "B"), _gemm_fp8, outputs=("C",)),
    Mapping(
        "gemm_bf16_fp4",
        ("A", "B", "b_descale"),
        _gemm_bf16_fp4,
        optional=("alpha", "block_size"),
        outputs=("C",),
        scales=("b_descale", "alpha"),
    ),
)
# The number of axes of the tensors whose axes are told by their place.
_RANKS = {
    "single_decode": {"q": 2, "k": 3, "v": 3, "output": 2, "lse": 1},
    "gemm_fp8": {"A": 2, "B": 3, "C": 2},
    "gemm_bf16_fp4": {"A": 2, "B": 2, "b_descale": 2, "alpha": 1, "C": 2},
    "": {
        **{name: 3 for name in ("q", "k", "v", "q_nope", "q_pe", "ckv_cache", "kpe_cache")},
        **{"k_cache": 4, "v_cache": 4, "output": 3, "lse": 2},
    },
}
_FLOATS = ("f32", "f16", "bf16")
_ELEMENTS: Dict[str, Tuple[str, ...]] = {  # dtypes of the tensors that the judge reads
    **{name: _FLOATS for name in ("q", "k", "v", "q_nope", "q_pe", "k_cache", "v_cache")},
    **{name: _FLOATS for name in ("ckv_cache", "kpe_cache", "output", "C", "query", "kv_cache")},
    **{"b_descale": ("f8e4m3",), "alpha": ("f32",), "lse": ("f32",)},
}
_OPERANDS: Dict[str, Dict[str, Tuple[str, ...]]] = {  # and those of products
    "gemm_fp8": {"A": ("f8e4m3",), "B": ("f8e4m3",)},
    "gemm_bf16_fp4": {"A": _FLOATS, "B": ("u8",)},
}


def mapping_of(definition: Any) -> Mapping:
    """The mapping of a definition. Raises Unmapped with the reason if there is none."""
    operation = definition.op_type
    known = [m for m in MAPPINGS if m.operation == operation]
    if not known:
        listed = ", ".join(sorted({m.operation for m in MAPPINGS}))
        raise Unmapped("op_type", f"{operation!r} is not judged; there are {listed}")
    whys = []
    for mapping in known:
        why = _why_not(definition, mapping)
        if why is None:
            return mapping
        whys.append(why)
    raise min(whys, key=lambda why: why.distance).refusal


class _Why(NamedTuple):
    distance: int  # names that differ
    refusal: Unmapped


def _why_not(definition: Any, mapping: Mapping) -> Optional[_Why]:
    known = set(mapping.needs + mapping.optional + mapping.absent)
    missing = [name for name in mapping.needs if name not in definition.inputs]
    unknown = [name for name in definition.inputs if name not in known]
    if missing or unknown:
        why = (
            Unmapped(unknown[0], f"is an input of {definition.op_type} that has no counterpart")
            if unknown
            else Unmapped(missing[0], f"is missing among the inputs of {definition.op_type}")
        )
        return _Why(len(missing) + len(unknown), why)
    for name in definition.outputs:
        if name not in mapping.outputs:
            return _Why(
                0, Unmapped(name, f"is an output of {definition.op_type} that is not judged")
            )
    if mapping.outputs[0] not in definition.outputs:
        return _Why(0, Unmapped(mapping.outputs[0], f"is no output of this {definition.op_type}"))
    why_not = _wrong_tensor(definition, mapping)
    return None if why_not is None else _Why(0, why_not)


def _wrong_tensor(definition: Any, mapping: Mapping) -> Optional[Unmapped]:
    ranks = {**_RANKS.get(mapping.operation, _RANKS[""]), **mapping.ranks}
    elements = {**_ELEMENTS, **_OPERANDS.get(mapping.operation, {})}
    for name, spec in {**definition.inputs, **definition.outputs}.items():
        if name in mapping.absent:
            continue
        if name in ranks and (spec.shape is None or len(spec.shape) != ranks[name]):
            return Unmapped(name, f"has the axes {spec.shape}, not {ranks[name]} of them")
        if name in elements and spec.dtype not in elements[name]:
            return Unmapped(
                name, f"is in {spec.dtype}; it is judged in {' or '.join(elements[name])}"
            )
    axes = {"num_pages", "num_kv_heads", "page_size", "head_dim"}
    for name in ("k_cache", "v_cache"):
        if name in definition.inputs and set(definition.inputs[name].shape) != axes:
            return Unmapped(
                name, f"has the axes {definition.inputs[name].shape}, not {sorted(axes)}"
            )
    heads = [definition.axes.get(axis) for axis in ("num_qo_heads", "num_kv_heads")]
    if all(heads) and heads[0] % heads[1]:  # type: ignore[operator]
        return Unmapped("num_qo_heads", f"is {heads[0]}, no multiple of {heads[1]} heads of keys")
    return None
