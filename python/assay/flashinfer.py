"""FlashInfer-Trace: definitions, workloads and solutions are read and judged, traces are written.

    from assay import flashinfer

    definition = flashinfer.load_definition("gqa_ragged_h32_kv8_d128.json")
    solution = flashinfer.load_solution("mine.json")
    traces = [
        flashinfer.judge(definition, workload, solution, device="cuda")
        for workload in flashinfer.load_workloads("gqa_ragged_h32_kv8_d128.jsonl")
    ]
    flashinfer.write_traces("traces.jsonl", traces)

and the same as a command, with `assay check` in the place of `python3 -m assay.flashinfer` where
the command is installed:

    python3 -m assay.flashinfer --definition D.json --workload W.jsonl --solution S.json \\
        --trace T.jsonl

The reference of a definition is not run: outputs are compared with enclosures of their exact
values. Judged are gqa_ragged, gqa_paged (decode and prefill), mla_paged (ckv and kpe apart or in
one cache), single_decode, single_prefill, gemm_fp8 without scales, and gemm_bf16_fp4 with linear
scales. `coverage` counts what is judged and names why the rest is refused.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple, Union

from ._arguments import flag
from ._asserts import judge_record
from ._cases import case_inputs
from ._flashinfer_map import Asked, Mapping, Unmapped, integer_tensor, mapping_of
from ._frameworks import LARGE, NAN, Finding, Framework, framework, overlap
from ._library import width_of
from ._load import child_environment, how_it_ended
from ._report import failure_text, is_right
from ._run import ended
from ._safetensors import read_one, write_whole
from ._tensors import Tensor, read, tensor_of
from ._version import __version__
from .errors import InputError

__all__ = [
    "Definition",
    "Solution",
    "Unmapped",
    "Workload",
    "coverage",
    "inputs_of",
    "judge",
    "judge_outputs",
    "load_definition",
    "load_definitions",
    "load_solution",
    "load_workloads",
    "write_traces",
]

_Path = Union[str, Path]
_DTYPES = {
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "f8e4m3",
    "float8_e4m3": "f8e4m3",
    "float8_e5m2": "f8e5m2",
    "int64": "i64",
    "int32": "i32",
    "int8": "i8",
    "uint8": "u8",
    "bool": "bool",
}


# ---- What is read ----


class TensorSpec(NamedTuple):
    """An input or an output: its axes (None: a number), and its dtype ("" where it is unknown)."""

    shape: Optional[List[str]]
    dtype: str
    optional: bool


class Definition(NamedTuple):
    """What is computed. A constant axis has its value, and a variable axis None."""

    name: str
    op_type: str
    axes: Dict[str, Optional[int]]
    inputs: Dict[str, TensorSpec]
    outputs: Dict[str, TensorSpec]


class Workload(NamedTuple):
    """One configuration of a definition: its variable axes, and where its inputs come from.

    `root` is the folder to which paths of files are relative. `record` is the workload as it was
    read; a trace repeats it.
    """

    definition: str
    uuid: str
    axes: Dict[str, int]
    inputs: Dict[str, Dict[str, Any]]
    root: str
    record: Dict[str, Any]


def _json(path: _Path, text: str, place: str = "") -> Any:
    try:
        return json.loads(text)
    except ValueError as e:
        raise InputError("path", f"{path}{place}: is no JSON: {e}") from None


def _text(path: _Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as e:
        raise InputError("path", f"{path}: {e.strerror}") from None
    except UnicodeDecodeError:
        raise InputError("path", f"{path}: is no text") from None


def _field(where: str, of: Any, name: str, kind: Any, default: Any = ...) -> Any:
    if not isinstance(of, dict):
        raise InputError(where, f"{str(of)[:60]!r} is no object")
    value = of.get(name, default)
    if value is ...:
        raise InputError(where, f"has no {name!r}")
    if value is not default and (
        not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
    ):
        raise InputError(where, f"its {name!r} is {str(value)[:60]!r}")
    return value


def _axis(where: str, name: str, axis: Any) -> Optional[int]:
    kind = _field(f"{where}: axis {name}", axis, "type", str)
    if kind not in ("const", "var"):
        raise InputError(where, f"axis {name} is {kind!r}, neither 'const' nor 'var'")
    value = axis.get("value")
    if kind == "var" or value is None:  # some constants are written without their value
        return None
    if type(value) is not int or value < 1:
        raise InputError(where, f"axis {name} is {value!r}, not a number from 1 on")
    return value


def _spec(where: str, name: str, spec: Any) -> TensorSpec:
    shape = _field(f"{where}: {name}", spec, "shape", list, None)
    if shape is not None and not all(isinstance(axis, str) for axis in shape):
        raise InputError(where, f"{name} has the shape {shape}, not names of axes")
    dtype = _field(f"{where}: {name}", spec, "dtype", str)
    return TensorSpec(
        shape,
        _DTYPES.get(dtype, "" if dtype == "unknown" else dtype),
        _field(f"{where}: {name}", spec, "optional", bool, False),
    )


def _definition(path: _Path, found: Any) -> Definition:
    name = _field(str(path), found, "name", str)
    where = f"definition {name}"
    return Definition(
        name,
        _field(where, found, "op_type", str),
        {key: _axis(where, key, axis) for key, axis in _field(where, found, "axes", dict).items()},
        {k: _spec(where, k, spec) for k, spec in _field(where, found, "inputs", dict).items()},
        {k: _spec(where, k, spec) for k, spec in _field(where, found, "outputs", dict).items()},
    )


def load_definitions(path: _Path) -> List[Definition]:
    """The definitions of a file: one object, or a list of them."""
    found = _json(path, _text(path))
    listed = found if isinstance(found, list) else [found]
    if not listed:
        raise InputError("path", f"{path}: holds no definition")
    return [_definition(path, one) for one in listed]


def load_definition(path: _Path) -> Definition:
    """The definition of a file that holds one."""
    found = load_definitions(path)
    if len(found) != 1:
        raise InputError("path", f"{path}: holds {len(found)} definitions, not one")
    return found[0]


def load_workloads(path: _Path, root: Optional[_Path] = None) -> List[Workload]:
    """The workloads of a file of JSON lines.

    A line is a trace without a solution, as in the data set: {"definition", "workload", ...}.

    Args:
        root: the folder to which files of tensors are relative; by default that of `path`.
    """
    folder = str(Path(path).parent if root is None else root)
    found = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        trace = _json(path, line, f":{number}")
        w = _field(where, trace, "workload", dict)
        axes, inputs = (_field(where, w, key, dict) for key in ("axes", "inputs"))
        for axis, value in axes.items():
            if type(value) is not int or not 0 <= value < 2**31:
                raise InputError(where, f"axis {axis} is {value!r}, not a number from 0 on")
        for name in inputs:
            _field(f"{where}: {name}", inputs[name], "type", str)
        definition = _field(where, trace, "definition", str)
        found.append(Workload(definition, _field(where, w, "uuid", str), axes, inputs, folder, w))
    if not found:
        raise InputError("path", f"{path}: holds no workload")
    return found


class Solution:
    """A solution in Python or Triton: its source files, and the function that is called.

    Attributes:
        name, definition, author: as they are written there.
        destination_passing_style: whether the outputs are passed as the last arguments.
    """

    def __init__(self, where: str, found: Any):
        self.name = _field(where, found, "name", str)
        self.definition = _field(where, found, "definition", str)
        self.author = _field(where, found, "author", str, "")
        spec = _field(where, found, "spec", dict)
        self.language = _field(where, spec, "language", str)
        if self.language not in ("python", "triton"):
            raise InputError(where, f"is in {self.language!r}; 'python' and 'triton' are run")
        self.entry_point = _field(where, spec, "entry_point", str)
        self.destination_passing_style = _field(
            where, spec, "destination_passing_style", bool, True
        )
        self.sources = {
            _field(where, source, "path", str): _field(where, source, "content", str)
            for source in _field(where, found, "sources", list)
        }
        self._file, _, self._function = self.entry_point.partition("::")
        if self._file not in self.sources or not self._function.isidentifier():
            raise InputError(where, f"its entry_point {self.entry_point!r} is in none of its files")
        for path in self.sources:
            if os.path.isabs(path) or ".." in Path(path).parts:
                raise InputError(where, f"its file {path!r} lies outside of the solution")
        self._folder: Optional[tempfile.TemporaryDirectory] = None  # Triton reads sources late

    def load(self) -> Callable[..., Any]:
        """The function. Whatever its files raise is raised."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="assay-solution-")
            for path, content in self.sources.items():
                to = Path(self._folder.name) / path
                to.parent.mkdir(parents=True, exist_ok=True)
                to.write_text(content, encoding="utf-8")
        file = Path(self._folder.name) / self._file
        specification = importlib.util.spec_from_file_location(f"_solution_{id(self)}", file)
        assert specification is not None and specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[module.__name__] = module
        sys.path.insert(0, str(file.parent))
        try:
            specification.loader.exec_module(module)
        finally:
            sys.path.remove(str(file.parent))
        return getattr(module, self._function)


