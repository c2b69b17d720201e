"""Tensors of any framework as memory that the judge reads.

torch, numpy, cupy and jax are recognised where they are loaded already; none of them is imported
here. Everything else comes by DLPack or by the buffer protocol.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any, List, Optional, Sequence, Tuple

from ._library import CPU, DTYPES, DTYPE_OF_CODE, VERSION, CDtype, CTensor, width_of
from .errors import InputError


class Tensor:
    """Memory of the host: address of the element (0, ..., 0), dtype, shape and strides in elements.

    `owner` keeps the memory alive. `device` and `framework` say where the tensor came from.
    """

    __slots__ = ("address", "dtype", "shape", "strides", "owner", "device", "framework")

    def __init__(
        self,
        address: int,
        dtype: str,
        shape: Sequence[int],
        strides: Sequence[int],
        owner: Any = None,
        device: str = "cpu",
        framework: str = "buffer",
    ):
        self.address, self.dtype = address, dtype
        self.shape, self.strides = tuple(shape), tuple(strides)
        self.owner, self.device, self.framework = owner, device, framework

    def __repr__(self) -> str:
        return f"{self.dtype} {list(self.shape)} on {self.device}"

    def count(self) -> int:
        n = 1
        for extent in self.shape:
            n *= extent
        return n

    def c(self) -> CTensor:
        """The description for the library. Ranks are 1 to 4."""
        rank = len(self.shape)
        pad = (0,) * (4 - rank)
        return CTensor(
            VERSION,
            ctypes.sizeof(CTensor),
            self.address or None,
            CDtype(*DTYPES[self.dtype], 1),
            CPU,
            0,
            rank,
            self.shape + pad,
            self.strides + pad,
            0,
        )

    def reach(self) -> Tuple[int, int]:
        """The offsets of the first element in memory and of the one behind the last."""
        if self.count() == 0:
            return 0, 0
        low = high = 0
        for extent, stride in zip(self.shape, self.strides):
            far = (extent - 1) * stride
            low, high = low + min(far, 0), high + max(far, 0)
        return low, high + 1

    def memory(self) -> bytes:
        """The bytes that the tensor reaches, gaps included."""
        low, high = self.reach()
        width = width_of(self.dtype)
        return (
            ctypes.string_at(self.address + low * width, (high - low) * width)
            if high > low
            else b""
        )

    def packed(self) -> bytes:
        """The elements in row-major order."""
        to = ctypes.create_string_buffer(max(1, self.count() * width_of(self.dtype)))
        copy(self, Tensor(ctypes.addressof(to), self.dtype, self.shape, row_major(self.shape)))
        return to.raw[: self.count() * width_of(self.dtype)]

    def permuted(self, axes: Sequence[int]) -> "Tensor":
        return Tensor(
            self.address,
            self.dtype,
            [self.shape[a] for a in axes],
            [self.strides[a] for a in axes],
            self.owner,
            self.device,
            self.framework,
        )


def of_c(t: CTensor) -> Tensor:
    """A tensor of the library."""
    dtype = DTYPE_OF_CODE[(t.dtype.code, t.dtype.bits)]
    return Tensor(
        (t.data or 0) + t.offset * width_of(dtype), dtype, t.shape[: t.rank], t.strides[: t.rank]
    )


def row_major(shape: Sequence[int]) -> Tuple[int, ...]:
    strides: List[int] = []
    step = 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def tensor_of(data: bytes, dtype: str, shape: Sequence[int]) -> Tensor:
    """A tensor in row-major order that owns a copy of these bytes."""
    held = ctypes.create_string_buffer(data, max(1, len(data)))
    return Tensor(ctypes.addressof(held), dtype, shape, row_major(shape), held)


def copy(source: Tensor, to: Tensor) -> None:
    """Copies the elements of one tensor to another of the same shape and dtype."""
    if source.count() == 0:
        return
    width = width_of(source.dtype)
    shape = list(source.shape)
    run = 1  # elements that lie together in both
    while shape and all(t.strides[len(shape) - 1] == run or shape[-1] == 1 for t in (source, to)):
        run *= shape.pop()
    places = [(source.address, to.address)]
    for axis, extent in enumerate(shape):
        a, b = source.strides[axis] * width, to.strides[axis] * width
        places = [(x + k * a, y + k * b) for x, y in places for k in range(extent)]
    for x, y in places:
        ctypes.memmove(y, x, run * width)


class Bits:
    """A tensor of integers that are the bits of another dtype: `assay.bits(t, "bf16")`.

    For frameworks that have no bfloat16 or no 8-bit floats, as numpy.
    """

    def __init__(self, tensor: Any, dtype: str):
        if dtype not in DTYPES:
            raise InputError("dtype", f"{dtype!r} is none of {', '.join(DTYPES)}")
        self.tensor, self.dtype = tensor, dtype


# ---- torch ----


def torch_names(torch: Any) -> dict:
    """torch's dtypes by their names here."""
    named = {
        "f64": torch.float64,
        "f32": torch.float32,
        "f16": torch.float16,
        "bf16": torch.bfloat16,
        "bool": torch.bool,
        "u8": torch.uint8,
        "i8": torch.int8,
        "i32": torch.int32,
        "i64": torch.int64,
    }
    for ours, theirs in (("f8e4m3", "float8_e4m3fn"), ("f8e5m2", "float8_e5m2")):
        if hasattr(torch, theirs):
            named[ours] = getattr(torch, theirs)
    return named


