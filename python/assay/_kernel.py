"""A function as a kernel that is judged: what its signature says, and the verdict on a case."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Union

from ._arguments import (
    SYNONYMS,
    by_name,
    called,
    elsewhere,
    flag,
    meant,
    one_line,
    one_of,
    texts,
)
from ._asserts import refusal
from ._frameworks import Framework, Input, framework, framework_names, guess
from ._library import (
    FAILS,
    FUNCTION,
    Arithmetic,
    Conventions,
    ask,
    arithmetic_text,
    ask_json,
    conventions_text,
    encoded,
    facts,
    features_of,
    library,
    named_array,
    options_of,
    parse,
    width_of,
)
from ._report import Result, failure_text, is_right
from ._run import KEYWORDS, OPERATIONS, PAIRS, POSITIONAL, PRODUCT_KEYWORDS, Run
from ._tensors import tensor_of
from .errors import Failure, InputError, Unsupported


_DTYPES = ("f32", "f16", "bf16", "f64")
_OF_A_CASE = ("threads", "relations", "pictures", "evidence", "power")  # options of its judging


def _check_declared(arithmetic: Arithmetic, product: bool, dtypes: Iterable[str]) -> None:
    """Refuses what is an arithmetic for none of the dtypes, before a case is judged."""
    refusals = []
    for dtype in dtypes:
        line, name, shape = (
            (f"product m=1 n=1 k=32 w=mxfp4 dtype={dtype}", "c", (1, 1))
            if product
            else (f"attention b=1 h=1 l=1 d=1 dtype={dtype}", "o", (1, 1, 1, 1))
        )
        out = tensor_of(bytes(width_of(dtype)), dtype, shape)
        try:
            ask(
                library.assay_judge_tensors,
                line.encode(),
                named_array([(name, out.c())]),
                1,
                options_of(arithmetic=arithmetic, power=False, evidence="off"),
            )
            return
        except InputError as e:
            refusals.append(e if e.argument else refusal(e.message, "arithmetic"))
    raise refusals[0]


class Kernel:
    """A function that is judged. `assay.kernel` makes it; calling it calls the function."""

    def __init__(
        self,
        function: Callable[..., Any],
        operation: str = "attention",
        *,
        device: Optional[str] = None,
        framework: Optional[str] = None,
        layout: str = "bhsd",
        dtypes: Optional[Sequence[str]] = None,
        without: Iterable[str] = (),
        supports: Optional[Callable[[Dict[str, Any]], Union[bool, str, None]]] = None,
        lse: Optional[bool] = None,
        deterministic: bool = True,
        gradients: Union[None, str, Callable[..., Any]] = None,
        arithmetic: Union[Arithmetic, Callable[[str], Arithmetic]] = None,
        conventions: Conventions = None,
        name: Optional[str] = None,
    ):
        if not callable(function):
            raise InputError("function", f"{function!r} is no function")
        if operation not in OPERATIONS:
            raise InputError("operation", f"{operation!r} is none of {', '.join(OPERATIONS)}")
        if layout not in ("bhsd", "bshd"):
            raise InputError("layout", f"{layout!r} is neither 'bhsd' nor 'bshd'")
        if framework is not None:
            one_of("framework", framework, framework_names())
        if gradients is not None and (
            operation != "attention" or not (gradients == "autograd" or callable(gradients))
        ):
            raise InputError(
                "gradients", f"{gradients!r}: 'autograd' or a function, for a kernel of attention"
            )
        if name is not None:
            one_line("name", name)
        if lse is not None:
            flag("lse", lse)
        flag("deterministic", deterministic)
        called("supports", supports)
        self.function, self.operation, self.layout = function, operation, layout
        self.arithmetic = arithmetic
        self.conventions = conventions_text(conventions)
        self._device, self._framework = device, framework
        self._dtypes = None if dtypes is None else texts("dtypes", dtypes)
        self._without = texts("without", without)
        self.supports, self.lse, self.deterministic, self.gradients = (
            supports,
            lse,
            deterministic,
            gradients,
        )
        functools.update_wrapper(self, function, updated=())
        self.name = name or getattr(function, "__qualname__", type(function).__name__).replace(
            "<locals>.", ""
        )
        self._takes = _signature(function, operation)
        self._gradients_take = _signature(gradients, "backward") if callable(gradients) else None
        self._made: Optional[Framework] = None
        self._same_address: set = set()
        self._last: Dict[str, Input] = {}
        self._held: List[Dict[str, Input]] = []
        known = facts()["features"]
        for feature in self._without:
            if feature not in known:
                raise InputError(
                    "without", f"{feature!r} is no feature; there are {', '.join(known)}"
                )
        if self._dtypes == ():
            raise InputError("dtypes", f"{dtypes!r} holds no dtype")
        for dtype in self._dtypes or ():
            if dtype not in _DTYPES:
                raise InputError("dtypes", f"{dtype!r} is none of {', '.join(_DTYPES)}")
        if arithmetic is not None and not callable(arithmetic):
            product = operation == "product"
            # A product takes no f64, and a low-bit A counts as f32.
            dtypes = self._dtypes or (_DTYPES[:3] if product else _DTYPES)
            _check_declared(arithmetic, product, dtypes)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.function(*arguments, **keywords)

    def __repr__(self) -> str:
        return f"<assay kernel {self.name} ({self.operation})>"

    @property
    def tool(self) -> Framework:
        """The framework and its device."""
        if self._made is None:
            self._made = framework(
                self._framework or guess(self.function, self._device), self._device
            )
        return self._made

    def on(self, device: Optional[str]) -> "Kernel":
        """The same kernel with its inputs on another device."""
        if device is None or device == self._device:
            return self
        other = object.__new__(Kernel)
        other.__dict__.update(self.__dict__)
        other._device, other._made, other._same_address = device, None, set()
        return other

    @property
    def _held_as(self) -> Optional[str]:
        """The name under which its module holds it; None where it was made in a function."""
        module = sys.modules.get(getattr(inspect.unwrap(self.function), "__module__", None) or "")
        for name, value in vars(module).items() if module is not None else ():
            if value is self.function or (
                isinstance(value, Kernel) and value.function is self.function
            ):
                return name
        return None

    @property
    def candidate(self) -> str:
        """The name under which `assay check --candidate` finds it again."""
        try:
            file = os.path.relpath(inspect.getsourcefile(inspect.unwrap(self.function)) or "?")
        except (TypeError, ValueError):
            file = "?"
        held = self._held_as or self.name
        return f"python:{file}::{held}" + (f"@{self._device}" if self._device else "")

    @property
    def features(self) -> List[str]:
        """What the kernel has, in the words of case lines: what keywords and options say."""
        tool = self.tool
        found = ["gqa", "head-dims", "empty"]
        found += [f"dtype={d}" for d in (self._dtypes or tool.dtypes) if d in tool.dtypes]
        found += [f"layout={layout}" for layout in tool.layouts]
        if self.operation == "product":
            found += [f for f in facts()["features"] if f.startswith("w=")]
            if "a_codes" in self._takes.keywords:
                found += [f for f in facts()["features"] if f.startswith("a=")]
            if "out_dtype" in self._takes.keywords:
                found.append("out")
        else:
            for keyword in self._takes.keywords:
                found += KEYWORDS.get(keyword, ())
            if self._gradients_take and "dlse" in self._gradients_take.keywords:
                found.append("dlse")
            if self.operation == "decode":
                found += ["cache=contiguous", "cache=paged", "pages", "offset"]
                found.remove("empty")
        found.append({"decode": "attention"}.get(self.operation, self.operation))
        if self.gradients is not None:
            found.append("backward")
        return sorted({f for f in found if f not in self._without})

    @property
    def left(self) -> Dict[str, str]:
        """Arguments that keep their defaults although other libraries give them a meaning, and how
        Assay says the same."""
        return dict(self._takes.left)

    # ---- One case ----

    @by_name(*_OF_A_CASE)
    def judge(self, line: str, **options: Any) -> Result:
        """Judges one case; returns its result (docs/results.md), whatever the function does.

        Args:
            line: the case line.
            options: threads, relations, pictures and evidence of `assay.check`; power: whether it
                is computed which faults the case could have shown (True).
        """
        result = self._judge(line, **options)
        operation = line.split()[0]
        if is_right(result) and operation not in self._same_address:
            self._same_address.add(operation)
            why = self._cached(line, options)
            if why:
                result["outcome"], result["reason"] = "fail", why
        self._last, self._held = {}, []
        return result

    @by_name(*_OF_A_CASE)
    def check(self, case: Any, **options: Any) -> Result:
        """Judges a case, or its line, as judge does. Raises Failure unless it is right, and
        Unsupported if the kernel does not do it: a test of it would say nothing."""
        __tracebackhide__ = True  # pytest shows the code of the caller
        result = self.judge(getattr(case, "line", case), **options)
        if result["outcome"] == "unsupported":
            raise Unsupported(f"{self.name} does not do {result['case']}: {result['reason']}")
        if not is_right(result):
            raise Failure(failure_text(self.name, result, result["reproduce"]), [result])
        return result

    def why_not(self, said: Dict[str, Any]) -> str:
        """What supports() has against a case; empty if it has nothing."""
        why = True if self.supports is None else self.supports(said)
        return "" if why is True or why is None else why or "supports() says so"

    def _judge(
        self, line: str, *, reuse: Optional[Dict[str, Input]] = None, **options: Any
    ) -> Result:
        said = parse(line)
        why = self.why_not(said)
        if why:
            return self._unsupported(said["case"], why)
        if self.operation == "decode" and not any(f.startswith("cache=") for f in said["features"]):
            return self._unsupported(said["case"], "no cache, and the function decodes")
        run = Run(self, said, reuse)
        low_bit = any(f.startswith("a=") for f in said["features"])
        arithmetic = self._declared("f32" if low_bit else said["dtype"])
        answer = ask_json(
            library.assay_judge_function,
            encoded("case", line),
            FUNCTION(run.answer),
            None,
            int(run.no_lse),
            features_of(self.features),
            options_of(
                name=self.candidate, arithmetic=arithmetic, conventions=self.conventions, **options
            ),
            argument="case",
        )
        if run.interrupted is not None:
            raise run.interrupted
        if run.learned_no_lse:  # the first call showed it
            return self._judge(line, reuse=reuse, **options)
        result = Result(answer)
        if run.note and result["reason"].startswith(("poison: two runs", "not deterministic")):
            result["reason"] = run.note
        self._last, self._held = run.inputs, run.held
        return result

    def _declared(self, dtype: str) -> Arithmetic:
        return self.arithmetic(dtype) if callable(self.arithmetic) else self.arithmetic

    def declared(self) -> Dict[str, str]:
        """What the kernel declares, in words, for each of its dtypes."""
        dtypes = [f[len("dtype=") :] for f in self.features if f.startswith("dtype=")]
        if self.operation == "product":  # f32 is that of a low-bit A, too
            dtypes = sorted({"f32", *dtypes} - {"f64"})
        texts = {dtype: arithmetic_text(self._declared(dtype)) for dtype in dtypes}
        return {dtype: text for dtype, text in texts.items() if text is not None}

    def _again(self, line: str) -> str:
        """The command that judges a case again."""
        return f"assay check --candidate {self.candidate} --case '{line}'"

    def _unsupported(self, line: str, why: str) -> Result:
        return Result(
            case=line,
            candidate=self.candidate,
            reproduce="",
            outcome="unsupported",
            reason=why,
        )

    def _not_run(self, line: str, reason: str, outcome: str = "error") -> Result:
        """The result of a case that gave no answer."""
        return Result(
            case=line,
            candidate=self.candidate,
            outcome=outcome,
            reason=reason,
            reproduce=self._again(line),
        )

    def _cached(self, line: str, options: Dict[str, Any]) -> Optional[str]:
        """Why the kernel is wrong when other numbers lie at the same addresses as before."""
        words = [w for w in line.split() if not w.startswith("seed=")]
        seed = next((int(w[5:]) for w in line.split() if w.startswith("seed=")), 1)
        other = " ".join(words + [f"seed={seed + 1000003}"])
        quick: Dict[str, Any] = dict(options, power=False, relations=False, pictures=False)
        held = self._held  # while these live, no later input lies where one of them lay
        result = self._judge(other, reuse=self._last, **quick)
        if result["outcome"] != "fail":
            return None
        fresh = self._judge(other, **quick)
        del held
        if fresh["outcome"] == "fail":
            return None  # it is wrong at any address: another case of the suite will say so
        return (
            "with other inputs at the same addresses the answer is wrong, and right at fresh "
            "addresses: the function remembers an answer by address: "
            + result["reason"].splitlines()[0]
        )

    def shrink(
        self,
        result: Dict[str, Any],
        *,
        seconds: float = 60,
        judging: Optional[Callable[[str], Dict[str, Any]]] = None,
        **options: Any,
    ) -> Dict[str, Any]:
        """Makes the case of a failed result smaller; fills its fields `shrunk` and `reproduce`.

        `judging` judges a case line in another way than here, as in a process of its own.
        """

        def judge(line: str) -> Dict[str, Any]:
            return judging(line) if judging else self._judge(line, power=False, **options)

        def fails(_: Any, line: bytes) -> int:
            try:
                return int(judge(line.decode())["outcome"] == "fail")
            except KeyboardInterrupt:
                return -1
            except Exception:
                return 0

        smaller = ask(
            library.assay_judge_shrink,
            encoded("case", result["case"]),
            features_of(self.features),
            FAILS(fails),
            None,
            float(seconds),
            argument="case",
        )
        result["shrunk"] = smaller
        result["reproduce"] = self._again(smaller)
        return result


# The keywords of assay.kernel.
_OPTIONS = [
    p.name for p in inspect.signature(Kernel).parameters.values() if p.kind is p.KEYWORD_ONLY
]


class _Takes:
    """The keywords of a function.

    Attributes:
        names: of the keywords, ours to the function's own.
        left: arguments that keep their defaults, and how Assay says what other libraries mean by
            them.
    """

    def __init__(self, names: Dict[str, str], left: Dict[str, str]):
        self.names, self.left = names, left

    @property
    def keywords(self) -> Iterable[str]:
        return self.names.keys()


def _signature(function: Callable[..., Any], operation: str) -> _Takes:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(function, torch.nn.Module):
        function = function.forward  # a module itself takes everything, and passes it on
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return _Takes({}, {})
    known = set(PRODUCT_KEYWORDS) if operation == "product" else set(KEYWORDS)
    if operation == "decode":
        known -= {"lengths"}
    if operation != "backward":
        known -= {"dlse"}
    tensors = len(POSITIONAL[operation])
    if operation == "product":
        tensors = 2
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_position = by_position[:tensors]
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(by_position) < tensors and not variadic:
        raise InputError(
            "function",
            f"takes {len(by_position)} tensors by position; {operation} gives "
            f"{tensors}: {', '.join(POSITIONAL[operation][:tensors])}",
        )
    names: Dict[str, str] = {}
    left: Dict[str, str] = {}
    for p in parameters:
        if p in by_position or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        ours = p.name if p.name in known else SYNONYMS.get(p.name)
        if p.kind is p.POSITIONAL_ONLY or (ours not in known and p.default is p.empty):
            raise InputError(
                "function",
                f"has an argument {p.name!r} without a default that no {operation} gives; "
                f"{meant(p.name, sorted(known))}",
            )
        if ours in known:
            if ours in names:
                raise InputError(
                    "function", f"takes {names[ours]!r} and {p.name!r}, which are both {ours}"
                )
            names[ours] = p.name
        elif elsewhere(p.name, known):
            left[p.name] = elsewhere(p.name, known)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        names = {**{name: name for name in sorted(known)}, **names}
    for first, second in PAIRS:
        if (first in names) != (second in names):
            raise InputError(
                "function",
                f"takes {first if first in names else second!r} alone; {first} and {second} "
                "belong together",
            )
    return _Takes(names, left)


@by_name(*_OPTIONS)
def kernel(operation: str = "attention", **options: Any) -> Callable[[Callable[..., Any]], Kernel]:
    """Makes a kernel of a function, for `assay.check`, pytest and the command line.

        @assay.kernel("attention")
        def mine(q, k, v, *, causal, scale):
            return my_attention(q, k, v, causal, scale)  # o, (o, lse), or {"o": o, "lse": lse}

    What the function takes says what it does. A keyword that it does not take is a feature that it
    does not have: suites are drawn without it, and the cases that need it are counted as
    unsupported. A keyword that it takes is always passed, with its neutral value where the case
    does not use it. What other libraries call the same is known: is_causal, sm_scale,
    softmax_scale, attn_bias, soft_cap, logits_soft_cap, logit_cap, window_size, sinks, s_aux.

    | operation   | by position                               | returns                            |
    | "attention" | q, k, v                                   | o [B, Hq, Lq, Dv], lse [B, Hq, Lq] |
    | "backward"  | q, k, v, o, lse, do                       | dq, dk, dv (d_bias, d_sink)        |
    | "decode"    | q, k_pages, v_pages, block_table, lengths | o, lse                             |
    | "product"   | a (None if it is low-bit), codes          | c [m, n]                           |

    Keywords: causal (bool), scale (float), softcap (0: none), window (left, right; -1: open),
    offset (an int, or a tensor [B] where batches differ), mask (bool, True keeps) and bias
    [B, Hq, Lq, Lk] with strides of 0 where they broadcast, lengths and starts [B], query_segment
    [B, Lq] and key_segment [B, Lk], alibi_slopes and sink [Hq], dropout and dropout_seed,
    finite_min_masks, out_dtype (of o). Of products: scales, extra, format, group, tensor_scale, m,
    n, k, a_codes, a_scales, a_format, a_tensor_scale, out_dtype.

    Args:
        operation: "attention", "backward", "decode" or "product".
        device: where the inputs lie: "cpu" (default), "cuda", "cuda:1".
        framework: "torch", "numpy", "jax", "cupy" or "buffer"; by default what the module of the
            function imports.
        layout: "bhsd", or "bshd" for [batch, positions, heads, columns].
        dtypes: those that the kernel takes: ("f16", "bf16").
        without: features that it does not have although no keyword says so: ("gqa", "head-dims").
        supports: is asked for every case, with {"case", "operation", "dtype", "out", "features",
            "shape"}; answers True, or False or a text that says why not.
        lse: whether the function gives an LSE; by default its first answer tells.
        deterministic: False if two calls may differ; each is judged by its own bound then.
        gradients: "autograd" (torch), or a function of q, k, v, o, lse, do: the kernel is judged on
            backward cases too.
        arithmetic: what it declares, as in assert_attention, or a function that says it for a
            dtype: lambda dtype: f"fp32 accumulation, weights in {dtype}". Of a product, the dtype
            is that of A (f32 for a low-bit A), and the fields are those of
            assay_product_arithmetic: {"order": 1}.
        conventions: what it means where nobody agreed, as in assert_attention.
        name: for reports.
    """
    if callable(operation):
        raise InputError("operation", "is missing: write @assay.kernel('attention')")

    def make(function: Callable[..., Any]) -> Kernel:
        return Kernel(function, operation, **options)

    return make