def load_solution(path: _Path) -> Solution:
    """The solution of a file."""
    return Solution(f"solution {path}", _json(path, _text(path)))


def coverage(definitions: Iterable[Definition]) -> Dict[str, Any]:
    """{"judged": [name, ...], "refused": [(name, reason), ...]} of definitions."""
    judged: List[str] = []
    refused: List[Tuple[str, str]] = []
    for definition in definitions:
        try:
            mapping_of(definition)
            judged.append(definition.name)
        except Unmapped as e:
            refused.append((definition.name, str(e)))
    return {"judged": judged, "refused": refused}


# ---- Inputs ----


def inputs_of(definition: Definition, workload: Workload, seed: int = 1) -> Dict[str, Any]:
    """The inputs of a workload by their names: tensors of the host, numbers, or None.

    Random numbers come from the generators of cases, by the seed: normal ones, offsets that split
    the rows, and pages that are all different. An optional input that is left out is None.
    """
    mapping = mapping_of(definition)
    unknown = [name for name in workload.inputs if name not in definition.inputs]
    if unknown:
        raise InputError("inputs", f"{unknown[0]!r} is no input of {definition.name}")
    found: Dict[str, Any] = {}
    late = []
    for number, (name, spec) in enumerate(definition.inputs.items()):
        source = workload.inputs.get(name)
        if source is None:
            if not (spec.optional or name in mapping.optional or name in mapping.absent):
                raise InputError("inputs", f"{name!r} of {definition.name} is missing")
            found[name] = None
        elif source["type"] == "scalar":
            found[name] = _scalar(name, spec, source)
        elif source["type"] == "safetensors":
            found[name] = _stored(definition, workload, name, spec, source)
        elif source["type"] != "random":
            raise InputError(name, f"is {source['type']!r}: random, scalar or safetensors")
        elif name in mapping.splits or name in mapping.pages or name in mapping.lengths:
            late.append(name)
        else:
            found[name] = _random(
                mapping, name, spec, _shape(definition, workload, name, spec), seed, number
            )
    for name in sorted(late, key=lambda name: name not in mapping.pages):  # the rest needs pages
        shape = _shape(definition, workload, name, definition.inputs[name])
        found[name] = _random_integers(mapping, name, shape, found, random.Random(f"{seed} {name}"))
    for name in mapping.absent:
        if found.get(name) is not None:
            raise Unmapped(name, "is given; what it asks for is not judged")
    return {name: found[name] for name in definition.inputs}


