"""Kernels of tests: a right one for each framework, and what can be wrong with one."""

import math

import assay


def right_torch(
    q, k, v, *, causal=False, scale=None, bias=None, mask=None, lengths=None, out_dtype=None
):
    """Attention with the division at its end, as fused kernels have it."""
    import torch

    group = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(group, 1).double() for t in (k, v))
    s = q.double() @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if bias is not None:
        s = s + bias.double()
    rows, keys = s.shape[-2:]
    hidden = torch.zeros(rows, keys, dtype=torch.bool, device=q.device)
    if causal:
        hidden = torch.ones(rows, keys, device=q.device).triu(1).bool()
    hidden = hidden.expand(s.shape)
    if mask is not None:
        hidden = hidden | ~mask
    if lengths is not None:
        hidden = hidden | (torch.arange(keys, device=q.device) >= lengths[:, None, None, None])
    s = s.masked_fill(hidden, -math.inf)
    m = s.amax(-1, keepdim=True).clamp(min=-1e300)
    w = (s - m).exp()
    # A hidden key contributes nothing, whatever its V holds.
    seen = v
    if lengths is not None:
        seen = v.masked_fill(
            (torch.arange(keys, device=q.device) >= lengths[:, None])[:, None, :, None], 0
        )
    total = w.sum(-1, keepdim=True)
    o = torch.where(
        total > 0, (w @ seen) / total, torch.zeros((), dtype=torch.float64, device=q.device)
    )
    lse = m.squeeze(-1) + total.squeeze(-1).log()
    return (
        o.to(out_dtype or q.dtype),
        torch.where(total.squeeze(-1) > 0, lse, torch.full_like(lse, -math.inf)).float(),
    )


@assay.kernel("attention", framework="torch")
def mine(q, k, v, *, causal, scale):
    return right_torch(q, k, v, causal=causal, scale=scale)


# Without the declaration, one row over two keys would have its diagonal at the bottom right.
@assay.kernel("attention", framework="torch", conventions="anchor:top-left")
def late_by_one(q, k, v, *, causal, scale):
    """Causality one key too late."""
    import torch

    group = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(group, 1).double() for t in (k, v))
    s = q.double() @ k.transpose(-1, -2) * scale
    if causal:
        s = s.masked_fill(torch.ones(s.shape[-2:]).triu(2).bool(), -math.inf)
    return (s.softmax(-1) @ v).to(q.dtype)


@assay.kernel("attention", framework="torch")
def crashes(q, k, v):
    import os
    import signal

    os.kill(os.getpid(), signal.SIGSEGV)


@assay.kernel("attention", framework="torch")
def leaves(q, k, v):
    import os

    os._exit(7)


@assay.kernel("attention", framework="torch")
def hangs(q, k, v):
    import time

    time.sleep(3600)


@assay.kernel("attention", framework="torch")
def loses_the_device(q, k, v, *, causal):
    """Three heads cost its process the device, of which every later call is told."""
    tool = loses_the_device.tool
    if q.shape[1] == 3:
        tool.is_lost = lambda: True
    if tool.is_lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return right_torch(q, k, v, causal=causal)


def _made(name):
    def attend(q, k, v, *, causal):
        return right_torch(q, k, v, causal=causal)

    return assay.kernel("attention", framework="torch", name=name)(attend)


made = _made("another name")


@assay.kernel("attention", framework="torch")
def raises(q, k, v):
    raise ValueError("no such tile")


@assay.kernel("attention", framework="torch")
def declines(q, k, v):
    raise NotImplementedError("heads of one column")