def _of_torch(torch: Any, name: str, t: Any) -> Tensor:
    if t.layout != torch.strided or t.is_quantized or getattr(t, "is_nested", False):
        raise InputError(name, f"a torch tensor of layout {t.layout}; a dense one can be read")
    if t.device.type == "meta":
        raise InputError(name, "a torch tensor on the device meta, which has no elements")
    dtype = {value: key for key, value in torch_names(torch).items()}.get(t.dtype)
    if dtype is None:
        raise InputError(name, f"dtype {t.dtype} cannot be judged; there are {', '.join(DTYPES)}")
    device = str(t.device)
    t = t.detach()
    if t.is_conj() or t.is_neg():
        t = t.resolve_conj().resolve_neg()
    if t.device.type != "cpu":
        t = t.cpu()  # waits for the work that is queued on the current stream
    return Tensor(t.data_ptr(), dtype, t.shape, t.stride(), t, device, "torch")


# ---- numpy and what gives numpy arrays ----

_NUMPY = {
    "float64": "f64",
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "f8e4m3",
    "float8_e5m2": "f8e5m2",
    "float8_e8m0fnu": "e8m0",
    "bool": "bool",
    "uint8": "u8",
    "int8": "i8",
    "int32": "i32",
    "int64": "i64",
    "uint16": "u16",
    "int16": "i16",
}


def _of_numpy(
    numpy: Any, name: str, a: Any, device: str = "cpu", framework: str = "numpy"
) -> Tensor:
    dtype = _NUMPY.get(a.dtype.name)
    if dtype is None or not a.dtype.isnative:
        raise InputError(name, f"dtype {a.dtype} cannot be judged; there are {', '.join(DTYPES)}")
    if any(stride % a.dtype.itemsize for stride in a.strides):
        a = numpy.ascontiguousarray(a)
    return Tensor(
        a.__array_interface__["data"][0],
        dtype,
        a.shape,
        [stride // a.dtype.itemsize for stride in a.strides],
        a,
        device,
        framework,
    )


# ---- DLPack ----


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, [
    ctypes.py_object,
    ctypes.c_char_p,
]


def _of_dlpack(name: str, t: Any) -> Tensor:
    device_type, device_id = t.__dlpack_device__()
    if int(device_type) not in (1, 3, 11):  # CPU, and host memory that a device sees
        raise InputError(
            name,
            f"a tensor on DLPack's device ({int(device_type)}, {device_id}); the judge reads "
            "memory of the processor",
        )
    capsule = t.__dlpack__()
    d = _DLTensor.from_address(_capsule_pointer(capsule, b"dltensor"))
    dtype = DTYPE_OF_CODE.get((d.code, d.bits)) or {(1, 16): "u16", (0, 16): "i16"}.get(
        (d.code, d.bits)
    )
    if dtype is None or d.lanes != 1:
        raise InputError(
            name,
            f"DLPack's dtype of code {d.code} and {d.bits} bits cannot be judged; there are "
            f"{', '.join(DTYPES)}",
        )
    shape = tuple(d.shape[k] for k in range(d.ndim))
    strides = tuple(d.strides[k] for k in range(d.ndim)) if d.strides else row_major(shape)
    return Tensor(
        (d.data or 0) + d.byte_offset, dtype, shape, strides, (capsule, t), "cpu", "dlpack"
    )


# ---- The buffer protocol ----


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.POINTER(ctypes.c_ssize_t)),
        ("strides", ctypes.POINTER(ctypes.c_ssize_t)),
        ("suboffsets", ctypes.POINTER(ctypes.c_ssize_t)),
        ("internal", ctypes.c_void_p),
    ]