def _shape(
    definition: Definition, workload: Workload, name: str, spec: TensorSpec
) -> Tuple[int, ...]:
    if spec.shape is None:
        raise InputError(name, "is a number, and cannot be random")
    return tuple(_extent(definition, workload, name, axis) for axis in spec.shape)


def _extent(definition: Definition, workload: Workload, name: str, axis: str) -> int:
    fixed = definition.axes.get(axis)
    value = workload.axes.get(axis, fixed)
    if value is None:
        raise InputError("axes", f"{axis!r}, an axis of {name}, has no value")
    if fixed is not None and value != fixed:
        raise InputError("axes", f"{axis!r} is {value}, and {definition.name} says {fixed}")
    return value


def _scalar(name: str, spec: TensorSpec, source: Dict[str, Any]) -> Any:
    value = source.get("value")
    if spec.shape is not None or not isinstance(value, (bool, int, float)):
        raise InputError(name, f"{value!r} is no number for a tensor {spec.shape}")
    return value


def _stored(
    definition: Definition, workload: Workload, name: str, spec: TensorSpec, source: Dict[str, Any]
) -> Tensor:
    path = Path(workload.root) / _field(name, source, "path", str)
    t = read_one(path, _field(name, source, "tensor_key", str))
    if spec.shape is None or len(t.shape) != len(spec.shape):
        raise InputError(name, f"{t} of {path} has not the axes {spec.shape}")
    if spec.dtype and t.dtype != spec.dtype:
        raise InputError(name, f"{t} of {path} is not in {spec.dtype}")
    for extent, axis in zip(t.shape, spec.shape):
        if axis in definition.axes or axis in workload.axes:
            if extent != _extent(definition, workload, name, axis):
                raise InputError(name, f"{t} of {path}: its axis {axis} is {extent}")
    return t


