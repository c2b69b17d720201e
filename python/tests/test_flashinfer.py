"""Definitions, workloads, solutions and traces of FlashInfer-Trace."""

import json
import math
import os
import subprocess
import sys

import pytest

import assay
from assay import flashinfer

torch = pytest.importorskip("torch")

DEFINITIONS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "definitions.json")
REFUSED = {
    "dense_product": "op_type: 'gemm_bf16' is not judged; there are gemm_bf16_fp4, gemm_fp8",
    "normalization": "op_type: 'rmsnorm' is not judged",
    "ragged_with_bias": "bias: is an input of gqa_ragged that has no counterpart",
    "ragged_without_offsets": "kv_indptr: is missing among the inputs of gqa_ragged",
    "ragged_of_f8": "k: is in f8e4m3; it is judged in f32 or f16 or bf16",
    "ragged_with_weights": "weights: is an output of gqa_ragged that is not judged",
    "more_heads_of_keys": "num_qo_heads: is 3, no multiple of 2 heads of keys",
    "product_with_scales": "a_scale: is an input of gemm_fp8 that has no counterpart",
    "product_of_columns": "B: has the axes ['N', 'K'], not 3 of them",
}
# The functions of all definitions, and one that attends, with the logarithm to base 2.
SOURCE = '''
import math, torch

def attend(q, k, v, scale, causal=False):
    """Of [rows, heads, columns]; the rows are the last tokens."""
    group = q.shape[1] // k.shape[1]
    k, v = (t.double().repeat_interleave(group, 1) for t in (k, v))
    s = torch.einsum("ihd,jhd->hij", q.double(), k) * scale
    if causal:
        hidden = torch.ones(s.shape[1:]).triu(1 + s.shape[2] - s.shape[1]).bool()
        s = s.masked_fill(hidden, -math.inf)
    m = s.amax(-1, keepdim=True).clamp(min=-1e300) if s.shape[2] else s.new_zeros(s.shape[:2] + (1,))
    w = (s - m).exp()
    total = w.sum(-1)
    o = torch.einsum("hij,jhd->ihd", w, v) / total.clamp(min=1e-300).t()[..., None]
    lse = ((m[..., 0] + total.log()) / math.log(2)).t()
    return o.to(q.dtype), lse.float()

def joined(parts):
    return tuple(torch.cat(ts) for ts in zip(*parts))

def ragged(q, k, v, qo_indptr, kv_indptr, sm_scale, causal=True):
    qs, ks = qo_indptr.tolist(), kv_indptr.tolist()
    return joined(
        attend(q[a:b], k[c:d], v[c:d], sm_scale, causal)
        for a, b, c, d in zip(qs, qs[1:], ks, ks[1:])
    )

def tokens(cache, indices, n):
    return cache[indices.long()].reshape(-1, *cache.shape[2:])[:n]

def paged(q, spans, k, v, kv_indptr, kv_indices, last, scale, causal):
    at, found = kv_indptr.tolist(), []
    for b, (begin, end) in enumerate(spans):
        pages = kv_indices[at[b]:at[b + 1]]
        n = max(0, len(pages) - 1) * k.shape[1] + (last[b] if len(pages) else 0)
        found.append(attend(q[begin:end], tokens(k, pages, n), tokens(v, pages, n), scale, causal))
    return joined(found)

def paged_decode(q, k, v, kv_indptr, kv_indices, kv_last_page_len, sm_scale):
    rows = [(b, b + 1) for b in range(len(q))]
    return paged(q, rows, k, v, kv_indptr, kv_indices, kv_last_page_len.tolist(), sm_scale, False)

def paged_prefill_heads_first(q, qo_indptr, k, v, kv_indptr, kv_indices, sm_scale):
    at = qo_indptr.tolist()
    scale = q.shape[2] ** -0.5 if sm_scale is None else sm_scale
    k, v = (t.transpose(1, 2) for t in (k, v))
    full = [k.shape[1]] * (len(at) - 1)
    return paged(q, list(zip(at, at[1:])), k, v, kv_indptr, kv_indices, full, scale, True)

def latent(q_nope, q_pe, spans, ckv, kpe, kv_indptr, kv_indices, sm_scale, causal):
    k = torch.cat([ckv, kpe], -1)[:, :, None]
    full = [k.shape[1]] * len(spans)
    q = torch.cat([q_nope, q_pe], -1)
    return paged(q, spans, k, ckv[:, :, None], kv_indptr, kv_indices, full, sm_scale, causal)

def latent_decode(q_nope, q_pe, ckv, kpe, kv_indptr, kv_indices, sm_scale, ckv_scale):
    rows = [(b, b + 1) for b in range(len(q_nope))]
    return latent(q_nope, q_pe, rows, ckv, kpe, kv_indptr, kv_indices, sm_scale, False)

def latent_prefill(q_nope, q_pe, qo_indptr, ckv, kpe, kv_indptr, kv_indices, sm_scale):
    at = qo_indptr.tolist()
    rows = list(zip(at, at[1:]))
    return latent(q_nope, q_pe, rows, ckv, kpe, kv_indptr, kv_indices, sm_scale, True)

def joined_latent(query, cache, workspace, rank, tables, lengths, scale, two, mask):
    assert two is None and mask is None
    workspace.fill_(7)
    found = []
    for q, table, n in zip(query, tables, lengths.tolist()):
        k = tokens(cache, table, n)[:, None]
        found.append(attend(q, k, k[..., :rank], scale, True)[0])
    return torch.stack(found)

def one_prefill(q, k, v):
    return attend(q, k, v, q.shape[2] ** -0.5)[0]

def one_decode(q, k, v):
    return attend(q[None], k, v, q.shape[1] ** -0.5)[0][0]
'''
AXES = {
    "ragged": {"total_q": 9, "total_kv": 21, "len_indptr": 4},
    "paged_decode": {"batch_size": 3, "num_pages": 9, "len_indptr": 4, "num_kv_indices": 7},
    "paged_prefill_heads_first": {
        "total_q": 9,
        "num_pages": 9,
        "len_indptr": 3,
        "num_kv_indices": 6,
    },
    "latent_decode": {"batch_size": 3, "num_pages": 9, "len_indptr": 4, "num_kv_indices": 8},
    "latent_prefill": {"total_q": 6, "num_pages": 9, "len_indptr": 3, "num_kv_indices": 8},
    "joined_latent": {"batch_size": 2, "num_pages": 20, "max_pages": 8},
    "one_prefill": {"qo_len": 5, "kv_len": 12},
    "one_decode": {"kv_len": 12},
}
NUMBERS = {
    "sm_scale": {"type": "scalar", "value": 0.25},
    "bmm1_scale": {"type": "scalar", "value": 0.25},
    "kv_lora_rank": {"type": "scalar", "value": 8},
}
LAST = {"kv_last_page_len": {"type": "safetensors", "path": "last.st", "tensor_key": "n"}}


