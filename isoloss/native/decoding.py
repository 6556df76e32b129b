"""A whole language model handed over to native code: its weights as structures, its step as one call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoloss.native.kmeans import check
from isoloss.native.products import Floats, Weight, address_of, needed_library, place_of

Upper = NDArray[np.uint16]
GATED, SQUARED = range(2)
MOST_SIZE = 256
"""Numbers of a head."""


class _Matrix(ctypes.Structure):
    """``isoloss_matrix`` of ``native/isoloss.h``; a test holds these structures against it."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "floats", "bias")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "upper", "parts")),
    ]


_OF_LAYER = ("q", "k", "v", "out", "gate", "up", "down")
_NORMS = ("attention_norm", "mlp_norm", "q_norm", "k_norm")


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Matrix) for name in _OF_LAYER),
        *((name, ctypes.c_void_p) for name in _NORMS),
    ]


_SIZES = (
    "layers", "width", "heads", "kv_heads", "size", "inner", "vocabulary", "context", "act", "normed_heads",
)  # fmt: skip


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_float) for name in ("eps", "head_eps", "score_scale", "unused")),
        *((name, ctypes.c_void_p) for name in ("cosine", "sine", "norm")),
        ("embedding", _Matrix),
        ("head", _Matrix),
        ("layer", ctypes.POINTER(_Layer)),
    ]


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix of a model.

    Attributes:
        weight: compressed; or rows × columns of float32, or of bfloat16 as uint16.
        parts: of a compressed one: activations in 8 bits (1) or 16 (2); with tables of fp16 numbers 1.
        bias: (rows,).

    Raises:
        ValueError: arrays other than these.
    """

    weight: Weight | Floats | Upper
    parts: int = 1
    bias: Floats | None = None

    def __post_init__(self) -> None:
        one = self.weight
        if isinstance(one, np.ndarray):
            check("a weight", one, (one.shape[:1] + one.shape[1:2],), ("f4", "u2"))
        if self.parts not in (1, 2):
            raise ValueError(f"activations are of 1 or 2 parts, got {self.parts}")
        if self.bias is not None:
            check("bias", self.bias, ((self.shape[0],),), ("f4",))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        if isinstance(self.weight, np.ndarray):
            return self.weight.shape[0], self.weight.shape[1]
        return self.weight.shape


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """Weights of a layer; ``k`` and ``v`` are None where ``q`` has their rows behind its own, ``gate`` where there is none.

    Attributes:
        norms: of attention, MLP, queries and keys; None: no weights.
    """

    q: Matrix
    k: Matrix | None
    v: Matrix | None
    out: Matrix
    gate: Matrix | None
    up: Matrix
    down: Matrix
    norms: tuple[Floats | None, Floats | None, Floats | None, Floats | None]


@dataclass(frozen=True, eq=False)
class Sizes:
    """Of a model; as ``isoloss_model`` in ``native/isoloss.h``."""

    width: int
    heads: int
    kv_heads: int
    size: int
    inner: int
    vocabulary: int
    context: int
    act: int
    normed_heads: bool
    eps: float
    head_eps: float


@dataclass(eq=False)
class Native:
    """A model that native code runs; keeps alive what its structures point to.

    Args:
        sizes: of it.
        layers: in order.
        embedding: vocabulary × width.
        head: the same shape.
        norm: (width,), or None.
        cosine: (context, size / 2); sine: the same.

    Raises:
        ValueError: shapes that do not belong together.
    """

    sizes: Sizes
    layers: Sequence[LayerWeights]
    embedding: Matrix
    head: Matrix
    norm: Floats | None
    cosine: Floats
    sine: Floats
    _kept: list[Any] = field(default_factory=list, repr=False)
    _scratch: list[NDArray[np.uint8]] = field(default_factory=list, repr=False)  # one for each thread at work

    def __post_init__(self) -> None:
        own, s = self.layers, self.sizes
        if not 2 <= s.size <= MOST_SIZE or s.size % 2 or s.heads % s.kv_heads:
            raise ValueError(f"heads need an even size of 2 to {MOST_SIZE} and whole groups, got {s}")
        check("cosine", self.cosine, ((s.context, s.size // 2),), ("f4",))
        check("sine", self.sine, ((s.context, s.size // 2),), ("f4",))
        every = (s.heads + 2 * s.kv_heads) * s.size
        fits = [(self.embedding, s.vocabulary, s.width), (self.head, s.vocabulary, s.width)]
        for one in own:
            read = [one.q, one.k, one.v] if one.k is not None else [one.q]
            rows = [s.heads * s.size, *[s.kv_heads * s.size] * 2] if one.k is not None else [every]
            fits += [(w, n, s.width) for w, n in zip(read, rows, strict=True) if w is not None]
            fits += [
                (one.out, s.width, s.heads * s.size),
                (one.up, s.inner, s.width),
                (one.down, s.width, s.inner),
            ]
            fits += [] if one.gate is None else [(one.gate, s.inner, s.width)]
            if (one.k is None) != (one.v is None) or (one.gate is None) != (s.act == SQUARED):
                raise ValueError("needed k and v or neither, and a gate where there is one for all layers")
            for norm, n in zip(one.norms, (s.width, s.width, s.size, s.size), strict=True):
                if norm is not None:
                    check("norm", norm, ((n,),), ("f4",))
        for weight, rows_of, columns in fits:
            if weight.shape != (rows_of, columns):
                raise ValueError(
                    f"needed a weight of {rows_of} x {columns}, got {weight.shape[0]} x {weight.shape[1]}"
                )
        if self.norm is not None:
            check("norm", self.norm, ((s.width,),), ("f4",))
        made = (_Layer * len(own))()
        for to, one in zip(made, own, strict=True):
            for name in _OF_LAYER:
                setattr(to, name, self._matrix(getattr(one, name)))
            for name, norm in zip(_NORMS, one.norms, strict=True):
                setattr(to, name, self._at(norm))
        self._layers = made
        self._model = _Model(
            layers=len(own), eps=s.eps, head_eps=s.head_eps, score_scale=s.size**-0.5,
            **{name: getattr(s, name) for name in _SIZES[1:]},
            cosine=self._at(self.cosine), sine=self._at(self.sine), norm=self._at(self.norm),
            embedding=self._matrix(self.embedding), head=self._matrix(self.head), layer=made,
        )  # fmt: skip

    def _at(self, array: NDArray[Any] | None) -> int | None:
        if array is None:
            return None
        if not array.flags.c_contiguous:
            raise ValueError("arrays of a model need to be contiguous")
        self._kept.append(array)
        return address_of(array)

    def _matrix(self, given: Matrix | None) -> _Matrix:
        if given is None:
            return _Matrix()
        one, (rows, columns) = given.weight, given.shape
        made = _Matrix(rows=rows, columns=columns, parts=given.parts, bias=self._at(given.bias))
        if isinstance(one, np.ndarray):
            made.floats, made.upper = self._at(one), int(one.dtype == np.uint16)
        else:
            self._kept.append(one)
            made.weight = one.address
        return made

    def step(
        self,
        ids: NDArray[np.int64],
        position: NDArray[np.int64],
        caches: Sequence[int],
        rooms: Sequence[int],
        hidden: Floats,
        logits: Floats | None,
        threads: int,
        instructions: str | None = None,
    ) -> None:
        """Tokens through the model.

        Args:
            ids: (tokens,).
            position: (tokens,): place of each in its text; those of one text ascend.
            caches: address of the keys and values of each token's text: float32, (layers, 2, kv_heads, places, size filled up
                to 16).
            rooms: places in it.
            hidden: (tokens, width), written: what the head gets.
            logits: (tokens, vocabulary), written; None: not wanted.
            threads: that share products.
            instructions: one of ``status().sets``; the best by default.

        Raises:
            RuntimeError: there is no native code.
            ValueError: shapes or types other than these, a token or position out of range.
        """
        found, tokens = needed_library(), len(ids)
        check("ids", ids, ((tokens,),), ("i8",))
        check("position", position, ((len(caches),),), ("i8",))
        check("hidden", hidden, ((len(rooms), self.sizes.width),), ("f4",))
        if logits is not None:
            check("logits", logits, ((tokens, self.sizes.vocabulary),), ("f4",))
        at = np.array(caches, np.uint64)
        room = np.array(rooms, np.int64)
        place = place_of(instructions)
        scratch = self._scratch.pop() if self._scratch else np.empty(0, np.uint8)
        while True:
            answer = found.isoloss_decode(
                ctypes.addressof(self._model), address_of(ids), address_of(position), tokens, address_of(at), address_of(room), address_of(hidden),
                None if logits is None else address_of(logits), address_of(scratch), scratch.nbytes, threads, place,
            )  # fmt: skip
            if answer == 0:
                self._scratch.append(scratch)
                return
            if answer == -1:
                raise MemoryError(f"a reading of {tokens} tokens found no memory")
            if answer < 0:
                raise ValueError(
                    f"tokens need to be 0 to {self.sizes.vocabulary - 1} and positions below {self.sizes.context} and "
                    f"within their cache, got {ids.tolist()} at {position.tolist()}"
                )
            scratch = np.empty(2 * answer, np.uint8)
