"""Cases for property tests with hypothesis, which makes a failing case smaller.

    from hypothesis import given
    from assay import strategies

    @given(case=strategies.cases("attention", kernel=mine, causal=True))
    def test_mine(case):
        mine.check(case)

A failure ends with the smallest case that fails, as its line. hypothesis is needed by this module
alone.
"""

from __future__ import annotations

import importlib
from typing import Any, Callable, Dict, List, Optional, Sequence

from ._cases import Case
from ._kernel import Kernel
from ._library import facts
from .errors import InputError

__all__ = ["cases"]

_OPERATIONS = ("attention", "backward", "decode", "product")
# The first of each list is what a case is made smaller to.
_SCORES = """normal flat equal ties uniform tiny huge negative growing falling tile-peaks
    large-scores near-overflow subnormal signed-zeros ramp cancel heavy-tail key-sink subset
    gather"""
_VALUES = """normal ones constant integers uniform tiny huge cancel offset one-hot near-overflow
    subnormal signed-zeros ramp heavy-tail biased head-number balanced"""
_GRADIENTS = "normal ones uniform cancel one-hot heavy-tail"
_WEIGHTS = "quantized codes ramp one-hot largest cancel zeros"
_SCALES = "unit distinct random smallest largest"
_LAYOUTS = ("bshd", "packed", "padded", "strided", "shared-head", "shared-batch", "reversed")
_ROWS, _KEYS, _COLUMNS = 40, 80, 40


def _hypothesis() -> Any:
    try:
        return importlib.import_module("hypothesis.strategies")
    except ImportError as e:
        raise InputError("strategies", f"they need hypothesis, which cannot be imported: {e}")


class _Line:
    """A case line that is drawn field by field; fields that are fixed are not drawn."""

    def __init__(self, draw: Callable[[Any], Any], has: Sequence[str], fixed: Dict[str, Any]):
        self.st, self.draw, self.has, self.fixed = _hypothesis(), draw, set(has), fixed
        self.words: List[str] = []

    def field(self, name: str, drawn: Callable[[], Any]) -> Any:
        """Adds a field, and returns its value. False and None leave a field out."""
        value = self.fixed[name] if name in self.fixed else drawn()
        if isinstance(value, self.st.SearchStrategy):
            value = self.draw(value)
        if value is True:
            self.words.append(name.replace("_", "-"))
        elif value is not None and value is not False:
            self.words.append(f"{name.replace('_', '-')}={value}")
        return value

    def optional(self, name: str, strategy: Any, feature: Optional[str] = None) -> Any:
        """A field that is there in one case of four, if the kernel has its feature."""

        def drawn() -> Any:
            there = (feature or name) in self.has and self.draw(self.st.integers(0, 3)) == 3
            return self.draw(strategy) if there else None

        return self.field(name, drawn)

    def one_of(self, name: str, names: Sequence[str]) -> Any:
        return self.field(name, lambda: self.draw(self.st.sampled_from(names)))

    def number(self, low: int, high: int) -> int:
        return self.draw(self.st.integers(low, high))


def _heads(line: _Line) -> str:
    kv = line.number(1, 2)
    return f"{kv * line.number(1, 3)}/{kv}" if "gqa" in line.has else str(kv)


def _lengths(line: _Line, decode: bool) -> str:
    if decode:
        rows = line.number(1, 4)
        return f"{rows}x{rows + line.number(0, _KEYS)}"
    rows = line.number(1, _ROWS)
    return f"{rows}x{line.number(1, _KEYS)}" if line.number(0, 1) else str(rows)


def _columns(line: _Line) -> str:
    columns = line.number(1, _COLUMNS)
    other = "head-dims" in line.has and line.number(0, 1)
    return f"{columns}/{line.number(1, _COLUMNS)}" if other else str(columns)


def _dtype(line: _Line, known: Sequence[str]) -> Any:
    names = [name for name in known if f"dtype={name}" in line.has]
    return line.one_of("dtype", names)


