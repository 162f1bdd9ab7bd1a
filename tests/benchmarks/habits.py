"""Measure what each optimisation gains: time a training step with it and without it.

    python tests/benchmarks/habits.py [--rounds N] [--shapes classroom,long] [--threads N] [names]

Without it means with its plain twin: for a kernel the plain op, elsewhere another constant or
function. The turns go A B A B in one process. Before any timing, the loss and gradients of both
must agree. README.md in this folder explains each optimisation.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from minilora import backend, ops, optim, tensor
from minilora.backend import threads
from minilora.bench import ours as own
from minilora.bench import turns as bench
from minilora.bench.ours import SHAPES, Shape, Step, ours, sizes
from minilora.kernels import TABLE, attention, products, rowwise

Twin = Callable[[], AbstractContextManager[Any]]
HUGE = 1 << 40
PATIENCE = 40  # seconds: no new round of one habit on one shape after that


class Habit(NamedTuple):
    """One optimisation."""

    title: str
    twin: Twin  # returns a context in which the plain way is used
    step: Callable[[str], Step] = ours
    plain: Callable[[str], Step] | None = None  # the twin's step, if it differs
    matters: Callable[[Shape], bool] = lambda shape: True


class Measured(NamedTuple):
    """One habit on one shape. Ratios are without it / with it."""

    apart: float  # relative difference of the second step's losses and gradients
    ms: tuple[float, float]  # with, without: medians over the rounds
    ratio: float  # of the times, median over the rounds
    cpu: float | None  # ratio of CPU time, all threads together
    memory: float  # ratio of the peaks


def swap(*changes: tuple[Any, str, Any]) -> Twin:
    """Return a twin that replaces the attributes (owner, name, value)."""

    @contextmanager
    def twin() -> Iterator[None]:
        with ExitStack() as stack:
            for change in changes:
                stack.enter_context(patch.object(*change))
            yield

    return twin


def all_differentiated(shape: str) -> Step:
    """Return a LoRA step that computes the gradients of all weights, and uses those of A and B."""
    model, (ids, targets) = own.build(shape)
    optimizer = optim.AdamW(model.trainable_parameters(), own.LR)

    def step() -> Any:
        model.requires_grad_()  # also clears all gradients
        loss = ops.cross_entropy(model(ids), targets)
        loss.backward()
        grads = {name: p.grad for name, p in optimizer.parameters.items()}
        optimizer.step()
        return loss.item(), lambda: grads

    return step


def embedding_with_a_gradient(*inputs: Any, **settings: Any) -> Any:
    out = _embedding(*inputs, **settings)
    out.requires_grad = True  # so gradients flow below the lowest adapter
    return out


def every_sum_new(sums: dict[int, Any], key: int, grad: Any, owned: bool) -> None:
    sums[key] = sums[key][0] + grad if key in sums else grad, False


def left_to_blas(
    library: backend.Backend, task: threads.Task, n: int, size: int, piece: int = 0,
) -> None:
    """Run the same pieces one after the other, each with BLAS's own threads."""
    for at in threads.pieces(n, size, piece):
        task(at)


def always_shift(part: Any, shared: Any) -> Any:
    return np.zeros((*part.Q.shape[:4], 1), bool)