def _random(
    mapping: Mapping, name: str, spec: TensorSpec, shape: Tuple[int, ...], seed: int, number: int
) -> Tensor:
    count, drawn = math.prod(shape), seed * 1024 + number
    product = "product m=1 n=1 weights=codes scales=random values=normal"
    if name in mapping.scratch and spec.dtype in ("i8", "u8"):
        made = bytes(count)
    elif name in mapping.scales and spec.dtype == "f8e4m3":  # one scale for each 16 codes of nvfp4
        made = case_inputs(f"{product} k={16 * max(1, count)} w=nvfp4 seed={drawn}")["w.scales"]
    elif spec.dtype == "u8":
        made = case_inputs(f"{product} k={2 * max(1, count)} w=mxfp4 seed={drawn}")["w.codes"]
    elif spec.dtype == "f8e4m3":
        made = case_inputs(f"product m=1 n=1 k={max(1, count)} w=f8e4m3:0 seed={drawn}")["w.codes"]
    elif spec.dtype in ("f32", "f16", "bf16") and name not in mapping.scales:
        line = f"attention b=1 h=1 l={max(1, count)}x1 d=1 dtype={spec.dtype} seed={drawn}"
        made = case_inputs(line)["q"]
    else:
        raise InputError(name, f"is random in {spec.dtype or 'an unknown dtype'}")
    return tensor_of(made[: count * width_of(spec.dtype)], spec.dtype, shape)


def _random_integers(
    mapping: Mapping, name: str, shape: Tuple[int, ...], found: Dict[str, Any], draw: random.Random
) -> Tensor:
    if name in mapping.pages:
        pages = found[mapping.pages[name]].shape[0]
        if math.prod(shape) > pages:
            raise InputError(name, f"{math.prod(shape)} pages that differ, of {pages}")
        return integer_tensor(draw.sample(range(pages), math.prod(shape)), shape, "i32")
    if name in mapping.lengths:
        table, cache = (found[of] for of in mapping.lengths[name])
        most = table.shape[1] * cache.shape[-2]
        return integer_tensor([draw.randint(1, most) for _ in range(shape[0])], shape, "i32")
    of = mapping.splits[name]
    total = found[of].shape[0]
    if shape[0] < 1:
        raise InputError(name, "has no offset")
    inner = sorted(draw.randint(0, total) for _ in range(shape[0] - 2))
    return integer_tensor(([0] + inner + [total])[: shape[0]], shape, "i32")


# ---- Running ----


class _Wrong(Exception):
    """What ends an evaluation: its status and why."""

    def __init__(self, status: str, why: str):
        super().__init__(why)
        self.status = status


