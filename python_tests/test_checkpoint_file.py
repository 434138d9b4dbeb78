"""One checkpoint as a file: what goes in comes out, and damage is noticed."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from zscgan_ext.errors import InputError
from zscgan_ext.run_folder.checkpoint_file import (
    LAYOUT,
    DamagedCheckpointError,
    checkpoint_files,
    checksum,
    decode,
    encode,
    newest_checkpoint,
    number_of,
    read_checkpoint,
    write_checkpoint,
)
from zscgan_ext.run_folder.files import CHECKPOINTS

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    random = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return torch.randint(0, 2, shape, generator=random).to(draw(st.sampled_from(DTYPES)))


LEAVES = st.one_of(
    tensors(), st.none(), st.booleans(), st.integers(), st.text(), st.floats(allow_nan=False)
)
STATES = st.dictionaries(
    st.text(),
    st.recursive(
        LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner)
    ),
    max_size=4,
)


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@settings(deadline=None, max_examples=50)
@given(STATES)
def test_a_state_comes_back_as_it_was(state):
    assert same(decode(encode(state)), state)


def test_a_number_keeps_every_bit():
    values = [0.1 + 0.2, 5e-324, math.inf, -0.0, 1 / 3]
    assert [v.hex() for v in decode(encode({"values": values}))["values"]] == [
        v.hex() for v in values
    ]


def test_layouts_and_shared_memory_do_not_matter():
    values = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    state = {"a": values, "b": values[:, 1:], "c": values.requires_grad_()}
    assert same(decode(encode(state)), {k: v.detach() for k, v in state.items()})


STATE = {"weights": torch.arange(12.0).view(3, 4), "steps": 7, "finished": ["synthesis"]}


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_damage_anywhere_is_noticed(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    file = write_checkpoint(folder, 1, STATE)
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="is truncated or corrupt"):
        read_checkpoint(file)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_with_the_right_checksum_give_one_line(tmp_path_factory, content, has_header):
    if has_header:
        content = len(content).to_bytes(8, "little") + content
    file = tmp_path_factory.mktemp("strange") / f"000001-{checksum(content)}.safetensors"
    file.write_bytes(content)
    with pytest.raises(DamagedCheckpointError) as error:
        read_checkpoint(file)
    assert "\n" not in str(error.value)


def test_other_tools_read_it(tmp_path):
    file = write_checkpoint(tmp_path, 3, STATE)
    with safe_open(file, "pt") as opened:
        assert list(opened.keys()) == ["/weights"]
        assert torch.equal(opened.get_tensor("/weights"), STATE["weights"])


def test_files_are_ordered_by_number_and_others_are_left_alone(tmp_path):
    for number in (1_000_000, 2, 10):
        write_checkpoint(tmp_path, number, STATE)
    (tmp_path / "mine.safetensors").touch()
    (tmp_path / ".000099-0000000000000000.safetensors.partial").touch()
    assert [number_of(file) for file in checkpoint_files(tmp_path)] == [2, 10, 1_000_000]
    assert checkpoint_files(tmp_path / "nowhere") == []


@pytest.mark.parametrize("reason", ["No space left on device", "Read-only file system"])
def test_a_failed_write_leaves_nothing_and_the_one_before(tmp_path, monkeypatch, reason):
    before = write_checkpoint(tmp_path, 1, STATE)

    def fail(*_: object) -> None:
        raise OSError(28, reason)

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(InputError, match=rf"cannot be written \({reason}\)"):
        write_checkpoint(tmp_path, 2, STATE)
    assert list(Path(tmp_path).iterdir()) == [before]
    assert same(read_checkpoint(before), STATE)


def test_a_folder_in_its_place_gives_one_line(tmp_path):
    (tmp_path / "000001-0123456789abcdef.safetensors").mkdir()
    (file,) = checkpoint_files(tmp_path)
    with pytest.raises(DamagedCheckpointError, match="cannot be read"):
        read_checkpoint(file)


# ---- those of a run ------------------------------------------------------------------------------

OF_A_RUN = {
    "layout": LAYOUT,
    "facts": {"seed": "0"},
    "finished": ["synthesis"],
    "steps": 7,
    "held": {"weight": {"0": torch.arange(3.0)}},
    "rngs_of_all": [{"default_rng": {}, "rngs": {}}],
}


def test_the_newest_one_of_a_run_is_read(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    for number in (1, 2):
        write_checkpoint(tmp_path / CHECKPOINTS, number, OF_A_RUN | {"steps": number})
    assert same(newest_checkpoint(tmp_path), OF_A_RUN | {"steps": 2})


@pytest.mark.parametrize(
    "layout", [LAYOUT - 1, LAYOUT + 1, str(LAYOUT), [], None, torch.zeros(2), "missing"]
)
@pytest.mark.parametrize("others", [{}, {"steps": -1, "held": [], "random_of_all": []}])
def test_another_layout_is_refused_whatever_it_holds(tmp_path, capsys, layout, others):
    write_checkpoint(tmp_path / CHECKPOINTS, 1, OF_A_RUN)
    state = OF_A_RUN | {"layout": layout} | others
    if layout == "missing":
        del state["layout"]
    write_checkpoint(tmp_path / CHECKPOINTS, 2, state)
    before = {file: file.read_bytes() for file in (tmp_path / CHECKPOINTS).iterdir()}
    with pytest.raises(InputError, match=r"^resume: another version of zscgan_ext wrote") as error:
        newest_checkpoint(tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert capsys.readouterr().err == ""
    assert {file: file.read_bytes() for file in (tmp_path / CHECKPOINTS).iterdir()} == before


@pytest.mark.parametrize(
    "change",
    [{"steps": -1}, {"steps": "7"}, {"held": []}, {"rngs_of_all": []}, {"finished": [1]}],
)
def test_what_no_run_has_written_counts_as_damaged(tmp_path, capsys, change):
    write_checkpoint(tmp_path / CHECKPOINTS, 1, OF_A_RUN)
    file = write_checkpoint(tmp_path / CHECKPOINTS, 2, OF_A_RUN | change)
    assert same(newest_checkpoint(tmp_path), OF_A_RUN)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"checkpoint: {file} is no checkpoint of a run (")
    assert line.endswith("; the one before it is used")
