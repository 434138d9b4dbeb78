"""The console command `zscgan-ext`: commands, exit codes, and what it imports."""

import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import zscgan_ext
from zscgan_ext import cli

ROOT = Path(__file__).parent.parent
# pytest needs the second one itself where Python lacks the first.
tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


def in_new_process(code: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_the_console_command_is_declared_and_the_version_stands_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"zscgan-ext": "zscgan_ext.cli:main"}
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "zscgan_ext.__version__"}
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["zscgan_ext"]
    assert (ROOT / "zscgan_ext" / "py.typed").is_file()


def test_the_installed_version_is_that_of_the_package():
    try:
        installed = importlib.metadata.version("zscgan_ext")
    except importlib.metadata.PackageNotFoundError:  # the sources are imported
        return
    assert installed == zscgan_ext.__version__


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_every_command(capsys, option):
    assert cli.main([option]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for command in ("train", "evaluate", "export", "generate", "report", "info"):
        assert f"\n  {command} " in printed.out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"zscgan-ext {zscgan_ext.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        *(([command, "--help"], 0) for command in cli.COMMANDS),
        (["train", "--bits", "w9a9"], 2),
        (["train", "--classifer", "resnet20"], 2),
        (["train", "--config", "nowhere.yaml"], 2),
        (["evaluate"], 2),
        (["evaluate", "run", "--batch-size", "x"], 2),
        (["export", "run", "--formats", "onx"], 2),
        (["generate", "run", "--format=png", "--normalized"], 2),
        (["report"], 2),
        (["info", "--all"], 2),
    ],
)
def test_help_and_wrong_arguments_import_neither_torch_nor_numpy(arguments, code):
    done = in_new_process(
        "import sys\nfrom zscgan_ext import cli\n"
        f"try:\n    code = cli.main({arguments})\n"
        "except SystemExit as ended:\n    code = ended.code\n"
        "slow = sorted({'torch', 'torchvision', 'numpy', 'matplotlib'} & set(sys.modules))\n"
        "sys.exit(f'imports {slow}' if slow else code)"
    )
    assert done.returncode == code, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["train"], ["evaluate", "x"], ["export", "x"], ["generate", "x"], ["report", "x"], ["info"]],
    ids=lambda arguments: arguments[0],
)
def test_libraries_that_come_with_torch_find_nothing_in_the_current_folder(tmp_path, arguments):
    # One of them takes libcuda.so.1 from there.
    found = tmp_path / "found"
    for name in ("torch", "matplotlib"):
        (tmp_path / f"{name}.py").write_text(
            f"import os; open({str(found)!r}, 'a').write(os.getcwd() + chr(10)); os._exit(7)"
        )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.path.append({str(ROOT)!r})\n"
    code += f"from zscgan_ext import cli; cli.main({arguments})"
    done = in_new_process(code, cwd=tmp_path)
    assert done.returncode == 7, done.stderr
    assert found.read_text() == "/\n"


def test_after_the_import_of_torch_a_command_is_in_its_folder_again(tmp_path):
    code = f"import os, sys; sys.path.append({str(ROOT)!r}); from zscgan_ext import cli\n"
    code += "cli.main(['info']); assert 'torch' in sys.modules; print(os.getcwd())"
    done = in_new_process(code, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == str(tmp_path), done.stderr


def test_a_command_imports_no_other_command():
    code = (
        "import sys; from zscgan_ext import cli; code = cli.main(['info']);"
        "others = {'zscgan_ext.train', 'zscgan_ext.export.exporter', 'zscgan_ext.report.page'};"
        "sys.exit(1 if others & set(sys.modules) else code)"
    )
    done = in_new_process(code)
    assert done.returncode == 0, done.stderr
    assert "native core" in done.stdout


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_command_gets_the_arguments_behind_its_name(capsys, command):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert f"python -m zscgan_ext.{command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], f"error: expected a command ({', '.join(cli.COMMANDS)}), got none\n"),
        (["trian"], "got trian, did you mean train?\n"),
        (["--classifier", "resnet20"], "got --classifier\n"),
        (["a\nb"], "got a\\nb\n"),
        (["train", "--bits", "w9a9"], "w9a9"),
        (["evaluate", "nowhere"], "nowhere"),
        (["train", "--resume=--"], "--resume: expected a value, got '--'"),
        (["evaluate", "x.onnx", "--json=--"], "--json: expected a value, got '--'"),
        (["export", "run", "--formats=--"], "--formats: expected a value, got '--'"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(capsys, arguments, message):
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_help_that_cannot_be_written_is_an_error():
    code = "import sys; from zscgan_ext import cli; sys.exit(cli.main(['--help']))"
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: standard output: No space left on device\n"


def test_a_deleted_current_folder_is_an_error(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert cli.main(["info"]) == 2
    assert capsys.readouterr().err.startswith("error: the current folder was deleted")