def definition(name):
    return {d.name: d for d in flashinfer.load_definitions(DEFINITIONS)}[name]


def workload_file(tmp_path, name, **inputs):
    d = definition(name)
    chosen = {key: {"type": "random"} for key, spec in d.inputs.items() if spec.shape is not None}
    chosen.update({key: value for key, value in NUMBERS.items() if key in d.inputs})
    if "kv_last_page_len" in d.inputs:
        from assay._flashinfer_map import integer_tensor
        from assay._safetensors import write

        write(tmp_path / "last.st", {}, [("n", integer_tensor([4, 1, 3], (3,), "i32"))])
        chosen.update(LAST)
    chosen.update(inputs)
    chosen = {key: value for key, value in chosen.items() if value is not None}
    line = {
        "definition": name,
        "workload": {"uuid": f"{name}-1", "axes": AXES[name], "inputs": chosen},
        "solution": None,
        "evaluation": None,
    }
    path = tmp_path / f"{name}.jsonl"
    path.write_text(json.dumps(line) + "\n")
    return path


def workload(tmp_path, name, **inputs):
    (found,) = flashinfer.load_workloads(workload_file(tmp_path, name, **inputs))
    return found


def solution_file(tmp_path, name, source=SOURCE, entry=None, destination=False, **spec):
    found = {
        "name": f"{name}-by-torch",
        "definition": name,
        "author": "tests",
        "spec": {
            "language": "python",
            "target_hardware": ["CPU"],
            "entry_point": f"main.py::{entry or name}",
            "destination_passing_style": destination,
            **spec,
        },
        "sources": [{"path": "main.py", "content": source}],
    }
    path = tmp_path / f"{name}-solution.json"
    path.write_text(json.dumps(found))
    return path


