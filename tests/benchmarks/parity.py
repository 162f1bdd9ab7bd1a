"""Compare a GPU with the host: is it right, how fast is it, how much memory does it take?

    python tests/benchmarks/parity.py --backend cupy [--shapes classroom,long] [--steps N] [--json]

The same LoRA run is done three times on the same weights and batches: on the host in float64, on
the host in float32, on the device in float32. The float64 run is the reference. The device sums
in another order, so its distance from the reference may be a few times the host's. Each time
includes waiting for the device; memory is that of its pool. The tests marked `gpu` run last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minilora import accounting, ops, optim
from minilora.backend import Backend, asarray, asnumpy, current, use
from minilora.bench.ours import LR, SHAPES, R, build, sizes
from minilora.bench.turns import distance
from minilora.models.gpt2 import GPT2

TESTS = Path(__file__).parents[1]
STEPS = 20
TIMES = 10.0  # allowed distance from float64, in multiples of the host's
Say = Callable[[str], Any]


class Run(NamedTuple):
    """For each step: the loss, the gradients by name (on the host), and the milliseconds."""

    losses: list[float]
    gradients: list[dict[str, np.ndarray]]
    ms: list[float]


def parity(shapes: Sequence[str], *, steps: int = STEPS, say: Say = print) -> dict[str, Any]:
    """Compare the current backend with NumPy; return shape -> numbers, the suite, the device.

    For each shape: "loss" and "gradient", the largest relative distance from float64 over all
    steps as (host, device); "agrees", whether the device's is at most TIMES the host's, or a few
    roundings; "ms", the median step (host, device); "memory", the ledger's rows on the device;
    "pool", the bytes that its memory pool has reserved so far, for everything that has run.
    Raises ValueError if the current backend is the host.
    """
    device = current()
    if device.on_host:
        raise ValueError("parity compares a device with the host: give --backend cupy")
    result: dict[str, Any] = {"device": device.describe(), "host": Backend().describe()}
    say(f"{result['device']}, beside {result['host']}; {steps} steps, LoRA, r = {R}")
    for shape in shapes:
        result[shape] = compare(shape, device, steps, say)
    result["suite"] = suite()
    say(f"tests marked gpu: {result['suite']['summary']}")
    agree = all(result[shape]["agrees"] for shape in shapes)
    result["passed"] = agree and result["suite"]["passed"]
    return result


def compare(shape: str, device: Backend, steps: int, say: Say) -> dict[str, Any]:
    """Compare the device with the host on one shape."""
    exact, host = (run(shape, Backend(), steps, dtype) for dtype in ("float64", "float32"))
    there = run(shape, device, steps, "float32")
    loss = [max(map(loss_distance, exact.losses, each.losses)) for each in (host, there)]
    gradient = [max(map(distance, exact.gradients, each.gradients)) for each in (host, there)]
    least = 8 * float(np.finfo("float32").eps)
    agrees = all(ours <= TIMES * max(theirs, least) for theirs, ours in (loss, gradient))
    ms = [statistics.median(each.ms[2:] or each.ms) for each in (host, there)]
    book, pool = memory(shape, device)
    rows = book.as_dict()
    say(f"\n{shape}: {sizes(shape)}")
    say(f"{'largest distance from float64':<30}{'host':>12}{'device':>12}")
    for name, pair in (("loss", loss), ("gradients of A and B", gradient)):
        say(f"{name:<30}{pair[0]:>12.1e}{pair[1]:>12.1e}")
    say("the device agrees" if agrees else f"THE DEVICE DISAGREES: more than {TIMES:g} times")
    say(f"{'a step, median ms':<30}{ms[0]:>12.1f}{ms[1]:>12.1f}   (host / device: "
        f"{ms[0] / ms[1]:.2f})")
    say(f"{book}\n{'pool, so far':<16}{'':>14}{pool:>14,}")
    return {
        "loss": loss, "gradient": gradient, "agrees": agrees, "ms": ms, "memory": rows,
        "pool": pool, "losses": there.losses,
    }


def run(shape: str, backend: Backend, steps: int, dtype: str) -> Run:
    """Do `steps` updates of LoRA by AdamW on a backend, on the same batches for every backend."""
    before = use(backend)
    try:
        model, batches = prepared_model(shape, dtype), batches_of(shape, steps)
        optimizer = optim.AdamW(model.trainable_parameters(), LR)
        result = Run([], [], [])
        for ids, targets in batches:
            backend.synchronize()
            began = time.perf_counter()
            optimizer.zero_grad()
            loss = ops.cross_entropy(model(ids), targets)
            loss.backward()
            grads = {name: p.grad for name, p in optimizer.parameters.items()}
            optimizer.step()
            backend.synchronize()
            result.ms.append(1000 * (time.perf_counter() - began))
            result.losses.append(loss.item())
            result.gradients.append({name: asnumpy(g) for name, g in grads.items()})
        return result
    finally:
        use(before)


def prepared_model(shape: str, dtype: str) -> GPT2:
    """Return the bench's model with larger weights, the same numbers in every dtype.

    With small weights everything is nearly linear, which would hide mistakes.
    """
    narrow, _ = build(shape)
    rng = np.random.default_rng(4)
    for p in narrow.parameters():
        p.data += asarray(rng.standard_normal(p.shape) / p.shape[-1] ** 0.5, p.dtype)
    if dtype == "float32":
        return narrow
    model, _ = build(shape, dtype=dtype)
    model.load_state_dict({n: a.astype(dtype) for n, a in narrow.state_dict().items()})
    return model


def batches_of(shape: str, steps: int) -> np.ndarray:
    """Return the batches (steps, ids and targets, batch, tokens)."""
    s = sizes(shape)
    return np.random.default_rng(3).integers(0, s.vocabulary, (steps, 2, s.batch, s.tokens))


def memory(shape: str, device: Backend) -> tuple[accounting.Ledger, int]:
    """Return (the ledger on the device, bytes that its pool has reserved so far)."""
    before = use(device)
    try:
        s, model = sizes(shape), prepared_model(shape, "float32")
        optimizer = optim.AdamW(model.trainable_parameters(), LR)
        return accounting.ledger(model, optimizer, s.batch, s.tokens), device.reserved()
    finally:
        use(before)


def loss_distance(exact: float, other: float) -> float:
    return abs(other - exact) / abs(exact)


def suite() -> dict[str, Any]:
    """Run the tests marked `gpu`. "passed" is True if some passed and none failed."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", str(TESTS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent)
    lines = (done.stdout + done.stderr).strip().splitlines()
    last = next((x for x in reversed(lines) if " in " in x and x[:1].isdigit()), "\n".join(lines))
    return {"passed": done.returncode == 0 and " passed" in last, "summary": last}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; return 0 if the device agrees and its tests pass, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="cupy", help="the device: cupy, or cupy:1 (cupy)")
    parser.add_argument("--shapes", default="classroom,long,gpt2-small", help=", ".join(SHAPES))
    parser.add_argument("--steps", type=int, default=STEPS, help=f"({STEPS})")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    args = parser.parse_args(argv)
    use(args.backend)
    say = partial(print, file=sys.stderr if args.json else sys.stdout, flush=True)
    result = parity(args.shapes.split(","), steps=args.steps, say=say)
    if args.json:
        print(json.dumps(result))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