_FULL_RO = 0x011C  # PyBUF_INDIRECT | PyBUF_FORMAT
_FORMATS = {
    "d": "f64",
    "f": "f32",
    "e": "f16",
    "?": "bool",
    "B": "u8",
    "b": "i8",
    "H": "u16",
    "h": "i16",
}


class _Held:
    """A buffer that is released with this object."""

    def __init__(self, owner: Any):
        self.view = _Buffer()
        ctypes.pythonapi.PyObject_GetBuffer(
            ctypes.py_object(owner), ctypes.byref(self.view), _FULL_RO
        )

    def __del__(self) -> None:
        if self.view.buf is not None or self.view.len == 0:
            ctypes.pythonapi.PyBuffer_Release(ctypes.byref(self.view))


def _of_buffer(name: str, t: Any) -> Tensor:
    held = _Held(t)
    v = held.view
    text = (v.format or b"B").decode().lstrip("@=")
    dtype = _FORMATS.get(text)
    if dtype is None and text in ("i", "l", "q"):
        dtype = {4: "i32", 8: "i64"}.get(v.itemsize)
    if dtype is None or v.suboffsets:
        raise InputError(
            name, f"a buffer of format {text!r} cannot be judged; there are {', '.join(DTYPES)}"
        )
    shape = tuple(v.shape[k] for k in range(v.ndim))
    strides = (
        tuple(v.strides[k] // v.itemsize for k in range(v.ndim)) if v.strides else row_major(shape)
    )
    return Tensor(v.buf or 0, dtype, shape, strides, held, "cpu", "buffer")


def framework_of(t: Any) -> Optional[str]:
    """The framework that a tensor belongs to; None if it is no tensor."""
    torch, numpy, cupy = (sys.modules.get(name) for name in ("torch", "numpy", "cupy"))
    if isinstance(t, Bits):
        return framework_of(t.tensor)
    if torch is not None and hasattr(torch, "Tensor") and isinstance(t, torch.Tensor):
        return "torch"
    if numpy is not None and isinstance(t, numpy.ndarray):
        return "numpy"
    if cupy is not None and isinstance(t, cupy.ndarray):
        return "cupy"
    if type(t).__module__.partition(".")[0] in ("jax", "jaxlib"):
        return "jax"
    if hasattr(t, "__dlpack__") and hasattr(t, "__dlpack_device__"):
        return "dlpack"
    try:
        memoryview(t)
    except TypeError:
        return None
    return "buffer"


def _read_any(name: str, t: Any) -> Tensor:
    """The memory of a tensor as its framework describes it; "u16" and "i16" may come too."""
    framework = framework_of(t)
    if framework is None:
        raise InputError(
            name,
            f"{type(t).__name__} is no tensor: neither of torch, numpy, cupy or jax, nor with "
            "__dlpack__ or a buffer",
        )
    if framework == "torch":
        return _of_torch(sys.modules["torch"], name, t)
    if framework == "numpy":
        masked = sys.modules.get("numpy.ma")
        if masked is not None and isinstance(t, masked.MaskedArray):
            raise InputError(
                name, "a masked array of numpy, whose mask says nothing here; mask= does"
            )
        return _of_numpy(sys.modules["numpy"], name, t)
    if framework == "cupy":
        return _of_numpy(sys.modules["numpy"], name, t.get(), f"cuda:{t.device.id}", "cupy")
    if framework == "jax":
        import numpy

        device = str(next(iter(t.devices()))) if hasattr(t, "devices") else "cpu"
        return _of_numpy(numpy, name, numpy.asarray(t), device, "jax")
    return _of_dlpack(name, t) if framework == "dlpack" else _of_buffer(name, t)


_SIXTEEN = {"u16": 2, "i16": 2}


def read(name: str, t: Any) -> Tensor:
    """The memory of a tensor; one on a GPU is copied to the host.

    Raises InputError that names the argument, its value and what can be read.
    """
    if isinstance(t, Tensor):
        return t
    if isinstance(t, Bits):
        found = _read_any(name, t.tensor)
        width = _SIXTEEN.get(found.dtype) or width_of(found.dtype)
        if found.dtype[0] not in "ui" or width != width_of(t.dtype):
            raise InputError(name, f"{found} does not hold the bits of {t.dtype}")
        found.dtype = t.dtype
    else:
        found = _read_any(name, t)
    if found.dtype in _SIXTEEN:
        raise InputError(
            name,
            f"{found.dtype} is no dtype of a kernel; assay.bits(t, 'bf16') says that these are "
            "the bits of bf16",
        )
    if not 1 <= len(found.shape) <= 4:
        raise InputError(name, f"{found} has {len(found.shape)} extents, not 1 to 4")
    return found
