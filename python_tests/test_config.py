"""The settings: command line, YAML, validation."""

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
import yaml
from zscgan_ext.settings.command_line import parse_settings, settings_to_yaml
from zscgan_ext.settings.config import PRESETS, Settings
from zscgan_ext.settings.values import parse_bits, resolve_device

from zscgan_ext.errors import InputError
from zscgan_ext.ops import DISTANCES


def config_file(tmp_path: Path, text: str) -> list[str]:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    return ["--config", str(file)]


def test_no_argument_gives_the_defaults():
    assert parse_settings([]) == Settings()


def test_command_line_sets_every_type():
    arguments = (
        "--classifier package.models:small --weights a.pt --mean 0.5 0.4 0.3 --std 1 2 3"
        " --bits W8a2 --synthesis-learning-rate 2e-3 --overwrite --stop-after synthesis"
        " --fine-tuning-steps 0 --distance std_mse --seed 7"
    )
    settings = parse_settings(arguments.split())
    assert settings == Settings(
        classifier="package.models:small",
        weights=Path("a.pt"),
        mean=(0.5, 0.4, 0.3),
        std=(1.0, 2.0, 3.0),
        bits="W8a2",
        synthesis_learning_rate=2e-3,
        overwrite=True,
        stop_after="synthesis",
        fine_tuning_steps=0,
        distance="std_mse",
        seed=7,
    )


def test_distances_are_those_of_the_ops():
    assert get_args(get_type_hints(Settings)["distance"]) == DISTANCES


