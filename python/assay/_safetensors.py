"""Files of named tensors (safetensors): written whole, and read tensor by tensor."""

from __future__ import annotations

import json
import math
import os
import struct
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple, Union

from ._library import DTYPES, width_of
from ._tensors import Tensor, tensor_of
from .errors import InputError

_STORED = {
    "f64": "F64",
    "f32": "F32",
    "f16": "F16",
    "bf16": "BF16",
    "f8e4m3": "F8_E4M3",
    "f8e5m2": "F8_E5M2",
    "e8m0": "F8_E8M0",
    "bool": "BOOL",
    "u8": "U8",
    "i8": "I8",
    "i32": "I32",
    "i64": "I64",
}
assert set(_STORED) == set(DTYPES)
_DTYPE_OF = {stored: dtype for dtype, stored in _STORED.items()}


def write(
    path: Union[str, Path],
    metadata: Dict[str, str],
    tensors: Sequence[Tuple[str, Tensor]],
    argument: str = "path",
) -> None:
    """Writes a file of tensors, whole or not at all. The caller calls the path `argument`."""
    header: Dict[str, Any] = {"__metadata__": metadata}
    pieces, at = [], 0
    # Falling widths keep every tensor aligned.
    for name, t in sorted(tensors, key=lambda named: (-width_of(named[1].dtype), named[0])):
        data = t.packed()
        header[name] = {
            "dtype": _STORED[t.dtype],
            "shape": list(t.shape),
            "data_offsets": [at, at + len(data)],
        }
        pieces.append(data)
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    write_whole(path, [struct.pack("<Q", len(text)) + text, *pieces], argument)


def write_whole(path: Union[str, Path], pieces: Sequence[bytes], argument: str = "path") -> None:
    """Writes a file beside its place and renames it, so that nobody sees a part of it."""
    if not isinstance(path, (str, Path)):
        raise InputError(argument, f"{path!r} is no path")
    path = Path(path)
    if path.is_dir():
        raise InputError(argument, f"{str(path)!r} is a folder")
    try:
        handle, temporary = tempfile.mkstemp(prefix=path.name + ".", dir=path.parent)
    except (FileNotFoundError, NotADirectoryError, PermissionError) as e:
        raise InputError(argument, f"{path}: {e.strerror}") from None
    except ValueError:  # a NUL, or a surrogate
        raise InputError(argument, f"{str(path)!r} is no path") from None
    try:
        with os.fdopen(handle, "wb") as file:
            for data in pieces:
                file.write(data)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_one(path: Union[str, Path], name: str) -> Tensor:
    """One tensor of a file. Raises InputError for what is missing, damaged or contradictory."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            header, begin = _header(str(path), file.read(8), file, size)
            entry = header.get(name)
            if not isinstance(entry, dict) or name == "__metadata__":
                names = ", ".join(k for k in header if k != "__metadata__")
                raise InputError("tensor_key", f"{name!r} is not in {path}; there are {names}")
            dtype, shape, offsets = _entry(str(path), name, entry)
            if begin + offsets[1] > size:
                raise InputError("path", f"{path}: {name} ends behind the end of the file")
            file.seek(begin + offsets[0])
            data = file.read(offsets[1] - offsets[0])
    except OSError as e:
        raise InputError("path", f"{path}: {e.strerror}") from None
    return tensor_of(data, dtype, shape)


def _header(path: str, length: bytes, file: Any, size: int) -> Tuple[Dict[str, Any], int]:
    count = struct.unpack("<Q", length)[0] if len(length) == 8 else 0
    if not 2 <= count <= size - 8:
        raise InputError("path", f"{path}: is no file of safetensors")
    try:
        header = json.loads(file.read(count))
    except ValueError as e:
        raise InputError("path", f"{path}: its header is no JSON: {e}") from None
    if not isinstance(header, dict):
        raise InputError("path", f"{path}: its header is no object")
    return header, 8 + count


def _entry(path: str, name: str, entry: Dict[str, Any]) -> Tuple[str, List[int], List[int]]:
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    whole = all(
        isinstance(list_, list) and all(type(n) is int and n >= 0 for n in list_)
        for list_ in (shape, offsets)
    )
    if dtype not in _DTYPE_OF or not whole or len(offsets) != 2:  # type: ignore[arg-type]
        raise InputError("path", f"{path}: {name} is described by {entry}")
    found = _DTYPE_OF[dtype]
    if offsets[1] - offsets[0] != math.prod(shape) * width_of(found):  # type: ignore
        raise InputError("path", f"{path}: {name} of {entry} has another number of bytes")
    return found, shape, offsets  # type: ignore[return-value]