class _Runner:
    """Calls a function with the inputs of a workload, and reads its outputs."""

    def __init__(
        self,
        definition: Definition,
        function: Callable[..., Any],
        tool: Framework,
        destination: bool,
        shapes: Dict[str, Tuple[int, ...]],
    ):
        self.scratch = mapping_of(definition).scratch
        self.definition, self.function, self.tool = definition, function, tool
        self.destination, self.shapes = destination, shapes
        self.seconds = 0.0

    def call(self, inputs: Dict[str, Any], codes: Dict[str, int]) -> Dict[str, Tensor]:
        """The outputs, of memory that held these codes before. Raises _Wrong."""
        made = {
            name: self.tool.make(name, t, list(range(len(t.shape))))
            for name, t in inputs.items()
            if isinstance(t, Tensor)
        }
        arguments = [made[name].value if name in made else t for name, t in inputs.items()]
        given = {}
        if self.destination:
            given = {name: self._filled(name, codes) for name in self.shapes}
        else:
            wanted = [(shape, self._dtype(name)) for name, shape in self.shapes.items()]
            self.tool.poison([w for w in wanted if w[1] in codes], codes)
        self.tool.wait()
        start = time.perf_counter()
        try:
            answer = self.function(*arguments, *given.values())
            self.tool.wait()
        except Exception as e:
            raise _Wrong("RUNTIME_ERROR", ended(e)) from e
        self.seconds = time.perf_counter() - start
        found = self._read(given if self.destination else self._named(answer), list(made.values()))
        for name, i in made.items():
            if name not in self.scratch and i.changed():
                raise _Wrong("RUNTIME_ERROR", f"the input {name} was changed in place")
        return found

    def _dtype(self, name: str) -> str:
        return self.definition.outputs[name].dtype or "f32"

    def _filled(self, name: str, codes: Dict[str, int]) -> Any:
        shape, dtype = self.shapes[name], self._dtype(name)
        width = width_of(dtype)
        content = codes.get(dtype, 0).to_bytes(width, "little") * math.prod(shape)
        made = self.tool.make(name, tensor_of(content, dtype, shape), list(range(len(shape))))
        return made.value

    def _named(self, answer: Any) -> Dict[str, Any]:
        names = list(self.definition.outputs)
        if isinstance(answer, dict):
            given = answer
        else:
            values = list(answer) if isinstance(answer, (tuple, list)) else [answer]
            if len(values) > len(names):
                raise _Wrong("RUNTIME_ERROR", f"{len(values)} outputs came, not {len(names)}")
            given = dict(zip(names, values))
        given = {name: value for name, value in given.items() if value is not None}
        for name in given:
            if name not in names:
                raise _Wrong("RUNTIME_ERROR", f"an output {name!r} came; there are {names}")
        return given

    def _read(self, given: Dict[str, Any], inputs: Sequence[Any]) -> Dict[str, Tensor]:
        found = {}
        for name, shape in self.shapes.items():
            if name not in given:
                if self.definition.outputs[name].optional:
                    continue
                raise _Wrong("RUNTIME_ERROR", f"no output {name} came")
            try:
                self.tool.check_type(name, given[name])
                t = read(name, given[name])
            except (Finding, InputError) as e:
                raise _Wrong("RUNTIME_ERROR", str(e)) from None
            if t.shape != shape:
                raise _Wrong("INCORRECT_SHAPE", f"{name} is {list(t.shape)}, not {list(shape)}")
            if t.dtype != self._dtype(name):
                raise _Wrong("INCORRECT_DTYPE", f"{name} is in {t.dtype}, not {self._dtype(name)}")
            alias = overlap(t, given[name], inputs)
            if alias is not None:
                raise _Wrong("RUNTIME_ERROR", f"the output {name} is a view of the input {alias}")
            found[name] = t
        return found


def judge_outputs(
    definition: Definition,
    inputs: Dict[str, Any],
    outputs: Dict[str, Any],
    causal: Optional[bool] = None,
    **options: Any,
) -> List[Tuple[str, Dict[str, Any]]]:
    """Judges outputs that are there already, as those of a solution that ran elsewhere.

    Args:
        inputs, outputs: by their names in the definition; outputs that are optional may be missing.
        causal: as in `judge`.
        options: name, threads, rows, evidence and arithmetic of `assay.assert_attention`.

    Returns:
        The results, each with where it was asked: "sequence 3", or "" where one question was asked.
    """
    mapping = mapping_of(definition)
    present = {
        key: read(key, value) if definition.inputs[key].shape is not None else value
        for key, value in inputs.items()
        if value is not None
    }
    asked = Asked(
        present,
        {key: read(key, value) for key, value in outputs.items()},
        {key: spec.shape or [] for key, spec in definition.inputs.items()},
        causal,
    )
    found: List[Tuple[str, Dict[str, Any]]] = [
        (question.where, judge_record(question.line, question.tensors, **options))
        for question in mapping.questions(asked)
    ]
    if not found:
        raise InputError("workload", "has no row: there is nothing to compare")
    return found


