# Compares O and LSE of two records in f32, in the way in which tests commonly do it:
# python3 allclose.py A B RTOL ATOL. docs/tolerance.md shows what such a test misses.
import json, struct, sys


def read(path):
    data = open(path, "rb").read()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    names = [k for k in header if k.split(".")[-1] in ("o", "lse")]
    return {
        k.split(".")[-1]: struct.unpack("<%df" % ((e - b) // 4), data[8 + n + b : 8 + n + e])
        for k in names
        for b, e in [header[k]["data_offsets"]]
    }


a, b = read(sys.argv[1]), read(sys.argv[2])
rtol, atol = float(sys.argv[3]), float(sys.argv[4])
for t in ("o", "lse"):
    bad = sum(not abs(x - y) <= atol + rtol * abs(y) for x, y in zip(a[t], b[t]))
    print(
        f"{t}: {bad} of {len(a[t])} elements beyond rtol={rtol:g}, atol={atol:g}; largest difference {max(abs(x - y) for x, y in zip(a[t], b[t])):.2g}"
    )
