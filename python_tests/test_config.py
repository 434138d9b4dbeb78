"""The settings: configurations, command line, YAML."""

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from zscgan_ext.config.command_line import config_to_yaml, flag, parse_config
from zscgan_ext.config.configs import (
    OPTIONS,
    PRESETS,
    SECTIONS,
    ExecutionConfig,
    FineTuningConfig,
    GeneratorConfig,
    Option,
    QuantizationConfig,
    RunConfig,
    defaults_of,
)
from zscgan_ext.config.fields import warn_of_renamed
from zscgan_ext.config.values import Interval, parse_bits, parse_interval, resolve_device
from zscgan_ext.errors import InputError
from zscgan_ext.ops import DISTANCES


def config_file(tmp_path: Path, text: str) -> list[str]:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    return ["--config", str(file)]


def test_no_argument_gives_the_defaults():
    assert parse_config([]) == RunConfig()


def test_command_line_sets_every_type():
    arguments = (
        "--classifier package.models:small --weights a.pt --mean 0.5 0.4 0.3 --std 1 2 3"
        " --bits W8a2 --synthesis-learning-rate 2e-3 --overwrite --stop-after synthesis"
        " --fine-tuning-steps 0 --distance std_mse --seed 7"
    )
    assert parse_config(arguments.split()) == RunConfig(
        classifier="package.models:small",
        weights=Path("a.pt"),
        mean=(0.5, 0.4, 0.3),
        std=(1.0, 2.0, 3.0),
        quantization=QuantizationConfig(bits="W8a2"),
        generator=GeneratorConfig(learning_rate=2e-3, distance="std_mse"),
        fine_tuning=FineTuningConfig(steps=0),
        overwrite=True,
        stop_after="synthesis",
        seed=7,
    )


def test_distances_are_those_of_the_ops():
    assert get_args(get_type_hints(GeneratorConfig)["distance"]) == DISTANCES