def solution(tmp_path, name, source=SOURCE, **options):
    return flashinfer.load_solution(solution_file(tmp_path, name, source, **options))


def test_every_definition_is_judged_or_refused_under_a_reason():
    found = flashinfer.coverage(flashinfer.load_definitions(DEFINITIONS))
    assert found["judged"] == [*AXES, "product_of_f8", "product_of_f4"]
    assert [name for name, _ in found["refused"]] == list(REFUSED)
    for name, why in found["refused"]:
        assert why.startswith(REFUSED[name]), why


@pytest.mark.parametrize("name", AXES)
def test_a_right_solution_passes_and_a_wrong_one_fails(tmp_path, name):
    asked = definition(name), workload(tmp_path, name)
    trace = flashinfer.judge(*asked, solution(tmp_path, name))
    evaluation = trace["evaluation"]
    assert evaluation["status"] == "PASSED", evaluation["log"]
    assert trace["solution"] == f"{name}-by-torch" and trace["workload"]["uuid"] == f"{name}-1"
    correctness = evaluation["correctness"]
    verdict = correctness["extra"]["assay"]
    assert 0 < verdict["largest_error_over_bound"] <= 1 and verdict["outside"] == 0
    assert correctness["max_absolute_error"] < 1e-2 and verdict["compared"] > 0
    assert evaluation["performance"]["latency_ms"] > 0
    assert evaluation["environment"]["libs"]["torch"] == str(torch.__version__)

    for factor, proved in ((1.01, False), (1.05, True)):  # the first may lie inside a bound
        wrong = SOURCE + f"\nright = {name}\ndef {name}(*given):\n    answer = right(*given)\n"
        wrong += (
            f"    return answer * {factor} if torch.is_tensor(answer) "
            f"else (answer[0] * {factor}, answer[1])"
        )
        evaluation = flashinfer.judge(*asked, solution(tmp_path, name, wrong))["evaluation"]
        assert evaluation["status"] == "INCORRECT_NUMERICAL" and evaluation["performance"] is None
        if proved:
            assert evaluation["correctness"]["extra"]["assay"]["outside"] > 0
            assert "is wrong at O[" in evaluation["log"]


def test_every_sequence_is_asked(tmp_path):
    offsets = {"type": "safetensors", "path": "at.st"}
    from assay._flashinfer_map import integer_tensor
    from assay._safetensors import write

    q, kv = ([0, 2, 2, 9], [0, 5, 11, 21])
    write(
        tmp_path / "at.st",
        {},
        [(key, integer_tensor(at, (4,), "i32")) for key, at in (("q", q), ("kv", kv))],
    )
    w = workload(
        tmp_path,
        "ragged",
        qo_indptr={**offsets, "tensor_key": "q"},
        kv_indptr={**offsets, "tensor_key": "kv"},
    )
    one_wrong = SOURCE + "\ndef last(*given):\n    o, lse = ragged(*given)\n    o[8, 3, 7] += 1\n"
    one_wrong += "    return o, lse"
    made = solution(tmp_path, "ragged", one_wrong, entry="last")
    evaluation = flashinfer.judge(definition("ragged"), w, made)["evaluation"]
    verdict = evaluation["correctness"]["extra"]["assay"]
    assert verdict["where"] == "sequence 2" and verdict["questions"] == 2
    assert "sequence 2 is wrong at O[b=0, h=3, row=6, column=7]" in evaluation["log"]
    # Without causality the same function is wrong from the first sequence on.
    right = solution(tmp_path, "ragged")
    for causal, status in ((True, "PASSED"), (False, "INCORRECT_NUMERICAL")):
        trace = flashinfer.judge(definition("ragged"), w, right, causal=causal)
        assert trace["evaluation"]["status"] == status


