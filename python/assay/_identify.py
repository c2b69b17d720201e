"""The arithmetic of a function, from its answers to chosen inputs."""

from __future__ import annotations

import html
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Union

from ._arguments import by_name, flag, one_of
from ._kernel import Kernel
from ._library import FUNCTION, ask_json, encoded, features_of, library
from ._run import Run, case_of
from ._tensors import Tensor
from .errors import Failure, InputError, Unsupported

_DTYPES = ("f32", "f16", "bf16")


class Statement(NamedTuple):
    """What one kind of input shows.

    Attributes:
        subject: "P V, sums".
        answer: "24 bits, rounded to nearest (binary32)".
        input: the input, and what came of it.
    """

    subject: str
    answer: str
    input: str


class Identification:
    """The arithmetic of a function. Printing it, or showing it in a notebook, tells everything.

        told = assay.identify(mine, "bf16")
        told["P"]              # "bf16": the format of P
        "scores" in told       # whether something was told of the scores

    Attributes:
        candidate: the function, as `assay identify --candidate` finds it again.
        case: the shape that was asked, as a case line; chosen inputs replace its tensors.
        statements: what was told, each with the input that shows it.
        not_told: "subject: reason".
    """

    def __init__(self, answer: Dict[str, Any]):
        self.candidate: str = answer["candidate"]
        self.case: str = answer["case"]
        self.statements: List[Statement] = [Statement(**s) for s in answer["statements"]]
        self.not_told: List[str] = answer["not told"]

    def __getitem__(self, subject: str) -> str:
        for statement in self.statements:
            if statement.subject == subject:
                return statement.answer
        raise KeyError(
            f"{subject!r}: told was of {', '.join(repr(s.subject) for s in self.statements)}"
        )

    def __contains__(self, subject: str) -> bool:
        return any(statement.subject == subject for statement in self.statements)

    def __str__(self) -> str:
        lines = [f"{self.candidate}, {self.case}"]
        for s in self.statements:
            lines += [f"  {s.subject:<22}{s.answer}", f"      {s.input}"]
        lines += [f"  not told: {why}" for why in self.not_told]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<arithmetic of {self.candidate}: {len(self.statements)} statements>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td style='text-align:left'>{html.escape(s.subject)}</td>"
            f"<td style='text-align:left'>{html.escape(s.answer)}"
            f"<br><small>{html.escape(s.input)}</small></td></tr>"
            for s in self.statements
        )
        others = "".join(f"<p>not told: {html.escape(why)}</p>" for why in self.not_told)
        title = f"{html.escape(self.candidate)}, <code>{html.escape(self.case)}</code>"
        return f"<p><b>{title}</b></p><table>{rows}</table>{others}"


class _Asked(Run):
    """Answers the library. Every call has other inputs, and is made once."""

    def compute(
        self,
        operation: str,
        line: str,
        inputs: Dict[str, Tensor],
        outputs: Dict[str, Tensor],
    ) -> None:
        if self.kernel.supports is not None:
            said = case_of(operation, line, inputs, outputs)
            why = self.kernel.why_not(said) if said else ""
            if why:
                raise NotImplementedError(why)
        self._first.clear()
        super().compute(operation, line, inputs, outputs)


@by_name()
def identify(
    function: Union[Kernel, Callable[..., Any]],
    dtype: str,
    *,
    w: Optional[str] = None,
    a: Optional[str] = None,
    gradients: bool = False,
    device: Optional[str] = None,
) -> Identification:
    """Tells in which arithmetic a function computes, whatever it declares.

        print(assay.identify(mine, "bf16", device="cuda"))
        assert assay.identify(mine, "f32")["Q K, inputs"] == "all 24 bits"  # no TF32

    The function is given chosen inputs, and its answers show in which order it adds, with how many
    bits and which rounding, in which format it stores scores and P, whether P is rounded before or
    after it is divided by the row sum, and what the row sum adds. Every statement names the input
    that shows it; docs/identify.md explains them. It takes some dozen calls of one head of 64 (or
    128, 32, 256) columns with 64 rows (or one) and 128 keys, without masks.

        assay.identify(product, "f16", w="int4:64")["scale"]

    Of a low-bit product it tells the order and the bits of the sum, whether products and
    dequantized weights are rounded, and where scales are multiplied in.

        assay.identify(mine, "bf16", gradients=True)["dS before dK"]

    Of gradients it tells the format of P before dV and of dS before dK, the sums of dP, dV, dK and
    dQ, and whether grouped heads are rounded before they are added.

    Args:
        function: made by `assay.kernel` of "attention", "backward" or "product"; a plain function
            is a kernel of attention: q, k, v [B, H, L, D] to o, or to (o, lse). What shows in LSE
            alone is told of the latter only.
        dtype: of q, k and v, or of A and C: "f32", "f16" or "bf16".
        w: the format of W, and its group size where it is another: "nvfp4", "int4:64". For
            products alone, which need it.
        a: the format of A where it is low-bit: "f8e4m3" or "f8e5m2", as W then is.
        gradients: asks the gradients of a kernel of attention that has them, instead of its
            outputs.
        device: where the inputs lie, instead of the kernel's own.

    Raises:
        InputError: for an argument that is refused.
        Unsupported: if the function takes none of the inputs.
        Failure: if it does what no kernel may do: it raises, changes an input, or returns another
            shape or dtype.
    """
    k = (function if isinstance(function, Kernel) else Kernel(function)).on(device)
    if k.operation == "decode":
        raise InputError("function", f"{k.name} is a kernel of {k.operation}, which nothing asks")
    if flag("gradients", gradients) and not (k.operation == "backward" or k.gradients is not None):
        raise InputError("gradients", f"{k.name} has none")
    one_of("dtype", dtype, _DTYPES)
    if (w is None) == (k.operation == "product"):
        raise InputError("w", f"{w!r}: the format of W, for a product and for nothing else")
    line = f"{'backward' if gradients else k.operation} dtype={dtype}"
    line += "".join(f" {name}={text}" for name, text in (("w", w), ("a", a)) if text is not None)
    run = _Asked(k, {})
    answer = ask_json(
        library.assay_judge_identify,
        encoded("w", line),
        FUNCTION(run.answer),
        None,
        int(run.no_lse),
        features_of(k.features),
        encoded("name", k.candidate),
        argument="w",
    )
    if run.interrupted is not None:
        raise run.interrupted
    if run.learned_no_lse:  # the first call showed it
        return identify(k, dtype, w=w, a=a, gradients=gradients)
    if answer["outcome"] == "unsupported":
        raise Unsupported(f"{k.name}: {answer['reason']}")
    if answer["outcome"] == "fail":
        raise Failure(f"{k.name}: {answer['reason']}", [answer])
    return Identification(answer)