def test_help_documents_every_setting_and_its_default(capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse_config(["--help"])
    assert exit_info.value.code == 0
    shown = " ".join(capsys.readouterr().out.split()).split("options:")[1]
    assert "--config FILE YAML file" in shown
    for name, option in OPTIONS.items():
        after_option = shown.split(f"{flag(name)} ", 1)[1]
        text, default = re.match(r"(.*?) \(default: (.*?)\)", after_option).groups()
        assert len(text.split()) > 3
        assert default == str(option.field.default)


def test_yaml_says_the_same_as_the_command_line(tmp_path):
    arguments = config_file(
        tmp_path,
        "bits: w3a3\nmean: [0.5]\nstd: [0.25]\noverwrite: true\nweights: null\n"
        "temperature: 1e-3\nsynthesis_steps: 12\ncuda_graphs: off\n",
    )
    expected = "--bits w3a3 --mean 0.5 --std 0.25 --overwrite --temperature 1e-3 --cuda-graphs off"
    assert parse_config(arguments) == parse_config([*expected.split(), "--synthesis-steps", "12"])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_sets_the_steps(preset):
    options = parse_config(["--preset", preset]).options()
    assert {name: options[name] for name in PRESETS[preset]} == PRESETS[preset]


def test_everything_else_wins_over_a_preset(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("preset: thorough\nsynthesis_steps: 7\n")
    config = parse_config(["--config", str(file), "--fine-tuning-steps", "9"])
    assert (config.generator.steps, config.fine_tuning.steps) == (7, 9)
    quick = parse_config(["--config", str(file), "--preset=quick"])
    assert quick.generator.steps == 7
    assert quick.fine_tuning.steps == PRESETS["quick"]["fine_tuning_steps"]


def test_command_line_wins_over_yaml(tmp_path):
    arguments = config_file(tmp_path, "bits: w3a3\nseed: 5\noverwrite: true\n")
    config = parse_config(["--bits", "w8a8", *arguments, "--no-overwrite"])
    assert (config.quantization.bits, config.seed, config.overwrite) == ("w8a8", 5, False)


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(),
        RunConfig(
            classifier="torch:nn",
            weights=Path("folder with spaces/--odd: name.pt"),
            mean=(0.1, 1 / 3, 1e-7),
            std=(1e-5, 2.0, 3.0),
            generator=GeneratorConfig(learning_rate=1.1e-17),
            quantization=QuantizationConfig(rounding="nearest"),
            overwrite=True,
            output=Path("-dash"),
            evaluation_data="null",
            stop_after="synthesis",
            num_classes=1000,
        ),
    ],
)
def test_saved_settings_load_again(tmp_path, config):
    text = config_to_yaml(config)
    assert parse_config(config_file(tmp_path, text)) == config
    assert list(yaml.safe_load(text)) == list(OPTIONS)


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
        ("- bits", "holds a list, expected a mapping"),
        ("", "holds a NoneType, expected a mapping"),
        ("bits: [", "not valid YAML"),
        ("a: &a [x]\nb: *a", "aliases"),
        ("bits: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("a: " + "[" * 5000, "not valid YAML"),
        ("seed: 0x" + "f" * 5000, "gives seed an integer of 20000 bits"),
        ("seed: 1\nbits: w8a8\nseed: 2", "it has 'seed' twice"),
        ("generator: {steps: 1, steps: 2}", "it has 'steps' twice"),
        ("#" * (1 << 21), "larger than 65536 bytes"),
    ],
)
def test_bad_yaml_gives_one_line(tmp_path, text, message):
    with pytest.raises(InputError) as error:
        parse_config(config_file(tmp_path, text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_intervals_of_any_length_give_one_line():
    """Python refuses to read integers of thousands of digits."""
    for text in ("9" * 5000, "9" * 5000 + "min", "0." + "9" * 5000 + "min"):
        with pytest.raises(InputError, match=r"checkpoint_every: expected steps like 500"):
            parse_interval(text)
    assert parse_interval("9" * 18) == Interval(int("9" * 18))


def test_unreadable_yaml_gives_one_line(tmp_path):
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"bits: \xff\xfe")
    for file, message in (
        (binary, "is not UTF-8"),
        (tmp_path / "missing.yaml", "No such file"),
        (tmp_path, "Is a directory"),
    ):
        with pytest.raises(InputError, match=message):
            parse_config(["--config", str(file)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--bits w1a4", "bits: expected w2a2 to w8a8, such as w4a4 or w4a8, got 'w1a4'"),
        ("--bits w9a4", "bits"),
        ("--bits w4a44", "bits"),
        ("--batch-size 0", "batch_size: expected a number above 0, got 0"),
        ("--batch-size -3", "batch_size: expected a number above 0, got -3"),
        ("--batch-size 1.5", "--batch-size: invalid int value: '1.5'"),
        ("--temperature 0", "temperature: expected a number above 0, got 0.0"),
        ("--temperature nan", "temperature: expected a finite number, got nan"),
        ("--batch-norm-weight inf", "batch_norm_weight: expected a finite number, got inf"),
        ("--label-weight -1", "label_weight: expected 0 or above, got -1.0"),
        ("--seed -1", "seed: expected 0 or above, got -1"),
        ("--mean 0.5 --std 0.5 0.5", "mean, std: expected as many values, got 1 and 2"),
        ("--std 0.5 0", "std: expected numbers above 0, got 0.0"),
        ("--mean nan", "mean: expected a finite number, got nan"),
        ("--device gpu", "device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("--device cuda:x", "device"),
        (
            "--precision float16 --device cpu",
            "precision: expected float32 or bfloat16 on cpu, got float16",
        ),
        ("--cuda-graphs on --device cpu", "cuda_graphs: expected auto or off on cpu, got on"),
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
        parse_config(arguments.split())
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
    with pytest.raises(InputError, match=r"torch finds 2 CUDA device\(s\), got 'cuda:2'"):
        resolve_device("cuda:2")
    assert parse_config(["--precision", "float16"]).execution.precision == "float16"
    assert parse_config(["--cuda-graphs", "on"]).execution.cuda_graphs == "on"
    with pytest.raises(InputError, match="cuda_graphs: expected auto or off with float16, got on"):
        parse_config(["--precision=float16", "--cuda-graphs=on"])


def test_cuda_without_cuda_gives_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(InputError, match=r"device: torch finds no CUDA.* got 'cuda'"):
        parse_config(["--device", "cuda"])


def test_output_folder_names_the_run():
    quantization = QuantizationConfig(bits="W4A8", scheme="paper")
    config = RunConfig(classifier="package.models:small", quantization=quantization, seed=3)
    assert config.output_folder() == Path("runs/package.models-small-w4a8-paper-seed3")
    assert replace(config, output=Path("here")).output_folder() == Path("here")


# ---- sections of YAML ----------------------------------------------------------------------------


def test_sections_say_the_same_as_flat_names(tmp_path):
    flat = (
        "bits: w3a3\nbatch_size: 7\nsynthesis_steps: 5\nfine_tuning_steps: 6\nseed: 2\n"
        "fine_tuning_batch_size: 4\nfine_tuning_learning_rate: 1e-3\nprecision: float32\n"
    )
    nested = (
        "quantization: {bits: w3a3}\nseed: 2\ngenerator:\n  batch_size: 7\n  steps: 5\n"
        "fine_tuning:\n  steps: 6\n  batch_size: 4\n  learning_rate: 1e-3\n"
        "execution:\n  precision: float32\n"
    )
    config = parse_config(config_file(tmp_path, nested))
    assert config == parse_config(config_file(tmp_path, flat))
    assert (config.generator.batch_size, config.fine_tuning.batch_size) == (7, 4)
    assert (config.generator.steps, config.fine_tuning.steps) == (5, 6)


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.section])
def test_every_setting_of_a_section_has_its_own_name_and_that_of_the_command_line(tmp_path, name):
    option = OPTIONS[name]
    value = other_value(option)
    for text in (
        yaml.safe_dump({name: as_yaml(value)}),
        yaml.safe_dump({option.section: {name: as_yaml(value)}}),
        yaml.safe_dump({option.section: {option.field.name: as_yaml(value)}}),
    ):
        config = parse_config(config_file(tmp_path, text))
        assert option.value_in(config) == value
        assert config == RunConfig().changed(**{**defaults_of({name: value}), name: value})


PATTERNS = {"layer_bits": ("features.*=w8a8", "fc=float"), "keep_float": ("features.0",)}


def as_yaml(value: object) -> object:
    """Return a value as YAML has it, which has no tuples."""
    return list(value) if isinstance(value, tuple) else value


def other_value(option: Option) -> object:
    """Return a value that a setting accepts and that is not its default."""
    hint = get_type_hints(option.configuration)[option.field.name]
    default = option.field.default
    if hint is bool:
        return not default
    if option.field.name in PATTERNS:
        return PATTERNS[option.field.name]
    if get_args(hint):
        on_any_device = [choice for choice in get_args(hint) if choice != "float16"]
        return on_any_device[-1]
    return {"w4a4": "w2a8", "auto": "cpu"}[default] if hint is str else default + 1


def test_the_command_line_wins_over_sections(tmp_path):
    arguments = config_file(tmp_path, "preset: quick\ngenerator: {steps: 5}\n")
    assert parse_config(arguments).generator.steps == 5
    assert parse_config(arguments).fine_tuning.steps == PRESETS["quick"]["fine_tuning_steps"]
    assert parse_config([*arguments, "--synthesis-steps=6"]).generator.steps == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("generator: {step: 3}", "unknown setting 'step' in generator, did you mean steps?"),
        ("generator: {bits: w4a4}", "unknown setting 'bits' in generator"),
        ("quantization: {fine_tuning_steps: 3}", "'fine_tuning_steps' in quantization"),
        ("execution: {3: 4}", "unknown setting 3 in execution"),
        ("execution: {seed: 4}", "unknown setting 'seed' in execution"),
        ("fine_tuning: {fine_tuning: {steps: 3}}", "unknown setting 'fine_tuning' in fine_tuning"),
        ("generator: 3", "gives generator a int, expected a mapping of settings"),
        ("generator:", "gives generator a NoneType, expected a mapping of settings"),
        ("quantization: [bits]", "gives quantization a list, expected a mapping of settings"),
        ("fine_tuning: steps", "gives fine_tuning a str, expected a mapping of settings"),
        ("generators: {steps: 3}", "unknown setting 'generators'"),
        ("run: {seed: 3}", "unknown setting 'run'"),
        ("generator: {steps: [3]}", "gives synthesis_steps a list"),
        ("generator: {steps: 0}", "synthesis_steps: expected a number above 0, got 0"),
        ("generator: {steps: {a: 1}}", "gives synthesis_steps a dict"),
        ("steps: 3", "unknown setting 'steps'"),
        ("synthesis_steps: 3\ngenerator: {steps: 4}", "gives synthesis_steps twice"),
        ("generator: {steps: 4, synthesis_steps: 3}", "gives synthesis_steps twice"),
    ],
)
def test_bad_sections_give_one_line(tmp_path, text, message):
    with pytest.raises(InputError) as error:
        parse_config(config_file(tmp_path, text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# ---- deprecated values ---------------------------------------------------------------------------

RENAMED = [
    ("ranges", "least_divergence", "min_kl"),
    ("rounding", "balanced", "squant"),
]


@pytest.fixture
def unwarned():
    """Warnings of this process, none of which was given yet."""
    warn_of_renamed.cache_clear()
    yield
    warn_of_renamed.cache_clear()


@pytest.mark.usefixtures("unwarned")
@pytest.mark.parametrize(("option", "former", "name"), RENAMED)
def test_former_values_are_accepted_with_one_warning(tmp_path, capsys, option, former, name):
    file = config_file(tmp_path, f"{option}: {former}\n")
    nested = tmp_path / "nested.yaml"
    nested.write_text(f"quantization:\n  {option}: {former}\n")
    configs = [
        parse_config([flag(option), former]),
        parse_config(file),
        parse_config(["--config", str(nested)]),
        RunConfig().changed(**{option: former}),
        RunConfig(quantization=QuantizationConfig(**{option: former})),
    ]
    assert configs == [RunConfig()] * len(configs)
    assert getattr(configs[0].quantization, option) == name
    assert f"{option}: {name}\n" in config_to_yaml(configs[0])
    printed = capsys.readouterr()
    expected = f"warning: {option}: {former} is deprecated, it is called {name} now\n"
    assert (printed.out, printed.err) == ("", expected)


@pytest.mark.usefixtures("unwarned")
def test_names_of_today_give_no_warning_and_help_shows_no_former_ones(capsys):
    parse_config(["--rounding=squant", "--ranges=min_kl"])
    assert capsys.readouterr().err == ""
    with pytest.raises(SystemExit):
        parse_config(["--help"])
    shown = capsys.readouterr().out
    assert not any(former in shown for _, former, _ in RENAMED)


@pytest.mark.usefixtures("unwarned")
def test_a_former_value_is_one_of_its_own_setting_alone():
    with pytest.raises(InputError, match="rounding: expected one of squant, nearest, got 'least_"):
        QuantizationConfig(rounding="least_divergence")
    with pytest.raises(InputError, match="invalid choice: 'balanced'"):
        parse_config(["--ranges", "balanced"])


# ---- each configuration alone --------------------------------------------------------------------

CONFIGURATIONS = [RunConfig, *SECTIONS.values()]


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_configurations_are_frozen_and_equal_by_value(configuration):
    config = configuration()
    assert config == configuration()
    assert hash(config) == hash(configuration())
    for each in fields(configuration):
        with pytest.raises(FrozenInstanceError):
            setattr(config, each.name, getattr(config, each.name))
    with pytest.raises(TypeError, match="unexpected keyword"):
        configuration(something_else=1)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_setting_refuses_other_types(name):
    option = OPTIONS[name]
    for value in (object(), {}, b"4", 1j, [[1]], [None]):
        with pytest.raises(InputError, match=f"^{name}: expected .*, got "):
            option.configuration(**{option.field.name: value})


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("value", [None, 3, {"steps": 3}, RunConfig()])
def test_a_section_is_a_configuration_of_its_class(name, value):
    expected = f"{SECTIONS[name].__name__}, got {type(value).__name__}"
    with pytest.raises(InputError, match=f"^{name}: expected {expected}$"):
        RunConfig(**{name: value})
    with pytest.raises(InputError, match=f"^unknown setting {name}"):
        RunConfig().changed(**{name: value})


def kinds(configuration: type, name: str) -> tuple[object, ...]:
    """Return the types that a setting may have."""
    hint = get_type_hints(configuration)[name]
    return get_args(hint) or (hint,)


NUMBERS = [
    (option.configuration, option.field.name, option.field.metadata)
    for option in OPTIONS.values()
    if {int, float}.intersection(kinds(option.configuration, option.field.name))
]


def is_within(value: float, limits: Mapping[str, float | None]) -> bool:
    """Return True if a number is finite and within the limits of a setting."""
    above, at_least, at_most = (limits[name] for name in ("above", "at_least", "at_most"))
    return (
        not (isinstance(value, float) and not math.isfinite(value))
        and (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (at_most is None or value <= at_most)
    )


@pytest.mark.parametrize(("configuration", "name", "limits"), NUMBERS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_numbers_are_accepted_within_their_range_alone(configuration, name, limits, data):
    is_whole = int in kinds(configuration, name)
    edges = [edge for edge in limits.values() if isinstance(edge, int)]
    near = [edge + step for edge in edges for step in (-1, 0, 1)] or [0]
    whole = st.one_of(st.sampled_from(near), st.integers(), st.just(10**400))
    value = data.draw(whole if is_whole else st.one_of(whole, st.floats()))
    fits = is_within(value, limits) and abs(value) <= (
        2**63 - 1 if is_whole else sys.float_info.max
    )
    if fits:
        kept = getattr(configuration(**{name: value}), name)
        assert kept == (value if is_whole else float(value))
        assert type(kept) is (int if is_whole else float)
    else:
        with pytest.raises(InputError) as error:
            configuration(**{name: value})
        assert re.match(r"\w+: expected .* got ", str(error.value))
        assert "\n" not in str(error.value)


def test_every_limit_is_that_of_its_setting():
    """The least and the most that settings accept, written here once more."""
    zero = {"fine_tuning_steps", "seed", "output_index"} | {
        name for name in OPTIONS if name.endswith("_weight")
    }
    numbers = {
        name
        for name, option in OPTIONS.items()
        if (option.configuration, option.field.name) in {each[:2] for each in NUMBERS}
    }
    for name in numbers:
        changed = RunConfig().changed
        if name in zero:
            changed(**{name: 0})
            with pytest.raises(InputError, match=f"^{name}: expected 0 or above"):
                changed(**{name: -1})
        else:
            with pytest.raises(InputError, match=f"^{name}: expected a number above 0"):
                changed(**{name: 0})
    most = {
        **dict.fromkeys(("latent_dim", "batch_size", "fine_tuning_batch_size"), 2**20),
        **dict.fromkeys(("synthesis_steps", "fine_tuning_steps", "calibration_batches"), 2**40),
        **{"num_classes": 2**20, "log_interval": 2**40, "seed": 2**50},
    }
    for name, value in most.items():
        assert RunConfig().changed(**{name: value}).options()[name] == value
        with pytest.raises(InputError, match=f"^{name}: expected {value:,} or below"):
            RunConfig().changed(**{name: value + 1})


@pytest.mark.parametrize("value", [np.float32("nan"), np.float64("inf"), float("nan"), 10**400])
def test_no_number_of_any_type_is_infinite(value):
    for call in (
        lambda: FineTuningConfig(temperature=value),
        lambda: GeneratorConfig(learning_rate=value),
        lambda: RunConfig(mean=[0.5, value]),
    ):
        with pytest.raises(InputError, match="expected a finite number"):
            call()


def test_equivalent_types_become_those_that_are_written(tmp_path):
    config = RunConfig(
        seed=np.int64(3),
        mean=[np.float32(0.5)],
        std=[1],
        weights="a.pt",
        output="out",
        generator=GeneratorConfig(steps=np.int32(5), learning_rate=np.float64(0.25)),
        fine_tuning=FineTuningConfig(temperature=2),
        execution=ExecutionConfig(device=torch.device("cpu")),
    )
    assert (config.weights, config.output_folder()) == (Path("a.pt"), Path("out"))
    assert config.mean == (0.5,)
    assert config.execution.resolved_device() == torch.device("cpu")
    assert parse_config(config_file(tmp_path, config_to_yaml(config))) == config


def test_a_wrong_option_by_name_is_told_with_the_nearest():
    with pytest.raises(InputError, match=r"^unknown setting bit, did you mean bits"):
        RunConfig().changed(bit="w4a4")
    with pytest.raises(InputError, match=r"^unknown setting steps"):
        RunConfig.of_options({"steps": 3})


def test_changed_leaves_the_rest_and_the_original_as_they_were():
    config = RunConfig(seed=4, generator=GeneratorConfig(steps=5))
    changed = config.changed(bits="w2a2", latent_dim=3)
    assert config == RunConfig(seed=4, generator=GeneratorConfig(steps=5))
    different = {n for n, v in changed.options().items() if v != config.options()[n]}
    assert different == {"bits", "latent_dim"}
    assert config.changed() == config
