"""`python -m zscgan_ext.info` and the environment a run records."""

import platform
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from zscgan_ext import environment as environment_module
from zscgan_ext import info
from zscgan_ext.environment import environment
from zscgan_ext.ops import implementation


def facts_of(output: str) -> dict[str, str]:
    lines = output.splitlines()
    starts = {len(line) - len(line.split("  ", 1)[1].lstrip()) for line in lines}
    assert len(starts) == 1, "the values are aligned"
    column = starts.pop()
    return {line[:column].strip(): line[column:] for line in lines}


def fake_native(reason: str | None, **build: object) -> SimpleNamespace:
    build.setdefault("cuda", False)
    return SimpleNamespace(
        build_info=lambda: build,
        cuda_unavailable_reason=lambda: reason,
        cpu=SimpleNamespace(instruction_set=lambda: "avx2"),
    )


def test_environment_names_what_is_installed():
    facts = environment()
    assert facts["torch"] == torch.__version__
    assert facts["python"] == platform.python_version()
    assert facts["cpu"]


def test_commit_is_that_of_the_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(environment_module, "ROOT", tmp_path)
    assert environment()["commit"] is None
    git = [shutil.which("git") or "git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    assert environment()["commit"] is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, *identity, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    log = subprocess.run([*git, "log", "--format=%H"], capture_output=True, text=True, check=True)
    assert environment()["commit"] == log.stdout.strip()
    (tmp_path / "inner").mkdir()
    monkeypatch.setattr(environment_module, "ROOT", tmp_path / "inner")
    assert environment()["commit"] is None


def test_commit_is_of_no_repository_that_a_variable_names(tmp_path, monkeypatch):
    """Git sets such variables for its hooks."""
    monkeypatch.setattr(environment_module, "ROOT", tmp_path)
    subprocess.run(["git", "-C", str(tmp_path), "init", "-q"], check=True)
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    commit = [*who, "commit", "-q", "--allow-empty", "-m", "first"]
    subprocess.run(["git", "-C", str(tmp_path), *commit], check=True)
    expected = environment()["commit"]
    assert expected is not None
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "another"))
    assert environment()["commit"] == expected


def test_native_core_with_cuda(monkeypatch, capsys):
    native = fake_native(
        None,
        cpu_instruction_sets=["avx512", "avx2", "baseline"],
        cuda=True,
        cuda_architectures="80;90",
        cuda_compiler="nvcc 13.0",
        compiler="g++ 14",
    )
    monkeypatch.setattr(implementation, "NATIVE", native)
    monkeypatch.setattr(implementation, "REQUESTED", "auto")
    assert info.main([]) == 0
    facts = facts_of(capsys.readouterr().out)
    assert facts["native core"] == "built, in use"
    assert facts["instruction sets built"] == "avx512 avx2 baseline"
    assert facts["instruction set in use"] == "avx2"
    assert facts["CUDA kernels"] == "built by nvcc 13.0"
    assert facts["CUDA architectures"] == "80;90"
    assert facts["CUDA"] == "usable"
    assert facts["threads"] == str(torch.get_num_threads())


def test_native_core_without_cuda_says_why(monkeypatch, capsys):
    native = fake_native("no CUDA compiler was found", compiler="g++ 14")
    monkeypatch.setattr(implementation, "NATIVE", native)
    monkeypatch.setattr(implementation, "REQUESTED", "reference")
    assert info.main([]) == 0
    facts = facts_of(capsys.readouterr().out)
    assert facts["native core"] == "built, not in use"
    assert facts["ZSCGAN_EXT_IMPL"] == "reference"
    assert facts["CUDA kernels"] == "not built"
    assert facts["CUDA"] == "not usable (no CUDA compiler was found)"


def test_missing_native_core_says_why(monkeypatch, capsys):
    monkeypatch.setattr(implementation, "NATIVE", None)
    monkeypatch.setattr(implementation, "MISSING_REASON", "No module named '_native'")
    assert info.main([]) == 0
    facts = facts_of(capsys.readouterr().out)
    assert facts["native core"] == "missing (No module named '_native')"
    assert facts["CUDA"] == "not usable (No module named '_native')"


@pytest.mark.parametrize("value", ["BF16", "any", "strict", ""])
def test_a_variable_that_takes_fewer_bits_is_named(monkeypatch, capsys, value):
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", value)
    assert info.main([]) == 0
    told = facts_of(capsys.readouterr().out).get("ONEDNN_DEFAULT_FPMATH_MODE", "")
    assert told.startswith(f"{value} in the environment") == (value in ("BF16", "any"))


@pytest.mark.parametrize(("choice", "code"), [("reference", 0), ("fast", 2)])
def test_as_a_program(monkeypatch, choice, code):
    monkeypatch.setenv("ZSCGAN_EXT_IMPL", choice)
    command = [sys.executable, "-m", "zscgan_ext.info"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == code
    if code:
        assert result.stderr.splitlines() == [
            "error: ZSCGAN_EXT_IMPL is 'fast', expected auto, native or reference"
        ]
    else:
        assert facts_of(result.stdout)["ZSCGAN_EXT_IMPL"] == "reference"
