"""Arguments that are checked: what is refused raises InputError with its name and value."""

from __future__ import annotations

import math
import struct
from typing import Any, Iterable, Sequence, Tuple

from .errors import InputError


def finite(argument: str, value: Any) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not -math.inf < value < math.inf or abs(value) >= 2**1024:
        raise InputError(argument, f"{value!r} is no finite number")
    return value


def seconds(argument: str, value: Any) -> float:
    if finite(argument, value) < 0:
        raise InputError(argument, f"{value!r} is no number of seconds")
    return value


def float32_text(argument: str, value: Any) -> str:
    """The number as the record's reader rounds it, to binary32."""
    return repr(struct.unpack("f", struct.pack("f", finite(argument, value)))[0])


def flag(argument: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(argument, f"{value!r} is neither True nor False")
    return value


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


def called(argument: str, value: Any) -> Any:
    """A function, or None."""
    if value is not None and not callable(value):
        raise InputError(argument, f"{value!r} is no function")
    return value
