"""Calls of the native library written down with all memory they need, for ``replay.c`` to do elsewhere."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FITS, PRODUCT, PLANES, KMEANS, COLUMNS, READ, DECODE = range(7)
ALIGNED, NUMBERS, NAME = 64, 16, 16


def parts_of(one: Any) -> Iterator[Any]:
    """All arrays and structures that an object keeps."""
    if isinstance(one, np.ndarray | ctypes.Structure | ctypes.Array):
        yield one
    elif isinstance(one, list | tuple):
        for part in one:
            yield from parts_of(part)
    elif hasattr(one, "__dict__") and not isinstance(one, type):
        for part in vars(one).values():
            yield from parts_of(part)


def address_of(one: Any) -> int:
    return one.ctypes.data if isinstance(one, np.ndarray) else ctypes.addressof(one)


def pointers_in(one: Any, start: int = 0) -> Iterator[tuple[int, int]]:
    """Places of a structure's pointers, and what they are."""
    if isinstance(one, ctypes.Array):
        for i, part in enumerate(one):
            yield from pointers_in(part, start + i * ctypes.sizeof(part))
        return
    for name, kind in one._fields_:
        value, place = getattr(one, name), start + getattr(type(one), name).offset
        if isinstance(value, ctypes.Structure):
            yield from pointers_in(value, place)
        elif kind is ctypes.c_void_p and value:
            yield place, value
        elif hasattr(kind, "contents") and value:
            yield place, ctypes.cast(value, ctypes.c_void_p).value


@dataclass
class Image:
    """Memory, and calls on it."""

    memory: bytearray = field(default_factory=lambda: bytearray(ALIGNED))
    pointers: list[tuple[int, int]] = field(default_factory=list)
    calls: list[tuple[int, ...]] = field(default_factory=list)
    outputs: list[tuple[str, int, NDArray[Any]]] = field(default_factory=list)
    _known: dict[int, Any] = field(default_factory=dict)
    _places: dict[int, int] = field(default_factory=dict)
    _kept: list[Any] = field(default_factory=list)

    def put(self, one: Any) -> int:
        """An array, or a structure and all that it points to; its place."""
        address = address_of(one)
        if address in self._places:
            return self._places[address]
        self._kept.append(one)  # so that no other one comes to have its address
        self.memory += bytes(-len(self.memory) % ALIGNED)
        place = self._places[address] = len(self.memory)
        self.memory += one.tobytes() if isinstance(one, np.ndarray) else bytes(one)
        self.memory += bytes(ALIGNED)
        if not isinstance(one, np.ndarray):
            for where, goal in pointers_in(one):
                self.pointers.append((place + where, self.put(self._known[goal])))
        return place

    def keep(self, owner: Any) -> None:
        """What an object's structures may point to."""
        self._kept.append(owner)
        self._known |= {address_of(one): one for one in parts_of(owner)}

    def at(self, address: int) -> int:
        """The place of what an object that is kept has there."""
        return self.put(self._known[address])

    def out(self, name: str, one: NDArray[Any]) -> int:
        """An array that is written to."""
        place = self.put(one)
        self.outputs.append((name, place, one))
        return place

    def call(self, function: int, *numbers: int) -> None:
        """With places for pointers, and without the set of instructions."""
        given = (function, *map(int, numbers))
        self.calls.append(given + (0,) * (NUMBERS - len(given)))

    def write(self, path: Path) -> None:
        """As ``replay.c`` reads it."""
        numbers = [len(self.memory), len(self.pointers), len(self.calls)]
        numbers += [one for pair in (*self.pointers, *self.calls) for one in pair]
        path.write_bytes(struct.pack(f"<{len(numbers)}q", *numbers) + self.memory)

    def answers(self, path: Path) -> dict[str, dict[str, NDArray[Any]]]:
        """Set of instructions -> output -> what it holds; ``gave`` is what the calls gave."""
        data, found, size = path.read_bytes(), {}, len(self.memory)
        each = NAME + 8 * len(self.calls) + size
        for start in range(0, len(data), each):
            name = data[start : start + NAME].rstrip(b"\0").decode()
            memory = data[start + each - size : start + each]
            gave = np.frombuffer(data, np.int64, len(self.calls), start + NAME)
            found[name] = {"gave": gave} | {
                own: np.frombuffer(memory, one.dtype, one.size, place).reshape(one.shape)
                for own, place, one in self.outputs
            }
        return found
