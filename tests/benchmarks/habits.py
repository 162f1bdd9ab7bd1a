"""What each optimisation brings: a training step with it, and with its plain twin in its place.

    python tests/benchmarks/habits.py [--rounds N] [--shapes classroom,long] [--threads N] [names]

The twin is swapped into the same process, turns go A B A B, and before any timing its loss and
gradients must be those of the step as it is. README.md beside this file says why each one pays.
"""

from __future__ import annotations

import argparse
import functools
import gc
import inspect
import math
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from minilora import backend, bench, engines, ops, optim, tensor, threads
from minilora.ops import algebra, attend, fused
from minilora.tensor import OPS, once, op

Twin = Callable[[], AbstractContextManager[Any]]
HUGE = 1 << 40
PATIENCE = 40  # seconds: the rounds of one habit on one shape end early after that


class Habit(NamedTuple):
    """One optimisation."""

    title: str
    twin: Twin  # inside what it returns, the plain way is in use
    step: Callable[[str], engines.Step] = engines.ours
    plain: Callable[[str], engines.Step] | None = None  # the twin's step, if it is another one
    matters: Callable[[engines.Shape], bool] = lambda shape: True


class Measured(NamedTuple):
    """One habit on one shape. Ratios: without it, divided by with it."""

    apart: float  # relative difference of losses and gradients
    ms: tuple[float, float]  # with, without: medians over the rounds
    ratio: float  # of times, the median over the rounds
    cpu: float | None  # of the cores' time, all threads together
    memory: float  # of peaks


# How a twin comes about


def swap(*changes: tuple[Any, str, Any]) -> Twin:
    """A twin that has other values at (module, name, value)."""

    @contextmanager
    def twin() -> Iterator[None]:
        with ExitStack() as stack:
            for owner, name, value in changes:
                stack.enter_context(patch.object(owner, name, value))
            yield

    return twin


def rewrite(*changes: tuple[ModuleType, str, dict[str, str]]) -> Twin:
    """A twin made of a function's own source, some of its text replaced; raises if it is absent."""

    @functools.cache
    def made() -> Twin:
        functions = []
        for module, name, texts in changes:
            source = inspect.getsource(getattr(module, name))
            for old, new in texts.items():
                if old not in source:
                    raise LookupError(f"{name} has no {old!r} any more: rewrite its twin")
                source = source.replace(old, new)
            scope = dict(vars(module))
            with patch.dict(OPS):
                exec(source, scope)
            functions.append((module, name, scope[name]))
            if hasattr(ops, name):
                functions.append((ops, name, scope[name]))
        return swap(*functions)

    return lambda: made()()


def plain_op(rule: Callable[..., Any]) -> Callable[..., tensor.Tensor]:
    """An op that takes no other's place among those known by name."""
    with patch.dict(OPS):
        return op(rule)


# The twins


def always_shift(Q: Any, K: Any, scale: float, causal: bool) -> Any:
    return np.zeros((*Q.shape[:3], 1), bool)


