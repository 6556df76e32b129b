"""llama.cpp beside the project's decoder: told on standard input what to time, says on standard output what it took.

Run by a Python that has `llama-cpp-python`, whose installation compiles llama.cpp for the machine it is on: FOLDER
TYPE,TYPE... THREADS,THREADS... Each line of input is JSON, {"type", "threads", "context", "new"}; the answer is {"seconds",
"cpu"} of the new tokens, each the likeliest, or {"error"}. The first line that comes out says what it was built for.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import llama_cpp
import numpy as np


class Session:
    """A model of a file, with one text at a time."""

    def __init__(self, path: str, threads: int) -> None:
        self.model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        given = llama_cpp.llama_context_default_params()
        given.n_ctx = given.n_batch = 512
        given.n_threads = given.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, given)
        self.words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def read(self, token: int) -> int:
        """The likeliest token after this one and all before."""
        one = (ctypes.c_int32 * 1)(token)
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(one, 1)):
            raise RuntimeError("llama_decode failed")
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return int(np.ctypeslib.as_array(logits, (self.words,)).argmax())

    def timed(self, context: int, new: int) -> dict:
        """New tokens after `context` others."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        for i in range(context):  # one at a time: with several, version 0.3.36 compiled for AMX crashes
            token = self.read((1 + 7919 * i) % self.words)
        started, worked = time.perf_counter(), time.process_time()
        for _ in range(new):
            token = self.read(token)
        return {"seconds": time.perf_counter() - started, "cpu": time.process_time() - worked}


def main() -> None:
    """Answer until the input ends."""
    folder, kinds, threads = sys.argv[1], sys.argv[2].split(","), [int(n) for n in sys.argv[3].split(",")]
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    sessions = {(kind, n): Session(f"{folder}/{kind}.gguf", n) for kind in kinds for n in threads}
    told = {"system": llama_cpp.llama_print_system_info().decode(), "version": llama_cpp.__version__}
    print(json.dumps(told), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            told = sessions[asked["type"], asked["threads"]].timed(asked["context"], asked["new"])
        except Exception as error:
            told = {"error": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