def judge(
    definition: Definition,
    workload: Workload,
    solution: Union[Solution, Callable[..., Any]],
    *,
    device: str = "cpu",
    framework_name: str = "torch",
    seed: int = 1,
    threads: int = 1,
    rows: int = 0,
    causal: Optional[bool] = None,
    evidence: str = "fail",
) -> Dict[str, Any]:
    """Runs a solution on a workload and judges its outputs; returns the trace.

    The function is called twice, with memory of other contents; both answers are judged.

    Args:
        solution: or a function that takes the inputs by position and returns the outputs.
        device, framework_name: where the tensors lie, and whose they are.
        seed: of random inputs.
        threads: of the judge; 0: all.
        rows: judge so many rows of each head; 0: all.
        causal: whether a row sees no later token. By default none does, but for single_prefill.
        evidence: "fail", "warn" or "off" (docs/evidence.md).

    Returns:
        {"definition", "workload", "solution", "evaluation"}. The status is PASSED,
        INCORRECT_NUMERICAL, INCORRECT_SHAPE, INCORRECT_DTYPE, RUNTIME_ERROR or COMPILE_ERROR.
        The errors in `correctness` are those of the element with the largest error/bound of each
        output; its `extra` has our verdict.
    """
    if workload.definition != definition.name:
        raise InputError("workload", f"is of {workload.definition}, not of {definition.name}")
    if isinstance(solution, Solution) and solution.definition != definition.name:
        raise InputError("solution", f"is for {solution.definition}, not for {definition.name}")
    if causal is not None:
        flag("causal", causal)
    tool = framework(framework_name, device)
    inputs = inputs_of(definition, workload, seed)
    options = dict(threads=threads, rows=rows, evidence=evidence)
    evaluation = _evaluation("PASSED", "", tool.device)
    name = solution.name if isinstance(solution, Solution) else _name_of(solution)
    try:
        runner = _runner(definition, workload, solution, tool, inputs)
        results: List[Tuple[str, Dict[str, Any]]] = []
        first: Optional[Dict[str, bytes]] = None
        for codes in (NAN, LARGE):
            outputs = runner.call(inputs, codes)
            content = {key: t.packed() for key, t in outputs.items()}
            if content == first:
                continue
            first = content
            results += judge_outputs(definition, inputs, outputs, causal, name=name, **options)
        _conclude(evaluation, name, results, runner.seconds)
    except _Wrong as e:
        evaluation["status"], evaluation["log"] = e.status, str(e)
    return _trace(workload, name, evaluation)


def _evaluation(status: str, log: str, device: str) -> Dict[str, Any]:
    return {
        "status": status,
        "environment": _environment(device),
        "timestamp": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "log": log,
        "correctness": None,
        "performance": None,
    }


def _trace(workload: Workload, solution: str, evaluation: Dict[str, Any]) -> Dict[str, Any]:
    return {
        "definition": workload.definition,
        "workload": workload.record,
        "solution": solution,
        "evaluation": evaluation,
    }


def _name_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__name__).replace("<locals>.", "")


def _runner(
    definition: Definition,
    workload: Workload,
    solution: Union[Solution, Callable[..., Any]],
    tool: Framework,
    inputs: Dict[str, Any],
) -> _Runner:
    shapes = {
        name: tuple(_output_extent(definition, workload, inputs, name, axis) for axis in spec.shape)
        for name, spec in definition.outputs.items()
        if spec.shape is not None
    }
    if not isinstance(solution, Solution):
        return _Runner(definition, solution, tool, False, shapes)
    try:
        function = solution.load()
    except Exception as e:
        raise _Wrong("COMPILE_ERROR", ended(e).replace("the function", "the solution")) from e
    return _Runner(definition, function, tool, solution.destination_passing_style, shapes)


def _output_extent(
    definition: Definition, workload: Workload, inputs: Dict[str, Any], name: str, axis: str
) -> int:
    """An axis of an output: by its value, or as the inputs have it."""
    if axis in workload.axes or definition.axes.get(axis) is not None:
        return _extent(definition, workload, name, axis)
    for key, t in inputs.items():
        shape = definition.inputs[key].shape
        if isinstance(t, Tensor) and shape is not None and axis in shape:
            return t.shape[shape.index(axis)]
    return _extent(definition, workload, name, axis)


