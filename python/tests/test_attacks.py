"""Kernels that were written to pass, and mistakes: each is found, under its name."""

import sys
import threading
import time
import types

import pytest

import assay

torch = pytest.importorskip("torch")

from kernels import right_torch  # noqa: E402

LINE = "attention b=2 h=2 l=7x9 d=8/8 dtype=f32 causal"


def judge(function, line=LINE, **options):
    result = assay.kernel("attention", **options)(function).judge(line)
    return f"{result['outcome']}: {result['reason']}"


def right(q, k, v, causal):
    return right_torch(q, k, v, causal=causal)


def test_the_right_function_passes():
    assert judge(lambda q, k, v, *, causal: right(q, k, v, causal)).startswith("pass")


def test_an_input_changed_in_place():
    def scales(q, k, v, *, causal):
        q *= 2
        return right(q / 2, k, v, causal)

    assert judge(scales) == "fail: the input q was changed in place"


def test_an_input_changed_and_restored_is_none():
    def restores(q, k, v, *, causal):
        q *= 2
        answer = right(q / 2, k, v, causal)
        q /= 2
        return answer

    assert judge(restores).startswith("pass")


def test_a_view_of_an_input_returned():
    def overwrites(q, k, v, *, causal):
        answer = right(q, k, v, causal)
        q.copy_(answer[0])
        return q[:], answer[1]

    assert judge(overwrites) == "fail: the output o is a view of the input q"


def test_elements_that_nobody_wrote():
    def leaves_out(q, k, v, *, causal):
        o, lse = right(q, k, v, causal)
        made = torch.empty_like(o, memory_format=torch.contiguous_format)
        made[:, :, :-1] = o[:, :, :-1]
        return made, lse

    assert judge(leaves_out, LINE.replace("l=7x9", "l=65x66")).startswith("fail: ")


def test_a_wrong_shape_dtype_or_type():
    assert "o has shape [2, 2, 6, 8], not [2, 2, 7, 8]" in judge(
        lambda q, k, v, *, causal: tuple(t[:, :, 1:] for t in right(q, k, v, causal))
    )
    assert "o has dtype f64, not f32" in judge(
        lambda q, k, v, *, causal: tuple(t.double() for t in right(q, k, v, causal))
    )
    assert "not a torch.Tensor" in judge(
        lambda q, k, v, *, causal: right(q, k, v, causal)[0].numpy()
    )
    assert "returned nothing" in judge(lambda q, k, v, *, causal: None)
    assert "returned 3 values" in judge(lambda q, k, v, *, causal: (q, k, v))
    assert "'out'" in judge(lambda q, k, v, *, causal: {"out": q})


def test_an_output_on_another_device():
    assert "lies on meta, and the inputs on cpu" in judge(lambda q, k, v, *, causal: q.to("meta"))


def test_an_output_that_is_computed_later():
    class Lazy(torch.Tensor):
        pass

    assert "a subclass may compute its elements later" in judge(
        lambda q, k, v, *, causal: right(q, k, v, causal)[0].as_subclass(Lazy)
    )


def test_answers_that_are_not_deterministic():
    calls = []

    def drifts(q, k, v, *, causal):
        calls.append(1)
        o, lse = right(q, k, v, causal)
        if len(calls) % 2:
            o[0, 0, 0, 0] = torch.nextafter(o[0, 0, 0, 0], torch.tensor(9.0))
        return o, lse

    assert judge(drifts).startswith("fail: not deterministic")
    assert judge(drifts, deterministic=False).startswith("pass")


def test_an_answer_that_is_right_on_the_first_call_alone():
    def made():
        calls = []

        def first_alone(q, k, v, *, causal):
            calls.append(1)
            o, lse = right(q, k, v, causal)
            return (o, lse) if len(calls) == 1 else (o + 1, lse)

        return first_alone

    assert judge(made()).startswith("fail: the first of ")
    told = judge(made(), deterministic=False)
    assert told.startswith("fail: of two calls that differ, the second is wrong: "), told


def test_calls_that_differ_and_that_no_bound_decides():
    """Gradients that are summed in another order each time, where scores are far too large to judge."""
    calls = []

    def drifts(q, k, v, *, causal):
        calls.append(1)
        o, lse = right(q, k, v, causal)
        return o * (1 + len(calls) % 2 * 2.0**-23), lse

    line = "backward b=1 h=2 l=1x144 d=64 dtype=f32 scores=far-negative values=biased seed=30040"
    told = judge(drifts, line, gradients="autograd", deterministic=False)
    assert len(calls) > 1
    assert told.startswith("inconclusive: "), told


def test_a_slow_function_is_not_called_less():
    """Whoever measures how often to call could be slowed down; the calls of a case are fixed."""

    def calls(seconds):
        made = []

        def slow(q, k, v, *, causal):
            made.append(1)
            time.sleep(seconds)
            return right(q, k, v, causal)

        assert judge(slow).startswith("pass")
        return len(made)

    assert calls(0) == calls(0.1) > 1


