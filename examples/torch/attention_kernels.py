"""The attention kernels of torch on a GPU, one function each, with their gradients.

    assay check --python examples/torch/attention_kernels.py::flash --device cuda --suite smoke
    assay identify --python examples/torch/attention_kernels.py::cudnn --device cuda
"""

import assay
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention


def _limits(backend):
    """What supports() says of a case; torch itself raises where it has no kernel."""

    def supports(case):
        shape, dtype = case["shape"], case["dtype"]
        d, dv = shape["dim"], shape["value_dim"]
        if backend == SDPBackend.MATH:
            return True
        if shape["batch"] * shape["rows"] * shape["keys"] == 0:
            return "empty tensors"
        if backend == SDPBackend.EFFICIENT_ATTENTION:
            if shape["query_heads"] != shape["kv_heads"]:
                return "grouped heads"
            part = 4 if dtype == "f32" else 8
            return True if d % part == dv % part == 0 else f"columns that {part} does not divide"
        if d != dv or d % 8 != 0 or d > 128:
            return "heads of other than a multiple of 8 up to 128 columns, K and V alike"
        if "causal" in case["features"] and shape["rows"] != shape["keys"]:
            return "causal, with other rows than keys"
        return True

    return supports


def _kernel(backend, dtypes):
    def attend(q, k, v, *, causal, scale):
        more = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=causal, scale=scale, **more
            )

    # Sums of gradients are atomic, or in the order of the blocks that come first.
    return assay.kernel(
        "attention",
        device="cuda",
        dtypes=dtypes,
        supports=_limits(backend),
        gradients="autograd",
        deterministic=False,
        lse=False,
        name=backend.name.lower(),
    )(attend)


flash = _kernel(SDPBackend.FLASH_ATTENTION, ("f16", "bf16"))
cudnn = _kernel(SDPBackend.CUDNN_ATTENTION, ("f16", "bf16"))
efficient = _kernel(SDPBackend.EFFICIENT_ATTENTION, ("f32", "f16", "bf16"))
math = _kernel(SDPBackend.MATH, ("f32", "f16", "bf16"))


@assay.kernel("attention", dtypes=("f32", "f16", "bf16"), gradients="autograd", lse=False)
def cpu(q, k, v, *, causal, scale):
    more = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=causal, scale=scale, **more
    )


# torch compiles it for each shape and dtype; beyond the limit it would run uncompiled.
_flex = torch.compile(flex_attention, dynamic=False)
torch._dynamo.config.recompile_limit = 64


def _flex_limits(case):
    shape = case["shape"]
    if shape["batch"] * shape["rows"] * shape["keys"] == 0:
        return "empty tensors"
    if shape["dim"] != shape["value_dim"] or shape["dim"] not in (16, 32, 64, 128, 256):
        return "heads of other than 16, 32, 64, 128 or 256 columns, K and V alike"
    return True


@assay.kernel(
    "attention",
    device="cuda",
    dtypes=("f32", "f16", "bf16"),
    supports=_flex_limits,
    gradients="autograd",
    deterministic=False,
    lse=False,
)
def flex(q, k, v, *, causal, scale):
    mask = None
    if causal:
        mask = create_block_mask(
            lambda b, h, i, j: i >= j, None, None, q.shape[2], k.shape[2], device=q.device
        )
    # It would be compiled anew for each layout, too.
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    return _flex(q, k, v, block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
