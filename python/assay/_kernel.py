"""A function as a kernel that is judged: how it is called, and what is watched while it runs."""

from __future__ import annotations

import ctypes
import functools
import inspect
import os
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple, Union

from ._frameworks import (LARGE, NAN, Finding, Framework, Input, framework, framework_names, guess, overlap)
from ._library import (CCall, EXECUTION_FAILED, FAILS, FUNCTION, SUCCESS, UNSUPPORTED, ask, ask_json,
                       encoded, facts, features_of, library, options_of, parse)
from ._tensors import Tensor, copy, of_c, read, row_major
from .errors import InputError

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
    "causal": ("causal",), "scale": ("scale",), "softcap": ("softcap",), "window": ("window",),
    "offset": ("offset", "offset=lengths"), "mask": ("bool",), "bias": ("bias",),
    "lengths": ("lengths",), "starts": ("starts",), "query_segment": ("docs",), "key_segment": ("docs",),
    "alibi_slopes": ("alibi",), "sink": ("sink",), "dropout": ("dropout",), "dropout_seed": ("dropout",),
    "finite_min_masks": ("finite-min-masks",), "out_dtype": ("out",),
}
_PAIRS = (("query_segment", "key_segment"), ("dropout", "dropout_seed"))
_PRODUCT_KEYWORDS = ("scales", "extra", "format", "group", "tensor_scale", "m", "n", "k", "out_dtype", "a_codes",
                     "a_scales", "a_format", "a_tensor_scale")
# What a record calls by another name.
_RECORDED = {"keep": "mask", "w.codes": "codes", "w.scales": "scales", "w.extra": "extra",
             "a.codes": "a_codes", "a.scales": "a_scales"}
_OUTPUTS = {"attention": ("o", "lse"), "decode": ("o", "lse"), "backward": ("dq", "dk", "dv", "d_bias", "d_sink"),
            "product": ("c",)}
# Tensors whose axes 1 and 2 change places with layout="bshd".
_FOUR = {"q", "k", "v", "o", "do", "dq", "dk", "dv", "k_pages", "v_pages"}
_SWAPPED = [0, 2, 1, 3]


def numbers_of(line: str, keys_minus_rows: int = 0) -> Dict[str, Any]:
    """The numbers and flags of a record's line, by their keywords."""
    words = line.split()
    found: Dict[str, Any] = {"causal": False, "finite_min_masks": False, "softcap": 0.0, "scale": None,
                             "window": (-1, -1), "dropout": 0.0, "dropout_seed": 0, "offset": 0}
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
                found["group"] = int(group) if group else None
    return found


def _ended(e: BaseException) -> str:
    text = str(e).strip().splitlines()
    return f"the function raised {type(e).__name__}" + (f": {text[0][:300]}" if text else "")


