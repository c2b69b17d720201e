"""Builds the judge's library into the package; pyproject.toml says the rest.

ASSAY_WHEEL_LIBRARY=FILE in the environment takes a library that is built already. An editable
installation leaves the library in the build folder, where the package finds it.
"""

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Optional

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # before setuptools 70.1
    from wheel.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent
# What compiling takes, by the names of Debian 12 and 13.
PACKAGES = (
    "build-essential cmake ninja-build pkg-config libeigen3-dev libfmt-dev libflint-dev "
    "libgmp-dev libhwy-dev librandom123-dev nlohmann-json3-dev ocl-icd-opencl-dev"
)
NEEDED = f"""
The judge is compiled, which needs cmake 3.25, ninja, a compiler of C++20 and libraries:
  apt-get install {PACKAGES}
and on Debian 12 libflint-arb-dev. ./dev wheel installs them by itself and builds
build/wheel/assay-*.whl, which needs nothing of this. With ASSAY_WHEEL_LIBRARY=FILE in the
environment, a library that is built already is taken: build/release/judge/libassay_judge.so."""
# Every Linux machine has these, in the version of the machine that builds or a newer one.
OF_THE_SYSTEM = (
    "linux-vdso",
    "ld-linux",
    "libc.so",
    "libm.so",
    "libdl.so",
    "libpthread.so",
    "librt.so",
    "libgcc_s",
    "libstdc++",
)


def step(command: list, **how) -> None:
    """Runs one step of compiling. If it fails, the user reads what is needed, and no traceback."""
    try:
        subprocess.run(command, check=True, **how)
    except FileNotFoundError:
        raise SystemExit(f"assay: {command[0]} is not there.{NEEDED}") from None
    except subprocess.CalledProcessError:
        raise SystemExit(f"assay: {command[0]} failed, as it says above.{NEEDED}") from None


def build_library() -> Path:
    """Compiles the judge for every machine of this architecture, without lasting threads."""
    if not (ROOT / "CMakeLists.txt").exists():
        raise SystemExit(f"assay: {ROOT} is no checkout: the sources of the judge are not in it")
    folder = ROOT / "build" / "wheel"
    march = "x86-64-v3" if platform.machine() == "x86_64" else ""
    step(
        [
            "cmake",
            "-S",
            ROOT,
            "-B",
            folder,
            "-G",
            "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DASSAY_MARCH={march}",
            "-DASSAY_JUDGE_ALONE=ON",
            "-DASSAY_STD_THREADS=ON",
            "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
            "-DCMAKE_INSTALL_RPATH=$ORIGIN",
            "-DCMAKE_SHARED_LINKER_FLAGS=-Wl,--disable-new-dtags",
        ],
        stdout=subprocess.DEVNULL,
    )
    step(["cmake", "--build", folder, "--target", "assay_judge"])
    return folder / "judge" / "libassay_judge.so"


def given_library() -> Optional[Path]:
    """The library that the environment names, from the root of the checkout."""
    name = os.environ.get("ASSAY_WHEEL_LIBRARY")
    if not name:
        return None
    if not (ROOT / name).is_file():
        raise SystemExit(f"assay: ASSAY_WHEEL_LIBRARY={name}: there is no such file")
    return ROOT / name


def needed_by(library: Path) -> list:
    """The libraries that a library needs beyond those of the system, as the loader finds them."""
    found = []
    for line in subprocess.run(
        ["ldd", library], check=True, capture_output=True, text=True
    ).stdout.splitlines():
        name, _, rest = line.strip().partition(" => ")
        if rest.startswith("not found"):
            raise RuntimeError(f"{library} needs {name}, which is not here")
        if rest and not name.startswith(OF_THE_SYSTEM):
            found.append(Path(rest.split(" (")[0]))
    return found


class BuildWithLibrary(build_py):
    def run(self) -> None:
        super().run()
        library = given_library() or build_library()
        if self.editable_mode:
            return
        to = Path(self.build_lib) / "assay" / "lib"
        shutil.rmtree(to, ignore_errors=True)
        to.mkdir(parents=True)
        shutil.copyfile(library, to / "libassay_judge.so")
        for needed in needed_by(library):
            shutil.copyfile(needed, to / needed.name)
        for file in to.iterdir():
            subprocess.run(["strip", "--strip-unneeded", file], check=True)


class WithLibrary(Distribution):
    def has_ext_modules(self) -> bool:
        return True  # the package holds libraries, although no extension module of Python's


class PlatformWheel(bdist_wheel):
    def get_tag(self):
        return "py3", "none", f"linux_{platform.machine()}"


setup(distclass=WithLibrary, cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": PlatformWheel})