def large_tasks(batch: int, heads: int, size: int) -> list[tuple[slice, slice]]:
    """Attention's work in as many tasks as there are threads."""
    count = threads._pool.count if threads._pool else 1
    if batch >= count:
        bounds = [batch * i // count for i in range(count + 1)]
        return [(slice(a, b), slice(0, heads)) for a, b in pairwise(bounds)]
    bounds = [heads * i // count for i in range(count + 1)]
    return [(slice(0, batch), slice(a, b)) for a, b in pairwise(bounds) if a < b]


def same(function: Callable[..., Any], piece: int = backend.Backend.piece) -> Any:
    """What the function makes of the pieces as they are, whatever they are."""

    def made(*args: Any) -> Any:
        with patch.object(backend.Backend, "piece", piece):
            return function(*args)

    return made


def textbook_gelu(x: Any, phi: Any, y: Any) -> None:
    phi[...] = 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    y[...] = x * phi


def textbook_slope(x: Any, phi: Any) -> None:
    inner = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
    t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
    phi += 0.5 * x * (1 - t * t) * inner


def gelu_of_a_power(x: Any, phi: Any, y: Any) -> None:
    np.exp(np.minimum(-fused.C3 * x**3 - fused.C1 * x, 80), out=phi)
    phi += 1
    np.divide(1, phi, out=phi)
    np.multiply(x, phi, out=y)


def other_gelu(value: Any, slope: Any) -> Twin:
    @contextmanager
    def twin() -> Iterator[None]:
        with patch.dict(fused._GELU, tanh=(value, slope)):
            yield

    return twin


def composed_norm(x: Any, gain: Any, shift: Any, *, eps: float = 1e-5) -> Any:
    def mean(t: Any) -> Any:
        return t.mean(axis=-1).reshape(*t.shape[:-1], 1)

    centred = x - mean(x)
    return centred / ops.sqrt(mean(centred * centred) + eps) * gain + shift


def composed_loss(logits: Any, targets: Any) -> Any:
    log_p = ops.log_softmax(logits.reshape(-1, logits.shape[-1]))
    chosen = np.eye(logits.shape[-1], dtype="float32")[targets.reshape(-1)]
    return (log_p * chosen).sum() * (-1 / targets.size)


def composed_lora(x: Any, W: Any, b: Any, A: Any, B: Any, mask: Any = None, *, scale: float) -> Any:
    into = x if mask is None else x * mask
    return ops.linear(x, W, b) + ops.linear(ops.linear(into, A), B) * scale


@plain_op
def lora_product_by_product(x, W, b, A, B, mask=None, *, scale):
    """lora_linear without dropout: every gradient as the formula has it, g read for each."""
    shape, x = x.shape, algebra.rows(x)
    inner = algebra.product(x, A.T)
    y = algebra.product(x, W.T) + algebra.product(inner, B.T) * scale + b

    @once
    def through(g):
        return algebra.product(algebra.rows(g), B) * scale

    def dx(g):
        g, out = algebra.rows(g), np.empty(shape, x.dtype)
        np.add(algebra.product(g, W), algebra.product(through(g), A), out=algebra.rows(out))
        return out

    def dA(g):
        return algebra.product(through(g).T, x)

    def dB(g):
        return algebra.product(algebra.rows(g).T, inner) * scale

    return y.reshape(*shape[:-1], W.shape[0]), (dx, None, None, dA, dB)


def added_afterwards(x: Any, W: Any, add: Any = None) -> Any:
    y = _product(x, W)
    if add is not None:
        add(algebra.rows(y), slice(None), slice(None))
    return y


_product = algebra.product


class EverySumNew(tensor._Gradients):
    """Each gradient that arrives makes a new sum."""

    def add(self, key: int, grad: Any, owned: bool) -> None:
        if key in self._held:
            grad = self._held.pop(key)[0] + grad
        self._held[key] = grad, False


def embedding_with_a_gradient(*inputs: Any, **settings: Any) -> Any:
    out = _embedding(*inputs, **settings)
    out.requires_grad = True  # so the blocks below the lowest adapter have one to hand down
    return out


_embedding = ops.embedding


def all_differentiated(shape: str) -> engines.Step:
    """A LoRA step that computes every weight's gradient, and uses those of A and B."""
    model, (ids, targets) = engines.build(shape)
    optimizer = optim.AdamW(model.trainable_parameters(), engines.LR)
    model.requires_grad(True)

    def step() -> Any:
        for p in model.parameters():
            p.grad = None
        loss = ops.cross_entropy(model(ids), targets)
        loss.backward()
        grads = {name: p.grad for name, p in optimizer.parameters.items()}
        optimizer.step()
        return loss.item(), lambda: grads

    return step


def whole(*arrays: Any) -> list[list[Any]]:
    return [[array.reshape(-1) for array in arrays]]


def textbook_adam(self: Any, name: str, p: Any, g: Any, m: Any, v: Any) -> None:
    b1, b2 = self.betas
    m[...] = b1 * m + (1 - b1) * g
    v[...] = b2 * v + (1 - b2) * g**2
    p[...] = p - self.lr * (m / (1 - b1**self.t)) / (np.sqrt(v / (1 - b2**self.t)) + self.eps)


def blas_threads(count: int | None) -> Twin:
    """No threads of ours; BLAS has `count`, None: as many as ours were."""

    @contextmanager
    def twin() -> Iterator[None]:
        set_threads, get_threads = threads._blas()
        if set_threads is None:
            yield
            return
        before, pool = get_threads(), threads._pool
        set_threads(count or (pool.count if pool else before))
        threads._pool = None
        try:
            yield
        finally:
            threads._pool = pool
            set_threads(before)

    return twin


def full(shape: str) -> engines.Step:
    return engines.ours(shape, full=True)


MEAN = {" @ over_d": ".mean(axis=1, keepdims=True)"}
HABITS: dict[str, Habit] = {
    "nothing": Habit("nothing: the noise of this table", nullcontext),
    "frozen": Habit("a frozen W is not differentiated", nullcontext, plain=all_differentiated),
    "below": Habit(
        "nor what lies below the lowest adapter",
        swap((ops, "embedding", embedding_with_a_gradient)),
    ),
    "threads": Habit("own threads instead of one", blas_threads(1)),
    "blas": Habit("own threads instead of BLAS's", blas_threads(None)),
    "worth": Habit("small work is not shared", swap((threads, "WORTH", 0))),
    "memory": Habit("freed memory is kept", nullcontext),  # needs processes: see `memory_kept`
    "blocks": Habit("attention in blocks of 64 queries", swap((backend.Backend, "queries", HUGE))),
    "tasks": Habit("attention by heads that fit the cache", swap((attend, "tasks", large_tasks))),
    "turned": Habit(
        "keys and values turned once",
        rewrite((attend, "attend", {".swapaxes(-1, -2).copy()": ".swapaxes(-1, -2)"})),
    ),
    "shift": Habit("softmax without a shift where safe", swap((attend, "_small", always_shift))),
    "keep": Habit(
        "attention's weights kept, to 512 tokens",
        swap((ops, "attention", functools.partial(ops.attention, keep=False))),
        matters=lambda shape: shape.tokens <= 512,
    ),
    "again": Habit(
        "... and made again beyond",
        swap((ops, "attention", functools.partial(ops.attention, keep=True))),
        matters=lambda shape: shape.tokens > 512,
    ),
    "slope": Habit(
        "GELU's slope made in the forward pass",
        rewrite((fused, "gelu", {
            "Early(slope, dx)": "Early(lambda: None, lambda g, _: dx(g, slope()))",
        })),
    ),
    "gelu": Habit("GELU from one e^x, in place", other_gelu(textbook_gelu, textbook_slope)),
    "cube": Habit("x*x*x for x**3", other_gelu(gelu_of_a_power, fused._slope_tanh)),
    "norm": Habit("layer norm as one op", swap((ops, "layer_norm", composed_norm))),
    "means": Habit(
        "sums of rows as products with ones",
        rewrite((fused, "layer_norm", MEAN),
                (attend, "attend", {"E @ ones[j] if free else ": ""})),
    ),
    "loss": Habit("cross-entropy as one op", swap((ops, "cross_entropy", composed_loss))),
    "pieces": Habit(
        "elementwise pieces that fit the cache",
        swap((backend.Backend, "piece", HUGE), (attend, "tasks", same(attend.tasks)),
             (optim.Optimizer, "step", same(optim.Optimizer.step))),
    ),
    "lora": Habit("LoRA as one op", swap((ops, "lora_linear", composed_lora))),
    "pass": Habit(
        "LoRA's gradients in one pass over g", swap((ops, "lora_linear", lora_product_by_product))
    ),
    "added": Habit(
        "bias and BAx added by the product's threads", swap((algebra, "product", added_afterwards))
    ),
    "side": Habit(
        "products cut along the longer side",
        rewrite((algebra, "product", {"if n >= d else": "if True else"})),
        matters=lambda shape: shape.tokens * shape.batch < 4 * shape.d_model,
    ),
    "sums": Habit("gradients added in place", swap((tensor, "_Gradients", EverySumNew))),
    "adam": Habit(
        "AdamW in place (all weights trained)", swap((optim.Adam, "update", textbook_adam)), full
    ),
    "chunks": Habit("AdamW by chunks (all trained)", swap((optim, "_chunks", whole)), full),
}  # fmt: skip


# Measuring


def measure(name: str, shape: str, rounds: int = 10, count: int = 2) -> Measured:
    """One habit on one shape, with `count` threads; raises RuntimeError where the twin differs."""
    if name == "memory":
        return memory_kept(shape, rounds, count)
    habit = HABITS[name]
    with threads.working(count):
        ours, plain = habit.step(shape), (habit.plain or habit.step)(shape)
        loss, grads = ours()
        with habit.twin():
            other, theirs = plain()
        apart = agreed(name, loss, grads(), other, theirs())
        del grads, theirs
        gc.collect()
        peaks = peak(ours, nullcontext), peak(plain, habit.twin)
        times: tuple[list[tuple[float, float]], ...] = ([], [])
        began = time.perf_counter()
        while len(times[0]) < rounds and (not times[0] or time.perf_counter() < began + PATIENCE):
            for step, twin, each in zip((ours, plain), (nullcontext, habit.twin), times):
                with twin():
                    step()  # not counted
                    each.append(clocked(step))
    (walls, cpus), (plain_walls, plain_cpus) = (zip(*each) for each in times)
    ms, ratio = compared(walls, plain_walls)
    return Measured(apart, ms, ratio, compared(cpus, plain_cpus)[1], peaks[1] / peaks[0])


def memory_kept(shape: str, rounds: int, count: int) -> Measured:
    """The C library is told once and for all, so each way has a process of its own."""
    tell_nothing = (
        "import sys; from minilora import backend, engines; "
        "backend.Backend.keep_freed_memory = lambda self: None; engines.main(*sys.argv[1:])"
    )
    programs = (bench.PROGRAM, ("-c", tell_nothing))
    workers = [bench.Worker("minilora", shape, count, program) for program in programs]
    try:
        with tempfile.TemporaryDirectory() as folder:
            told = []
            for i, worker in enumerate(workers):
                path = Path(folder) / f"{i}.npz"
                loss = worker.ask("check", path)
                with np.load(path) as file:
                    told += [loss, {name: file[name] for name in file.files}]
        apart = agreed("memory", *told)
        ours, plain = bench._turns(workers, rounds)
        peaks = [worker.ask("peak") for worker in workers]
    finally:
        for worker in workers:
            worker.close()
    return Measured(apart, *compared(ours, plain), None, peaks[1] / peaks[0])


def agreed(name: str, loss: float, grads: Any, other: float, theirs: Any) -> float:
    """How far apart a step and its twin are; raises where that is too much."""
    if grads.keys() != theirs.keys():
        raise RuntimeError(f"{name}: the twin has gradients of other parameters")
    apart = bench.apart(loss, grads, other, theirs)
    if not apart <= bench.TOLERANCE:
        raise RuntimeError(f"{name}: the twin is another computation, {apart:.1e} apart")
    return apart


def compared(ours: Sequence[float], plain: Sequence[float]) -> tuple[tuple[float, float], float]:
    ms = statistics.median(ours), statistics.median(plain)
    return ms, statistics.median(b / a for a, b in zip(ours, plain))


def clocked(step: Callable[[], Any], steps: int = 2) -> tuple[float, float]:
    """Milliseconds of a step: by the clock, and of all cores together."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return 1000 * wall / steps, 1000 * max(cpu, 1e-6) / steps


def peak(step: Callable[[], Any], twin: Twin) -> int:
    """The most bytes of arrays alive at once among those that a step makes."""
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
) -> dict[str, dict[str, Measured]]:  # fmt: skip
    """Measure and say, line by line; name -> shape -> what was measured, where it matters."""
    result: dict[str, dict[str, Measured]] = {}
    say(f"without it / with it: step by the clock, by the cores' time, peak memory; "
        f"{rounds} rounds, {count} threads")  # fmt: skip
    say(f"{'':<54}" + "".join(f"{shape:>28}" for shape in shapes))
    say(f"{'name':<9}{'':<45}" + f"{'ms with':>9}{'step':>6}{'cpu':>6}{'memory':>7}" * len(shapes))
    for name in names:
        row = result[name] = {
            shape: measure(name, shape, rounds, count)
            for shape in shapes
            if HABITS[name].matters(engines.sizes(shape))
        }
        cells = [_cells(row.get(shape)) for shape in shapes]
        say(f"{name:<9}{HABITS[name].title:<45}" + "".join(cells))
    return result


def _cells(m: Measured | None) -> str:
    if m is None:
        return f"{'-':>9}{'-':>6}{'-':>6}{'-':>7}"
    cpu = "-" if m.cpu is None else f"{m.cpu:.2f}"
    return f"{m.ms[0]:>9.1f}{m.ratio:>6.2f}{cpu:>6}{m.memory:>7.2f}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"(all) {', '.join(HABITS)}")
    parser.add_argument("--rounds", type=int, default=10, help="turns of two steps each (10)")
    parser.add_argument("--shapes", default="classroom,long", help=", ".join(engines.SHAPES))
    parser.add_argument("--threads", type=int, default=2, help="(2)")
    args = parser.parse_args(argv)
    if odd := [name for name in args.names if name not in HABITS]:
        parser.error(f"there is no {odd[0]}: there are {', '.join(HABITS)}")
    backend.current().keep_freed_memory()
    say = functools.partial(print, flush=True)
    table(args.names or list(HABITS), args.shapes.split(","), args.rounds, args.threads, say)


if __name__ == "__main__":
    main()
