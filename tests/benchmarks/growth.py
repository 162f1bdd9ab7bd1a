"""How the time of a step grows with the batch, and attention's memory with the tokens.

    python tests/benchmarks/growth.py [--shape classroom] [--rounds N] [--threads N]
"""

from __future__ import annotations

import argparse
import statistics
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minilora import backend, ops
from minilora.bench.engines import sizes
from minilora.bench.turns import Worker, time_in_turns
from minilora.tensor import Tensor

BATCHES, TOKENS = (1, 2, 4, 8, 16, 32), (512, 1024, 2048, 4096)
WIDTH, HEADS = 256, 8  # of the attention


def growth(
    shape: str = "classroom", *, rounds: int = 10, threads: int = 2,
    say: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Measure both and return two tables.

    "batch": batch size -> ms (minimum, median) and µs a token. "attention": number of tokens ->
    peak bytes of forward and backward without the inputs, bytes a token, and the bytes of one
    tokens x tokens array for every head.
    """
    workers = [Worker("minilora", f"{shape}:{batch}", threads) for batch in BATCHES]
    try:
        times = time_in_turns(workers, rounds)
    finally:
        for worker in workers:
            worker.close()
    say(f"a LoRA step, {shape}\n{'batch':>8}{'ms, min':>9}{'median':>9}{'µs a token':>12}")
    step, attention = {}, {}
    for batch, each in zip(BATCHES, times):
        median = statistics.median(each)
        per_token = 1000 * median / (batch * sizes(shape).tokens)
        step[batch] = {"ms": [min(each), median], "us_a_token": per_token}
        say(f"{batch:>8}{min(each):>9.1f}{median:>9.1f}{per_token:>12.1f}")
    say(f"\nattention, width {WIDTH}, {HEADS} heads, forward and backward")
    say(f"{'tokens':>8}{'peak MiB':>10}{'bytes a token':>15}{'full squares, MiB':>20}")
    for tokens in TOKENS:
        peak, squares = attention_peak(tokens), 4 * HEADS * tokens**2
        attention[tokens] = {"peak": peak, "bytes_a_token": peak / tokens, "squares": squares}
        say(f"{tokens:>8}{peak / 2**20:>10.1f}{peak / tokens:>15,.0f}{squares / 2**20:>20.0f}")
    return {"batch": step, "attention": attention}


def attention_peak(tokens: int) -> int:
    """Return the peak bytes of arrays in attention, forward and backward, without its inputs."""
    before = backend.use("numpy")
    tracemalloc.start()
    try:
        rng = np.random.default_rng(0)
        inputs = rng.standard_normal((3, 1, tokens, WIDTH), np.float32)
        q, k, v = (Tensor(x, requires_grad=True) for x in inputs)
        resting = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        ops.attention(q, k, v, heads=HEADS).sum().backward()
        return tracemalloc.get_traced_memory()[1] - resting
    finally:
        tracemalloc.stop()
        backend.use(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="classroom", help="the step's shape (classroom)")
    parser.add_argument("--rounds", type=int, default=10, help="turns of three steps each (10)")
    parser.add_argument("--threads", type=int, default=2, help="(2)")
    args = parser.parse_args()
    say = partial(print, flush=True)
    growth(args.shape, rounds=args.rounds, threads=args.threads, say=say)


if __name__ == "__main__":
    main()
