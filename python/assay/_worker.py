"""A process that judges a kernel: case lines come in; results go out, and whether it can go on.

`assay.check(isolate=True)` starts it. If it finds no kernel, it says why instead, and ends.
"""

from __future__ import annotations

import json
import os
import sys

from ._load import load
from .errors import InputError


def main() -> int:
    where, device, framework, options = (
        sys.argv[1],
        sys.argv[2],
        sys.argv[3],
        json.loads(sys.argv[4]),
    )
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the function prints is no answer
    try:
        kernel = load(where, device or None, framework)
    except InputError as e:
        answers.write(json.dumps({"argument": e.argument, "message": e.message}) + "\n")
        answers.flush()
        return 2
    for line in sys.stdin:
        result = kernel.judge(line.strip(), **options)
        answers.write(json.dumps([result, kernel.tool.is_lost()]) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