def large_tasks(batch: int, heads: int, size: int) -> list[tuple[slice, slice]]:
    """Return attention's work in as many tasks as there are threads."""
    count = threads.threads()
    n = batch if batch >= count else heads
    cuts = [slice(a, b) for a, b in pairwise(n * i // count for i in range(count + 1)) if a < b]
    return [(at, slice(None)) if batch >= count else (slice(0, batch), at) for at in cuts]


def one_by_one(g: Any, B: Any, h: Any, z: Any) -> Any:
    through = products.product(g, B)
    pairs = (through, h), (g, z)
    return through, *(None if y is None else products.product(x.T, y) for x, y in pairs)


class Column:
    """x @ this reduces each row of x without BLAS."""

    __array_ufunc__ = None  # so that NumPy calls __rmatmul__

    def __init__(self, reduce: Callable[..., Any]) -> None:
        self.reduce = reduce

    def __getitem__(self, rows: slice) -> Column:
        return self

    def __rmatmul__(self, x: Any) -> Any:
        return self.reduce(x, axis=-1, keepdims=True)


columns = {"ones": lambda *_, **__: Column(np.sum), "full": lambda *_, **__: Column(np.mean)}
REDUCING = SimpleNamespace(**vars(np) | columns)
STEPS = {"adam": partial(ours, full=True),
         **dict.fromkeys(("rms_norm", "swiglu"), partial(ours, llama=True)),
         "quantised_linear": partial(ours, base_dtype="nf4")}
_embedding = ops.embedding
HABITS: dict[str, Habit] = {
    "nothing": Habit("nothing: the noise of this table", nullcontext),
    "frozen": Habit("a frozen W is not differentiated", nullcontext, plain=all_differentiated),
    "below": Habit("no gradient below the lowest adapter",
                   swap((ops, "embedding", embedding_with_a_gradient))),
    "sums": Habit("gradients added in place", swap((tensor, "_add", every_sum_new))),
    "threads": Habit("own threads instead of one", swap((threads, "_count", 1))),
    "blas": Habit("own threads instead of BLAS's",
                  swap((backend.Backend, "on_cores", left_to_blas))),
    "worth": Habit("small work is not shared", swap((threads, "WORTH", 0))),
    "memory": Habit("freed memory is kept", nullcontext),  # needs two processes: see `memory_kept`
    "kernels": Habit("all kernels instead of plain ops", tensor.plain),
    **{f.__name__: Habit(f"the kernel of {f.__name__}", swap((f, "kernel", None)),
                         STEPS.get(f.__name__, ours)) for f in TABLE},
    "pass": Habit("LoRA's gradients in one pass over g", swap((products, "_thin", one_by_one))),
    "widened": Habit("halves widened at once (a base in float16)",
                     swap((products, "widened", lambda W, dtype: W.astype(dtype, copy=False))),
                     partial(ours, base_dtype="float16")),
    "blocks": Habit("attention in blocks of 64 queries", swap((backend.Backend, "queries", HUGE))),
    "tasks": Habit("attention by heads that fit a cache", swap((attention, "tasks", large_tasks))),
    "shift": Habit("softmax without a shift where safe",
                   swap((attention, "no_shift", always_shift))),
    "keep": Habit("attention's weights kept, to 512 tokens", swap((attention, "KEEP", 0)),
                  matters=lambda shape: shape.tokens <= 512),
    "again": Habit("... and recomputed beyond that", swap((attention, "KEEP", HUGE)),
                   matters=lambda shape: shape.tokens > 512),
    "means": Habit("sums of rows as products with ones",
                   swap((rowwise, "xp", REDUCING), (attention, "xp", REDUCING))),
    "pieces": Habit("pieces that fit the cache",
                    swap((backend.Backend, "piece", HUGE), (attention, "tasks", large_tasks))),
}


# Measuring


def measure(name: str, shape: str, rounds: int = 10, count: int = 2) -> Measured:
    """Measure one habit on one shape. Raises RuntimeError if the twin computes something else."""
    if name == "memory":
        return memory_kept(shape, rounds, count)
    habit = HABITS[name]
    with swap((threads, "_count", count))():
        both = [(habit.step(shape), nullcontext), ((habit.plain or habit.step)(shape), habit.twin)]
        results: list[Any] = []
        for step, twin in both:
            with twin():
                step()  # the next loss then depends on the optimizer
                loss, grads = step()
            results += [loss, grads()]
        loss, grads, other, theirs = results
        apart = max(abs(loss - other) / loss, bench.distance(grads, theirs))
        if not apart <= bench.TOLERANCE:
            raise RuntimeError(f"{name}: the twin computes something else, {apart:.1e} apart")
        del grads, theirs, results
        gc.collect()
        peaks = [peak(*one) for one in both]
        times: list[list[tuple[float, float]]] = [[], []]
        began = time.perf_counter()
        while len(times[0]) < rounds and (not times[0] or time.perf_counter() < began + PATIENCE):
            for (step, twin), each in zip(both, times):
                with twin():
                    step()  # not counted: warms the caches
                    each.append(clocked(step))
    (ours, cpu), (theirs, their_cpu) = (list(zip(*each)) for each in times)
    ms = statistics.median(ours), statistics.median(theirs)
    return Measured(apart, ms, _ratio(ours, theirs), _ratio(cpu, their_cpu), peaks[1] / peaks[0])


def memory_kept(shape: str, rounds: int, count: int) -> Measured:
    """Measure the habit "memory", in two processes: the setting of the C library is final."""
    unchanged = (
        "import sys; from minilora.backend import threads; "
        "threads.keep_freed_memory = lambda: None; "
        "from minilora.bench.__main__ import main; main(*sys.argv[1:])"
    )
    programs = (bench.PROGRAM, ("-c", unchanged))
    workers = [bench.Worker("minilora", shape, count, program) for program in programs]
    try:
        ours, plain = bench.time_in_turns(workers, rounds)
        peaks = [worker.ask("peak") for worker in workers]
    finally:
        for worker in workers:
            worker.close()
    ms = statistics.median(ours), statistics.median(plain)
    return Measured(0.0, ms, _ratio(ours, plain), None, peaks[1] / peaks[0])


def _ratio(ours: Sequence[float], plain: Sequence[float]) -> float:
    return statistics.median(b / a for a, b in zip(ours, plain))


def clocked(step: Callable[[], Any]) -> tuple[float, float]:
    """Return the milliseconds of a step, the mean of two: wall time and CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    step()
    return 500 * (time.perf_counter() - wall), 500 * max(time.process_time() - cpu, 1e-6)


def peak(step: Callable[[], Any], twin: Twin) -> int:
    """Return the peak bytes of the arrays that a step allocates."""
    tracemalloc.start()
    try:
        with twin():
            step()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def table(
    names: Sequence[str], shapes: Sequence[str], rounds: int, count: int = 2,
    say: Callable[[str], Any] = print,
) -> dict[str, dict[str, Measured]]:
    """Measure and print line by line; return name -> shape -> result, where the habit matters."""
    result: dict[str, dict[str, Measured]] = {}
    say(f"without it / with it: step by wall time, by CPU time, peak memory; "
        f"{rounds} rounds, {count} threads")
    say(f"{'':<58}" + "".join(f"{shape:>28}" for shape in shapes))
    say(f"{'name':<14}{'':<44}" + f"{'ms with':>9}{'step':>6}{'cpu':>6}{'memory':>7}" * len(shapes))
    for name in names:
        matter = [shape for shape in shapes if HABITS[name].matters(sizes(shape))]
        result[name] = {shape: measure(name, shape, rounds, count) for shape in matter}
        cells = [_cells(result[name].get(shape)) for shape in shapes]
        say(f"{name:<13} {HABITS[name].title:<44}" + "".join(cells))
    return result


def _cells(m: Measured | None) -> str:
    if m is None:
        return f"{'-':>9}{'-':>6}{'-':>6}{'-':>7}"
    cpu = "-" if m.cpu is None else f"{m.cpu:.2f}"
    return f"{m.ms[0]:>9.1f}{m.ratio:>6.2f}{cpu:>6}{m.memory:>7.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"(all) {', '.join(HABITS)}")
    parser.add_argument("--rounds", type=int, default=10, help="turns of two steps each (10)")
    parser.add_argument("--shapes", default="classroom,long", help=", ".join(SHAPES))
    parser.add_argument("--threads", type=int, default=2, help="(2)")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in HABITS]:
        parser.error(f"unknown name {unknown[0]}: choose {', '.join(HABITS)}")
    names, say = args.names or list(HABITS), partial(print, flush=True)
    table(names, args.shapes.split(","), args.rounds, args.threads, say)


if __name__ == "__main__":
    main()
