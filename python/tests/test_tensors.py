"""Tensors of any framework, and of none, are read as they are."""

import array
import ctypes

import pytest

import assay
from assay._tensors import Tensor, copy, read, row_major


def exact(values, shape):
    """A problem whose answer is known without any framework: q = 0, so o is the mean of v."""
    return memoryview(array.array("f", values)).cast("B").cast("f", shape=shape)


def test_buffers_alone():
    q, k = exact([0] * 4, [1, 1, 2, 2]), exact([1, 2, 3, 4, 5, 6], [1, 1, 3, 2])
    v, o = exact([3, 6, 9], [1, 1, 3, 1]), exact([6, 6], [1, 1, 2, 1])
    assay.assert_attention(o, q=q, k=k, v=v)
    with pytest.raises(assay.Failure):
        assay.assert_attention(exact([6, 6.001], [1, 1, 2, 1]), q=q, k=k, v=v)
    with pytest.raises(assay.InputError, match="extents, not 1 to 4|shape"):
        assay.assert_attention(o, q=array.array("f", [0, 0]), k=k, v=v)
    with pytest.raises(assay.InputError, match="format 'L'"):
        read("q", array.array("L", [0]))


def test_numpy_and_its_layouts():
    np = pytest.importorskip("numpy")
    base = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    for a in (
        base,
        base.transpose(0, 2, 1, 3),
        base[:, ::-1],
        base[:, :, 1::2],
        np.broadcast_to(base[:1], base.shape),
    ):
        t = read("a", a)
        assert t.shape == a.shape and t.packed() == np.ascontiguousarray(a).tobytes()
    record = np.zeros(3, dtype=[("x", "u1"), ("y", "<f4")])
    record["y"] = [1, 2, 3]
    assert read("a", record["y"]).packed() == np.float32([1, 2, 3]).tobytes()
    for wrong in (base.astype(">f4"), base.astype(np.complex64), base.astype(np.int16)):
        with pytest.raises(assay.InputError):
            read("a", wrong)


def test_bits_of_other_dtypes():
    np = pytest.importorskip("numpy")
    bf16 = lambda a: assay.bits(
        (np.asarray(a, np.float32).view(np.uint32) >> 16).astype(np.uint16), "bf16"
    )  # noqa: E731
    q, k, v = (np.zeros((1, 1, 2, 4), np.float32) for _ in range(3))
    v[...] = 2
    assert assay.assert_attention(bf16(v), q=bf16(q), k=bf16(k), v=bf16(v))["dtype"] == "bf16"
    with pytest.raises(assay.InputError, match="does not hold the bits"):
        read("q", assay.bits(np.zeros(3, np.float32), "bf16"))
    with pytest.raises(assay.InputError, match="does not hold the bits"):
        read("q", assay.bits(np.zeros(3, np.uint8), "bf16"))
    with pytest.raises(assay.InputError, match="is none of"):
        assay.bits(np.zeros(3, np.uint8), "fp7")


def test_dlpack():
    np = pytest.importorskip("numpy")

    class Opaque:
        """A tensor that gives DLPack and nothing else."""

        def __init__(self, a, device=(1, 0)):
            self.a, self.device = a, device

        def __dlpack__(self, stream=None):
            return self.a.__dlpack__()

        def __dlpack_device__(self):
            return self.device

    a = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)
    assert read("a", Opaque(a)).packed() == np.ascontiguousarray(a).tobytes()
    with pytest.raises(assay.InputError, match=r"DLPack's device \(2, 0\)"):
        read("a", Opaque(a, (2, 0)))
    with pytest.raises(assay.InputError, match="cannot be judged"):
        read("a", Opaque(a.astype(np.complex64)))


def test_torch():
    torch = pytest.importorskip("torch")
    a = torch.arange(24.0).reshape(2, 3, 4)
    for t in (
        a,
        a.transpose(0, 2),
        a[:, 1:],
        a[:1].expand(5, 3, 4),
        a.clone().requires_grad_(),
        torch.zeros(0, 3),
    ):
        found = read("a", t)
        assert found.packed() == t.detach().contiguous().numpy().tobytes() and found.device == "cpu"
    assert read("a", torch.ones(3, dtype=torch.bfloat16)).dtype == "bf16"
    assert read("a", torch.ones(3, dtype=torch.bool)).packed() == b"\1\1\1"
    assert (
        read("a", torch.conj(torch.ones(2, dtype=torch.complex64)).imag).packed()
        == (-torch.zeros(2)).numpy().tobytes()
    )


def test_what_is_no_tensor():
    for wrong in (None, 3, 2.5, "text", [1.0], object()):
        with pytest.raises(assay.InputError, match="is no tensor"):
            read("q", wrong)


def test_copies_follow_strides():
    content = ctypes.create_string_buffer(bytes(range(24)))
    source = Tensor(ctypes.addressof(content), "u8", (2, 3, 4), (12, 4, 1))
    for axes in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        turned = source.permuted(axes)
        to = ctypes.create_string_buffer(24)
        copy(turned, Tensor(ctypes.addressof(to), "u8", turned.shape, row_major(turned.shape)))
        expected = [
            sum(i[a] * source.strides[axes[a]] for a in range(3))
            for i in (
                (x, y, z)
                for x in range(turned.shape[0])
                for y in range(turned.shape[1])
                for z in range(turned.shape[2])
            )
        ]
        assert list(to.raw) == expected