class Kernel:
    """A function that is judged. `assay.kernel` makes it; calling it calls the function."""

    def __init__(self, function: Callable[..., Any], operation: str = "attention", *,
                 device: Optional[str] = None, framework: Optional[str] = None, layout: str = "bhsd",
                 dtypes: Optional[Sequence[str]] = None, without: Iterable[str] = (),
                 supports: Optional[Callable[[Dict[str, Any]], Union[bool, str, None]]] = None,
                 lse: Optional[bool] = None, deterministic: bool = True,
                 gradients: Union[None, str, Callable[..., Any]] = None, name: Optional[str] = None):
        if not callable(function):
            raise InputError("function", f"{function!r} is no function")
        if operation not in OPERATIONS:
            raise InputError("operation", f"{operation!r} is none of {', '.join(OPERATIONS)}")
        if layout not in ("bhsd", "bshd"):
            raise InputError("layout", f"{layout!r} is neither 'bhsd' nor 'bshd'")
        if framework is not None and framework not in framework_names():
            raise InputError("framework", f"{framework!r} is none of {', '.join(framework_names())}")
        if gradients is not None and (operation != "attention" or not (gradients == "autograd" or callable(gradients))):
            raise InputError("gradients", f"{gradients!r}: 'autograd' or a function, for a kernel of attention")
        self.function, self.operation, self.layout = function, operation, layout
        self._device, self._framework = device, framework
        self._dtypes, self._without = dtypes, tuple(without)
        self.supports, self.lse, self.deterministic, self.gradients = supports, lse, deterministic, gradients
        functools.update_wrapper(self, function, updated=())
        self.name = name or getattr(function, "__qualname__", type(function).__name__).replace("<locals>.", "")
        self._takes = _signature(function, operation)
        self._gradients_take = (_signature(gradients, "backward") if callable(gradients) else None)
        self._made: Optional[Framework] = None
        self._same_address: set = set()
        known = facts()["features"]
        for feature in self._without:
            if feature not in known:
                raise InputError("without", f"{feature!r} is no feature; there are {', '.join(known)}")
        for dtype in dtypes or ():
            if dtype not in ("f64", "f32", "f16", "bf16"):
                raise InputError("dtypes", f"{dtype!r} is none of f64, f32, f16, bf16")

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.function(*arguments, **keywords)

    def __repr__(self) -> str:
        return f"<assay kernel {self.name} ({self.operation})>"

    @property
    def tool(self) -> Framework:
        """The framework and its device."""
        if self._made is None:
            self._made = framework(self._framework or guess(self.function, self._device), self._device)
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
    def candidate(self) -> str:
        """The name under which `assay check --candidate` finds it again."""
        try:
            file = os.path.relpath(inspect.getsourcefile(inspect.unwrap(self.function)) or "?")
        except (TypeError, ValueError):
            file = "?"
        return f"python:{file}::{self.name}" + (f"@{self._device}" if self._device else "")

    @property
    def features(self) -> List[str]:
        """What the kernel has, in the words of case lines: what its keywords, its framework and its options say."""
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
            if self.operation == "decode":
                found += ["cache=contiguous", "cache=paged", "offset"]
                found.remove("empty")
        found.append({"decode": "attention"}.get(self.operation, self.operation))
        if self.gradients is not None:
            found.append("backward")
        return sorted({f for f in found if f not in self._without})

    # ---- One case ----

    def judge(self, line: str, *, threads: int = 1, relations: bool = False, pictures: bool = False,
              power: bool = True) -> Dict[str, Any]:
        """Judges one case; returns its result (docs/results.md). Whatever the function does is a result."""
        result = self._judge(line, threads=threads, relations=relations, pictures=pictures, power=power)
        operation = line.split()[0]
        if result["outcome"] in ("pass", "suspect") and operation not in self._same_address:
            self._same_address.add(operation)
            why = self._cached(line, threads)
            if why:
                result["outcome"], result["reason"] = "fail", why
        return result

    def _judge(self, line: str, *, threads: int = 1, relations: bool = False, pictures: bool = False,
               power: bool = True, reuse: Optional[Dict[str, Input]] = None) -> Dict[str, Any]:
        said = parse(line)
        why = None if self.supports is None else self.supports(said)
        if self.supports is not None and why is not True and why is not None:
            return self._unsupported(said["case"], why or "supports() says so")
        if self.operation == "decode" and not any(f.startswith("cache=") for f in said["features"]):
            return self._unsupported(said["case"], "no cache, and the function decodes")
        run = Run(self, said, reuse)
        options = options_of(name=self.candidate, threads=threads, relations=relations, pictures=pictures, power=power)
        result = ask_json(library.assay_judge_function, encoded("case", line), FUNCTION(run.answer), None,
                          int(run.no_lse), features_of(self.features), options, argument="case")
        if run.interrupted is not None:
            raise run.interrupted
        if run.learned_no_lse:  # the first call showed it
            return self._judge(line, threads=threads, relations=relations, pictures=pictures, power=power, reuse=reuse)
        if run.note and result["reason"].startswith("poison: two runs"):
            result["reason"] = run.note
        self._last = run.inputs
        return result

    def _unsupported(self, line: str, why: str) -> Dict[str, Any]:
        return {"case": line, "candidate": self.candidate, "reproduce": "", "outcome": "unsupported", "reason": why}

    def _cached(self, line: str, threads: int) -> Optional[str]:
        """Why the kernel is wrong when other numbers lie at the same addresses as before."""
        words = [w for w in line.split() if not w.startswith("seed=")]
        seed = next((int(w[5:]) for w in line.split() if w.startswith("seed=")), 1)
        other = " ".join(words + [f"seed={seed + 1000003}"])
        result = self._judge(other, threads=threads, power=False, reuse=self._last)
        if result["outcome"] not in ("fail",):
            return None
        fresh = self._judge(other, threads=threads, power=False)
        if fresh["outcome"] == "fail":
            return None  # it is wrong at any address: another case of the suite will say so
        return ("with other inputs at the same addresses the answer is wrong, and right at fresh addresses: the "
                "function remembers an answer by address: " + result["reason"].splitlines()[0])

    def shrink(self, result: Dict[str, Any], *, seconds: float = 60, threads: int = 1) -> Dict[str, Any]:
        """Makes the case of a failed result smaller; fills its fields `shrunk` and `reproduce`."""
        def fails(_: Any, line: bytes) -> int:
            try:
                return int(self._judge(line.decode(), threads=threads, power=False)["outcome"] == "fail")
            except KeyboardInterrupt:
                return -1
            except Exception:
                return 0

        smaller = ask(library.assay_judge_shrink, encoded("case", result["case"]), features_of(self.features),
                      FAILS(fails), None, float(seconds), argument="case")
        result["shrunk"] = smaller
        result["reproduce"] = f"assay check --candidate {self.candidate} --case '{smaller}'"
        return result


