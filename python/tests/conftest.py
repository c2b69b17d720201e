"""What the tests of the package share."""

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture
def small():
    """A small problem in torch with its right answer: q, k, v, o, lse, scale."""
    torch = pytest.importorskip("torch")
    from kernels import right_torch

    torch.manual_seed(3)
    q, k, v = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 5)
    o, lse = right_torch(q, k, v, causal=True)
    return dict(q=q, k=k, v=v, o=o, lse=lse, causal=True)