def test_nan_in_one_output_is_the_largest_error(tmp_path):
    source = SOURCE + "\ndef lost(*given):\n    o, lse = ragged(*given)\n    lse[0, 0] = math.nan\n"
    made = solution(tmp_path, "ragged", source + "    return o, lse", entry="lost")
    asked = definition("ragged"), workload(tmp_path, "ragged")
    evaluation = flashinfer.judge(*asked, made)["evaluation"]
    assert evaluation["status"] == "INCORRECT_NUMERICAL" and "LSE" in evaluation["log"]
    assert math.isnan(evaluation["correctness"]["max_absolute_error"])


def test_outputs_that_are_passed(tmp_path):
    source = (
        SOURCE
        + """
def into(q, k, v, output):
    output.copy_(one_prefill(q, k, v))

def leaves_out(q, k, v, output):
    output[:-1] = one_prefill(q, k, v)[:-1]
"""
    )
    asked = definition("one_prefill"), workload(tmp_path, "one_prefill")
    for entry, status in (("into", "PASSED"), ("leaves_out", "INCORRECT_NUMERICAL")):
        made = solution(tmp_path, "one_prefill", source, entry=entry, destination=True)
        assert flashinfer.judge(*asked, made)["evaluation"]["status"] == status
    function = flashinfer.judge(*asked, lambda q, k, v: q * 0)
    assert function["evaluation"]["status"] == "INCORRECT_NUMERICAL"


@pytest.mark.parametrize(
    "body, status, words",
    [
        ("    return one_prefill(q, k, v)[1:]", "INCORRECT_SHAPE", "output is [4, 4, 8], not [5"),
        ("    return one_prefill(q, k, v).float()", "INCORRECT_DTYPE", "is in f32, not bf16"),
        ("    raise ValueError('no such tile')", "RUNTIME_ERROR", "ValueError: no such tile"),
        ("    return None", "RUNTIME_ERROR", "no output output came"),
        ("    return 3", "RUNTIME_ERROR", "not a torch.Tensor"),
        ("    return q, k", "RUNTIME_ERROR", "2 outputs came, not 1"),
        ("    return {'out': q}", "RUNTIME_ERROR", "an output 'out' came"),
        ("    return q", "RUNTIME_ERROR", "is a view of the input q"),
        ("    q *= 0\n    return q + 0", "RUNTIME_ERROR", "the input q was changed in place"),
        ("    return nothing(", "COMPILE_ERROR", "SyntaxError"),
    ],
)
def test_what_ends_an_evaluation_has_its_status(tmp_path, body, status, words):
    asked = definition("one_prefill"), workload(tmp_path, "one_prefill")
    made = solution(tmp_path, "one_prefill", f"{SOURCE}\ndef run(q, k, v):\n{body}\n", entry="run")
    evaluation = flashinfer.judge(*asked, made)["evaluation"]
    assert evaluation["status"] == status and words in evaluation["log"], evaluation["log"]
    assert evaluation["correctness"] is None and evaluation["performance"] is None


def f8(code):
    """The value of a code of E4M3."""
    exponent, fraction = code >> 3 & 15, code & 7
    size = (8 + fraction) * 2.0 ** (exponent - 10) if exponent else fraction * 2.0**-9
    return -size if code & 128 else size


def test_products_of_8_bits():
    d = definition("product_of_f8")
    w = flashinfer.Workload(d.name, "1", {"M": 3}, {n: {"type": "random"} for n in "AB"}, "", {})
    inputs = flashinfer.inputs_of(d, w)

    a, b = (
        torch.tensor([f8(code) for code in inputs[n].packed()], dtype=torch.float64) for n in "AB"
    )
    columns = b.reshape(2, 6, 16).permute(0, 2, 1).reshape(32, 6)
    c = (a.reshape(3, 32) @ columns).float()
    ((where, result),) = flashinfer.judge_outputs(d, inputs, {"C": c})
    assert where == "" and result["outcome"] == "pass", result["reason"]
    ((_, result),) = flashinfer.judge_outputs(d, inputs, {"C": c * 1.001})
    assert result["outcome"] == "fail"