class _Takes:
    """What a function takes: how many tensors by position, and which keywords."""

    def __init__(self, positional: int, keywords: Sequence[str], everything: bool):
        self.positional, self.keywords, self.everything = positional, tuple(keywords), everything


def _signature(function: Callable[..., Any], operation: str) -> _Takes:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return _Takes(len(POSITIONAL[operation]), (), False)
    known = set(_PRODUCT_KEYWORDS) if operation == "product" else set(KEYWORDS)
    if operation == "decode":
        known -= {"lengths"}
    tensors = len(POSITIONAL[operation])
    if operation == "product":
        tensors = 2
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_position = by_position[:tensors]
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(by_position) < tensors and not variadic:
        raise InputError("function", f"takes {len(by_position)} tensors by position; {operation} gives "
                                     f"{tensors}: {', '.join(POSITIONAL[operation][:tensors])}")
    keywords = []
    for p in parameters:
        if p in by_position or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        if p.kind is p.POSITIONAL_ONLY or (p.name not in known and p.default is p.empty):
            raise InputError("function", f"has an argument {p.name!r} without a default that no {operation} gives; "
                                         f"there are {', '.join(sorted(known))}")
        if p.name in known:
            keywords.append(p.name)
    everything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if everything:
        keywords = sorted(known)
    for first, second in _PAIRS:
        if (first in keywords) != (second in keywords):
            raise InputError("function", f"takes {first if first in keywords else second!r} alone; {first} and {second} "
                                         "belong together")
    return _Takes(tensors, keywords, everything)


