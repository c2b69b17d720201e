#!/bin/sh
# Installs a wheel into a clean environment without the network and without any other package, and
# judges with it: try_wheel.sh PYTHON WHEEL FOLDER. The time is from the installation to the verdict.
# A checkout in the place of the wheel is installed by `pip install`, which needs the setuptools of
# the machine: pip cannot fetch its own.
set -eu
python=$1 wheel=$2 folder=$3
machine= isolated=
[ ! -d "$wheel" ] || machine=--system-site-packages isolated=--no-build-isolation
rm -rf "$folder"
mkdir -p "$folder"
"$python" -m venv $machine "$folder/environment"
cd "$folder"
unset PYTHONPATH ASSAY_JUDGE_LIBRARY
begin=$(date +%s%N)
environment/bin/pip install --quiet --no-index --no-deps --disable-pip-version-check $isolated "$wheel"
cat >try.py <<'PY'
import array
import math
import os
import sys
import threading

import assay

assert "environment" in assay.__file__ and not {"torch", "numpy"} & set(sys.modules)


def view(values, shape):
    return memoryview(array.array("f", values)).cast("B").cast("f", shape=shape)


result = assay.assert_attention(view([6, 6], [1, 1, 2, 1]), q=view([0] * 4, [1, 1, 2, 2]),
                                k=view([1, 2, 3, 4, 5, 6], [1, 1, 3, 2]), v=view([3, 6, 9], [1, 1, 3, 1]))
assert result["outcome"] == "pass", result


@assay.kernel("attention", framework="buffer", without=("empty",))
def mine(q, k, v, *, scale):
    b, h, rows, columns = q.shape
    flat = []
    for n in range(b):
        for m in range(h):
            g = m * k.shape[1] // h
            for i in range(rows):
                w = [math.exp(scale * sum(q[n, m, i, d] * k[n, g, j, d] for d in range(columns))) for j in range(k.shape[2])]
                flat += [sum(x * v[n, g, j, c] for j, x in enumerate(w)) / sum(w) for c in range(v.shape[3])]
    return view(flat, [b, h, rows, v.shape[3]])


report = assay.check(mine, case=["attention b=2 h=4/2 l=3x5 d=4/6", "attention b=1 h=1 l=2 d=3 scale=2"], threads=2)
report.raise_for_failures()
# What lies beside the judge is what was loaded, and not what this machine has as well.
beside = os.path.join(os.path.dirname(assay.__file__), "lib")
for line in open("/proc/self/maps"):
    path = line.split(maxsplit=5)[5].strip() if line.count("/") else ""
    assert os.path.basename(path) not in os.listdir(beside) or path.startswith(beside), path
# No thread stays behind; oneTBB, with which a checkout is built, keeps its own.
with_tbb = any(name.startswith("libtbb") for name in os.listdir(beside))
assert threading.active_count() == 1 and (with_tbb or len(os.listdir("/proc/self/task")) == 1)
print(report)
PY
environment/bin/python -I try.py
end=$(date +%s%N)
echo "from pip install to the verdict: $(((end - begin) / 1000000)) ms"