def test_products_of_4_bits():
    d = definition("product_of_f4")
    random = {name: {"type": "random"} for name in ("A", "B", "b_descale")}
    w = flashinfer.Workload(d.name, "1", {"M": 3}, random, "", {})
    sixteen = flashinfer.Workload(
        d.name, "1", {"M": 3}, {**random, "block_size": {"type": "scalar", "value": 16}}, "", {}
    )
    assert flashinfer.inputs_of(d, w)["block_size"] is None
    given = flashinfer.inputs_of(d, sixteen)
    values = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    codes = [code for byte in given["B"].packed() for code in (byte & 15, byte >> 4)]
    b = torch.tensor([values[code & 7] * (-1 if code & 8 else 1) for code in codes])
    scales = torch.tensor([f8(code) for code in given["b_descale"].packed()], dtype=torch.float64)
    b = (b.double().reshape(6, 2, 16) * scales.reshape(6, 2, 1)).reshape(6, 32)
    a = torch.frombuffer(bytearray(given["A"].packed()), dtype=torch.bfloat16).reshape(3, 32)
    c = (a.double() @ b.t()).float()
    ((_, result),) = flashinfer.judge_outputs(d, given, {"C": c})
    assert result["outcome"] == "pass", result["reason"]
    scaled = {**given, "alpha": torch.tensor([0.375])}
    ((_, result),) = flashinfer.judge_outputs(d, scaled, {"C": c * 0.375})
    assert result["outcome"] == "pass", result["reason"]
    ((_, result),) = flashinfer.judge_outputs(d, scaled, {"C": c})
    assert result["outcome"] == "fail"
    with pytest.raises(flashinfer.Unmapped, match="block_size: is 32"):
        flashinfer.judge_outputs(d, {**given, "block_size": 32}, {"C": c})


def test_random_inputs_follow_the_seed(tmp_path):
    d, w = definition("paged_decode"), workload(tmp_path, "paged_decode")
    first, again, other = (flashinfer.inputs_of(d, w, seed) for seed in (1, 1, 2))
    for name in ("q", "k_cache", "kv_indices"):
        assert first[name].packed() == again[name].packed() != other[name].packed()
    assert first["sm_scale"] == 0.25 and list(first) == list(d.inputs)
    assert first["k_cache"].packed() != first["v_cache"].packed()


def test_traces_are_written_and_read(tmp_path):
    asked = definition("one_decode"), workload(tmp_path, "one_decode")
    traces = [flashinfer.judge(*asked, lambda q, k, v: (q + math.nan))]
    assert traces[0]["evaluation"]["status"] == "INCORRECT_NUMERICAL"
    flashinfer.write_traces(tmp_path / "t.jsonl", traces * 2)
    lines = (tmp_path / "t.jsonl").read_text().splitlines()
    read = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert len(read) == 2 and read[0]["evaluation"]["correctness"]["max_absolute_error"] == "NaN"
    assert flashinfer.load_workloads(tmp_path / "t.jsonl")[1].uuid == "one_decode-1"
    with pytest.raises(assay.InputError, match="there is none"):
        flashinfer.write_traces(tmp_path / "none.jsonl", [])
    assert not (tmp_path / "none.jsonl").exists()


