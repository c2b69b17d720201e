"""The kernel of docs/from_my_kernel.md: it is judged right, and with a mistake."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numpy")
COMMAND = os.environ.get("ASSAY_COMMAND")
if not COMMAND:
    pytest.skip("ASSAY_COMMAND names no command", allow_module_level=True)

PAGE = Path(__file__).parents[2] / "docs" / "from_my_kernel.md"


@pytest.mark.parametrize("mistake, status", [(("", ""), 0), ((" * np.float32(scale)", ""), 1)])
def test_the_kernel_in_python_is_judged(tmp_path, mistake, status):
    (shown,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    right, wrong = mistake
    assert right in shown
    (tmp_path / "kernels.py").write_text(shown.replace(right, wrong) if right else shown)
    suite = "--suite plain --shard 0/30 --no-shrink".split()
    done = subprocess.run(
        [COMMAND, "check", "--python", "kernels.py::mine", *suite],
        cwd=tmp_path,
        env={**os.environ, "ASSAY_PYTHON": sys.executable},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == status, done.stdout
    passed, failed = re.search(r"(\d+) passed, (\d+) failed", done.stdout).groups()
    assert int(passed) > 5 and int(failed) == 0 if status == 0 else int(failed) > 0
