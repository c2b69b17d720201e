#!/usr/bin/env python3
"""Runs the attention of PyTorch on recorded inputs and records its answers.

    assay record --case 'backward b=2 h=4 l=256 d=64 dtype=bf16 causal' -o inputs.safetensors
    python3 record_attention.py inputs.safetensors outputs.safetensors --backend flash efficient cudnn math
    assay verify outputs.safetensors

A record that a backend does not take is left out, and counted with the reason. The script needs
torch and nothing else. docs/records.md says what a file holds.
"""
import argparse
import collections
import json
import os
import struct

import torch

DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I32": torch.int32,
    "I64": torch.int64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, facts in header.items():
        begin, end = facts["data_offsets"]
        piece = bytearray(data[begin:end])
        dtype = DTYPES[facts["dtype"]]
        tensors[name] = (
            torch.frombuffer(piece, dtype=dtype) if piece else torch.empty(0, dtype=dtype)
        ).reshape(facts["shape"])
    return tensors, metadata


def write(path, tensors, metadata):
    order = sorted(tensors, key=lambda name: -tensors[name].element_size())
    header, at, pieces = {"__metadata__": metadata}, 0, []
    for name in order:
        t = tensors[name].detach().cpu().contiguous()
        piece = t.reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b""
        header[name] = {
            "dtype": NAMES[t.dtype],
            "shape": list(t.shape),
            "data_offsets": [at, at + len(piece)],
        }
        at += len(piece)
        pieces.append(piece)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path + ".tmp", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for piece in pieces:
            file.write(piece)
    os.replace(path + ".tmp", path)


class Unsupported(Exception):
    pass


def forward(backend, q, k, v, mask, causal, scale):
    """Returns O, and LSE if the backend gives one."""
    ops = torch.ops.aten
    if backend == "flash":
        if mask is not None:
            raise Unsupported("a mask")
        if q.dtype == torch.float32:
            raise Unsupported("float32")
        if q.shape[3] % 8 or q.shape[3] != v.shape[3]:
            raise Unsupported("head dimensions that differ or are no multiple of 8")
        if causal and q.shape[2] != k.shape[2]:
            raise Unsupported("causal with Lq != Lk, whose diagonal it anchors at the end")
        got = ops._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
        return got[0], got[1]
    if backend == "efficient":
        if mask is not None:
            # The kernel reads rows of a mask in steps of 16 bytes.
            wide = torch.zeros(
                *mask.shape[:3], (mask.shape[3] + 15) // 16 * 16, dtype=q.dtype, device=q.device
            )
            wide[..., : mask.shape[3]] = mask
            mask = wide[..., : mask.shape[3]].expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        got = ops._scaled_dot_product_efficient_attention(
            q, k, v, mask, True, 0.0, causal, scale=scale
        )
        return got[0], got[1][:, :, : q.shape[2]]
    if backend == "cudnn":
        if q.dtype == torch.float32:
            raise Unsupported("float32")
        if causal and q.shape[2] != k.shape[2]:
            raise Unsupported("causal with Lq != Lk, whose diagonal it anchors elsewhere")
        got = ops._scaled_dot_product_cudnn_attention(
            q, k, v, mask, True, 0.0, causal, False, scale=scale
        )
        return got[0], got[1].reshape(q.shape[:3])
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return (
            torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=causal, scale=scale
            ),
            None,
        )


def run(backend, tensors, line, device):
    words = line.split()
    fields = dict(word.split("=", 1) if "=" in word else (word, None) for word in words[1:])
    causal = fields.pop("causal", "") is None
    scale = fields.pop("scale", None)
    known = {"q", "k", "v", "bias", "keep", "do", "offset"}
    if words[0] == "product" or fields or set(tensors) - known:
        raise Unsupported(", ".join([*fields, *sorted(set(tensors) - known)]) or words[0])
    if causal and "offset" in tensors and tensors["offset"].any():
        raise Unsupported("a diagonal that is not anchored at the top left")
    q, k, v = (tensors[name].to(device).requires_grad_(words[0] == "backward") for name in "qkv")
    mask = None
    if "bias" in tensors:
        mask = tensors["bias"].to(device).to(q.dtype)
    if "keep" in tensors:
        hidden = torch.zeros(tensors["keep"].shape, dtype=q.dtype, device=device).masked_fill(
            ~tensors["keep"].bool().to(device), float("-inf")
        )
        mask = hidden if mask is None else mask + hidden
    if causal and mask is not None:
        raise Unsupported("causal together with a mask")
    group = q.shape[1] // k.shape[1]
    # Heads are repeated as a view, so the gradients of a group are added up.
    wide = [t if group == 1 else t.repeat_interleave(group, 1) for t in (k, v)]
    o, lse = forward(backend, q, *wide, mask, causal, float(scale) if scale else None)
    found = {"o": o}
    if lse is not None:
        found["lse"] = lse.float()
    if words[0] == "backward":
        found.update(
            zip(("dq", "dk", "dv"), torch.autograd.grad(o, (q, k, v), tensors["do"].to(device)))
        )
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs")
    parser.add_argument("outputs")
    parser.add_argument(
        "--backend", nargs="+", default=["math"], choices=["flash", "efficient", "cudnn", "math"]
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    inputs, metadata = read(options.inputs)
    lines = {key[7:]: line for key, line in metadata.items() if key.startswith("record.")} or {
        "": metadata["record"]
    }
    tensors, told, left_out = {}, {"assay": "1"}, collections.Counter()
    for name, line in lines.items():
        mine = {
            key[len(name) + 1 :] if name else key: t
            for key, t in inputs.items()
            if not name or key.startswith(name + ".")
        }
        for backend in options.backend:
            try:
                found = run(backend, mine, line, options.device)
            except (Unsupported, RuntimeError) as why:
                left_out[f"{backend}: {str(why).splitlines()[0]}"] += 1
                continue
            record = f"{backend}-{name}" if name else backend
            tensors.update({f"{record}.{key}": t for key, t in {**mine, **found}.items()})
            told[
                f"record.{record}"
            ] = f"{line} kernel=torch-{torch.__version__}-{backend}-{options.device}"
            case = metadata.get(f"case.{name}" if name else "case")
            if case:
                told[f"case.{record}"] = case
    write(options.outputs, tensors, told)
    where = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    print(f"{options.outputs}: {len(told) // 2} records of torch {torch.__version__} on {where}")
    for why, count in left_out.items():
        print(f"  left out: {count} x {why}")


if __name__ == "__main__":
    main()