def command(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "assay.flashinfer", *map(str, arguments)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_command(tmp_path):
    status, told = command("--definition", DEFINITIONS, "--coverage")
    assert status == 0 and "10 definitions are judged, 9 refused" in told
    assert "refused normalization: op_type" in told
    asked = ["--definition", DEFINITIONS, "--workload", workload_file(tmp_path, "one_decode")]
    asked += ["--trace", tmp_path / "t.jsonl", "--solution"]
    status, told = command(*asked, solution_file(tmp_path, "one_decode"), "--threads", 2)
    assert status == 0 and told == "PASSED one_decode-1\n1 workloads: 1 passed; seed 1\n"
    assert json.loads((tmp_path / "t.jsonl").read_text())["evaluation"]["status"] == "PASSED"
    wrong = SOURCE + "\ndef none(q, k, v):\n    return q * 0\n"
    status, told = command(*asked, solution_file(tmp_path, "one_decode", wrong, entry="none"))
    assert status == 1 and told.startswith("INCORRECT_NUMERICAL one_decode-1\none_decode-by-torch")
    status, told = command(*asked, tmp_path / "nothing.json")
    assert status == 2 and "nothing.json: No such file" in told
    status, told = command("--definition", DEFINITIONS)
    assert status == 2 and told == "assay: --workload: is needed\n"


@pytest.fixture
def check():
    """Runs `assay check` with a definition."""
    program = os.environ.get("ASSAY_COMMAND")
    if not program:
        pytest.skip("ASSAY_COMMAND names no command")

    def run(*arguments, command="check", **environment):
        done = subprocess.run(
            [program, *command.split(), "--definition", DEFINITIONS, *map(str, arguments)],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "ASSAY_PYTHON": sys.executable, **environment},
        )
        return done.returncode, done.stdout + done.stderr

    return run


def test_assay_check_judges_a_solution(tmp_path, check):
    asked = ["--workload", workload_file(tmp_path, "one_decode"), "--trace", tmp_path / "t.jsonl"]
    right = solution_file(tmp_path, "one_decode")
    status, told = check(*asked, "--solution", right, "--seed", 3)
    assert status == 0 and told == "PASSED one_decode-1\n1 workloads: 1 passed; seed 3\n", told
    trace = json.loads((tmp_path / "t.jsonl").read_text())
    assert trace["evaluation"]["status"] == "PASSED"
    assert trace["evaluation"]["correctness"]["extra"]["assay"]["outcome"] == "pass"
    for body, limit, words in (
        ("return q * 0", 120, "INCORRECT_NUMERICAL one_decode-1\none_decode-by-torch"),
        ("import os\n    os.abort()", 120, "RUNTIME_ERROR one_decode-1\nthe solution's process"),
        ("while True:\n        pass", 2, "TIMEOUT one_decode-1\nthe solution did not finish"),
    ):
        source = f"{SOURCE}\ndef wrong(q, k, v):\n    {body}\n"
        wrong = solution_file(tmp_path, "one_decode", source, entry="wrong")
        status, told = check(*asked, "--solution", wrong, "--timeout", limit)
        assert status == 1 and told.startswith(words), told
    status, told = check("--coverage")
    assert status == 0 and "10 definitions are judged, 9 refused" in told


def test_assay_check_refuses_by_name(tmp_path, check):
    workloads = workload_file(tmp_path, "one_decode")
    right = solution_file(tmp_path, "one_decode")
    trace = tmp_path / "t.jsonl"
    asked = ("--workload", workloads, "--solution", right)
    for arguments, words in (
        ((*asked, "--trace", trace, "--suite", "tiny"), "--suite means nothing for the solution"),
        ((*asked, "--trace", trace, "--python", "a.py::f"), "--python means nothing"),
        ((*asked, "--trace", trace, "--no-shrink"), "--no-shrink means nothing"),
        ((*asked, "--trace", right), "would overwrite a file of --solution"),
        ((*asked, "--trace", tmp_path / "none" / "t"), "writing "),
        ((*asked, "--trace", trace, "--causal", "perhaps"), "--causal"),
        ((*asked, "--trace", trace, "--device", "cuda:77"), "device: 'cuda:77'"),
        (asked, "assay: --trace: is needed"),
        (("--workload", tmp_path / "none", "--coverage"), "--workload: means nothing beside"),
        (("--causal", "yes", "--coverage"), "--causal: means nothing beside --coverage"),
        (("--root", tmp_path, "--coverage"), "--root: means nothing beside --coverage"),
        (("--workload", tmp_path / "none", "--solution", right, "--trace", trace), "none"),
    ):
        status, told = check(*arguments)
        assert status == 2 and words in told, (arguments, told)
        assert "Traceback" not in told and not trace.exists()
    status, told = check(*asked, "--trace", trace, ASSAY_JUDGE_LIBRARY=str(tmp_path / "none.so"))
    assert status == 3 and told.startswith("assay: the judge's library is not there"), told
    plan = f"sweep plan {tmp_path / 'plan'} --shards 2 -- check"
    status, told = check(*asked, "--trace", trace, command=plan)
    assert status == 2 and "--definition: its workloads cannot be divided" in told, told


