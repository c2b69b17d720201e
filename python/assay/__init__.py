"""Assay proves an attention kernel or a low-bit product right, or shows where it goes wrong.

    import assay

    assay.assert_attention(o, q=q, k=k, v=v, causal=True, lse=lse)

    @assay.kernel("attention")
    def mine(q, k, v, *, causal, scale):
        return my_attention(q, k, v, causal, scale)

    report = assay.check(mine, suite="smoke", device="cuda")

    print(assay.identify(mine, "bf16"))        # in which arithmetic it computes

and `pytest --assay=smoke kernels_test.py` makes every case of the suite a test of every kernel in
the file. `assay.strategies` draws cases for hypothesis, and the module `assay.flashinfer` judges
solutions of FlashInfer-Trace.

No reference is passed, and no tolerance: every element of an output is compared with an enclosure
of its exact value, under a bound that follows from the arithmetic of the kernel and from the data.
Tensors may come from torch, numpy, jax, cupy, DLPack or a buffer; none of these is needed.

Everything that is refused raises `InputError`; a kernel that is found wrong raises `Failure`, an
AssertionError. Nothing is printed.
"""

from . import strategies
from ._asserts import (
    assert_attention,
    assert_backward,
    assert_decode,
    assert_product,
    record,
    verify,
)
from ._cases import Case, cases
from ._check import check
from ._identify import Identification, Statement, identify
from ._kernel import Kernel, kernel
from ._report import Report, Result
from ._tensors import Bits as bits
from ._version import __version__
from .errors import Failure, InputError, Unsupported

__all__ = [
    "Case",
    "Failure",
    "Identification",
    "InputError",
    "Kernel",
    "Report",
    "Result",
    "Statement",
    "Unsupported",
    "__version__",
    "assert_attention",
    "assert_backward",
    "assert_decode",
    "assert_product",
    "bits",
    "cases",
    "check",
    "identify",
    "kernel",
    "record",
    "strategies",
    "verify",
]
