"""The inputs of cases, for loops of one's own."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from ._arguments import by_name, one_line, whole
from ._asserts import RECORDED
from ._frameworks import framework as framework_of
from ._kernel import Kernel
from ._run import numbers_of
from ._library import (
    Arithmetic,
    CNamedTensor,
    ask,
    ask_json,
    encoded,
    library,
    named_array,
    options_of,
    parse,
    suite as suite_of,
)
from ._report import Result, failure_text, is_right
from ._tensors import Tensor, of_c, read
from .errors import Failure, InputError


class Case:
    """A case: its line, and its inputs.

    Attributes:
        line: the case line; whoever has it has the inputs, bit for bit, on any machine.
        operation, dtype, out, shape, features: what the line says.
    """

    def __init__(self, line: str):
        said = parse(line)
        self.line: str = said["case"]
        self.operation: str = said["operation"]
        self.dtype: str = said["dtype"]
        self.out: str = said["out"]
        self.shape: Dict[str, int] = said["shape"]
        self.features: List[str] = said["features"]

    def __repr__(self) -> str:
        return f"<case {self.line}>"

    def inputs(
        self, framework: str = "numpy", device: Optional[str] = None, call: int = 0
    ) -> Dict[str, Any]:
        """The inputs of one call by their names, as fresh tensors, and its numbers (causal, ...).

        `call` counts the calls of a case: 1 is the backward call of a backward case, and the later
        chunks of a case with a cache.
        """
        tool = framework_of(framework, device)
        with _opened(self.line, call) as (line, tensors):
            made = {
                RECORDED.get(name, name): tool.make(name, t, list(range(len(t.shape)))).value
                for name, t in tensors.items()
            }
            q = tensors.get("q")
            return {**numbers_of(line, None if q is None else q.shape[3]), **made}

    def judge(
        self,
        *,
        threads: int = 1,
        evidence: str = "fail",
        arithmetic: Arithmetic = None,
        name: str = "function",
        **outputs: Any,
    ) -> Result:
        """Judges outputs by name (o, lse, dq, dk, dv, d_bias, d_sink, c); returns the result.

        `evidence` and `arithmetic` are those of assert_attention.
        """
        one_line("name", name)
        tensors = [(key, read(key, t)) for key, t in outputs.items() if t is not None]
        tensors = [
            (key, _without_last(t) if key == "lse" and len(t.shape) == 4 else t)
            for key, t in tensors
        ]
        array = named_array([(key, t.c()) for key, t in tensors])
        return Result(
            ask_json(
                library.assay_judge_tensors,
                encoded("case", self.line),
                array,
                len(tensors),
                options_of(name=name, threads=threads, evidence=evidence, arithmetic=arithmetic),
                argument="outputs",
            )
        )

    def check(self, *, name: str = "function", **given: Any) -> Result:
        """As judge, and raises Failure if the outputs are wrong."""
        __tracebackhide__ = True  # pytest shows the code of the caller
        result = self.judge(name=name, **given)
        if not is_right(result):
            raise Failure(failure_text(name, result, f"the case {self.line}"), [result])
        return result


@contextlib.contextmanager
def _opened(line: str, call: int = 0) -> Iterator[Tuple[str, Dict[str, Tensor]]]:
    """The line of one call of a case, and its inputs, which live as long as the context."""
    call = whole("call", call, 2**63, "2^63 - 1")
    opened, tensors, count = ctypes.c_void_p(), ctypes.POINTER(CNamedTensor)(), ctypes.c_int64()
    said = ask_json(
        library.assay_case_open, encoded("case", line), ctypes.byref(opened), argument="case"
    )
    try:
        ask(
            library.assay_case_inputs,
            opened,
            call,
            ctypes.byref(tensors),
            ctypes.byref(count),
            argument="call",
        )
        yield said["calls"][call]["line"], {
            tensors[k].name.decode(): of_c(tensors[k].tensor) for k in range(count.value)
        }
    finally:
        library.assay_case_close(opened)


def case_inputs(line: str) -> Dict[str, bytes]:
    """The elements of the inputs of a case, in row-major order, by their names in a record."""
    with _opened(line) as (_, tensors):
        return {name: t.packed() for name, t in tensors.items()}


def _without_last(t: Tensor) -> Tensor:
    return (
        Tensor(t.address, t.dtype, t.shape[:-1], t.strides[:-1], t.owner) if t.shape[-1] == 1 else t
    )


@by_name()
def cases(
    suite: str,
    *,
    seed: int = 1,
    features: Optional[Sequence[str]] = None,
    kernel: Optional[Kernel] = None,
) -> Iterator[Case]:
    """The cases of a suite, for those who want their own loop.

        for case in assay.cases("smoke", features=mine.features):
            i = case.inputs("torch", "cuda")
            case.check(o=my_attention(i["q"], i["k"], i["v"], causal=i["causal"]))

    Args:
        suite: its name.
        seed: of the inputs.
        features: what the kernel has (None: everything); the suite is drawn for it.
        kernel: takes the features of a kernel instead.
    """
    if kernel is not None and not isinstance(kernel, Kernel):
        raise InputError("kernel", f"{kernel!r} is none; assay.kernel makes one of a function")
    drawn = suite_of(suite, seed, kernel.features if kernel is not None else features)
    return iter([Case(line) for line in drawn["cases"]])