class Run:
    """The calls of one case."""

    def __init__(self, kernel: Kernel, said: Dict[str, Any], reuse: Optional[Dict[str, Input]] = None):
        self.kernel, self.said, self.reuse = kernel, said, reuse
        self.no_lse = kernel.lse is False
        self.learned_no_lse = False
        self.note: Optional[str] = None
        self.interrupted: Optional[BaseException] = None
        self.inputs: Dict[str, Input] = {}
        self._first: Dict[Any, Tuple[bytes, ...]] = {}
        self._twice: set = set()

    def answer(self, _: Any, call: Any, sentence: int, size: int) -> int:
        """The callback of the library: no exception leaves it."""
        try:
            c: CCall = call.contents
            self.compute(c.operation.decode(), c.line.decode(),
                         {c.inputs[k].name.decode(): of_c(c.inputs[k].tensor) for k in range(c.input_count)},
                         {c.outputs[k].name.decode(): of_c(c.outputs[k].tensor) for k in range(c.output_count)})
            return SUCCESS
        except Finding as e:
            return self._tell(EXECUTION_FAILED, str(e), sentence, size)
        except NotImplementedError as e:
            return self._tell(UNSUPPORTED, str(e) or "the function raised NotImplementedError", sentence, size)
        except Exception as e:
            return self._tell(EXECUTION_FAILED, _ended(e), sentence, size)
        except BaseException as e:
            if not isinstance(e, SystemExit):
                self.interrupted = e
            return self._tell(EXECUTION_FAILED, _ended(e), sentence, size)

    @staticmethod
    def _tell(status: int, text: str, sentence: int, size: int) -> int:
        data = text.encode("utf-8", "replace").replace(b"\0", b"?")[:size - 1] + b"\0"
        ctypes.memmove(sentence, data, len(data))
        return status

    def compute(self, operation: str, line: str, inputs: Dict[str, Tensor], outputs: Dict[str, Tensor]) -> None:
        """One call of the pipeline: calls the function, and copies its outputs."""
        lengths = inputs["lengths"].packed() if operation == "decode" else b""
        key = (operation, line, inputs["w.codes" if operation == "product" else "q"].shape, lengths)
        first = self._first.get(key)
        if first is None:
            found = self._call(operation, line, inputs, outputs, NAN)
            self._first[key] = tuple(t.packed() for t in found.values())
        elif key in self._twice:  # a relation, with other inputs
            found = self._call(operation, line, inputs, outputs, NAN)
        else:
            self._twice.add(key)
            found = self._call(operation, line, inputs, outputs, LARGE, other_stream=True)
            now = tuple(t.packed() for t in found.values())
            if now != first and not self.kernel.deterministic:
                for t, content in zip(found.values(), first):
                    self._place(t, content)
            elif now != first and not self.note and self.reuse is None:
                self.note = self._why(operation, line, inputs, outputs, first)
        for name, to in outputs.items():
            copy(found[name], to)

    @staticmethod
    def _place(t: Tensor, content: bytes) -> None:
        held = ctypes.create_string_buffer(content, max(1, len(content)))
        t.address, t.strides, t.owner = ctypes.addressof(held), row_major(t.shape), held

    def _why(self, operation: str, line: str, inputs: Dict[str, Tensor], outputs: Dict[str, Tensor],
             first: Tuple[bytes, ...]) -> str:
        """Why two runs differ: two more are as the first or not, and then one has other memory alone."""
        def again(codes: Dict[str, int]) -> Tuple[bytes, ...]:
            return tuple(t.packed() for t in self._call(operation, line, inputs, outputs, codes).values())

        if again(NAN) != first or again(NAN) != first:
            return "not deterministic: two calls with the same inputs differ (deterministic=False allows it)"
        if again(LARGE) != first:
            return "elements of the output that nobody wrote: they hold what the memory held before"
        if self.kernel.tool.has_streams:
            return ("on another stream the answer differs: the function works on a stream of its own, or returns "
                    "before its work is queued on the current one")
        return "not deterministic: two calls with the same inputs differ (deterministic=False allows it)"

    def _axes(self, name: str, rank: int) -> List[int]:
        return _SWAPPED if self.kernel.layout == "bshd" and name in _FOUR and rank == 4 else list(range(rank))

    def _make(self, inputs: Dict[str, Tensor]) -> Dict[str, Input]:
        made = {}
        for name, t in inputs.items():
            old = (self.reuse or {}).get(name)
            content = t.memory()
            if old is not None and old.refill is not None and len(old.content) == len(content):
                old.refill(content)
                old.content = content
                made[name] = old
            else:
                made[name] = self.kernel.tool.make(name, t, self._axes(name, len(t.shape)))
        return made

    def _call(self, operation: str, line: str, inputs: Dict[str, Tensor], outputs: Dict[str, Tensor],
              codes: Dict[str, int], other_stream: bool = False) -> Dict[str, Tensor]:
        tool = self.kernel.tool
        made = self._make(inputs)
        self.inputs = made
        arguments, keywords = self._arguments(operation, line, made, inputs, outputs)
        wanted = [([t.shape[a] for a in self._axes(n, len(t.shape))], t.dtype) for n, t in outputs.items()]
        tool.poison([w for w in wanted if w[1] in codes], codes)
        call = functools.partial(self._function(operation), *arguments, **keywords)
        if other_stream and tool.has_streams:
            contents = {n: i.content for n, i in made.items()}
            for i in made.values():  # until the stream gets there, the inputs are NaN, or all ones
                if i.refill is not None:
                    i.refill(b"\xff" * len(i.content) if inputs[i.name].dtype in NAN else i.content)

            def fill() -> None:
                for n, i in made.items():
                    if i.refill is not None:
                        i.refill(contents[n])

            found = tool.on_other_stream(fill, lambda: self._read(operation, call(), outputs, made))
        else:
            found = self._read(operation, call(), outputs, made)
        for i in made.values():
            if i.changed():
                raise Finding(f"the input {_RECORDED.get(i.name, i.name)} was changed in place")
        return found

    def _function(self, operation: str) -> Callable[..., Any]:
        kernel = self.kernel
        if operation != "backward" or kernel.operation == "backward":
            return kernel.function
        if callable(kernel.gradients):
            return kernel.gradients
        return functools.partial(_autograd, kernel.function)

    def _arguments(self, operation: str, line: str, made: Dict[str, Input], inputs: Dict[str, Tensor],
                   outputs: Dict[str, Tensor]) -> Tuple[List[Any], Dict[str, Any]]:
        kernel = self.kernel
        values = {_RECORDED.get(name, name): i.value for name, i in made.items()}
        numbers = numbers_of(line)
        if operation == "product":
            return self._product_arguments(values, numbers, outputs)
        q = inputs["q"]
        if numbers["scale"] is None:
            numbers["scale"] = ctypes.c_float(q.shape[3] ** -0.5).value
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
        for keyword in takes.keywords:
            if keyword == "out_dtype":
                keywords[keyword] = kernel.tool.dtype(outputs[_OUTPUTS[operation][0]].dtype)
            elif keyword in numbers:
                keywords[keyword] = numbers[keyword]
            else:
                keywords[keyword] = values.get(keyword)
        return positional, keywords

    def _product_arguments(self, values: Dict[str, Any], numbers: Dict[str, Any],
                           outputs: Dict[str, Tensor]) -> Tuple[List[Any], Dict[str, Any]]:
        takes = self.kernel._takes
        known = {**values, **numbers, "out_dtype": self.kernel.tool.dtype(outputs["c"].dtype)}
        known.setdefault("tensor_scale", 1.0)
        known.setdefault("a_tensor_scale", 1.0)
        return ([values.get("a"), values["codes"]], {keyword: known.get(keyword) for keyword in takes.keywords})

    def _read(self, operation: str, answer: Any, outputs: Dict[str, Tensor],
              made: Dict[str, Input]) -> Dict[str, Tensor]:
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
                raise Finding(f"the output {name} is a view of the input {_RECORDED.get(alias, alias)}")
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
                raise Finding(f"the function returned {len(values)} values; {operation} has "
                              f"{', '.join(_OUTPUTS[operation])}")
        given = {name: value for name, value in given.items() if value is not None}
        for name in given:
            if name not in _OUTPUTS[operation]:
                raise Finding(f"the function returned {name!r}; {operation} has {', '.join(_OUTPUTS[operation])}")
        missing = [name for name in wanted if name not in given]
        if missing == ["lse"] and self.kernel.lse is None:
            self.kernel.lse = False
            self.learned_no_lse = True
            raise Finding("the function gives no LSE")
        if missing:
            raise Finding(f"the function returned {', '.join(given) or 'nothing'} and no {', '.join(missing)}")
        if "lse" in wanted and self.kernel.lse is None:
            self.kernel.lse = True
        return given


