"""The calls of one case: what a function is given, and what is watched while it runs."""

from __future__ import annotations

import ctypes
import functools
import struct
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple

from ._asserts import RECORDED, judge_record
from ._frameworks import LARGE, NAN, Finding, Input, overlap
from ._library import EXECUTION_FAILED, SUCCESS, UNSUPPORTED, CCall, parse
from ._report import is_right
from ._tensors import Tensor, copy, of_c, read, tensor_of
from .errors import InputError

if TYPE_CHECKING:
    from ._kernel import Kernel

OPERATIONS = ("attention", "backward", "decode", "product")

# The tensors that a function of each operation takes by position, in this order.
POSITIONAL = {
    "attention": ("q", "k", "v"),
    "backward": ("q", "k", "v", "o", "lse", "do"),
    "decode": ("q", "k_pages", "v_pages", "block_table", "lengths"),
    "product": ("a", "codes", "scales"),
}
# The features of cases that stand and fall with a keyword.
KEYWORDS: Dict[str, Tuple[str, ...]] = {
    "causal": ("causal",),
    "scale": ("scale", "negative-scale"),
    "softcap": ("softcap",),
    "window": ("window",),
    "offset": ("offset", "offset=lengths"),
    "mask": ("bool",),
    "bias": ("bias",),
    "lengths": ("lengths",),
    "starts": ("starts",),
    "query_segment": ("docs",),
    "key_segment": ("docs",),
    "alibi_slopes": ("alibi",),
    "sink": ("sink",),
    "dropout": ("dropout",),
    "dropout_seed": ("dropout",),
    "finite_min_masks": ("finite-min-masks",),
    "dlse": ("dlse",),
    "out_dtype": ("out",),
}
PAIRS = (("query_segment", "key_segment"), ("dropout", "dropout_seed"))
PRODUCT_KEYWORDS = (
    "scales",
    "extra",
    "format",
    "group",
    "tensor_scale",
    "m",
    "n",
    "k",
    "out_dtype",
    "a_codes",
    "a_scales",
    "a_format",
    "a_tensor_scale",
)
# The groups of formats that leave no choice, so that a line says nothing.
_GROUPS = {"mxfp4": 32, "nvfp4": 16}
_OUTPUTS = {
    "attention": ("o", "lse"),
    "decode": ("o", "lse"),
    "backward": ("dq", "dk", "dv", "d_bias", "d_sink"),
    "product": ("c",),
}
# Tensors whose axes 1 and 2 change places with layout="bshd".
_FOUR = {"q", "k", "v", "o", "do", "dq", "dk", "dv", "k_pages", "v_pages"}
_SWAPPED = [0, 2, 1, 3]


def numbers_of(line: str, columns: Optional[int] = None) -> Dict[str, Any]:
    """The numbers and flags of a record's line, by their keywords.

    `columns` are those of Q, which tell the scale where the line does not.
    """
    words = line.split()
    found: Dict[str, Any] = {
        "causal": False,
        "finite_min_masks": False,
        "softcap": 0.0,
        "scale": None if columns is None else ctypes.c_float(columns**-0.5).value,
        "window": (-1, -1),
        "dropout": 0.0,
        "dropout_seed": 0,
        "offset": 0,
    }
    for word in words[1:]:
        name, _, value = word.partition("=")
        if name in ("causal", "finite-min-masks"):
            found[name.replace("-", "_")] = True
        elif name in ("scale", "softcap", "tensor-scale", "a-tensor-scale"):
            found[name.replace("-", "_")] = float(value)
        elif name == "window":
            left, right = value.split(",")
            found["window"] = (int(left), int(right))
        elif name == "dropout":
            p, seed = value.split(":")
            found["dropout"], found["dropout_seed"] = float(p), int(seed)
        elif name in ("m", "n", "k"):
            found[name] = int(value)
        elif name in ("w", "a"):
            format, _, group = value.partition(":")
            found["format" if name == "w" else "a_format"] = format
            if name == "w":
                found["group"] = int(group) if group else _GROUPS[format]
    return found


