"""The attention of jax on a GPU, one function for each implementation, with its gradients.

    assay check --python examples/jax/attention_kernels.py::xla --device cuda --suite smoke
    assay check --python examples/jax/attention_kernels.py::cudnn --device cuda --suite smoke

Products of fp32 inputs are in TF32 on such a device unless jax is asked for more; `xla_tf32` is
what jax does by itself, and `xla` asks for all bits.
"""

import assay
import jax


def _limits(implementation):
    """What supports() says of a case."""

    def supports(case):
        shape = case["shape"]
        d, dv = shape["dim"], shape["value_dim"]
        if shape["batch"] * shape["rows"] * shape["keys"] == 0:
            return "empty tensors"
        if d != dv:
            return "K and V of unlike columns"
        if implementation == "cudnn" and (d % 8 != 0 or d > 128):
            return "heads of other than a multiple of 8 up to 128 columns"
        if implementation == "cudnn" and "causal" in case["features"]:
            return True if shape["rows"] == shape["keys"] else "causal, with other rows than keys"
        return True

    return supports


def _kernel(name, implementation, dtypes, precision="highest"):
    def attend(q, k, v, *, causal, scale):
        with jax.default_matmul_precision(precision):
            return jax.nn.dot_product_attention(
                q, k, v, is_causal=causal, scale=scale, implementation=implementation
            )

    def gradients(q, k, v, o, lse, do, *, causal, scale):
        with jax.default_matmul_precision(precision):
            return jax.vjp(lambda *x: attend(*x, causal=causal, scale=scale), q, k, v)[1](do)

    return assay.kernel(
        "attention",
        device="cuda",
        framework="jax",
        layout="bshd",
        dtypes=dtypes,
        supports=_limits(implementation),
        gradients=gradients,
        deterministic=False,
        lse=False,
        name=f"jax {name}",
    )(attend)


xla = _kernel("xla", "xla", ("f32", "f16", "bf16"))
xla_tf32 = _kernel("xla_tf32", "xla", ("f32",), precision="default")
cudnn = _kernel("cudnn", "cudnn", ("f16", "bf16"))
