"""A little of what `benchmarks/checks/fuzz_readers.py` does, without atheris."""

import random

import pytest

from benchmarks.checks import fuzz_readers
from zscgan_ext.errors import InputError

FILES = 60


def damaged(content: bytes, seed: int) -> bytes:
    """Change a few bytes, or cut something out."""
    chance, changed = random.Random(seed), bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(changed) or 1)
        if chance.random() < 0.7 and changed:
            changed[place] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        else:
            del changed[place : place + chance.randint(1, 40)]
    return bytes(changed)


@pytest.mark.parametrize("name", fuzz_readers.READERS)
def test_damaged_files_are_read_or_refused(tmp_path, name):
    reader = fuzz_readers.READERS[name]
    seeds = list(reader.seeds())
    messages = []
    for index in range(FILES):
        good = seeds[index % len(seeds)]
        bad = fuzz_readers.mutate(good, lambda part, i=index: damaged(part, i), index)
        (tmp_path / reader.file).write_bytes(bad)
        try:
            reader.read(tmp_path / reader.file)
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > FILES / 10
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize("name", [name for name in fuzz_readers.READERS if name != "image"])
def test_good_files_are_read(tmp_path, name):
    reader = fuzz_readers.READERS[name]
    (tmp_path / reader.file).write_bytes(next(iter(reader.seeds())))
    reader.read(tmp_path / reader.file)  # or it raises