def case_of(
    operation: str, line: str, given: Dict[str, Tensor], wanted: Dict[str, Tensor]
) -> Optional[Dict[str, Any]]:
    """What a call of attention asks, as the line of a case says it, for supports(). The sizes are
    those of its tensors; of the numbers and flags, it has those that case lines write alike."""
    if operation not in ("attention", "backward"):
        return None
    (b, h, rows, d), (_, g, keys, dv) = given["q"].shape, given["v"].shape
    heads = str(h) if h == g else f"{h}/{g}"
    words = [f"{operation} b={b} h={heads} l={rows}x{keys} d={d}/{dv} dtype={given['q'].dtype}"]
    words += [w for w in line.split()[1:] if w.split("=")[0] in ("causal", "scale", "softcap")]
    out = wanted.get("o") or given.get("o")
    if out is not None and out.dtype != given["q"].dtype:
        words.append(f"out={out.dtype}")
    said: Dict[str, Any] = parse(" ".join(words))
    known = {f.split("=")[0] for f in said["features"]}
    for word in line.split()[1:]:
        name = word.split("=")[0]
        if name not in known and name in ("window", "sink", "dropout", "starts", "lengths"):
            said["features"].append(name)
    said["features"] += [n for n in ("bias", "dlse") if n in given]
    return said


def ended(e: BaseException) -> str:
    text = str(e).strip().splitlines()
    return f"the function raised {type(e).__name__}" + (f": {text[0][:300]}" if text else "")


# Enough to see that a second call went wrong; sampled, because cases of models sample theirs.
_ROWS_OF_A_SECOND_CALL = 64
_NOT_DETERMINISTIC = (
    "not deterministic: two calls with the same inputs differ (deterministic=False allows it)"
)


def _contents(found: Dict[str, Tensor], outputs: Dict[str, Tensor]) -> Tuple[bytes, ...]:
    return tuple(found[name].packed() for name in outputs)


