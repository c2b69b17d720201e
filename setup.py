"""Builds the judge's library into the package; pyproject.toml says the rest.

ASSAY_WHEEL_LIBRARY=FILE in the environment takes a library that is built already.
"""

import os
import platform
import shutil
import subprocess
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py
from wheel.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent
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


def build_library() -> Path:
    """Compiles the judge for every machine of this architecture, without lasting threads."""
    folder = ROOT / "build" / "wheel"
    march = "x86-64-v3" if platform.machine() == "x86_64" else ""
    subprocess.run(
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
            "-DASSAY_BENCH=OFF",
            "-DASSAY_STD_THREADS=ON",
            "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
            "-DCMAKE_INSTALL_RPATH=$ORIGIN",
            "-DCMAKE_SHARED_LINKER_FLAGS=-Wl,--disable-new-dtags",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    subprocess.run(["cmake", "--build", folder, "--target", "assay_judge"], check=True)
    return folder / "judge" / "libassay_judge.so"


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
        given = os.environ.get("ASSAY_WHEEL_LIBRARY")
        library = Path(given) if given else build_library()
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
