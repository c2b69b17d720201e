"""The pytest plugin, run by pytest itself."""

import os
import sys

import pytest

pytest.importorskip("torch")

KERNELS = """
import assay, torch
from kernels import right_torch

@assay.kernel("attention", dtypes=("f32",))
def mine(q, k, v, *, causal):
    return right_torch(q, k, v, causal=causal)

alias = mine

def test_beside_it():
    pass
"""
WRONG = """
@assay.kernel("attention", dtypes=("f32",))
def wrong(q, k, v, *, causal):
    return right_torch(q, k, v, causal=not causal)
"""
TWO = "attention b=1 h=1 l=2 d=1 dtype=f32 causal"


@pytest.fixture
def run(pytester):
    here = os.path.dirname(__file__)
    pytester.syspathinsert(here)

    def run(text, *arguments):
        pytester.makepyfile(kernels_test=text)
        return pytester.runpytest_inprocess(
            "-p", "assay.pytest_plugin", "-p", "no:cacheprovider", *arguments
        )

    return run


def test_every_case_is_a_test(run):
    result = run(KERNELS, "--assay=tiny", "-v")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        [
            "*kernels_test.py::mine?attention b=1 h=1 l=1 d=1*PASSED*",
            "*assay: 2 cases compared, * elements; 12 cases of the whole suite need*",
        ]
    )


def test_without_the_option_nothing_is_added(run):
    run(KERNELS).assert_outcomes(passed=1)


def test_a_failure_is_short_and_its_id_reproduces_it(run):
    result = run(KERNELS + WRONG, f"--assay-case={TWO}")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        ["*wrong is wrong at LSE*", "*got*", "*exact*", "*bound*", "*reproduce assay check*"]
    )
    result.stdout.no_fnmatch_line("*Traceback*")
    alone = run(KERNELS + WRONG, f"kernels_test.py::wrong[{TWO}]")
    alone.assert_outcomes(failed=1)
    run(KERNELS + WRONG, "--assay=tiny", "-k", "mine and causal").assert_outcomes(passed=1)


def test_a_failure_by_evidence_shows_it(run):
    text = KERNELS.replace('"f32"', '"f16"').replace(
        "def mine(q, k, v, *, causal):", "def mine(q, k, v):"
    )
    text = text.replace("causal=causal)", ")[0].float().mul(1.01).half()")
    asked = ("--assay-case=attention b=1 h=2 l=40 d=32 dtype=f16", "--assay-shrink=0")
    result = run(text, *asked)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*mine is wrong by evidence*", "*s = *limit*", "*z = *limit*", "*80 rows asked*seed 1"]
    )
    run(text, *asked, "--assay-evidence=warn").assert_outcomes(passed=2)
    run(text, *asked, "--assay-evidence=off").assert_outcomes(passed=2)


ASSERTIONS = """
import assay, pytest, torch
from kernels import late_by_one, right_torch

q = torch.ones(1, 1, 3, 2)

def test_tensors():
    assay.assert_attention(q + 1, q=q, k=q, v=q)

def test_bad_input():
    assay.assert_attention(q, q=q, k=q, v=q, scale="x")

def test_bad_tensor():
    assay.assert_attention(q, q=q.double(), k=q, v=q)

def test_typo():
    assay.assert_attention(q, q=q, k=q, v=q, casual=True)

def test_report():
    report = assay.check(late_by_one, case="attention b=1 h=1 l=3 d=4 causal", shrink=False)
    report.raise_for_failures()

def test_kernel():
    late_by_one.check("attention b=1 h=1 l=3 d=4 causal")

def test_case():
    assay.Case("attention b=1 h=1 l=3 d=4").check(o=torch.zeros(1, 1, 3, 4))
"""


def test_a_failure_shows_no_code_of_assay(run):
    result = run(ASSERTIONS)
    result.assert_outcomes(failed=7)
    for line in result.outlines:
        assert "assay/_" not in line and "raise " not in line.replace(
            "raise_for_failures", ""
        ), line


def test_seeds_change_the_inputs(run):
    first, second = (
        run(KERNELS, "--assay=tiny", f"--assay-seed={seed}", "--collect-only", "-q").outlines
        for seed in (1, 2)
    )
    assert first != second and len(first) == len(second)


