"""What is installed without a compiler, from the source distribution: all files of the package."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("zscgan_ext", "csrc", "python_tests", "benchmarks", "examples", "docs", ".ci")
SCRIPT = "from setuptools.build_meta import build_sdist, build_wheel; print(build_{}('{}'))"


def build(kind, sources, folder, **variables):
    """Call setuptools as pip does, without the isolation for which it would download packages."""
    command = [sys.executable, "-c", SCRIPT.format(kind, folder)]
    environment = {"PATH": "", "HOME": str(folder), **variables}
    done = subprocess.run(
        command, cwd=sources, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The source distribution, unpacked."""
    folder, checkout = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("checkout")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, checkout / name)
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, checkout)
    # setuptools writes into the checkout what would pass for an installed package.
    with tarfile.open(build("sdist", checkout, folder, ZSCGAN_EXT_NATIVE="0")) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = (path for path in folder.iterdir() if path.is_dir())
    return unpacked


def files_below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_source_distribution_holds_what_builds_and_tests_need(sources):
    found = files_below(sources)
    for part in FOLDERS:
        left_out = {name for name in files_below(ROOT / part) if "__pycache__" in name}
        left_out |= {name for name in files_below(ROOT / part) if name.endswith(".so")}
        missing = {f"{part}/{name}" for name in files_below(ROOT / part) - left_out} - found
        assert missing == set()
    assert {"setup.py", "pyproject.toml", "CMakeLists.txt", "mkdocs.yml", "README.md"} <= found
    assert not [name for name in found if name.endswith((".so", ".pyc"))]


def test_without_the_native_core_the_wheel_needs_no_compiler_and_suits_any_system(
    sources, tmp_path
):
    wheel = build("wheel", sources, tmp_path, ZSCGAN_EXT_NATIVE="0")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"zscgan_ext/{name}" for name in files_below(sources / "zscgan_ext")}
    assert expected - names == set()
    assert not [name for name in names if name.startswith(("python_tests", "benchmarks"))]


def test_a_wrong_choice_is_told(tmp_path):
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env={"ZSCGAN_EXT_NATIVE": "no"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "error: ZSCGAN_EXT_NATIVE is no, accepted are 0 and 1\n"