def test_what_ends_a_process_costs_one_workload(tmp_path, monkeypatch):
    left = tmp_path / "left"  # by processes that were killed
    left.mkdir()
    monkeypatch.setenv("TMPDIR", str(left))
    source = (
        SOURCE
        + """
def ends(q, k, v):
    import os, signal, time
    if len(k) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    while len(k) == 2:
        time.sleep(1)
    return one_decode(q, k, v)
"""
    )
    path = workload_file(tmp_path, "one_decode")
    line = json.loads(path.read_text())
    asked = ["--definition", DEFINITIONS, "--workload", path, "--trace", tmp_path / "t.jsonl"]
    asked += ["--solution", solution_file(tmp_path, "one_decode", source, entry="ends")]

    def isolated(lengths, *options):
        lines = []
        for tokens in lengths:
            line["workload"]["axes"]["kv_len"] = tokens
            lines.append(json.dumps(line))
        path.write_text("\n".join(lines))
        status, told = command(*asked, "--isolate", *options)
        assert status == 1, told
        read = [json.loads(text) for text in (tmp_path / "t.jsonl").read_text().splitlines()]
        return [(t["evaluation"]["status"], t["evaluation"]["log"]) for t in read]

    ended = ("RUNTIME_ERROR", "the solution's process was killed by signal 9")
    assert isolated((1, 12)) == [ended, ("PASSED", "")]
    late = ("TIMEOUT", "the solution did not finish within 2 s")  # however long it takes to start
    assert isolated((2,), "--timeout", 2) == [late]
    assert not list(left.iterdir())
    status, told = command(*asked, "--timeout", "nan")
    assert status == 2 and told == "assay: --timeout: nan is no number of seconds above 0\n"


