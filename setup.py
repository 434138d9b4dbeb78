"""Builds the native core with CMake; everything else about the package is in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class CMakeBuild(build_ext):
    """Configure, build and install `zscgan_ext._native` where setuptools wants it."""

    def build_extension(self, ext: Extension) -> None:
        """Run CMake with ninja in setuptools' temporary folder."""
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent.parent
        configure = [
            *("cmake", "-G", "Ninja", "-S", str(Path(__file__).parent.resolve()), "-B", str(build)),
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DCMAKE_BUILD_TYPE=Release",
        ]
        subprocess.run(configure, check=True)
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
        subprocess.run(["cmake", "--build", str(build), "--parallel", jobs], check=True)
        subprocess.run(["cmake", "--install", str(build), "--prefix", str(target)], check=True)


setup(
    ext_modules=[Extension("zscgan_ext._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