def test_an_answer_remembered_by_address():
    def judged():
        answers = {}

        def remembers(q, k, v, *, causal):
            key = (q.data_ptr(), tuple(q.shape), causal)
            if key not in answers:
                answers[key] = right(q, k, v, causal)
            return tuple(t.clone() for t in answers[key])

        return judge(remembers)

    # Wherever the allocator puts the inputs: none lies again where an earlier one lay.
    for tensors in range(0, 90, 3):
        others = [torch.empty(n % 97 + 1) for n in range(tensors)]
        assert "remembers an answer by address" in judged(), len(others)


def test_an_answer_for_the_first_inputs_alone():
    first = []

    def stored(q, k, v, *, causal):
        first.append(right(q, k, v, causal)) if not first else None
        return tuple(t.clone() for t in first[0])

    kernel = assay.kernel("attention")(stored)
    report = assay.check(kernel, case=[LINE, LINE + " seed=2"], shrink=False)
    assert report.failures


def test_an_answer_for_one_shape_alone():
    def one_shape(q, k, v, *, causal):
        if k.shape[2] % 8:
            k, v = k[:, :, : k.shape[2] // 8 * 8], v[:, :, : k.shape[2] // 8 * 8]
        return right(q, k, v, causal)

    kernel = assay.kernel("attention", without=("gqa", "head-dims", "empty"))(one_shape)
    assert kernel.judge("attention b=1 h=1 l=16 d=8")["outcome"] == "pass"
    drawn = [case.line for case in assay.cases("plain", kernel=kernel)]
    assert assay.check(kernel, case=drawn[:12], shrink=False).failures


def test_patched_comparisons_change_nothing(monkeypatch):
    def patches(q, k, v, *, causal):
        monkeypatch.setattr(torch, "allclose", lambda *a, **b: True)
        monkeypatch.setattr(torch, "equal", lambda *a, **b: True)
        monkeypatch.setattr(torch.testing, "assert_close", lambda *a, **b: None)
        o, lse = right(q, k, v, causal)
        return o + 1e-3, lse

    assert judge(patches).startswith("fail: O is outside its bound")


def test_a_framework_that_is_replaced(monkeypatch):
    """What else asks for torch then gets a module that agrees with everything."""

    def replaces(q, k, v, *, causal):
        o, lse = right(q, k, v, causal)
        agreeable = types.ModuleType("torch")
        agreeable.__getattr__ = lambda name: getattr(torch, name)
        agreeable.equal = agreeable.allclose = lambda *a, **b: True
        monkeypatch.setitem(sys.modules, "torch", agreeable)
        monkeypatch.setattr(torch.Tensor, "__eq__", lambda a, b: True)
        return o + 1e-3, lse

    assert judge(replaces).startswith("fail: ")


def test_expected_values_overwritten_with_nan():
    """A comparison in which NaN agrees with anything would accept whatever is returned."""
    import gc

    def overwrites(q, k, v, *, causal):
        o, lse = right(q, k, v, causal)
        for thing in gc.get_objects():
            if type(thing) is torch.Tensor and thing.shape == o.shape and thing is not o:
                if not any(thing is t for t in (q, k, v)):
                    thing.fill_(float("nan"))
        return o * 0, lse

    assert judge(overwrites, LINE.replace("h=2 l=7x9", "h=3 l=7x9")).startswith("fail: O is ")


def test_an_output_that_a_thread_writes_later():
    go = threading.Event()
    writers = []

    def returns_early(q, k, v, *, causal):
        o, lse = right(q, k, v, causal)
        made = torch.zeros_like(o)

        def write():
            go.wait(60)
            made.copy_(o)

        writers.append(threading.Thread(target=write, daemon=True))
        writers[-1].start()
        return made, lse

    try:
        assert judge(returns_early).startswith("fail: ")
    finally:
        go.set()
        for writer in writers:
            writer.join()


def test_an_answer_in_a_narrower_format():
    def narrow(q, k, v, *, causal):
        return tuple(t.float() for t in right(q.half(), k.half(), v.half(), causal))

    assert judge(narrow).startswith("fail: ")


def test_expected_values_are_nowhere_in_the_process():
    """The exact values are computed after the function has answered, in the library."""
    import gc

    def looks(q, k, v, *, causal):
        o, lse = right(q, k, v, causal)
        for thing in gc.get_objects():
            if (
                type(thing) is torch.Tensor
                and thing.shape == o.shape
                and thing is not o
                and torch.equal(thing, o)
            ):
                raise AssertionError("the answer lies in memory")
        return o, lse

    assert judge(looks).startswith("pass")


def test_a_decline_is_never_a_pass():
    def declines(q, k, v, *, causal):
        raise assay.Unsupported("causal heads")

    report = assay.check(assay.kernel("attention")(declines), case=LINE)
    assert report.counts["unsupported"] == 1 and not report.ok