class Run:
    """The calls of one case."""

    def __init__(
        self, kernel: Kernel, said: Dict[str, Any], reuse: Optional[Dict[str, Input]] = None
    ):
        self.kernel, self.said, self.reuse = kernel, said, reuse
        self.no_lse = kernel.lse is False
        self.learned_no_lse = False
        self.note: Optional[str] = None
        self.interrupted: Optional[BaseException] = None
        self.inputs: Dict[str, Input] = {}
        self.held: List[Dict[str, Input]] = []  # of the first two calls
        self._first: Dict[Any, Tuple[bytes, ...]] = {}
        self._twice: set = set()

    def answer(self, _: Any, call: Any, sentence: int, size: int) -> int:
        """The callback of the library: no exception leaves it."""
        try:
            c: CCall = call.contents
            self.compute(
                c.operation.decode(),
                c.line.decode(),
                {c.inputs[k].name.decode(): of_c(c.inputs[k].tensor) for k in range(c.input_count)},
                {
                    c.outputs[k].name.decode(): of_c(c.outputs[k].tensor)
                    for k in range(c.output_count)
                },
            )
            return SUCCESS
        except Finding as e:
            return self._tell(EXECUTION_FAILED, str(e), sentence, size)
        except NotImplementedError as e:
            return self._tell(
                UNSUPPORTED, str(e) or "the function raised NotImplementedError", sentence, size
            )
        except Exception as e:
            return self._tell(EXECUTION_FAILED, ended(e), sentence, size)
        except BaseException as e:
            if not isinstance(e, SystemExit):
                self.interrupted = e
            return self._tell(EXECUTION_FAILED, ended(e), sentence, size)

    @staticmethod
    def _tell(status: int, text: str, sentence: int, size: int) -> int:
        data = text.encode("utf-8", "replace").replace(b"\0", b"?")[: size - 1] + b"\0"
        ctypes.memmove(sentence, data, len(data))
        return status

    def compute(
        self, operation: str, line: str, inputs: Dict[str, Tensor], outputs: Dict[str, Tensor]
    ) -> None:
        """One call of the pipeline: calls the function, and copies its outputs."""
        lengths = inputs["lengths"].packed() if operation == "decode" else b""
        key = (operation, line, inputs["w.codes" if operation == "product" else "q"].shape, lengths)
        first = self._first.get(key)
        if first is None:
            found = self._call(operation, line, inputs, outputs, NAN)
            self._first[key] = _contents(found, outputs)
        elif key in self._twice:  # a relation, with other inputs
            found = self._call(operation, line, inputs, outputs, NAN)
        else:
            self._twice.add(key)
            found = self._again(operation, line, inputs, outputs, first)
        for name, to in outputs.items():
            copy(found[name], to)

    def _again(
        self,
        operation: str,
        line: str,
        inputs: Dict[str, Tensor],
        outputs: Dict[str, Tensor],
        first: Tuple[bytes, ...],
    ) -> Dict[str, Tensor]:
        """The second call, on another stream. Where it may differ, it is judged by itself, and the
        first answer stands for the case."""
        found = self._call(operation, line, inputs, outputs, LARGE, other_stream=True)
        if _contents(found, outputs) == first:
            return found
        if not self.kernel.deterministic:
            stands = {
                name: tensor_of(content, found[name].dtype, found[name].shape)
                for name, content in zip(outputs, first)
            }
            self._compare_verdicts(operation, line, {**inputs, **stands}, {**inputs, **found})
            return stands
        if not self.note and self.reuse is None:
            self.note = self._why(operation, line, inputs, outputs, first)
        return found

    def _compare_verdicts(
        self, operation: str, line: str, first: Dict[str, Tensor], second: Dict[str, Tensor]
    ) -> None:
        """Raises Finding if the outputs of the second of two calls are outside their bounds, or if
        no bound decides on them although one does on those of the first."""
        result = self._judge_by_itself(operation, line, second)
        if is_right(result):
            return
        if result["outcome"] != "inconclusive":
            raise Finding(f"of two calls that differ, the second is wrong: {result['reason']}")
        if is_right(self._judge_by_itself(operation, line, first)):
            raise Finding(
                "of two calls that differ, the first is right, and the second cannot be judged: "
                + result["reason"]
            )

    def _judge_by_itself(
        self, operation: str, line: str, tensors: Dict[str, Tensor]
    ) -> Dict[str, Any]:
        """The verdict on the inputs and outputs of one call."""
        record = " ".join([operation, *line.split()[1:]])
        options: Dict[str, Any] = {"rows": _ROWS_OF_A_SECOND_CALL, "evidence": "off"}
        if operation != "product":
            options["arithmetic"] = self.kernel._declared(tensors["q"].dtype)
            options["conventions"] = self.kernel.conventions
        return judge_record(record, tensors, power=False, **options)

    def _why(
        self,
        operation: str,
        line: str,
        inputs: Dict[str, Tensor],
        outputs: Dict[str, Tensor],
        first: Tuple[bytes, ...],
    ) -> str:
        """Why two runs differ: two more may be as the first, and one with other memory not."""

        def again(codes: Dict[str, int]) -> Tuple[bytes, ...]:
            return _contents(self._call(operation, line, inputs, outputs, codes), outputs)

        if again(NAN) != first or again(NAN) != first:
            return _NOT_DETERMINISTIC
        if again(LARGE) != first:
            return "elements of the output that nobody wrote: they hold what the memory held before"
        if self.kernel.tool.has_streams:
            return (
                "on another stream the answer differs: the function works on a stream of its own, "
                "or returns before its work is queued on the current one"
            )
        return _NOT_DETERMINISTIC

    def _axes(self, name: str, rank: int) -> List[int]:
        return (
            _SWAPPED
            if self.kernel.layout == "bshd" and name in _FOUR and rank == 4
            else list(range(rank))
        )

    def _make(self, inputs: Dict[str, Tensor]) -> Dict[str, Input]:
        made = {}
        for name, t in inputs.items():
            old = (self.reuse or {}).get(name)
            content = t.memory()
            if old is not None and old.refill is not None and len(old.content) == len(content):
                old.refill(content)()
                old.content = content
                made[name] = old
            else:
                made[name] = self.kernel.tool.make(name, t, self._axes(name, len(t.shape)))
        return made

    def _call(
        self,
        operation: str,
        line: str,
        inputs: Dict[str, Tensor],
        outputs: Dict[str, Tensor],
        codes: Dict[str, int],
        other_stream: bool = False,
    ) -> Dict[str, Tensor]:
        tool = self.kernel.tool
        made = self._make(inputs)
        self.inputs = made
        if len(self.held) < 2:
            self.held.append(made)
        arguments, keywords = self._arguments(operation, line, made, inputs, outputs)
        wanted = [
            ([t.shape[a] for a in self._axes(n, len(t.shape))], t.dtype) for n, t in outputs.items()
        ]
        tool.poison([w for w in wanted if w[1] in codes], codes)
        call = functools.partial(self._function(operation), *arguments, **keywords)
        if other_stream and tool.has_streams:
            arrives = [i.refill(i.content) for i in made.values() if i.refill is not None]
            for i in made.values():  # until the stream gets there, the inputs are NaN, or all ones
                if i.refill is not None and inputs[i.name].dtype in NAN:
                    i.refill(b"\xff" * len(i.content))()

            def fill() -> None:
                for put in arrives:
                    put()

            found = tool.on_other_stream(fill, lambda: self._read(operation, call(), outputs, made))
        else:
            found = self._read(operation, call(), outputs, made)
        for i in made.values():
            if i.changed():
                raise Finding(f"the input {RECORDED.get(i.name, i.name)} was changed in place")
        return found

    def _function(self, operation: str) -> Callable[..., Any]:
        kernel = self.kernel
        if operation != "backward" or kernel.operation == "backward":
            return kernel.function
        if callable(kernel.gradients):
            return kernel.gradients
        return functools.partial(_autograd, kernel.function)

    def _arguments(
        self,
        operation: str,
        line: str,
        made: Dict[str, Input],
        inputs: Dict[str, Tensor],
        outputs: Dict[str, Tensor],
    ) -> Tuple[List[Any], Dict[str, Any]]:
        kernel = self.kernel
        values = {RECORDED.get(name, name): i.value for name, i in made.items()}
        if operation == "product":
            return self._product_arguments(values, numbers_of(line), outputs)
        numbers = numbers_of(line, inputs["q"].shape[3])
        if "offset" in values:
            offsets = _integers(inputs["offset"])
            numbers["offset"] = offsets[0] if len(set(offsets)) == 1 else values.pop("offset")
            values.pop("offset", None)
        takes = kernel._takes
        if operation == "backward" and kernel.operation != "backward":
            takes = kernel._gradients_take or takes
        positional = [values.get(name) for name in POSITIONAL[operation]]
        if operation == "backward" and kernel.gradients == "autograd":
            positional = [values[name] for name in ("q", "k", "v", "do")]
        keywords = {}
        for keyword, name in takes.names.items():
            if keyword == "out_dtype":
                keywords[name] = kernel.tool.dtype(outputs[_OUTPUTS[operation][0]].dtype)
            elif keyword in numbers:
                keywords[name] = numbers[keyword]
            else:
                keywords[name] = values.get(keyword)
        return positional, keywords

    def _product_arguments(
        self, values: Dict[str, Any], numbers: Dict[str, Any], outputs: Dict[str, Tensor]
    ) -> Tuple[List[Any], Dict[str, Any]]:
        takes = self.kernel._takes
        known = {**values, **numbers, "out_dtype": self.kernel.tool.dtype(outputs["c"].dtype)}
        known.setdefault("tensor_scale", 1.0)
        known.setdefault("a_tensor_scale", 1.0)
        return (
            [values.get("a"), values["codes"]],
            {keyword: known.get(keyword) for keyword in takes.keywords},
        )

    def _read(
        self, operation: str, answer: Any, outputs: Dict[str, Tensor], made: Dict[str, Input]
    ) -> Dict[str, Tensor]:
        """The outputs of the function by their names, checked."""
        wanted = [name for name in _OUTPUTS[operation] if name in outputs]
        given = self._named(operation, answer, wanted)
        tool = self.kernel.tool
        found: Dict[str, Tensor] = {}
        for name in wanted:
            value, to = given[name], outputs[name]
            tool.check_type(name, value)
            try:
                t = read(name, value)
            except InputError as e:
                raise Finding(f"the output {e}") from None
            alias = overlap(t, value, list(made.values()))
            if alias is not None:
                raise Finding(
                    f"the output {name} is a view of the input {RECORDED.get(alias, alias)}"
                )
            axes = self._axes(name, len(to.shape))
            shape = tuple(to.shape[a] for a in axes)
            if name == "lse" and t.shape == shape + (1,):
                t = Tensor(t.address, t.dtype, t.shape[:-1], t.strides[:-1], t.owner)
            if t.shape != shape:
                raise Finding(f"the output {name} has shape {list(t.shape)}, not {list(shape)}")
            if t.dtype != to.dtype:
                raise Finding(f"the output {name} has dtype {t.dtype}, not {to.dtype}")
            found[name] = t.permuted([axes.index(a) for a in range(len(axes))])
        return found

    def _named(self, operation: str, answer: Any, wanted: List[str]) -> Dict[str, Any]:
        if isinstance(answer, dict):
            given = dict(answer)
        else:
            values = list(answer) if isinstance(answer, (tuple, list)) else [answer]
            given = dict(zip(_OUTPUTS[operation], values))
            if len(values) > len(_OUTPUTS[operation]):
                raise Finding(
                    f"the function returned {len(values)} values; {operation} has "
                    f"{', '.join(_OUTPUTS[operation])}"
                )
        given = {name: value for name, value in given.items() if value is not None}
        for name in given:
            if name not in _OUTPUTS[operation]:
                raise Finding(
                    f"the function returned {name!r}; {operation} has "
                    + ", ".join(_OUTPUTS[operation])
                )
        missing = [name for name in wanted if name not in given]
        if missing == ["lse"] and self.kernel.lse is None:
            self.kernel.lse = False
            self.learned_no_lse = True
            raise Finding("the function gives no LSE")
        if missing:
            raise Finding(
                f"the function returned {', '.join(given) or 'nothing'} and no {', '.join(missing)}"
            )
        if "lse" in wanted and self.kernel.lse is None:
            self.kernel.lse = True
        return given


def _autograd(
    function: Callable[..., Any], q: Any, k: Any, v: Any, do: Any, **keywords: Any
) -> Tuple[Any, ...]:
    """The gradients of <do, o> by torch's autograd."""
    import torch

    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    named = [name for name in ("bias", "sink") if keywords.get(name) is not None]
    for name in named:
        keywords[name] = keywords[name].detach().requires_grad_()
    answer = function(*leaves, **keywords)
    o = (
        answer["o"]
        if isinstance(answer, dict)
        else answer[0]
        if isinstance(answer, (tuple, list))
        else answer
    )
    found = torch.autograd.grad(
        o, leaves + [keywords[name] for name in named], do, allow_unused=True
    )
    given = dict(zip(["q", "k", "v"] + named, found))
    for name, t in zip(("q", "k", "v"), leaves):
        if given[name] is None:
            raise Finding(f"o does not depend on {name}: it has no gradient")
    return (
        given["q"],
        given["k"],
        given["v"],
        None if given.get("bias") is None else given["bias"].float(),
        None if given.get("sink") is None else given["sink"].float(),
    )


def _integers(t: Tensor) -> List[int]:
    return list(struct.unpack(f"<{t.count()}{'q' if t.dtype == 'i64' else 'i'}", t.packed()))
