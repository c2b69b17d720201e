"""Finds a kernel in a file, for processes that are told FILE.py::function."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Dict, Optional

from ._kernel import Kernel
from .errors import InputError


def load(where: str, device: Optional[str] = None, framework: Optional[str] = None) -> Kernel:
    """The kernel of "FILE.py::function", or of "FILE.py::function@DEVICE".

    `framework` is that of a function that does not say its own.
    """
    path, colons, name = where.rpartition("::")
    if not colons:
        raise InputError("python", f"{where!r} is not FILE.py::function")
    name, _, on = name.partition("@")
    if not os.path.isfile(path):
        raise InputError("python", f"{path}: there is no such file")
    module_name = os.path.splitext(os.path.basename(path))[0]
    specification = importlib.util.spec_from_file_location(module_name, path)
    if specification is None or specification.loader is None:
        raise InputError("python", f"{path}: is no Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[module_name] = module
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    try:
        specification.loader.exec_module(module)
    except InputError as e:
        raise InputError(e.argument, f"{e.message} ({path})") from e
    except Exception as e:
        raise InputError("python", f"{path}: {type(e).__name__}: {e}") from e
    found = getattr(module, name, None)
    if found is None:
        kernels = [n for n, v in vars(module).items() if isinstance(v, Kernel)]
        raise InputError(
            "python", f"{path} has no {name!r}; its kernels are {', '.join(kernels) or 'none'}"
        )
    kernel = found if isinstance(found, Kernel) else Kernel(found)
    if kernel._framework is None:
        kernel._framework = framework
    return kernel.on(device or on or None)


def child_environment() -> Dict[str, str]:
    """The environment of a Python process that finds this package."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def how_it_ended(status: int) -> str:
    """How a process ended that should not have, by its exit status."""
    return f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