def _conclude(
    evaluation: Dict[str, Any], name: str, results: List[Tuple[str, Dict[str, Any]]], seconds: float
) -> None:
    """Fills the status, the errors and the log of an evaluation."""
    wrong = [(where, r) for where, r in results if not is_right(r)]
    worst = [w for _, r in results for w in r.get("worst", {}).values()]
    errors = [_errors(w) for w in worst] + [(e, e) for _, r in results for e in _not_finite(r)]
    where, told = (wrong or results)[0]
    evaluation["correctness"] = {
        "max_relative_error": _largest([e[1] for e in errors]),
        "max_absolute_error": _largest([e[0] for e in errors]),
        "extra": {
            "assay": {
                "outcome": told["outcome"],
                "reason": told["reason"],
                "where": where,
                "contract": told.get("contract", ""),
                "largest_error_over_bound": _largest([_float(w["ratio"]) for w in worst]),
                "questions": len(results),
                "compared": sum(sum(r["elements"]["compared"].values()) for _, r in results),
                "outside": sum(r["elements"]["outside"] for _, r in results),
                "first_failure": told.get("first_failure"),
                "by_evidence": bool(told.get("by_evidence")),
            }
        },
    }
    if wrong:
        evaluation["status"] = "INCORRECT_NUMERICAL"
        evaluation["log"] = failure_text(f"{name} {where}".strip(), told, "")
        return
    # The reference is not run, so there is no time of it and no speedup.
    evaluation["performance"] = {
        "latency_ms": seconds * 1e3,
        "reference_latency_ms": 0.0,
        "speedup_factor": 0.0,
    }


def _float(number: Any) -> float:
    """A number of a result, where NaN and infinities are texts."""
    return float(number)


def _largest(numbers: List[float]) -> float:
    """The largest number; NaN if one is NaN, or if there is none."""
    return math.nan if not numbers or any(map(math.isnan, numbers)) else max(numbers)


def _not_finite(result: Dict[str, Any]) -> List[float]:
    """NaN and infinities that do not belong where they are; they have no error/bound."""
    found = result.get("not_finite", {})
    kinds = (("nan", math.nan), ("infinity", math.inf))
    return [e for kind, e in kinds if found and found[f"{kind}_found"] > found[f"{kind}_expected"]]


def _errors(worst: Dict[str, Any]) -> Tuple[float, float]:
    """The absolute and the relative error of an element."""
    got, exact = _float(worst["got"]), _float(worst["exact"])
    error = 0.0 if got == exact else abs(got - exact)
    return error, error / abs(exact) if exact else (0.0 if error == 0 else math.inf)


def _environment(device: str) -> Dict[str, Any]:
    libs = {"assay": __version__}
    hardware = platform.machine() or "unknown"
    torch, triton = (sys.modules.get(name) for name in ("torch", "triton"))
    if torch is not None and hasattr(torch, "__version__"):
        libs["torch"] = str(torch.__version__)
        if device.startswith("cuda"):
            hardware = torch.cuda.get_device_name(device).replace(" ", "_")
            libs["cuda"] = str(torch.version.cuda)
    if triton is not None and hasattr(triton, "__version__"):
        libs["triton"] = triton.__version__
    return {"hardware": hardware, "libs": libs}


# ---- What is written ----


