"""python -m minilora.bench ENGINE SHAPE THREADS [BACKEND]: serve one engine in its own process.

Commands arrive on standard input, one a line; each is answered with a line of JSON:
check FILE (one step; its loss, gradients to FILE), step N (N times in ms), peak (bytes).
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np

from .. import backend
from ..backend.threads import keep_freed_memory
from ..backend.threads import threads as use_threads
from .engines import ENGINES


def main(name: str, shape: str, threads: str, device: str = "numpy") -> None:
    """Read commands from standard input and answer them until it is closed."""
    backend.use(device)
    own = name != "floor" and not name.startswith(("torch", "autograd"))
    if name.startswith("torch"):
        import torch

        torch.set_num_threads(int(threads))
    if own:
        use_threads(int(threads))
    else:
        keep_freed_memory()  # as minilora does, for a fair comparison
    step = ENGINES[name](shape)
    for line in sys.stdin:
        word, *rest = line.split(maxsplit=1)
        answer: Any = None
        if word == "check":
            result = step()
            if result is not None:
                loss, gradients = result
                answer = loss
                np.savez(rest[0].strip(), **gradients())
        elif word == "step":
            answer = []
            for _ in range(int(rest[0])):
                began = time.perf_counter()
                step()
                backend.current().synchronize()
                answer.append(1000 * (time.perf_counter() - began))
        elif word == "peak":
            answer = backend.current().reserved()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
