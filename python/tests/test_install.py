"""`pip install .`: what is missing is said in words. python.wheel tries the rest."""

import _ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("setuptools")
pytest.importorskip("wheel")
ROOT = Path(__file__).parents[2]
PROJECT = "cmake_minimum_required(VERSION 3.25)\nproject(toy LANGUAGES NONE)\n"


@pytest.fixture
def checkout(tmp_path):
    shutil.copytree(
        ROOT / "python" / "assay",
        tmp_path / "python" / "assay",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (tmp_path / "docs").mkdir()
    for file in ("setup.py", "pyproject.toml", "docs/python.md"):
        shutil.copy(ROOT / file, tmp_path / file)
    (tmp_path / "CMakeLists.txt").write_text(PROJECT + "find_package(SomeLibrary REQUIRED)\n")
    return tmp_path


def built(checkout, **environment):
    """What building the package says; nothing is compiled."""
    here = {name: value for name, value in os.environ.items() if name != "ASSAY_WHEEL_LIBRARY"}
    done = subprocess.run(
        [sys.executable, "setup.py", "build_py"],
        cwd=checkout,
        env={**here, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stdout, done.stdout
    return done.stdout


def packages():
    (listed,) = re.findall(r"^PACKAGES = \((.*?)^\)", (ROOT / "setup.py").read_text(), re.M | re.S)
    return " ".join(re.findall(r'"(.*?)"', listed)).split()


def test_what_is_missing_is_said(checkout):
    told = built(checkout, PATH=str(checkout / "nothing"))
    assert "assay: cmake is not there." in told and f"apt-get install {packages()[0]}" in told
    if shutil.which("cmake") and shutil.which("ninja"):
        told = built(checkout)
        assert "SomeLibrary" in told and "assay: cmake failed, as it says above." in told
    told = built(checkout, ASSAY_WHEEL_LIBRARY="none.so")
    assert "assay: ASSAY_WHEEL_LIBRARY=none.so: there is no such file" in told
    (checkout / "CMakeLists.txt").unlink()
    assert f"assay: {checkout} is no checkout" in built(checkout)


def test_a_library_that_is_none_of_the_judge_is_named(tmp_path):
    text = tmp_path / "text.so"
    text.write_text("no library")
    for library, words in (
        (text, "is no judge's library (libassay_judge.so): "),
        (tmp_path, "is no judge's library (libassay_judge.so): "),
        (_ctypes.__file__, "undefined symbol: assay_judge_version"),
        (tmp_path / "none.so", "is not there"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", "import assay"],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT / "python"),
                "ASSAY_JUDGE_LIBRARY": str(library),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        last = done.stderr.splitlines()[-1]
        assert last.startswith("ImportError: ") and words in last, last
        assert str(library) in last and "ASSAY_JUDGE_LIBRARY" in last, last


def test_the_packages_are_those_of_a_checkout():
    """./dev installs them under the same names, and the page for Python readers lists them."""
    (known,) = re.findall(r"^packages=\((.*?)\)$", (ROOT / "dev").read_text(), re.M | re.S)
    page = (ROOT / "docs" / "python.md").read_text()
    for package in packages():
        assert package in known.split(), package
        assert package in page.split(), package
