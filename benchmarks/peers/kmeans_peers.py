"""One peer on rows of numbers, in a process of its own: ``python kmeans_peers.py PEER LEVELS INPUT.npz OUTPUT.npz``.

Reads ``x`` and ``w`` (rows, n), writes ``labels`` (rows, n), ``seconds`` of CPU after the imports and a first row, which
compiles what compiles, and ``version``. Needs nothing of the project.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

Row = np.ndarray[Any, np.dtype[Any]]


def ckwrap() -> Callable[[Row, Row, int], Row]:
    import ckwrap

    return lambda x, w, k: ckwrap.ckmeans(x, k, weights=w).labels


def kmeans1d() -> Callable[[Row, Row, int], Row]:
    import kmeans1d

    return lambda x, w, k: kmeans1d.cluster(x, k).clusters


def fast1dkmeans() -> Callable[[Row, Row, int], Row]:
    import fast1dkmeans

    return lambda x, w, k: fast1dkmeans.cluster(x, k, method="dynamic-programming-kn")  # its fastest


def flash1dkmeans() -> Callable[[Row, Row, int], Row]:
    import flash1dkmeans

    return lambda x, w, k: flash1dkmeans.kmeans_1d(x, k, sample_weights=w, random_state=0)[1]


def sklearn() -> Callable[[Row, Row, int], Row]:
    from sklearn.cluster import KMeans

    return lambda x, w, k: KMeans(k, n_init=1, random_state=0).fit(x[:, None], sample_weight=w).labels_


PEERS: dict[str, tuple[str, Callable[[], Callable[[Row, Row, int], Row]]]] = {
    "ckwrap": ("ckwrap", ckwrap),
    "kmeans1d": ("kmeans1d", kmeans1d),
    "fast1dkmeans": ("fast1dkmeans", fast1dkmeans),
    "flash1dkmeans": ("flash1dkmeans", flash1dkmeans),
    "scikit-learn": ("scikit-learn", sklearn),
}


def main() -> None:
    name, levels, source, target = sys.argv[1:]
    package, load = PEERS[name]
    given = np.load(source)
    warnings.simplefilter("ignore")
    solve = load()
    x, w = given["x"].astype(np.float64), given["w"].astype(np.float64)
    solve(x[0], w[0], int(levels))
    began = time.process_time()
    labels = [solve(one, weight, int(levels)) for one, weight in zip(x, w, strict=True)]
    seconds = time.process_time() - began
    np.savez(target, labels=np.array(labels), seconds=seconds, version=version(package))


if __name__ == "__main__":
    main()
