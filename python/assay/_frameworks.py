"""How a kernel gets its inputs in its own framework, and how its outputs are read.

Every input lies in a storage of its own, at a fresh address, with the strides of the case. A
storage can be asked later whether somebody wrote to it.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from ._library import width_of
from ._tensors import Bits, Tensor, framework_of, read, row_major, torch_names
from .errors import InputError

# The bits of the NaN, and of the large number, that fill what a kernel has not written. The NaN has
# a payload of its own: the judge recognises it.
NAN = {"f64": 0x7FF8A55AA55AA55A, "f32": 0x7FC0A55A, "f16": 0x7E5A, "bf16": 0x7FDA}
LARGE = {"f64": 0x46293E5939A08CEA, "f32": 0x7149F2CA, "f16": 0x7B53, "bf16": 0x714A}


class Finding(Exception):
    """Something that no kernel may do; the case fails with this text."""


class Input:
    """One input of a call: what the function gets, and the memory behind it."""

    def __init__(
        self,
        name: str,
        value: Any,
        content: bytes,
        begin: int,
        now: Callable[[], bytes],
        refill: Optional[Callable[[bytes], Callable[[], None]]] = None,
    ):
        self.name, self.value, self.content = name, value, content
        self.begin, self.end = begin, begin + len(content)
        # refill(bytes) makes new contents ready, and returns what puts them into place.
        self.now, self.refill = now, refill

    def changed(self) -> bool:
        return self.now() != self.content


class Framework:
    """The part that all frameworks share: numbers in host memory."""

    name = "buffer"
    dtypes: Tuple[str, ...] = ("f64", "f32")
    layouts: Tuple[str, ...] = ()
    has_streams = False

    def __init__(self, device: str = "cpu"):
        if device != "cpu":
            raise InputError("device", f"{device!r}: {self.name} has cpu alone")
        self.device = device

    def make(self, name: str, t: Tensor, axes: Sequence[int]) -> Input:
        content = bytearray(t.packed())
        # Newer type hints of memoryview know each format alone, and none that is looked up.
        formats: Dict[str, Any] = {
            "f64": "d",
            "f32": "f",
            "bool": "?",
            "u8": "B",
            "i32": "i",
            "i64": "q",
        }
        format = formats[t.dtype]
        shape = tuple(t.shape[a] for a in axes)
        if axes != list(range(len(axes))) or 0 in shape:
            raise Finding("memoryviews are contiguous, and not empty")
        value = (
            memoryview(content).cast(format, shape=shape)
            if len(shape) > 1
            else memoryview(content).cast(format)
        )
        return Input(name, value, bytes(content), _address(content), lambda: bytes(content))

    def dtype(self, name: str) -> Any:
        return name

    def read(self, name: str, value: Any) -> Tensor:
        return read(name, value)

    def check_type(self, name: str, value: Any) -> None:
        """Raises Finding for what is no plain tensor of this framework on this device."""

    def poison(self, wanted: Sequence[Tuple[Sequence[int], str]], codes: Dict[str, int]) -> None:
        """Fills memory that the next allocations of such tensors will get again."""

    def wait(self) -> None:
        """Waits for the work that is queued on the device; here there is none."""

    def is_lost(self) -> bool:
        """Whether the device answers no more in this process, as after a fault of its memory."""
        return False

    def on_other_stream(self, fill: Callable[[], None], call: Callable[[], Any]) -> Any:
        """Fills the inputs and calls on another stream than the first time; here there are none."""
        fill()
        return call()


def _address(content: bytearray) -> int:
    return ctypes.addressof(
        (ctypes.c_char * max(1, len(content))).from_buffer(content or bytearray(1))
    )


def _moved(t: Tensor) -> Tuple[bytearray, Tensor]:
    """The memory that a tensor reaches, copied, and where its first element lies in it."""
    low, high = t.reach()
    content = bytearray(t.memory())
    return content, Tensor(-low, t.dtype, t.shape, t.strides)


class Numpy(Framework):
    name = "numpy"
    layouts = ("bshd", "packed", "padded", "strided", "shared-head", "shared-batch", "reversed")

    def __init__(self, device: str = "cpu"):
        super().__init__(device)
        import numpy

        self.numpy = numpy
        self.names = {
            "f64": "float64",
            "f32": "float32",
            "f16": "float16",
            "bool": "bool",
            "u8": "uint8",
            "i32": "int32",
            "i64": "int64",
        }
        self.dtypes = ("f64", "f32", "f16")
        ml = sys.modules.get("ml_dtypes")
        if ml is not None:
            self.names["bf16"] = ml.bfloat16
            self.dtypes += ("bf16",)

    def dtype(self, name: str) -> Any:
        return self.numpy.dtype(self.names[name])

    def make(self, name: str, t: Tensor, axes: Sequence[int]) -> Input:
        np = self.numpy
        content, place = _moved(t)
        storage = (
            np.frombuffer(content, dtype=self.dtype(t.dtype))
            if content
            else np.empty(0, self.dtype(t.dtype))
        )
        width = width_of(t.dtype)
        value = np.lib.stride_tricks.as_strided(
            storage[place.address :],
            [t.shape[a] for a in axes],
            [t.strides[a] * width for a in axes],
        )

        def refill(new: bytes) -> Callable[[], None]:
            def put() -> None:
                content[:] = new

            return put

        return Input(name, value, bytes(content), _address(content), lambda: bytes(content), refill)

    def check_type(self, name: str, value: Any) -> None:
        np = self.numpy
        if isinstance(value, Bits):
            value = value.tensor
        if not isinstance(value, (np.ndarray, np.generic)):
            raise Finding(f"{name} is {_type(value)}, not a numpy array")
        if isinstance(value, np.ndarray) and type(value) is not np.ndarray:
            raise Finding(
                f"{name} is {_type(value)}, a subclass of numpy's array, and may be computed later"
            )

    def poison(self, wanted: Sequence[Tuple[Sequence[int], str]], codes: Dict[str, int]) -> None:
        np = self.numpy
        held = []
        for shape, dtype in wanted:
            for _ in range(2):
                a = np.empty(shape, self.dtype(dtype) if dtype in self.names else np.uint16)
                a.view(f"u{width_of(dtype)}")[...] = codes[dtype]
                held.append(a)
        del held


class Torch(Framework):
    name = "torch"
    layouts = ("bshd", "packed", "padded", "strided", "shared-head", "shared-batch")

    def __init__(self, device: str = "cpu"):
        try:
            import torch
        except ImportError as e:
            raise InputError("framework", f"torch cannot be imported: {e}") from None
        self.torch = torch
        try:
            self.device = str(torch.device(device))
            torch.empty(1, device=self.device)
        except Exception as e:  # torch has several types for a device that is not there
            raise InputError("device", f"{device!r}: {str(e).splitlines()[0]}") from None
        self.names = torch_names(torch)
        self.dtypes = ("f64", "f32", "f16", "bf16")
        self.has_streams = self.device.startswith("cuda")

    def dtype(self, name: str) -> Any:
        return self.names[name]

    def make(self, name: str, t: Tensor, axes: Sequence[int]) -> Input:
        torch = self.torch
        content, place = _moved(t)
        dtype = self.names[t.dtype]
        if content:
            host = torch.frombuffer(content, dtype=dtype)
            storage = host.clone() if self.device == "cpu" else host.to(self.device)
        else:
            storage = torch.empty(0, dtype=dtype, device=self.device)
        value = storage.as_strided(
            [t.shape[a] for a in axes],
            [t.strides[a] for a in axes],
            place.address if content else 0,
        )

        def now() -> bytes:
            held = storage if self.device == "cpu" else storage.cpu()
            return ctypes.string_at(held.data_ptr(), len(content)) if content else b""

        def refill(new: bytes) -> Callable[[], None]:
            # A copy from the host would wait for the stream, so the bytes go to the device first.
            held = torch.frombuffer(bytearray(new), dtype=dtype) if new else torch.empty(0)
            there = held.to(self.device)

            def put() -> None:
                if new:
                    with torch.no_grad():
                        storage.copy_(there)

            return put

        return Input(name, value, bytes(content), storage.data_ptr(), now, refill)

    def check_type(self, name: str, value: Any) -> None:
        torch = self.torch
        if type(value) is not torch.Tensor:
            if isinstance(value, torch.Tensor) and type(value) is torch.nn.Parameter:
                return
            raise Finding(
                f"{name} is {_type(value)}, not a torch.Tensor"
                + (
                    ", and a subclass may compute its elements later"
                    if isinstance(value, torch.Tensor)
                    else ""
                )
            )
        if str(value.device) != self.device and not (
            self.device == "cuda" and str(value.device) == f"cuda:{torch.cuda.current_device()}"
        ):
            raise Finding(f"{name} lies on {value.device}, and the inputs on {self.device}")

    def poison(self, wanted: Sequence[Tuple[Sequence[int], str]], codes: Dict[str, int]) -> None:
        torch = self.torch
        integers = {8: torch.int64, 4: torch.int32, 2: torch.int16}
        held = []
        for shape, dtype in wanted:
            bits = width_of(dtype)
            code = codes[dtype]
            code -= (code >> (8 * bits - 1)) << (8 * bits)  # as a signed number
            for _ in range(2):
                held.append(
                    torch.full(tuple(shape), code, dtype=integers[bits], device=self.device)
                )
        del held

    def wait(self) -> None:
        if self.has_streams:
            self.torch.cuda.synchronize(self.device)

    def is_lost(self) -> bool:
        if not self.has_streams:
            return False
        try:
            self.torch.cuda.synchronize()
        except Exception:  # the type is another one in each version
            return True
        return False

    def on_other_stream(self, fill: Callable[[], None], call: Callable[[], Any]) -> Any:
        if not self.has_streams:
            return super().on_other_stream(fill, call)
        cuda = self.torch.cuda
        stream = cuda.Stream(device=self.device)
        stream.wait_stream(cuda.current_stream(self.device))
        with cuda.stream(stream):
            # The stream is busy for a while before the inputs arrive. Work on any other stream
            # reads what was there before.
            cuda._sleep(20_000_000)
            fill()
            found = call()
            stream.synchronize()
        cuda.current_stream(self.device).wait_stream(stream)
        return found


class Jax(Framework):
    name = "jax"

    def __init__(self, device: str = "cpu"):
        try:
            import jax
            import jax.numpy as jnp
            import numpy
        except ImportError as e:
            raise InputError("framework", f"jax cannot be imported: {e}") from None
        self.jax, self.jnp, self.numpy = jax, jnp, numpy
        kind, _, index = device.partition(":")
        try:
            there = jax.devices("gpu" if kind == "cuda" else kind)
        except RuntimeError as e:
            raise InputError("device", f"{device!r}: {e}") from None
        if not (index or "0").isdecimal() or int(index or "0") >= len(there):
            raise InputError("device", f"{device!r}: jax has {', '.join(map(str, there))}")
        self.where = there[int(index or "0")]
        self.device = device
        self.dtypes = ("f32", "f16", "bf16") + (("f64",) if jax.config.jax_enable_x64 else ())
        self.names = {
            "f64": jnp.float64,
            "f32": jnp.float32,
            "f16": jnp.float16,
            "bf16": jnp.bfloat16,
            "bool": jnp.bool_,
            "u8": jnp.uint8,
            "i32": jnp.int32,
            "i64": jnp.int64,
        }

    def dtype(self, name: str) -> Any:
        return self.names[name]

    def make(self, name: str, t: Tensor, axes: Sequence[int]) -> Input:
        content = t.packed()
        a = (
            self.numpy.frombuffer(bytearray(content), dtype=self.names[t.dtype])
            .reshape(t.shape)
            .transpose(axes)
        )
        value = self.jax.device_put(
            a, self.where
        )  # int64 becomes int32 without x64, and its values fit
        kept = self.numpy.asarray(value).tobytes()
        return Input(name, value, kept, 0, lambda: self.numpy.asarray(value).tobytes())

    def check_type(self, name: str, value: Any) -> None:
        if not isinstance(value, self.jax.Array):
            raise Finding(f"{name} is {_type(value)}, not a jax.Array")


class Cupy(Framework):
    name = "cupy"
    has_streams = True
    layouts = ("bshd", "packed", "padded", "strided", "shared-head", "shared-batch", "reversed")

    def __init__(self, device: str = "cuda"):
        try:
            import cupy
            import numpy
        except ImportError as e:
            raise InputError("framework", f"cupy cannot be imported: {e}") from None
        here = cupy.cuda.Device().id if cupy.is_available() else None
        if here is None or device not in ("cuda", f"cuda:{here}"):
            raise InputError(
                "device",
                f"{device!r}: cupy has {'no GPU' if here is None else f'cuda:{here}, the current one'}",
            )
        self.cupy, self.numpy, self.device = cupy, numpy, device
        self.host = Numpy()
        self.dtypes = ("f64", "f32", "f16")

    def dtype(self, name: str) -> Any:
        return self.host.dtype(name)

    def make(self, name: str, t: Tensor, axes: Sequence[int]) -> Input:
        content, place = _moved(t)
        storage = self.cupy.asarray(self.host.numpy.frombuffer(content, dtype=self.dtype(t.dtype)))
        width = width_of(t.dtype)
        value = self.cupy.lib.stride_tricks.as_strided(
            storage[place.address :],
            [t.shape[a] for a in axes],
            [t.strides[a] * width for a in axes],
        )

        def refill(new: bytes) -> Callable[[], None]:
            host = self.numpy.frombuffer(new, dtype=storage.dtype) if new else self.numpy.empty(0)
            there = self.cupy.asarray(host)

            def put() -> None:
                if new:
                    storage[...] = there

            return put

        return Input(
            name,
            value,
            bytes(content),
            storage.data.ptr,
            lambda: storage.get().tobytes(),
            refill,
        )

    def check_type(self, name: str, value: Any) -> None:
        if type(value) is not self.cupy.ndarray:
            raise Finding(f"{name} is {_type(value)}, not a cupy array")

    def poison(self, wanted: Sequence[Tuple[Sequence[int], str]], codes: Dict[str, int]) -> None:
        held = [
            self.cupy.full(shape, codes[dtype], dtype=f"u{width_of(dtype)}")
            for shape, dtype in wanted
            for _ in range(2)
        ]
        del held

    def wait(self) -> None:
        self.cupy.cuda.runtime.deviceSynchronize()

    def is_lost(self) -> bool:
        try:
            self.wait()
        except self.cupy.cuda.runtime.CUDARuntimeError:
            return True
        return False

    def on_other_stream(self, fill: Callable[[], None], call: Callable[[], Any]) -> Any:
        busy = self.cupy.RawKernel(
            'extern "C" __global__ void busy() { long long t = clock64() + 20000000; '
            "while (clock64() < t); }",
            "busy",
        )
        stream = self.cupy.cuda.Stream(non_blocking=True)
        self.wait()
        with stream:
            # As with torch: work on any other stream reads what was there before.
            busy((1,), (1,), ())
            fill()
            found = call()
            stream.synchronize()
        return found


def _type(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


_FRAMEWORKS: Dict[str, Any] = {
    "torch": Torch,
    "numpy": Numpy,
    "jax": Jax,
    "cupy": Cupy,
    "buffer": Framework,
}


def framework_names() -> List[str]:
    return list(_FRAMEWORKS)


def framework(name: str, device: Optional[str]) -> Framework:
    """A framework by its name. Raises InputError if it, or the device, is not there."""
    if not isinstance(name, str) or name not in _FRAMEWORKS:
        raise InputError("framework", f"{name!r} is none of {', '.join(_FRAMEWORKS)}")
    made = _FRAMEWORKS[name]
    return made(device) if device is not None else made()


def guess(function: Any, device: Optional[str]) -> str:
    """The framework of a function: the first that its module imports, else the first there is."""
    scope = getattr(function, "__globals__", {})
    loaded = {
        getattr(v, "__name__", "").partition(".")[0] for v in scope.values() if type(v) is type(sys)
    }
    for module, name in (
        ("torch", "torch"),
        ("triton", "torch"),
        ("jax", "jax"),
        ("cupy", "cupy"),
        ("numpy", "numpy"),
    ):
        if module in loaded:
            return name
    for name in ("torch", "jax", "cupy", "numpy"):
        if name in sys.modules:
            return name
    if device is not None and device != "cpu":
        return "torch"
    try:
        import numpy  # noqa: F401
    except ImportError:
        return "buffer"
    return "numpy"


def overlap(found: Tensor, value: Any, inputs: Sequence[Input]) -> Optional[str]:
    """The input in whose memory an output lies."""
    kind = framework_of(value)
    if kind == "torch":
        begin, (low, high) = value.data_ptr(), found.reach()
    elif kind in ("numpy", "dlpack", "buffer"):
        begin, (low, high) = found.address, found.reach()
    else:
        return None
    width = width_of(found.dtype)
    for i in inputs:
        if begin + low * width < i.end and i.begin < begin + high * width and i.begin:
            return i.name
    return None


__all__ = [
    "Finding",
    "Framework",
    "Input",
    "LARGE",
    "NAN",
    "framework",
    "framework_names",
    "guess",
    "overlap",
    "row_major",
]
