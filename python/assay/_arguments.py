"""Arguments that are checked: what is refused raises InputError with its name and value."""

from __future__ import annotations

import math
import struct
from typing import Any, Sequence

from .errors import InputError


def finite(argument: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(argument, f"{value!r} is no finite number")
    return value


def float32_text(argument: str, value: Any) -> str:
    """The number as the record's reader rounds it, to binary32."""
    return repr(struct.unpack("f", struct.pack("f", finite(argument, value)))[0])


def flag(argument: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(argument, f"{value!r} is neither True nor False")
    return value


def one_of(argument: str, value: Any, names: Sequence[str]) -> str:
    if value not in names:
        raise InputError(argument, f"{value!r} is none of {', '.join(names)}")
    return value