def test_help_documents_every_setting_and_its_default(capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse_settings(["--help"])
    assert exit_info.value.code == 0
    shown = " ".join(capsys.readouterr().out.split()).split("options:")[1]
    assert "--config FILE YAML file" in shown
    for field in fields(Settings):
        after_option = shown.split(f"--{field.name.replace('_', '-')} ", 1)[1]
        text, default = re.match(r"(.*?) \(default: (.*?)\)", after_option).groups()
        assert len(text.split()) > 3
        assert default == str(field.default)


def test_yaml_says_the_same_as_the_command_line(tmp_path):
    arguments = config_file(
        tmp_path,
        "bits: w3a3\nmean: [0.5]\nstd: [0.25]\noverwrite: true\nweights: null\n"
        "temperature: 1e-3\nsynthesis_steps: 12\ncuda_graphs: off\n",
    )
    expected = "--bits w3a3 --mean 0.5 --std 0.25 --overwrite --temperature 1e-3 --cuda-graphs off"
    assert parse_settings(arguments) == parse_settings(
        [*expected.split(), "--synthesis-steps", "12"]
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_sets_the_steps(preset):
    settings = parse_settings(["--preset", preset])
    assert {name: getattr(settings, name) for name in PRESETS[preset]} == PRESETS[preset]


def test_everything_else_wins_over_a_preset(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("preset: thorough\nsynthesis_steps: 7\n")
    settings = parse_settings(["--config", str(file), "--fine-tuning-steps", "9"])
    assert (settings.synthesis_steps, settings.fine_tuning_steps) == (7, 9)
    quick = parse_settings(["--config", str(file), "--preset=quick"])
    assert quick.synthesis_steps == 7
    assert quick.fine_tuning_steps == PRESETS["quick"]["fine_tuning_steps"]


def test_command_line_wins_over_yaml(tmp_path):
    arguments = config_file(tmp_path, "bits: w3a3\nseed: 5\noverwrite: true\n")
    settings = parse_settings(["--bits", "w8a8", *arguments, "--no-overwrite"])
    assert (settings.bits, settings.seed, settings.overwrite) == ("w8a8", 5, False)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(
            classifier="torch:nn",
            weights=Path("folder with spaces/--odd: name.pt"),
            mean=(0.1, 1 / 3, 1e-7),
            std=(1e-5, 2.0, 3.0),
            synthesis_learning_rate=1.1e-17,
            overwrite=True,
            output=Path("-dash"),
            evaluation_data="null",
            stop_after="synthesis",
            num_classes=1000,
        ),
    ],
)
def test_saved_settings_load_again(tmp_path, settings):
    text = settings_to_yaml(settings)
    assert parse_settings(config_file(tmp_path, text)) == settings
    assert list(yaml.safe_load(text)) == [field.name for field in fields(Settings)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latent_dims: 3", "unknown setting 'latent_dims', did you mean latent_dim"),
        ("3: 4", "unknown setting 3"),
        ("synthesis_steps: 1.5", "--synthesis-steps: invalid int value: '1.5'"),
        ("synthesis_steps: true", "invalid int value: 'True'"),
        ("synthesis_steps: [1]", "gives synthesis_steps a list"),
        ("bits: null", "gives bits a NoneType"),
        ("mean: [[1]]", "gives mean a list"),
        ("mean: []", "--mean: expected at least one argument"),
        ("mean: [0.5, --help]", "gives mean '--help', expected numbers"),
        ("std: [0.5, '--output=elsewhere']", "gives std '--output=elsewhere', expected numbers"),
        ("scheme: fast", "invalid choice: 'fast'"),
        ("overwrite: perhaps", "perhaps"),
        ("- bits", "holds a list, needed is a mapping"),
        ("", "holds a NoneType, needed is a mapping"),
        ("bits: [", "not valid YAML"),
        ("a: &a [x]\nb: *a", "aliases"),
        ("bits: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("a: " + "[" * 5000, "not valid YAML"),
        ("#" * (1 << 21), "larger than 65536 bytes"),
    ],
)
def test_bad_yaml_gives_one_line(tmp_path, text, message):
    with pytest.raises(InputError) as error:
        parse_settings(config_file(tmp_path, text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unreadable_yaml_gives_one_line(tmp_path):
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"bits: \xff\xfe")
    for file, message in (
        (binary, "is not UTF-8"),
        (tmp_path / "missing.yaml", "No such file"),
        (tmp_path, "Is a directory"),
    ):
        with pytest.raises(InputError, match=message):
            parse_settings(["--config", str(file)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--bits w1a4", "bits: 'w1a4', accepted are w2a2 to w8a8"),
        ("--bits w9a4", "bits"),
        ("--bits w4a44", "bits"),
        ("--batch-size 0", "batch_size: 0, needed is a number above 0"),
        ("--batch-size -3", "batch_size: -3"),
        ("--batch-size 1.5", "--batch-size: invalid int value: '1.5'"),
        ("--temperature 0", "temperature: 0.0"),
        ("--temperature nan", "temperature: nan, needed is a finite number"),
        ("--batch-norm-weight inf", "batch_norm_weight: inf"),
        ("--label-weight -1", "label_weight: -1.0, needed is 0 or above"),
        ("--seed -1", "seed: -1"),
        ("--mean 0.5 --std 0.5 0.5", "mean, std: 1 and 2 values"),
        ("--std 0.5 0", "std: 0.0"),
        ("--mean nan", "mean: nan"),
        ("--device gpu", "device: 'gpu', accepted are auto, cpu, cuda and cuda:N"),
        ("--device cuda:x", "device"),
        ("--precision float16 --device cpu", "precision: float16 on cpu"),
        ("--cuda-graphs on --device cpu", "cuda_graphs: on, but the device is cpu"),
        ("--memory-format nhwc", "invalid choice: 'nhwc'"),
        ("--scheme fast", "invalid choice: 'fast'"),
        ("--classifer resnet20", "unknown argument --classifer, did you mean --classifier"),
        ("--weights", "--weights: expected one argument"),
        ("resnet20", "unknown argument resnet20"),
        ("--batch 3", "unknown argument --batch"),
    ],
)
def test_bad_arguments_give_one_line(arguments, message):
    with pytest.raises(InputError) as error:
        parse_settings(arguments.split())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_width_is_accepted():
    for weights in range(2, 9):
        for activations in range(2, 9):
            assert parse_bits(f"W{weights}a{activations}") == (weights, activations)


def test_devices_follow_what_torch_finds(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda", 0)
    assert resolve_device("cuda") == torch.device("cuda", 0)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="'cuda:2', but torch finds 2"):
        resolve_device("cuda:2")
    assert parse_settings(["--precision", "float16"]).precision == "float16"
    assert parse_settings(["--cuda-graphs", "on"]).cuda_graphs == "on"
    with pytest.raises(InputError, match="cuda_graphs: on with float16"):
        parse_settings(["--precision=float16", "--cuda-graphs=on"])


def test_cuda_without_cuda_gives_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(InputError, match="device: 'cuda', but torch finds no CUDA"):
        parse_settings(["--device", "cuda"])


def test_output_folder_names_the_run():
    settings = Settings(classifier="package.models:small", bits="W4A8", scheme="paper", seed=3)
    assert settings.output_folder() == Path("runs/package.models-small-w4a8-paper-seed3")
    assert replace(settings, output=Path("here")).output_folder() == Path("here")