def _plain(value: Any) -> Any:
    """The value with NaN and infinities as texts, which JSON does not have as numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def write_traces(path: _Path, traces: Iterable[Dict[str, Any]]) -> None:
    """Writes traces as JSON lines, whole or not at all."""
    lines = [json.dumps(_plain(trace), allow_nan=False).encode() + b"\n" for trace in traces]
    if not lines:
        raise InputError("traces", "there is none")
    write_whole(path, lines)


# ---- The command ----


def _command() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m assay.flashinfer",
        description="Judges a solution of FlashInfer-Trace on workloads, and writes traces.",
    )
    parser.add_argument(
        "--definition", required=True, metavar="FILE", help="one, or a list of them"
    )
    parser.add_argument("--workload", metavar="FILE", help="JSON lines")
    parser.add_argument("--solution", metavar="FILE")
    parser.add_argument("--trace", metavar="FILE", help="takes the traces, as JSON lines")
    parser.add_argument("--root", metavar="FOLDER", help="of files of tensors (that of --workload)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=1, help="of random inputs (1)")
    parser.add_argument("--threads", type=int, default=1, help="of the judge; 0: all (1)")
    parser.add_argument("--rows", type=int, default=0, help="of each head; 0: all (0)")
    parser.add_argument("--causal", choices=("yes", "no"), help="of a prefill")
    parser.add_argument("--evidence", choices=("fail", "warn", "off"), default="fail")
    parser.add_argument(
        "--isolate", action="store_true", help="run every workload in a process of its own"
    )
    parser.add_argument(
        "--timeout", type=float, default=300, help="of a workload with --isolate, in seconds (300)"
    )
    parser.add_argument(
        "--coverage", action="store_true", help="count which definitions are judged, and stop"
    )
    return parser


def _judge_all(o: argparse.Namespace) -> int:
    listed = load_definitions(o.definition)
    definitions = {d.name: d for d in listed}
    if o.coverage:
        for option in ("workload", "solution", "trace", "root", "causal"):
            if getattr(o, option) is not None:
                raise InputError("--" + option, "means nothing beside --coverage")
        found = coverage(listed)
        for name, why in found["refused"]:
            print(f"refused {name}: {why}")
        print(f"{len(found['judged'])} definitions are judged, {len(found['refused'])} refused")
        return 0
    for option in ("workload", "solution", "trace"):
        if getattr(o, option) is None:
            raise InputError("--" + option, "is needed")
    solution = load_solution(o.solution)
    if solution.definition not in definitions:
        raise InputError("--definition", f"{o.definition} has no {solution.definition!r}")
    if not Path(o.trace).absolute().parent.is_dir():
        raise InputError("--trace", f"{o.trace}: there is no such folder")
    if not o.timeout > 0:
        raise InputError("--timeout", f"{o.timeout} is no number of seconds above 0")
    traces = []
    for workload in load_workloads(o.workload, o.root):
        if o.isolate:
            traces.append(_judge_apart(o, workload, solution.name))
        else:
            traces.append(
                judge(
                    definitions[solution.definition],
                    workload,
                    solution,
                    device=o.device,
                    seed=o.seed,
                    threads=o.threads,
                    rows=o.rows,
                    causal=None if o.causal is None else o.causal == "yes",
                    evidence=o.evidence,
                )
            )
        e = traces[-1]["evaluation"]
        print(f"{e['status']} {workload.uuid}" + (f"\n{e['log']}" if e["log"] else ""), flush=True)
    write_traces(o.trace, traces)
    passed = sum(t["evaluation"]["status"] == "PASSED" for t in traces)
    print(f"{len(traces)} workloads: {passed} passed; seed {o.seed}")
    return 0 if passed == len(traces) else 1


def _judge_apart(o: argparse.Namespace, workload: Workload, solution: str) -> Dict[str, Any]:
    """The trace of one workload, which this command judges in another process."""
    with tempfile.TemporaryDirectory(prefix="assay-workload-") as folder:
        one, to = Path(folder) / "workload.jsonl", Path(folder) / "trace.jsonl"
        line = {"definition": workload.definition, "workload": workload.record}
        one.write_text(json.dumps(line) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "assay.flashinfer", "--root", workload.root]
        command += ["--workload", str(one), "--trace", str(to)]
        for option in ("definition", "solution", "device", "seed", "threads", "rows", "evidence"):
            command += ["--" + option, str(getattr(o, option))]
        command += [] if o.causal is None else ["--causal", o.causal]
        try:
            done = subprocess.run(
                command,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=o.timeout,
                # A process that ends by a signal leaves its files, so they lie in this folder.
                env={**child_environment(), "TMPDIR": folder},
            )
        except subprocess.TimeoutExpired:
            late = f"the solution did not finish within {o.timeout:g} s"
            return _trace(workload, solution, _evaluation("TIMEOUT", late, "cpu"))
        if done.returncode == 2:
            said = done.stderr.decode("utf-8", "replace").strip()
            raise InputError("", said[len("assay: ") :] if said.startswith("assay: ") else said)
        if to.exists():
            return json.loads(_text(to))
    why = f"the solution's process {how_it_ended(done.returncode)}"
    return _trace(workload, solution, _evaluation("RUNTIME_ERROR", why, "cpu"))


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The command; returns its exit status: 0, 1 if something is wrong, 2 for bad input, 3 if the
    machine failed."""
    options = _command().parse_args(arguments)
    try:
        return _judge_all(options)
    except InputError as e:
        print(f"assay: {e}", file=sys.stderr)
        return 2
    except (OSError, MemoryError) as e:
        print(f"assay: {e or 'out of memory'}", file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main())
