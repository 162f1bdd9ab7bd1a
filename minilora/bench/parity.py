"""`minilora bench --backend cupy --parity`: is a device right, how fast is it, what does it take?

The same LoRA run three times on the same weights and batches: on the host in float64, on the host
in float32, on the device in float32. The first is the yardstick: the device may be as far from it
as the host is, a few times over, for it adds in another order. Times wait for the device before
the clock is read, memory is its pool's, and the tests marked `gpu` run where they are at hand.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import accounting, ops
from ..backend import Backend, asarray, asnumpy, current, use
from ..models.gpt2 import GPT2
from ..training import optim
from . import engines
from .ours import LR, R, build

STEPS = 20
TIMES = 10.0  # as far from float64 as the host is, times this
Say = Callable[[str], Any]


class Run(NamedTuple):
    """Of each step: the loss, the gradients by name (on the host), and its milliseconds."""

    losses: list[float]
    gradients: list[dict[str, np.ndarray]]
    ms: list[float]


def parity(shapes: Sequence[str], *, steps: int = STEPS, say: Say = print) -> dict[str, Any]:
    """Compare the backend in use with NumPy; returns shape -> numbers, the suite, the device.

    Of each shape: loss and gradient, the largest relative distance to float64 over all steps, as
    (host, device); agrees, is the device's at most TIMES the host's, or a few roundings; ms, the
    median step (host, device); memory, the ledger's rows on the device; pool, the bytes that its
    memory pool has taken by then, for all that was run so far.
    """
    device = current()
    if device.on_host:
        raise ValueError("--parity compares a device with the host: give --backend cupy")
    result: dict[str, Any] = {"device": device.describe(), "host": Backend().describe()}
    say(f"{result['device']}, beside {result['host']}; {steps} steps, LoRA, r = {R}")
    for shape in shapes:
        result[shape] = _one(shape, device, steps, say)
    result["suite"] = suite()
    say(f"tests marked gpu: {result['suite']['told']}")
    agree = all(result[shape]["agrees"] for shape in shapes)
    result["passed"] = agree and result["suite"]["passed"] is not False
    return result


def _one(shape: str, device: Backend, steps: int, say: Say) -> dict[str, Any]:
    exact, host = (run(shape, Backend(), steps, dtype) for dtype in ("float64", "float32"))
    there = run(shape, device, steps, "float32")
    loss = [max(map(_loss_apart, exact.losses, each.losses)) for each in (host, there)]
    gradient = [max(map(_apart, exact.gradients, each.gradients)) for each in (host, there)]
    least = 8 * float(np.finfo("float32").eps)
    agrees = all(ours <= TIMES * max(theirs, least) for theirs, ours in (loss, gradient))
    ms = [statistics.median(each.ms[2:] or each.ms) for each in (host, there)]
    book, pool = _memory(shape, device)
    rows = book.as_dict()
    say(f"\n{shape}: {engines.sizes(shape)}")
    say(f"{'largest distance to float64':<30}{'host':>12}{'device':>12}")
    for name, pair in (("loss", loss), ("gradients of A and B", gradient)):
        say(f"{name:<30}{pair[0]:>12.1e}{pair[1]:>12.1e}")
    say("the device agrees" if agrees else f"THE DEVICE DISAGREES: more than {TIMES:g} times")
    say(f"{'a step, median ms':<30}{ms[0]:>12.1f}{ms[1]:>12.1f}   (host / device: "
        f"{ms[0] / ms[1]:.2f})")
    say(f"{book}\n{'pool, by now':<16}{'':>14}{pool:>14,}")
    return {
        "loss": loss, "gradient": gradient, "agrees": agrees, "ms": ms, "memory": rows,
        "pool": pool, "losses": there.losses,
    }


def run(shape: str, backend: Backend, steps: int, dtype: str) -> Run:
    """`steps` updates of LoRA by AdamW on a backend, on batches that are the same on every one."""
    before = use(backend)
    try:
        model, batches = _model(shape, dtype), _batches(shape, steps)
        optimizer = optim.AdamW(model.trainable_parameters(), LR)
        told = Run([], [], [])
        for ids, targets in batches:
            backend.synchronize()
            began = time.perf_counter()
            optimizer.zero_grad()
            loss = ops.cross_entropy(model(ids), targets)
            loss.backward()
            grads = {name: p.grad for name, p in optimizer.parameters.items()}
            optimizer.step()
            backend.synchronize()
            told.ms.append(1000 * (time.perf_counter() - began))
            told.losses.append(loss.item())
            told.gradients.append({name: asnumpy(g) for name, g in grads.items()})
        return told
    finally:
        use(before)


def _model(shape: str, dtype: str) -> GPT2:
    """The bench's model, its weights so large that nothing is nearly linear, which would hide
    mistakes; in float64 the same numbers."""
    narrow, _ = build(shape)
    rng = np.random.default_rng(4)
    for p in narrow.parameters():
        p.data += asarray(rng.standard_normal(p.shape) / p.shape[-1] ** 0.5, p.dtype)
    if dtype == "float32":
        return narrow
    model, _ = build(shape, dtype=dtype)
    model.load_state_dict({n: a.astype(dtype) for n, a in narrow.state_dict().items()})
    return model


def _batches(shape: str, steps: int) -> np.ndarray:
    """(steps, ids and targets, batch, tokens)"""
    s = engines.sizes(shape)
    return np.random.default_rng(3).integers(0, s.vocabulary, (steps, 2, s.batch, s.tokens))


def _memory(shape: str, device: Backend) -> tuple[accounting.Ledger, int]:
    """(the ledger on the device, bytes that the device has set aside by now)"""
    before = use(device)
    try:
        s, model = engines.sizes(shape), _model(shape, "float32")
        optimizer = optim.AdamW(model.trainable_parameters(), LR)
        return accounting.ledger(model, optimizer, s.batch, s.tokens), device.reserved()
    finally:
        use(before)


def _loss_apart(exact: float, other: float) -> float:
    return abs(other - exact) / abs(exact)


def _apart(exact: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The distance of all gradients together, relative to their length; nan, where one is."""
    gap = sum(float(((other[name] - g) ** 2).sum()) for name, g in exact.items())
    return float((gap / sum(float((g**2).sum()) for g in exact.values())) ** 0.5)


def suite() -> dict[str, Any]:
    """Run the tests marked `gpu`, where a checkout is at hand: did some pass and none fail (None:
    they are not here), and what was told."""
    near = (Path.cwd() / "tests", Path(__file__).parent.parent / "tests")
    tests = next((folder for folder in near if (folder / "test_gpu.py").exists()), None)
    if tests is None:
        return {"passed": None, "told": "not at hand: run this in a checkout of the project"}
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tests.parent)
    lines = (done.stdout + done.stderr).strip().splitlines()
    last = next((x for x in reversed(lines) if " in " in x and x[:1].isdigit()), "\n".join(lines))
    return {"passed": done.returncode == 0 and " passed" in last, "told": last}