def _attention(line: _Line, operation: str) -> None:
    st, decode = line.st, operation == "decode"
    batch = line.field("b", lambda: line.number(1, 2))
    line.field("h", lambda: _heads(line))
    lengths = str(line.field("l", lambda: _lengths(line, decode)))
    line.field("d", lambda: _columns(line))
    dtype = _dtype(line, ("f32", "f16", "bf16") if decode else ("f32", "f16", "bf16", "f64"))
    line.optional("scale", st.sampled_from(["1", "0.125", "0.3", "-0.3"]))
    line.optional("softcap", st.sampled_from(["30", "1"]))
    line.optional("causal", st.just(True))
    if decode:
        line.field("offset", lambda: "end")
        line.field("cache", lambda: f"paged:{line.number(1, 16)}")
    else:
        line.optional("offset", st.one_of(st.just("end"), st.integers(-3, 40)))
        line.optional("bool", st.sampled_from(["random", "empty-rows", "tiles", "future"]))
        line.optional("bias", st.sampled_from(["normal", "large", "constant"]))
        keys = int(lengths.rpartition("x")[2])
        each = st.lists(st.integers(0, keys), min_size=int(batch), max_size=int(batch))
        line.optional("lengths", each.map(lambda found: ",".join(map(str, found))))
    line.optional(
        "window", st.tuples(st.integers(-1, 9), st.integers(-1, 9)).map("{0[0]},{0[1]}".format)
    )
    line.optional("alibi", st.just(True))
    line.optional("sink", st.sampled_from(["0.5", "-3", "20"]))
    # Products near the largest f64 are beyond every bound, and nothing would be judged.
    line.one_of("scores", [s for s in _SCORES.split() if (dtype, s) != ("f64", "near-overflow")])
    line.one_of("values", _VALUES.split())
    if operation == "backward":
        line.one_of("grad", _GRADIENTS.split())
        line.optional("dlse", st.sampled_from(["normal", "huge", "signed-zeros"]))
    elif not decode:
        _layout(line)


def _layout(line: _Line) -> None:
    known = [name for name in _LAYOUTS if f"layout={name}" in line.has]
    # Heads or batches that share their memory are those of K and V.
    words = [f"k:{n},v:{n}" if n.startswith("shared") else n for n in known]
    feature = f"layout={known[0]}" if known else ""  # "" is the feature of no kernel
    line.optional("layout", line.st.sampled_from(words or [""]), feature)


def _product(line: _Line) -> None:
    for name in ("m", "n"):
        line.field(name, lambda: line.number(1, 20))
    line.field("k", lambda: 4 * line.number(1, 40))
    _dtype(line, ("f32", "f16", "bf16"))
    line.one_of("w", [f[2:] for f in sorted(line.has) if f.startswith("w=")])
    line.one_of("weights", _WEIGHTS.split())
    if "quantized" not in line.words[-1]:
        line.one_of("scales", _SCALES.split())
    line.one_of("values", _VALUES.split())


def cases(operation: str = "attention", *, kernel: Optional[Kernel] = None, **fixed: Any) -> Any:
    """A strategy of cases (assay.Case).

        strategies.cases("backward", kernel=mine, dtype="f16", d=st.sampled_from([64, 128]))

    Args:
        operation: "attention", "backward", "decode" or "product".
        kernel: no case needs a feature that it does not have.
        fixed: fields of the case line that are not drawn (`assay notation` explains them), with
            "_" for "-": a value, True or False for a flag, None for a field that is left out, or a
            strategy of its own.

    Returns:
        A hypothesis.strategies.SearchStrategy. A failing case becomes small: few rows, keys, heads
        and columns, f32, normal numbers, and no field that is not needed.
    """
    st = _hypothesis()
    if operation not in _OPERATIONS:
        raise InputError("operation", f"{operation!r} is none of {', '.join(_OPERATIONS)}")
    has = facts()["features"] if kernel is None else kernel.features
    needed = {"decode": "cache=paged"}.get(operation, operation)
    if needed not in has:
        raise InputError("kernel", f"{kernel!r} does not do {operation}: it has no {needed}")

    @st.composite
    def drawn(draw: Callable[[Any], Any]) -> Case:
        line = _Line(draw, has, fixed)
        if operation == "product":
            _product(line)
        else:
            _attention(line, operation)
        line.field("seed", lambda: line.number(1, 4))
        for name in fixed:  # fields that are never drawn
            if not any(w.partition("=")[0] == name.replace("_", "-") for w in line.words):
                line.field(name, lambda: None)
        return Case(" ".join([operation.replace("decode", "attention"), *line.words]))

    return drawn()
