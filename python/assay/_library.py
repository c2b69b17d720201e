"""The judge's shared library (include/assay/judge.h) through ctypes."""

from __future__ import annotations

import ctypes
import functools
import json
import os
from ctypes import POINTER, c_char_p, c_double, c_int32, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Any, Callable, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

from ._arguments import finite, flag, one_of, plain, texts, whole
from .errors import InputError

# How a kernel computes: a rung of the ladder of docs/tolerance.md by its name, or fields of
# assay_arithmetic or assay_product_arithmetic (kernel.h); None: the ladder is tried.
Arithmetic = Union[None, str, Mapping[str, Union[int, float]]]
# What a kernel means where nobody agreed: {"masked-rows": "nan"}, or a text as in a case line.
Conventions = Union[None, str, Mapping[str, str]]
EVIDENCE = ("fail", "warn", "off")

VERSION = 2
SUCCESS, INVALID_ARGUMENTS, MEMORY, EXECUTION_FAILED, UNSUPPORTED = 0, 1, 2, 5, 6
CPU = 1

# DLPack's codes of the dtypes that tensors of cases and records have.
DTYPES = {
    "f64": (2, 64),
    "f32": (2, 32),
    "f16": (2, 16),
    "bf16": (4, 16),
    "f8e4m3": (10, 8),
    "f8e5m2": (12, 8),
    "e8m0": (14, 8),
    "bool": (6, 8),
    "u8": (1, 8),
    "i8": (0, 8),
    "i32": (0, 32),
    "i64": (0, 64),
}
DTYPE_OF_CODE = {code: name for name, code in DTYPES.items()}


def width_of(dtype: str) -> int:
    """The number of bytes of an element."""
    return DTYPES[dtype][1] // 8


class CDtype(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class CTensor(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_uint32),
        ("struct_size", ctypes.c_uint32),
        ("data", c_void_p),
        ("dtype", CDtype),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("rank", c_int32),
        ("shape", c_int64 * 4),
        ("strides", c_int64 * 4),
        ("offset", c_int64),
    ]


class CNamedTensor(ctypes.Structure):
    _fields_ = [("name", c_char_p), ("tensor", CTensor)]


class CFeatures(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_uint32),
        ("struct_size", ctypes.c_uint32),
        ("names", POINTER(c_char_p)),
        ("count", c_int64),
    ]


class COptions(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_uint32),
        ("struct_size", ctypes.c_uint32),
        ("name", c_char_p),
        ("threads", c_int32),
        ("power", c_int32),
        ("pictures", c_int32),
        ("relations", c_int32),
        ("evidence", c_int32),
        ("reserved", c_int32),
        ("arithmetic", c_char_p),
        ("rows", c_int64),
        ("seed", c_uint64),
        ("conventions", c_char_p),
    ]


class CCall(ctypes.Structure):
    _fields_ = [
        ("operation", c_char_p),
        ("line", c_char_p),
        ("inputs", POINTER(CNamedTensor)),
        ("outputs", POINTER(CNamedTensor)),
        ("input_count", c_int64),
        ("output_count", c_int64),
    ]


FUNCTION = ctypes.CFUNCTYPE(c_int32, c_void_p, POINTER(CCall), c_void_p, c_uint64)
FAILS = ctypes.CFUNCTYPE(c_int32, c_void_p, c_char_p)

_LIBRARY = "libassay_judge.so"


def _places() -> Iterable[Path]:
    named = os.environ.get("ASSAY_JUDGE_LIBRARY")
    if named:
        yield Path(named)
        return
    here = Path(__file__).resolve().parent
    yield here / "lib" / _LIBRARY  # a wheel
    for build in ("release", "wheel"):  # a checkout; the second is that of `pip install -e .`
        yield here.parent.parent / "build" / build / "judge" / _LIBRARY


def _load() -> ctypes.CDLL:
    places = list(_places())
    for path in places:
        if path.exists():
            try:
                library = ctypes.CDLL(str(path))
                version = library.assay_judge_version()
            except (OSError, AttributeError) as e:
                named = "ASSAY_JUDGE_LIBRARY=" if os.environ.get("ASSAY_JUDGE_LIBRARY") else ""
                raise ImportError(f"{named}{path}: is no judge's library ({_LIBRARY}): {e}") from e
            break
    else:
        raise ImportError(
            "the judge's library is not there: "
            + " and ".join(map(str, places))
            + (
                "; ./dev assay builds it in a checkout, and ./dev wheel for other places"
                if len(places) > 1
                else " (ASSAY_JUDGE_LIBRARY)"
            )
        )
    if version != VERSION:
        raise ImportError(
            f"{path} has version {version} of its interface, and this package has {VERSION}"
        )
    text, answer, tensors = c_void_p, POINTER(c_void_p), POINTER(CNamedTensor)
    features, options = POINTER(CFeatures), POINTER(COptions)
    for name, arguments in {
        "facts": [answer],
        "suite": [c_char_p, c_uint64, features, answer],
        "parse": [c_char_p, answer],
        "tensors": [c_char_p, tensors, c_int64, options, answer],
        "function": [c_char_p, FUNCTION, c_void_p, c_int32, features, options, answer],
        "record": [c_char_p, tensors, c_int64, options, answer],
        "file": [c_char_p, options, answer],
        "summary": [c_char_p, answer],
        "shrink": [c_char_p, features, FAILS, c_void_p, c_double, answer],
        "identify": [c_char_p, FUNCTION, c_void_p, c_int32, features, c_char_p, answer],
    }.items():
        function = getattr(library, "assay_judge_" + name)
        function.argtypes, function.restype = arguments, c_int32
    library.assay_text_data.argtypes, library.assay_text_data.restype = [text], c_char_p
    library.assay_text_free.argtypes, library.assay_text_free.restype = [text], None
    library.assay_case_open.argtypes = [c_char_p, POINTER(c_void_p), answer]
    library.assay_case_close.argtypes, library.assay_case_close.restype = [c_void_p], None
    library.assay_case_inputs.argtypes = [
        c_void_p,
        c_int64,
        POINTER(tensors),
        POINTER(c_int64),
        answer,
    ]
    return library


