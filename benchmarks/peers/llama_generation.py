"""llama.cpp beside the project's decoder: told on standard input what to time, says on standard output what it took.

Run by a Python that has `xllamacpp`, which is llama.cpp as a package: FOLDER TYPE,TYPE... THREADS,THREADS... Each line of
input is JSON, {"type", "threads", "context", "new"}; the answer is {"seconds", "cpu"} of the new tokens, by llama.cpp's own clock
and by that clock's share of all CPU seconds, or {"error"}. The first line that comes out says what it was built for.
"""

from __future__ import annotations

import json
import os
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import xllamacpp


def server(path: str, threads: int):
    """A model of a file, with one text at a time."""
    given = xllamacpp.CommonParams()
    given.model.path = path
    given.n_ctx, given.n_parallel, given.n_gpu_layers = 512, 1, 0
    given.cpuparams.n_threads = given.cpuparams_batch.n_threads = threads
    given.warmup, given.fit_params, given.verbosity = False, False, -1
    return xllamacpp.Server(given)


def timed(one, context: int, new: int) -> dict:
    """The likeliest tokens after `context` others."""
    ids = [1 + 7919 * i % 40000 for i in range(context)]
    worked = time.process_time()
    answer = one.handle_completions(
        {"prompt": ids, "n_predict": new, "max_tokens": new, "temperature": 0.0, "top_k": 1, "cache_prompt": False,
         "ignore_eos": True}
    )  # fmt: skip
    answer = json.loads(answer) if isinstance(answer, str) else answer
    told, worked = answer["timings"], time.process_time() - worked
    share = told["predicted_ms"] / (told["predicted_ms"] + told["prompt_ms"])
    return {"seconds": told["predicted_ms"] / 1e3 / told["predicted_n"] * new, "cpu": share * worked}


def main() -> None:
    """Answer until the input ends."""
    folder, kinds, threads = sys.argv[1], sys.argv[2].split(","), [int(n) for n in sys.argv[3].split(",")]
    models = {(kind, n): server(f"{folder}/{kind}.gguf", n) for kind in kinds for n in threads}
    print(json.dumps({"system": xllamacpp.get_system_info(), "version": xllamacpp.__version__}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            told = timed(models[asked["type"], asked["threads"]], asked["context"], asked["new"])
        except Exception as error:
            told = {"error": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
