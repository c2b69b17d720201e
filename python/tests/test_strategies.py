"""Cases drawn by hypothesis: they parse, find planted faults, and become small."""

import subprocess
import sys

import pytest

import assay
from assay import strategies

pytest.importorskip("torch")
hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

import kernels  # noqa: E402
from kernels import right_torch  # noqa: E402


def run(strategy, body, examples):
    """Runs a body on examples that are the same in every run."""
    settings = hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    settings(hypothesis.given(case=strategy)(body))()


@pytest.mark.parametrize("operation", ["attention", "backward", "decode", "product"])
def test_every_case_that_is_drawn_is_one(operation):
    seen = set()

    def body(case):
        assert case.operation == operation.replace("decode", "attention")
        seen.update(case.features)

    run(strategies.cases(operation), body, 250)
    wanted = {
        "attention": {"gqa", "head-dims", "causal", "window", "bias", "layout=strided", "sink"},
        "backward": {"backward", "gqa", "lengths", "alibi", "softcap", "offset", "bool"},
        "decode": {"cache=paged", "dtype=bf16", "window", "softcap"},
        "product": {"w=int4", "w=nvfp4", "w=mxfp4", "dtype=f16", "w=f8e4m3", "w=fp4-sparse"},
    }
    assert wanted[operation] <= seen


def test_a_kernel_gets_what_it_does_and_passes():
    lines = []

    def body(case):
        lines.append(case.line)
        assert set(case.features) <= set(kernels.mine.features)
        kernels.mine.check(case, power=False)

    run(strategies.cases(kernel=kernels.mine), body, 60)
    assert len(set(lines)) > 30 and any("causal" in line for line in lines)


def test_a_planted_fault_is_found_and_made_small():
    found = []

    def body(case):
        try:
            kernels.late_by_one.check(case, power=False)
        except assay.Failure:
            found.append(case)
            raise

    with pytest.raises(assay.Failure, match="late_by_one is wrong at .*\n(.*\n)*.*reproduce"):
        run(strategies.cases(kernel=kernels.late_by_one), body, 200)
    shape = found[-1].shape
    assert "causal" in found[-1].features and shape["rows"] <= 2 and shape["keys"] <= 3
    assert shape["batch"] == shape["query_heads"] == shape["dim"] == 1


def test_fields_can_be_fixed():
    def body(case):
        assert "causal" in case.features and "softcap" not in case.features
        assert case.dtype == "f16" and case.shape["dim"] in (8, 16) and "hidden=nan" in case.line
        assert "lengths" in case.features

    d = st.sampled_from([8, 16])
    fixed = dict(dtype="f16", causal=True, softcap=None, d=d, b=1, lengths="3", l=9, hidden="nan")
    run(strategies.cases(**fixed), body, 30)


def test_unsupported_cases_are_no_passes():
    with pytest.raises(assay.Unsupported, match="declines does not do .*heads of one column"):
        kernels.declines.check("attention b=1 h=1 l=2 d=1")


def test_bad_input_is_refused_by_name():
    for words, call in (
        ("operation: 'norm' is none of", lambda: strategies.cases("norm")),
        ("does not do backward", lambda: strategies.cases("backward", kernel=kernels.mine)),
        ("expected one of", lambda: run(strategies.cases(dtype="f8"), lambda case: None, 1)),
        ("unknown", lambda: run(strategies.cases(colour="red"), lambda case: None, 1)),
    ):
        with pytest.raises(assay.InputError, match=words):
            call()


def test_without_hypothesis_the_error_says_so():
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "from assay import InputError, strategies\n"
        "try:\n    strategies.cases()\nexcept InputError as e:\n    print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert done.stdout.startswith("strategies: they need hypothesis, which cannot be imported")


def test_kernels_are_named_in_the_line_that_reproduces():
    def wrong(q, k, v):
        return right_torch(q, k, v)[0] * 2

    with pytest.raises(assay.Failure, match="reproduce assay check --candidate"):
        assay.kernel("attention")(wrong).check("attention b=1 h=1 l=2 d=1")