def _autograd(function: Callable[..., Any], q: Any, k: Any, v: Any, do: Any, **keywords: Any) -> Tuple[Any, ...]:
    """The gradients of <do, o> by torch's autograd."""
    import torch
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    named = [name for name in ("bias", "sink") if keywords.get(name) is not None]
    for name in named:
        keywords[name] = keywords[name].detach().requires_grad_()
    answer = function(*leaves, **keywords)
    o = answer["o"] if isinstance(answer, dict) else answer[0] if isinstance(answer, (tuple, list)) else answer
    found = torch.autograd.grad(o, leaves + [keywords[name] for name in named], do, allow_unused=True)
    given = dict(zip(["q", "k", "v"] + named, found))
    for name, t in zip(("q", "k", "v"), leaves):
        if given[name] is None:
            raise Finding(f"o does not depend on {name}: it has no gradient")
    return (given["q"], given["k"], given["v"],
            None if given.get("bias") is None else given["bias"].float(),
            None if given.get("sink") is None else given["sink"].float())


def _integers(t: Tensor) -> List[int]:
    import struct
    return list(struct.unpack(f"<{t.count()}{'q' if t.dtype == 'i64' else 'i'}", t.packed()))


def kernel(operation: str = "attention", **options: Any) -> Callable[[Callable[..., Any]], Kernel]:
    """Makes a kernel of a function, for `assay.check`, pytest and the command line.

        @assay.kernel("attention")
        def mine(q, k, v, *, causal, scale):
            return my_attention(q, k, v, causal, scale)      # o, or (o, lse), or {"o": o, "lse": lse}

    What the function takes says what it does. A keyword that it does not take is a feature that it
    does not have: suites are drawn without it, and the cases that need it are counted as
    unsupported. A keyword that it takes is always passed, with its neutral value where the case does
    not use it.

    | operation   | by position                                  | returns                              |
    | "attention" | q, k, v                                      | o [B, Hq, Lq, Dv], lse [B, Hq, Lq]   |
    | "backward"  | q, k, v, o, lse, do                          | dq, dk, dv (d_bias, d_sink)          |
    | "decode"    | q, k_pages, v_pages, block_table, lengths    | o, lse                               |
    | "product"   | a (None if it is low-bit), codes             | c [m, n]                             |

    Keywords: causal (bool), scale (float), softcap (0: none), window (left, right; -1: open), offset
    (an int, or a tensor [B] where batches differ), mask (bool, True keeps) and bias [B, Hq, Lq, Lk]
    with strides of 0 where they broadcast, lengths and starts [B], query_segment [B, Lq] and
    key_segment [B, Lk], alibi_slopes and sink [Hq], dropout and dropout_seed, finite_min_masks,
    out_dtype (of o). Of products: scales, extra, format, group, tensor_scale, m, n, k, a_codes,
    a_scales, a_format, a_tensor_scale, out_dtype.

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
        name: for reports.
    """
    if callable(operation):
        raise InputError("operation", "is missing: write @assay.kernel('attention')")

    def make(function: Callable[..., Any]) -> Kernel:
        return Kernel(function, operation, **options)

    return make


