"""Arguments that are checked: what is refused raises InputError with its name and value."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import struct
from typing import Any, Callable, Iterable, Sequence, Tuple, TypeVar, cast

from .errors import Failure, InputError

# What other libraries call the same argument, with the same values.
SYNONYMS = {
    name: ours
    for names, ours in (
        ("is_causal", "causal"),
        ("attn_bias", "bias"),
        ("sm_scale softmax_scale", "scale"),
        ("soft_cap logits_soft_cap logit_cap", "softcap"),
        ("window_size", "window"),
        ("sinks s_aux", "sink"),
    )
    for name in names.split()
}

# What other libraries call an argument that says something else, or the same in other values, and
# the words that say ours.
_ELSEWHERE = {
    name: ours
    for names, ours in (
        ("attn_mask attention_mask", "mask (boolean, True keeps) or bias (added to the scores)"),
        ("key_padding_mask", "lengths or mask"),
        ("sliding_window", "window"),
        ("dropout_p", "dropout and dropout_seed"),
        ("seqused_k seq_lens kv_lens cache_seqlens context_lens", "lengths"),
        ("dout grad_output grad_out grad_o", "do"),
        ("softmax_lse logsumexp", "lse"),
        ("query", "q"),
        ("key", "k"),
        ("value", "v"),
        ("out output", "o"),
        ("k_cache key_cache", "k_pages"),
        ("v_cache value_cache", "v_pages"),
        ("block_tables page_table", "block_table"),
        ("atol rtol tolerance", "arithmetic, from which the tolerance follows"),
    )
    for name in names.split()
}


def elsewhere(name: str, known: Iterable[str]) -> str:
    """How the known names say what other libraries call so; empty if they do not."""
    ours = SYNONYMS.get(name, _ELSEWHERE.get(name, ""))
    return ours if ours.partition(" ")[0].rstrip(",") in known else ""


def kept_default(name: str, ours: str) -> str:
    """What is told of an argument whose meaning Assay gives by another name."""
    return f"{name!r} always had its default: here it is {ours}"


def meant(name: str, known: Iterable[str]) -> str:
    """What was meant by a name that is none of the known ones."""
    known = list(known)
    ours = elsewhere(name, known)
    if ours:
        return f"here it is {ours}"
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


Function = TypeVar("Function", bound=Callable[..., Any])


def by_name(*more: str) -> Callable[[Function], Function]:
    """Makes what does not fit the signature of a function an InputError that names the argument.

    `more` are the keywords that a function with **keywords takes.
    """

    def make(function: Function) -> Function:
        parameters = [
            p
            for p in inspect.signature(function).parameters.values()
            if p.kind is not p.VAR_KEYWORD
        ]
        called = function.__name__
        known = list(dict.fromkeys([p.name for p in parameters] + list(more)))
        first = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        needed = [p.name for p in parameters if p.default is p.empty]

        def told(names: Sequence[str]) -> Sequence[str]:
            return [name for name in names if name != "self"]

        @functools.wraps(function)
        def checked(*arguments: Any, **keywords: Any) -> Any:
            __tracebackhide__ = True  # pytest shows the code of the caller
            for name in keywords:
                if name not in known:
                    raise InputError(name, f"is no keyword of {called}; {meant(name, told(known))}")
                if name in first[: len(arguments)]:
                    raise InputError(name, f"is given by position and by name to {called}")
            if len(arguments) > len(first):
                raise InputError(
                    known[len(first)],
                    f"is given by position; {called} takes {', '.join(told(first))} so, and all "
                    "others by name",
                )
            for name in needed:
                if name not in keywords and name not in first[: len(arguments)]:
                    raise InputError(name, f"is missing; {called} needs {', '.join(told(needed))}")
            try:
                return function(*arguments, **keywords)
            except (Failure, InputError) as e:
                raise e.with_traceback(None)  # the text says all; the frames are those of Assay

        return cast(Function, checked)

    return make


def plain(value: Any) -> Any:
    """The number of Python that a number of numpy, or a tensor without axes, holds; else itself."""
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        try:
            return value.item()
        except Exception:  # as one on the device meta
            pass
    return value


def finite(argument: str, value: Any) -> float:
    number = plain(value)
    known = isinstance(number, (int, float)) and not isinstance(number, bool)
    if not known or not -math.inf < number < math.inf or abs(number) >= 2**1024:
        raise InputError(argument, f"{value!r} is no finite number")
    return number


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def whole(argument: str, value: Any, end: int, words: str) -> int:
    """A whole number from 0 to below the end."""
    number = plain(value)
    if not is_whole(number) or not 0 <= number < end:
        raise InputError(argument, f"{value!r} is no whole number from 0 to {words}")
    return number


def seconds(argument: str, value: Any) -> float:
    if finite(argument, value) < 0:
        raise InputError(argument, f"{value!r} is no number of seconds")
    return value


def float32_text(argument: str, value: Any) -> str:
    """The number as the record's reader rounds it, to binary32."""
    return repr(struct.unpack("f", struct.pack("f", finite(argument, value)))[0])


def flag(argument: str, value: Any) -> bool:
    told = plain(value)
    if not isinstance(told, bool):
        raise InputError(argument, f"{value!r} is neither True nor False")
    return told


def one_of(argument: str, value: Any, names: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in names:
        raise InputError(argument, f"{value!r} is none of {', '.join(names)}")
    return value


def texts(argument: str, value: Any) -> Tuple[str, ...]:
    """The texts of a list; a text alone is no list of its characters."""
    listed = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else None
    if listed is None or not all(isinstance(one, str) for one in listed):
        raise InputError(argument, f"{value!r} is no list of texts")
    return listed


def one_line(argument: str, value: Any) -> str:
    """A text that can stand in a line of a report."""
    if not isinstance(value, str) or not value.isprintable():
        raise InputError(argument, f"{value!r} is no text of printable characters")
    return value


def called(argument: str, value: Any) -> Any:
    """A function, or None."""
    if value is not None and not callable(value):
        raise InputError(argument, f"{value!r} is no function")
    return value
