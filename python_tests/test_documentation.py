"""What README.md and docs/ say is so: commands, snippets, links, settings, packages."""

import ast
import functools
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from runs import SHORT, write_fashion_mnist
from safetensors.torch import save_file

from zscgan_ext import cli
from zscgan_ext.config.configs import OPTIONS
from zscgan_ext.images import datasets
from zscgan_ext.stages import generator_stage
from zscgan_ext.train import main as train

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "zscgan_ext"
DOCS = ROOT / "docs"
OF_THE_ROOT = ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")
DOCUMENTS = [*(ROOT / name for name in OF_THE_ROOT), *sorted(DOCS.rglob("*.md"))]
NAMES = [document.relative_to(ROOT).as_posix() for document in DOCUMENTS]
PYTHON = (".venv/bin/python", "python", "python3")
CONSOLE_COMMAND = (".venv/bin/zscgan-ext", "zscgan-ext")


def blocks(document: Path, language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Return every command of every block, those joined by && one by one."""
    lines = [
        line
        for document in DOCUMENTS
        for block in blocks(document, "bash")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    parts = [part.strip() for line in lines for part in line.split(" && ")]
    return sorted({part for part in parts if part and not part.startswith("#")})


def is_program(command: str) -> bool:
    """Return True if a command starts a program of this package."""
    words = shlex.split(command)
    if words[0] in CONSOLE_COMMAND:
        return True
    return words[0] in PYTHON and words[1] == "-m" and words[2].startswith("zscgan_ext.")


def is_script(command: str) -> bool:
    """Return True if a command starts a script of this repository."""
    words = shlex.split(command)
    if words[0] not in PYTHON:
        return False
    return words[1] != "-m" or words[2].startswith("benchmarks.")


def split(command: str) -> tuple[str, str, list[str]]:
    """Return the module that a command starts, the name of the program, and its arguments."""
    words = shlex.split(command)
    if words[0] in CONSOLE_COMMAND:
        return "zscgan_ext.cli", words[1], words[2:]
    return words[2], words[2].removeprefix("zscgan_ext."), words[3:]


PROGRAMS = [command for command in commands() if is_program(command)]
FIRST_OF_EACH = {split(command)[0]: command for command in reversed(PROGRAMS)}.values()
SCRIPTS = [command for command in commands() if is_script(command)]
OTHERS = [command for command in commands() if command not in (*PROGRAMS, *SCRIPTS)]


OPTIONS_OF_OTHER_PROGRAMS = {
    *("data", "json", "formats", "help", "version"),
    *("count", "format", "out", "pixels", "unlabelled"),  # of generate and evaluate
    *("archive", "held-out", "sanitize", "update-docs"),  # of benchmarks and .ci/emulate
    *("max-restarts", "nnodes", "node-rank", "master-addr"),  # of torchrun
}


@pytest.fixture(autouse=True)
def small_costs(monkeypatch):
    """Leave out what costs much on small images of many classes, and tells nothing here."""
    monkeypatch.setattr(generator_stage, "PROBES_PER_CLASS", 1)  # of ImageNet's 1000
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the files that the commands name."""
    folder = tmp_path_factory.mktemp("readme")
    model = snippet_with("def build", DOCS / "guide" / "your_model.md")
    (folder / "my_model.py").write_text(model)
    namespace: dict = {}
    exec(model, namespace)
    torch.manual_seed(0)
    save_file(namespace["build"]().state_dict(), folder / "my_model.safetensors")
    write_program(folder)
    for index, name in enumerate(("cat", "dog", "owl")):
        pixels = np.random.default_rng(index).integers(0, 256, (120, 100, 3), dtype=np.uint8)
        for tree in ("photos", "imagenet/val"):
            (folder / tree / name).mkdir(parents=True)
            Image.fromarray(pixels).save(folder / tree / name / "1.jpg")
    for name in ("resnet18", "resnet50", "mobilenet_v2"):
        torch.save(torchvision.models.get_model(name).state_dict(), folder / f"{name}.pth")
    write_pytorchcv_models(folder)
    images = write_fashion_mnist(folder / "few-images", count=20)
    run = ["--output", str(folder / "runs" / "deployed"), "--export=onnx,pt2,safetensors"]
    assert train([*SHORT, *run, "--evaluation-data", str(images)]) == 0
    shutil.copytree(folder / "runs" / "deployed", folder / "runs" / "first")
    return folder


@pytest.fixture
def inside(workplace, monkeypatch):
    """The same folder as the current one, whose modules can be imported; few test images."""
    monkeypatch.setattr(datasets, "BUNDLED_FASHION_MNIST", workplace / "few-images")
    monkeypatch.chdir(workplace)
    monkeypatch.syspath_prepend(workplace)
    return workplace


def snippet_with(text: str, document: Path) -> str:
    """Return the one Python snippet of a document that holds a text."""
    (snippet,) = [block for block in blocks(document, "python") if text in block]
    return snippet


def write_pytorchcv_models(folder: Path) -> None:
    """Write the module that the document about ImageNet shows, and a library for pytorchcv.

    The weights of pytorchcv cannot be had without a network; small networks stand for its models.
    """
    snippet = snippet_with("pytorchcv", DOCS / "research" / "imagenet.md")
    (folder / "pytorchcv_models.py").write_text(snippet)
    (folder / "pytorchcv").mkdir()
    (folder / "pytorchcv" / "model_provider.py").write_text(
        "import torch\n"
        "from torchvision.models.mobilenetv2 import MobileNetV2\n"
        "from torchvision.models.resnet import BasicBlock, ResNet\n\n\n"
        "def get_model(name, pretrained):\n"
        "    assert pretrained\n"
        "    torch.manual_seed(0)  # the same weights each time\n"
        '    if name == "mobilenetv2_w1":\n'
        "        return MobileNetV2(width_mult=0.25)\n"
        "    return ResNet(BasicBlock, [1, 1, 1, 1])\n"
    )


def write_program(folder: Path) -> None:
    """Run the snippet that exports a program."""
    snippet = snippet_with("torch.export.save", DOCS / "guide" / "your_model.md")
    words = [sys.executable, "-c", snippet]
    subprocess.run(words, cwd=folder, check=True, capture_output=True)


def shortened(program: str, arguments: list[str]) -> list[str]:
    """Add arguments that make a program a matter of seconds, on a run that may be there."""
    if program == "evaluate" and "--unlabelled" not in arguments:
        return [*arguments, "--data", "few-images"]
    if program != "train" or "--help" in arguments:
        return arguments
    # What is said of steps and generated images, an instant run refuses.
    added = ["--no-report"] if "instant" in arguments else [*SHORT, "--batch-size=4"]
    added += ["--overwrite"]
    large = ("torchvision:", "pytorchcv_models:", "--image-size")
    if any(word.startswith(large) for word in arguments):  # of three channels
        added += ["--image-size=32"]
    elif "--evaluation-data" not in arguments:
        added += ["--evaluation-data", "few-images"]
    return [*arguments, *added]


@pytest.mark.parametrize("command", FIRST_OF_EACH)
def test_programs_start(workplace, command):
    """The first command of each program, as a user starts it."""
    module, program, arguments = split(command)
    given = [program] if module == "zscgan_ext.cli" else []
    start = [sys.executable, "-W", "error", "-m", module, *given]
    words = [*start, *shortened(program, arguments)]
    # Threads would cost more than they give on so few images.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, cwd=workplace, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("command", [c for c in PROGRAMS if c not in FIRST_OF_EACH])
def test_programs_run(command, capsys):
    """All other commands, in this process, which has imported all that they need."""
    _, program, arguments = split(command)
    code = cli.main([program, *shortened(program, arguments)])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert printed.out


@functools.cache
def options_of(script: tuple[str, ...]) -> set[str]:
    """Return the options that the help of a script names."""
    command = [sys.executable, *script, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(re.findall(r"--[\w-]+", done.stdout))


@pytest.mark.parametrize("command", SCRIPTS)
def test_scripts_know_the_options_they_are_given(command):
    """Scripts may run for long, and have tests of their own."""
    _, *words = shlex.split(command)
    script = tuple(words[: 2 if words[0] == "-m" else 1])
    assert {word for word in words if word.startswith("--")} <= options_of(script)


@pytest.mark.parametrize("command", OTHERS)
def test_every_other_command_is_run_by_continuous_integration(command):
    if command == ".venv/bin/pip install .":  # a part of what follows
        command = '.venv/bin/pip install ".[test]"'
    program = (ROOT / ".ci" / "run").read_text().replace('"$venv/bin/', '".venv/bin/')
    program = program.replace('"$venv"', ".venv")
    program = re.sub(r'"(\.venv/bin/[\w-]+)"', r"\1", program)
    assert any(line.strip().startswith(command) for line in program.splitlines()), command


def test_both_commands_for_a_fresh_machine_are_there():
    readme = (ROOT / "README.md").read_text()
    assert "pip install . && .venv/bin/python -m zscgan_ext.train\n" in readme
    assert 'pip install ".[test]" && .venv/bin/pytest\n' in readme
    assert ".venv/bin/python -m zscgan_ext.train" in PROGRAMS


SNIPPETS = [
    (n, block) for n, d in zip(NAMES, DOCUMENTS, strict=True) for block in blocks(d, "python")
]


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(("document", "snippet"), SNIPPETS)
def test_snippets_run(document, snippet):
    namespace: dict = {}
    exec(snippet, namespace)
    # Comments like `weight.grad [64, 32, 3, 3]` state shapes.
    for expression, shape in re.findall(r"(\w+\.grad) (\[[\d, ]+\])", snippet):
        assert list(eval(expression, namespace).shape) == ast.literal_eval(shape), document


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_links_lead_to_files(document):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text())
    for link in links:
        if not link.startswith(("http://", "https://")):
            assert (document.parent / link).exists(), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_anchors_name_headings(document):
    links = re.findall(r"\]\(([^)#]*)#([^)]+)\)", document.read_text())
    for link, anchor in links:
        if not link.startswith(("http://", "https://")):
            target = (document.parent / link) if link else document
            assert anchor in anchors(target), (link, anchor)


def anchors(document: Path) -> set[str]:
    """Return the anchors of the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {text.strip().replace(" ", "-") for text in plain}


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_documents_name_settings_that_exist(document):
    named = set(re.findall(r"`--([\w-]+)", document.read_text()))
    settings = {name.replace("_", "-") for name in OPTIONS} | {"config"}
    switches = {f"no-{name}" for name in settings}
    assert named - settings - switches <= OPTIONS_OF_OTHER_PROGRAMS


def test_the_table_of_settings_is_the_programs():
    spec = importlib.util.spec_from_file_location("settings_table", ROOT / "docs/settings_table.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    text = program.DOCUMENT.read_text()
    assert text == program.written(text), "run python docs/settings_table.py"
    assert set(re.findall(r"^\| `--([\w-]+)`", text, re.MULTILINE)) == {
        name.replace("_", "-") for name in OPTIONS
    }


def test_the_home_page_leads_to_every_document():
    home = (DOCS / "index.md").read_text()
    pages = [document.relative_to(DOCS).as_posix() for document in DOCS.rglob("*.md")]
    assert [page for page in pages if page != "index.md" and f"]({page})" not in home] == []


def messages() -> str:
    """Return the texts in the sources of the package, less docstrings; NUL stands for a value."""
    texts = []
    for file in PACKAGE.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "\0" for v in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and id(node) not in docstrings:
                texts.append(str(node.value))
    return "\n".join(texts)


def test_messages_of_refused_models_are_those_of_the_program():
    document = (DOCS / "guide" / "your_model.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", document.partition("## What is refused")[2], re.MULTILINE)
    quoted = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    assert len(quoted) > 20
    known = messages()
    for text in quoted:
        # A word in capitals stands for a name or a number.
        for part in re.split(r"\b(?:[A-Z]{4,}|N)\b", text.removeprefix("export: ")):
            assert part.strip() in known, text


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_tests_that_documents_name_exist(document):
    files = {file.name: file.read_text() for file in (ROOT / "python_tests").rglob("test_*.py")}
    defined = set(re.findall(r"^def (test_\w+)", "\n".join(files.values()), re.MULTILINE))
    text = document.read_text()
    assert set(re.findall(r"\btest_\w+\.py", text)) <= set(files)
    assert set(re.findall(r"\b(test_\w+)\b(?!\.py)", text)) <= defined


def test_the_readme_is_short_and_leads_on():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    assert [name for name in OF_THE_ROOT[1:] if f"]({name})" not in readme] == []
    assert "](docs/index.md)" in readme


def test_the_architecture_names_every_package():
    text = (DOCS / "developer" / "architecture.md").read_text()
    assert len(text.splitlines()) <= 150
    packages = [file.parent.name for file in PACKAGE.glob("*/__init__.py")]
    assert [name for name in packages if f"| `{name}/` |" not in text] == []
