"""The script that looks for data races; it is run by hand, since it takes minutes."""

import re
from pathlib import Path


def test_the_thread_sanitizer_sees_all_kernels():
    root = Path(__file__).parent.parent
    script = (root / "benchmarks" / "thread_sanitizer" / "run.sh").read_text()
    listed = re.search(r"^kernels=\((.*)\)$", script, re.MULTILINE)
    (built,) = re.findall(r"set\(CPU_KERNELS ([^)]*)\)", (root / "CMakeLists.txt").read_text())
    assert listed[1].split() == [Path(file).stem for file in built.split()]
