"""The choice between native core and reference, its one warning and its errors."""

import os
import runpy
import subprocess
import sys
import types
import warnings

import pytest
import torch
from tensors import DTYPES, dtype_name

from zscgan_ext.errors import InputError
from zscgan_ext.ops import implementation, native, reference, registration

NATIVE = "zscgan_ext._native"


@pytest.fixture
def load(monkeypatch):
    """Run the module anew under a choice, with or without a native core; give its names."""

    def run(choice: str | None, core: object = implementation.NATIVE) -> types.SimpleNamespace:
        monkeypatch.delenv("ZSCGAN_EXT_IMPL", raising=False)
        if choice is not None:
            monkeypatch.setenv("ZSCGAN_EXT_IMPL", choice)
        monkeypatch.setitem(sys.modules, NATIVE, core)  # None makes the import fail
        return types.SimpleNamespace(**runpy.run_path(implementation.__file__))

    return run


@pytest.mark.parametrize("choice", [None, "auto", "native"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_native_core_is_taken(load, choice, dtype):
    assert load(choice).uses_native(torch.empty(1, dtype=dtype))


def test_reference_on_request(load):
    assert not load("reference").uses_native(torch.empty(1))
    assert not load("reference", core=None).uses_native(torch.empty(1))


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64], ids=dtype_name)
def test_native_core_has_no_kernels_for_other_dtypes(load, dtype):
    assert not load("auto").uses_native(torch.empty(1, dtype=dtype))


@pytest.mark.parametrize("choice", [None, "auto"])
def test_one_warning_says_why_the_native_core_is_missing(load, choice):
    with pytest.warns(RuntimeWarning, match="slower: its native core is missing .*_native") as all_:
        module = load(choice, core=None)
    assert len(all_) == 1
    assert not module.uses_native(torch.empty(1))
    assert "_native" in module.cuda_missing_reason()


def test_missing_native_core_is_an_error_on_request(load):
    module = load("native", core=None)
    for use in (module.require_implementation, lambda: module.uses_native(torch.empty(1))):
        with pytest.raises(InputError, match=r"ZSCGAN_EXT_IMPL is 'native', but .*_native"):
            use()


@pytest.mark.parametrize("choice", ["", "Native", "fast"])
def test_unknown_choice(load, choice):
    message = f"^ZSCGAN_EXT_IMPL is {choice!r}, expected auto, native or reference$"
    module = load(choice)
    for use in (module.require_implementation, lambda: module.uses_native(torch.empty(1))):
        with pytest.raises(InputError, match=message):
            use()


@pytest.mark.parametrize("reason", [None, "no GPU driver"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_gpu_tensors_take_the_native_core_where_it_has_kernels(load, reason, dtype):
    module = load("auto", core=types.SimpleNamespace(cuda_unavailable_reason=lambda: reason))
    x = types.SimpleNamespace(is_cpu=False, is_cuda=True, dtype=dtype)
    assert module.uses_native(x) == (reason is None and dtype != torch.float64)
    assert module.cuda_missing_reason() == reason


def test_the_built_core_says_whether_cuda_can_run():
    reason = implementation.cuda_missing_reason()
    assert reason if not torch.cuda.is_available() else reason is None or "without CUDA" in reason


@pytest.mark.parametrize("choice", ["native", "reference"])
def test_ops_follow_the_choice(monkeypatch, choice):
    monkeypatch.setattr(implementation, "REQUESTED", choice)
    assert (
        registration.kernels(torch.empty(1)) is {"native": native, "reference": reference}[choice]
    )


def test_ops_work_with_a_broken_native_core():
    program = (
        f"import sys; sys.modules[{NATIVE!r}] = None\n"
        "import torch; from zscgan_ext.ops import fake_quantize\n"
        "print(fake_quantize(torch.tensor([0.6]), torch.ones(1), torch.zeros(1), 0, 3).item())\n"
    )
    environment = {**os.environ, "ZSCGAN_EXT_IMPL": "auto"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == "1.0\n"
    assert done.stderr.count("RuntimeWarning: zscgan_ext runs on plain torch") == 1


def test_no_warning_with_the_native_core(load):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load("auto").NATIVE is implementation.NATIVE


@pytest.mark.parametrize("program", ["train", "evaluate", "export", "generate", "report", "info"])
def test_every_program_tells_of_an_unknown_choice_in_one_line(program, tmp_path):
    environment = {**os.environ, "ZSCGAN_EXT_IMPL": "fast"}
    run_given = ["."] if program in ("evaluate", "export", "generate", "report") else []
    command = [sys.executable, "-m", f"zscgan_ext.{program}", *run_given]
    run = {"capture_output": True, "text": True, "env": environment, "cwd": tmp_path}
    done = subprocess.run(command, **run, check=False)
    message = "error: ZSCGAN_EXT_IMPL is 'fast', expected auto, native or reference\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
    assert not list(tmp_path.iterdir())