def test_bad_input_is_refused_by_name(tmp_path):
    d = definition("ragged")

    def file(text):
        (tmp_path / "bad.json").write_text(text)
        return tmp_path / "bad.json"

    def refused(words, call, *arguments):
        with pytest.raises(assay.InputError) as error:
            call(*arguments)
        assert words in str(error.value), str(error.value)

    load = flashinfer.load_definition
    refused("No such file", load, tmp_path / "none.json")
    refused("is no JSON", load, file("{"))
    refused("holds no definition", load, file("[]"))
    refused("holds 19 definitions, not one", load, DEFINITIONS)
    refused("has no 'name'", load, file("{}"))
    refused("its 'axes' is '3'", load, file('{"name": "a", "op_type": "b", "axes": 3}'))
    axis = '{"name": "a", "op_type": "b", "inputs": {}, "outputs": {}, "axes": {"n": %s}}'
    refused("axis n is 'some'", load, file(axis % '{"type": "some"}'))
    refused("axis n is 0, not", load, file(axis % '{"type": "const", "value": 0}'))

    load = flashinfer.load_workloads
    refused("holds no workload", load, file("\n"))
    refused("bad.json:1: has no 'workload'", load, file("{}"))
    start = '{"definition": "a", "workload": {"uuid": "1", '
    refused("axis n is -1", load, file(start + '"axes": {"n": -1}, "inputs": {}}}'))
    refused("q: has no 'type'", load, file(start + '"axes": {}, "inputs": {"q": {}}}}'))

    load = flashinfer.load_solution
    refused("is in 'cuda'", load, solution_file(tmp_path, "ragged", language="cuda"))
    refused(
        "entry_point 'a.py::run'", load, solution_file(tmp_path, "ragged", entry_point="a.py::run")
    )
    outside = json.loads(solution_file(tmp_path, "ragged").read_text())
    outside["sources"].append({"path": "../x.py", "content": ""})
    refused("'../x.py' lies outside", load, file(json.dumps(outside)))

    def inputs(**change):
        return flashinfer.inputs_of, d, workload(tmp_path, "ragged", **change)

    stored = {"type": "safetensors", "path": "last.st", "tensor_key": "n"}
    workload_file(tmp_path, "paged_decode")
    refused("'v' of ragged is missing", *inputs(v=None))
    refused("'w' is no input of ragged", *inputs(w={"type": "random"}))
    refused("q: is 'normal': random, scalar", *inputs(q={"type": "normal"}))
    refused("sm_scale: 'a' is no number", *inputs(sm_scale={"type": "scalar", "value": "a"}))
    refused("sm_scale: is a number, and cannot", *inputs(sm_scale={"type": "random"}))
    refused("q: i32 [3] on cpu of", *inputs(q=stored))
    refused("its axis len_indptr is 3", *inputs(qo_indptr=stored))
    refused("'m' is not in", *inputs(qo_indptr={**stored, "tensor_key": "m"}))
    refused("is no file of safetensors", *inputs(qo_indptr={**stored, "path": "bad.json"}))
    w = workload(tmp_path, "ragged")
    refused("'total_q', an axis of q, has no value", flashinfer.inputs_of, d, w._replace(axes={}))
    refused("'head_dim' is 9", flashinfer.inputs_of, d, w._replace(axes={**w.axes, "head_dim": 9}))

    right = solution(tmp_path, "ragged")
    refused("is of ragged, not of", flashinfer.judge, definition("one_decode"), w, right)
    refused(
        "is for ragged, not for",
        flashinfer.judge,
        d._replace(name="b"),
        w._replace(definition="b"),
        right,
    )
    for name, why in REFUSED.items():
        refused(why, flashinfer.inputs_of, definition(name), w)
    d = definition("latent_decode")
    given = flashinfer.inputs_of(d, workload(tmp_path, d.name, sm_scale=None))
    o, lse = torch.zeros(3, 4, 8), torch.zeros(3, 4)
    refused("sm_scale: is missing", flashinfer.judge_outputs, d, given, {"output": o, "lse": lse})
    given = flashinfer.inputs_of(d, workload(tmp_path, d.name))
    for name, numbers, words in (
        ("kv_indptr", [0, 9, 3, 8], "[0, 9, 3, 8] does not rise from 0 to 8"),
        ("kv_indices", [0, 1, 2, 3, 4, 5, 6, 9], "0 to 9: there are 9 pages"),
    ):
        changed = {**given, name: torch.tensor(numbers, dtype=torch.int32)}
        refused(words, flashinfer.judge_outputs, d, changed, {"output": o, "lse": lse})


def test_sequences_without_tokens(tmp_path):
    d = definition("paged_decode")
    given = flashinfer.inputs_of(d, workload(tmp_path, d.name))
    given["kv_indptr"] = torch.tensor([0, 0, 3, 7], dtype=torch.int32)
    place = {}
    exec(SOURCE, place)
    tool = assay._frameworks.framework("torch", "cpu")
    tensors = [
        t
        if isinstance(t, (float, torch.Tensor))
        else tool.make(n, t, list(range(len(t.shape)))).value
        for n, t in given.items()
    ]
    o, lse = place["paged_decode"](*tensors)
    assert torch.all(o[0] == 0) and torch.all(lse[0] == -math.inf)
    ((_, result),) = flashinfer.judge_outputs(d, given, {"output": o, "lse": lse})
    assert result["outcome"] == "pass", result["reason"]
    o[0] = 1
    ((_, result),) = flashinfer.judge_outputs(d, given, {"output": o, "lse": lse})
    assert result["outcome"] == "fail"
