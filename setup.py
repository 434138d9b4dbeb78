"""Builds the native core with CMake; everything else about the package is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Configure, build and install `zscgan_ext._native` into the wheel and the checkout."""

    def build_extension(self, ext: Extension) -> None:
        """Run CMake with ninja in setuptools' temporary folder."""
        import pybind11

        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            *("cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(build)),
            # A build before this one may have left the ninja of an isolation that is gone.
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DCMAKE_BUILD_TYPE=Release",
        ]
        subprocess.run(configure, check=True)
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
        subprocess.run(["cmake", "--build", str(build), "--parallel", jobs], check=True)
        wheel = Path(self.get_ext_fullpath(ext.name)).resolve().parent.parent
        # `python -m` run in the checkout imports the sources there, not the installed package:
        # the native core has to stand beside them too.
        for folder in {wheel, ROOT}:
            subprocess.run(["cmake", "--install", str(build), "--prefix", str(folder)], check=True)


def builds_native() -> bool:
    """Return whether the native core is built; without it plain PyTorch computes."""
    chosen = os.environ.get("ZSCGAN_EXT_NATIVE") or ("0" if sys.platform == "win32" else "1")
    if chosen not in ("0", "1"):
        sys.exit(f"error: ZSCGAN_EXT_NATIVE is {chosen}, accepted are 0 and 1")
    return chosen == "1"


setup(
    ext_modules=[Extension("zscgan_ext._native", sources=[])] if builds_native() else [],
    cmdclass={"build_ext": CMakeBuild},
)