library = _load()


def ask(function: Callable[..., int], *arguments: Any, argument: str = "") -> str:
    """Calls a function of the library; returns its text. Raises InputError for what it refuses."""
    answer = c_void_p()
    status = function(*arguments, ctypes.byref(answer))
    text = library.assay_text_data(answer).decode("utf-8", "replace")
    library.assay_text_free(answer)
    if status == SUCCESS:
        return text
    if status == MEMORY:
        raise MemoryError(text or "out of memory")
    if status == INVALID_ARGUMENTS:
        raise InputError(argument, text)
    raise RuntimeError(text)


def encoded(argument: str, text: Any) -> bytes:
    """Text for the library. Raises InputError for what is no text, or holds a NUL."""
    if not isinstance(text, str):
        raise InputError(argument, f"{text!r} is no text")
    if "\0" in text:
        raise InputError(argument, f"{text!r} holds a NUL")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InputError(argument, f"{text!r} is no Unicode") from None


def features_of(names: Optional[Iterable[str]]) -> Optional[CFeatures]:
    """The features for the library; None means all of them."""
    if names is None:
        return None
    listed = [encoded("features", name) for name in texts("features", names)]
    array = (c_char_p * max(1, len(listed)))(*listed)
    return CFeatures(VERSION, ctypes.sizeof(CFeatures), array, len(listed))


def arithmetic_text(arithmetic: Arithmetic) -> Optional[str]:
    """The declared arithmetic as judge.h wants it."""
    if arithmetic is None or isinstance(arithmetic, str):
        return arithmetic
    if not isinstance(arithmetic, Mapping):
        raise InputError("arithmetic", f"{arithmetic!r} is neither a name nor a dictionary")
    words = []
    for field, value in arithmetic.items():
        value = plain(value)
        finite(f"arithmetic[{field!r}]", int(value) if isinstance(value, bool) else value)
        words.append(f"{field}={value:d}" if isinstance(value, int) else f"{field}={value!r}")
    return " ".join(words)


def conventions_text(conventions: Conventions) -> Optional[str]:
    """The declared conventions as a case line has them; None if nothing is declared."""
    if conventions is None:
        return None
    if isinstance(conventions, Mapping):
        conventions = ",".join(f"{name}:{value}" for name, value in conventions.items())
    if not isinstance(conventions, str):
        raise InputError("conventions", f"{conventions!r} is neither a text nor a dictionary")
    known = {row["name"]: row["values"] for row in facts()["conventions"]}
    for entry in conventions.split(",") if conventions else ():
        name, _, value = entry.partition(":")
        if name not in known:
            raise InputError(
                "conventions", f"{entry!r} is no convention; there are {', '.join(known)}"
            )
        if value not in known[name]:
            raise InputError("conventions", f"{entry!r}: {name} is one of {', '.join(known[name])}")
    return conventions or None


def options_of(
    name: str = "function",
    threads: int = 1,
    power: bool = True,
    pictures: bool = False,
    relations: bool = False,
    evidence: str = "fail",
    arithmetic: Arithmetic = None,
    rows: int = 0,
    seed: int = 1,
    conventions: Conventions = None,
) -> COptions:
    declared = arithmetic_text(arithmetic)
    meant = conventions_text(conventions)
    return COptions(
        VERSION,
        ctypes.sizeof(COptions),
        encoded("name", name),
        whole("threads", threads, 2**40, "2^40"),
        int(flag("power", power)),
        int(flag("pictures", pictures)),
        int(flag("relations", relations)),
        EVIDENCE.index(one_of("evidence", evidence, EVIDENCE)),
        0,
        None if declared is None else encoded("arithmetic", declared),
        whole("rows", rows, 2**40, "2^40"),
        whole("seed", seed, 2**40, "2^40"),
        None if meant is None else encoded("conventions", meant),
    )


def ask_json(function: Callable[..., int], *arguments: Any, argument: str = "") -> Any:
    return json.loads(ask(function, *arguments, argument=argument))


@functools.lru_cache(maxsize=None)
def facts() -> Any:
    """{"suites": [...], "features": [...], "conventions": [...]}."""
    return ask_json(library.assay_judge_facts)


def suite(name: str, seed: int = 1, features: Optional[Sequence[str]] = None) -> Any:
    """{"suite", "seed", "notes", "cases", "unsupported"} (judge.h)."""
    return ask_json(
        library.assay_judge_suite,
        encoded("suite", name),
        whole("seed", seed, 2**64, "2^64 - 1"),
        features_of(features),
        argument="suite",
    )


def parse(line: str) -> Any:
    """What a case line says: {"case", "operation", "dtype", "out", "features", "shape"}."""
    return ask_json(library.assay_judge_parse, encoded("case", line), argument="case")


def named_array(tensors: List[Tuple[str, CTensor]]) -> Any:
    array = (CNamedTensor * max(1, len(tensors)))()
    for slot, (name, tensor) in zip(array, tensors):
        slot.name, slot.tensor = name.encode(), tensor
    return array