def test_what_is_unsupported_is_skipped_and_nothing_compared_fails(run):
    result = run(KERNELS, "--assay-case=attention b=1 h=1 l=2 d=1 window=0,0")
    result.assert_outcomes(passed=1, skipped=1)
    result = run(
        "import assay\n@assay.kernel('product', framework='numpy')\n"
        "def p(a, codes):\n    raise NotImplementedError\n",
        "--assay=tiny",
    )
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*nothing was compared, so the run fails*"])
    assert run("def test_x():\n    pass\n", "--assay=tiny").ret == 1


def test_the_ledger_of_known_failures(run, pytester):
    ledger = pytester.path / "known.txt"
    ledger.write_text(f"# known failures\n#12 wrong {TWO}\n")
    option = f"--assay-ledger={ledger}"
    run(KERNELS + WRONG, f"--assay-case={TWO}", option).assert_outcomes(passed=2, xfailed=1)
    # The entry runs whatever is chosen, and fails once it passes.
    ledger.write_text(f"#12 mine {TWO}\n")
    result = run(KERNELS, "--assay=tiny", option)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*known: #12*"])
    for text, words in (
        ("wrong " + TWO, "is not ISSUE KERNEL CASE-LINE"),
        ("#12 wrong", "is not ISSUE"),
        ("#12 wrong attention b=", "known.txt:1"),
        (f"#1 a {TWO}\n#1 a {TWO}", "stand twice"),
    ):
        ledger.write_text(text + "\n")
        refused = run(KERNELS, "--assay=tiny", option)
        assert refused.ret == 4
        refused.stderr.fnmatch_lines([f"*{words}*"])
    assert run(KERNELS, "--assay=tiny", "--assay-ledger=none.txt").ret == 4
    ledger.write_text(f"#12 gone {TWO}\n")
    run(KERNELS, "--assay=tiny", option).stdout.fnmatch_lines(
        ["*ledger names kernels that were not collected: gone*"]
    )


def test_bad_options_are_refused(run):
    for option, words in (
        ("--assay=tine", "unknown suite 'tine'"),
        ("--assay-case=attention b=", "expected an integer"),
    ):
        result = run(KERNELS, option)
        assert result.ret != 0
        assert words in result.stdout.str() + result.stderr.str()


def test_xdist(run):
    """Its processes have the sys.path with which this one began, so PYTHONPATH holds this folder."""
    pytest.importorskip("xdist")
    result = run(KERNELS + WRONG, "--assay=tiny", "-n2", "-p", "xdist")
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] == 4 and outcomes["failed"] == 1
    result.stdout.fnmatch_lines(
        ["*assay: 4 cases compared, * elements; 24 cases of the whole suite need*"]
    )


def test_a_crash_in_a_process_of_its_own(run):
    result = run(
        "import assay, os\n@assay.kernel('attention', framework='numpy')\n"
        "def gone(q, k, v):\n    os._exit(3)\n",
        f"--assay-case={TWO.replace(' causal', '')}",
        "--assay-isolate",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*exited with status 3*"])
    assert "gone" not in sys.modules


LINES = [
    f"attention b=1 h=1 l={n}x9 d=4 dtype=f32{more}"
    for n in range(3, 17)
    for more in ("", " causal")
]


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_what_failing_cases_share_is_told(run, workers):
    if workers:
        pytest.importorskip("xdist")
    wrong = WRONG.replace("not causal", "False")
    lines = [f"--assay-case={line}" for line in LINES]
    result = run("import assay, torch\nfrom kernels import right_torch\n" + wrong, *lines, *workers)
    result.assert_outcomes(failed=14, passed=14)
    result.stdout.fnmatch_lines(
        [
            "*looks like: *causal*",
            "assay: wrong: all 14 failing cases have causal; none of 14 passing ones has it",
        ]
    )


def test_a_failure_in_a_process_of_its_own_is_made_smaller(run):
    text = KERNELS + WRONG
    line = "attention b=2 h=2 l=9x9 d=4 dtype=f32 causal"
    result = run(text, f"--assay-case={line}", "--assay-isolate", "-k", "wrong")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*reproduce assay check --candidate *b=1 h=1 *"])
