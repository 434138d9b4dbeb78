"""Reads the machine code of a kernel, as `cuobjdump -sass` prints it.

The inner loop is the one with the most 16-byte accesses to tensors. Of the paths through it the one
that whole, aligned 8-element vectors take makes all of them, with the fewest decisions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

FUNCTION = re.compile(r"^\s*Function : (\S+)", re.MULTILINE)
INSTRUCTION = re.compile(
    r"/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<guard>@!?U?P\w+\s+)?(?P<name>[A-Z][A-Z0-9_.]*)"
    r"(?P<operands>[^;]*);"
)
TARGET = re.compile(r"0x([0-9a-f]+)\s*$")
WIDE_BYTES = 16


@dataclass(frozen=True)
class Instruction:
    """One instruction: where it stands, whether it is guarded, and where it may jump."""

    address: int
    name: str
    operands: str
    guarded: bool

    @property
    def target(self) -> int | None:
        """The address that its operands end with, where it is a branch."""
        found = TARGET.search(self.operands)
        is_branch = self.name.split(".")[0] in ("BRA", "BSSY")
        return int(found[1], 16) if found and is_branch else None

    @property
    def is_wide(self) -> bool:
        """Whether it reads or writes 16 bytes of a tensor.

        Loads that are "strong" are those of partial results of other blocks.
        """
        is_load = self.name.startswith("LDG") and "STRONG" not in self.name
        return (is_load or self.name.startswith("STG")) and ".128" in self.name

    @property
    def is_local(self) -> bool:
        """Whether it reads or writes local memory, where registers did not suffice."""
        return self.name.startswith(("LDL", "STL"))


@dataclass(frozen=True)
class Loop:
    """What one pass of the inner loop executes for whole 8-element vectors."""

    instructions: int
    wide_loads: int
    wide_stores: int

    @property
    def bytes(self) -> int:
        """Bytes that a thread reads and writes in a pass."""
        return WIDE_BYTES * (self.wide_loads + self.wide_stores)


def functions(listing: str) -> Iterator[tuple[str, list[Instruction]]]:
    """Yield every function of a listing by its symbol."""
    starts = list(FUNCTION.finditer(listing))
    ends = [start.start() for start in starts[1:]] + [len(listing)]
    for start, end in zip(starts, ends, strict=False):  # a listing may hold no function
        body = listing[start.end() : end]
        yield (
            start[1],
            [
                Instruction(int(m["address"], 16), m["name"], m["operands"], bool(m["guard"]))
                for m in INSTRUCTION.finditer(body)
            ],
        )


def successors(code: list[Instruction]) -> list[list[int]]:
    """Return for every instruction the places of those that may follow it."""
    places = {instruction.address: place for place, instruction in enumerate(code)}
    following: list[list[int]] = []
    joins: dict[str, int] = {}  # where threads meet that parted, by barrier register
    for place, instruction in enumerate(code):
        kind, target = instruction.name.split(".")[0], instruction.target
        found = [place + 1] if place + 1 < len(code) else []
        if kind == "BSSY" and target is not None:
            joins[instruction.operands.split(",")[0].strip()] = target
        elif kind == "BSYNC":
            join = joins.get(instruction.operands.strip())
            found = found if join is None else [places[join]]
        elif kind == "BRA" and target is not None:
            is_conditional = instruction.guarded or "," in instruction.operands
            found = (found if is_conditional else []) + [places[target]]
        elif kind in ("EXIT", "RET") and not instruction.guarded:
            found = []
        following.append(found)
    return following


def body_of(following: list[list[int]], header: int, source: int) -> set[int]:
    """Return the instructions of the loop that jumps from `source` back to `header`."""
    before: dict[int, list[int]] = {}
    for place, targets in enumerate(following):
        for target in targets:
            before.setdefault(target, []).append(place)
    body, waiting = {header}, [source]
    while waiting:
        place = waiting.pop()
        if place not in body:
            body.add(place)
            waiting += before.get(place, [])
    return body


def in_order(following: list[list[int]], first: int, body: set[int]) -> list[int]:
    """Return the instructions that `first` leads to, every one behind those it leads to itself.

    Where they form a cycle, the edge that closes it does not count.
    """
    done: list[int] = []
    seen = {first}
    stack = [(first, iter(following[first]))]
    while stack:
        place, targets = stack[-1]
        onward = next((t for t in targets if t in body and t not in seen), None)
        if onward is None:
            done.append(place)
            stack.pop()
        else:
            seen.add(onward)
            stack.append((onward, iter(following[onward])))
    return done


def best_path(
    code: list[Instruction], following: list[list[int]], first: int, last: int, body: set[int]
) -> Loop:
    """Return the path of whole 8-element vectors from `first` to `last`.

    It has the most wide accesses and then the fewest decisions, since elements that are looked at
    one by one take one each; then the fewest instructions.
    """
    best: dict[int, tuple[int, int, int, int, int]] = {}
    for place in in_order(following, first, body):
        # Accesses, decisions and instructions (negative), loads, stores.
        onward = [best[target] for target in following[place] if target in best and target != first]
        if place == last:
            onward = [(0, 0, 0, 0, 0)]
        if not onward:
            continue
        accesses, decisions, length, loads, stores = max(onward)
        is_wide, is_load = code[place].is_wide, code[place].name.startswith("LDG")
        best[place] = (
            accesses + is_wide,
            decisions - (len(following[place]) > 1),
            length - 1,
            loads + (is_wide and is_load),
            stores + (is_wide and not is_load),
        )
    _, _, length, loads, stores = best.get(first, (0, 0, 0, 0, 0))
    return Loop(-length, loads, stores)


def inner_loop(code: list[Instruction]) -> Loop:
    """Return the pass of the loop with the most wide accesses; of all code where there is none."""
    following = successors(code)
    loops = []
    for place, targets in enumerate(following):
        for target in targets:
            if target < place:
                body = body_of(following, target, place)
                loops.append(best_path(code, following, target, place, body))
    found = max(loops, key=lambda loop: (loop.bytes, -loop.instructions), default=None)
    if found is not None and found.bytes > 0:
        return found
    ends = [i for i, one in enumerate(code) if one.name == "EXIT" and not one.guarded]
    everything = set(range(len(code)))
    paths = [best_path(code, following, 0, end, everything) for end in ends]
    return max(paths, key=lambda loop: (loop.bytes, -loop.instructions))
