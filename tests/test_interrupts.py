"""An interrupt at any instant of any public verb or block leaves what was there.

Two attackers raise once in each run: one at the n-th line (or bytecode) of the package and of the
Python code that it calls, one by a timer, where CPython looks for signals. The exception is held
while the state is compared, as a notebook holds the last one. `python tests/test_interrupts.py 200`
prints the traces of each verb.
"""

import contextlib
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from strategies import everything, gpt2, ids, in_pieces, shake

import minilora as ml
from minilora import accounting, lora, methods, nn, ops
from minilora.backend import blocks, settings, threads
from minilora.files import checkpoint as files
from minilora.generate import first_not_finite
from minilora.models.recompute import recomputed
from minilora.training import signals

pytestmark = pytest.mark.usefixtures("numpy_only")

PACKAGE = str(Path(ml.__file__).parent)
TRACED = (PACKAGE, contextlib.__file__, str(Path(np.__file__).parent), threading.__file__)
BOTH = signal.SIGINT, signal.SIGTERM


class Interrupt(BaseException):
    """As KeyboardInterrupt, which would stop the tests themselves."""


class World:
    """A model in training with its optimizer, and all else that an interrupt may leave changed."""

    def __init__(self, folder: Path) -> None:
        self.model = gpt2(0, "float32", dropout=0.25)
        self.model.tokenizer = ml.data.BPE([])
        config = ml.LoRAConfig(r=2, alpha=3, targets=("q", "up"), dropout=0.5)
        lora.attach(self.model, config, "one", rng=0)
        shake(self.model.trainable_parameters().values(), 0)
        self.optimizer = methods.LoRAPlus(self.model.trainable_parameters(), lr=0.1)
        self.scale, self.folder = ml.LossScale(8.0, patience=2), folder
        self.loss().backward()
        self.optimizer.step()
        self.made, self.x = self.loss(), ml.Tensor(np.ones((2, 3), "float32"), requires_grad=True)
        self.deep = recomputed(self.model.blocks[0].drop, self.x).sum()
        for name in ("adapter", "model"):
            (folder / f"{name}.npz").write_bytes(b"old")
        self.bare = gpt2(1, "float32")

    def loss(self):
        return ml.ops.cross_entropy(self.model(ids()), ids(1))

    def state(self) -> dict:
        now, library = settings.thread_settings, ml.current()
        objects, *values = everything(self.model, self.optimizer)
        get_threads = threads._blas()[1]
        return {
            "objects": objects, "bytes": values, "rate": self.optimizer.lr,
            "leaf": b"" if self.x.grad is None else self.x.grad.tobytes(),
            "scale": (self.scale.state_dict(), bool(self.scale.finite)),
            "settings": (now.recording, now.plain, dict(now.replaced), now.context),
            "library": (library, ml.xp.sum is library.module.sum, library.plain),
            "flags": np.geterr(), "blas": get_threads and get_threads(), "threads": ml.threads(),
            "sharing": threads._own.sharing, "handlers": [signal.getsignal(n) for n in BOTH],
            "tracing": tracemalloc.is_tracing(),
            "files": {str(path): path.is_file() and path.read_bytes()
                      for path in self.folder.rglob("*")
                      if path.name != "run.npz" or not files.read(path)},  # complete, or an error
        }


def block(enter):
    """The verb that enters a block, computes a little and leaves it."""

    def call(world):
        with enter(world):
            ops.linear(world.x, np.ones((5, 3), "float32"))

    return call


def batches():
    return [(ids(0), ids(1)), (ids(2), ids(3))]


def fit(world, **how):
    ml.fit(world.bare, batches(), ml.AdamW(world.bare.trainable_parameters()), 2, progress=False,
           **how)


def set_threads(world):
    before = ml.threads()
    with blocks.restoring(lambda: ml.threads(before)):
        ml.threads(2)


CALLS = {
    "evaluate": lambda w: ml.evaluate(w.model, batches()),
    "generate": lambda w: ml.generate(w.model, ids()[0], 2),
    "stream": lambda w: [*ml.stream(w.model, ids()[0], 2)],
    "first_not_finite": lambda w: first_not_finite(w.model, ids()),
    "verify": lambda w: lora.verify(w.model, ids()),
    "evaluating": block(lambda w: nn.evaluating(w.model)),
    "per_row": block(lambda w: lora.per_row(w.model, ["one", "base"])),
    "attach": lambda w: lora.attach(w.model, ml.LoRAConfig(targets="q"), name="new", rng=0),
    "detach": lambda w: lora.detach(w.model),
    "merged": block(lambda w: lora.merged(w.model)),
    "disabled": block(lambda w: lora.disabled(w.model)),
    "prompt": block(lambda w: methods.prompt(2)),
    "no_grad": block(lambda w: ml.no_grad()),
    "plain": block(lambda w: ml.plain()),
    "replaced": block(lambda w: ops.replaced(softmax=lambda x, axis=-1: x)),
    "using": block(lambda w: ml.using("numpy", plain=True)),
    "using shapes": lambda w: ml.using("shapes").__class__ and on_shapes(),
    "threads": set_threads,
    "product": lambda w: ops.linear(w.x, np.ones((5, 3), "float32")),
    "deferred": block(lambda w: signals.deferred()),
    "ledger": lambda w: accounting.ledger(w.model, w.optimizer, 1, 3),
    "plan": lambda w: accounting.plan(w.model.config, r=1, tokens=3),
    "gradcheck": lambda w: ml.gradcheck(ops.softmax, np.ones(2)),
    "backward": lambda w: w.made.backward(),
    "backward, recomputed": lambda w: w.deep.backward(),
    "loss scale": lambda w: w.scale.backward(w.made),
    "save": lambda w: lora.save(w.model, w.folder / "adapter.npz"),
    "save_model": lambda w: ml.save_model(w.bare, w.folder / "model.npz"),
    "save_peft": lambda w: lora.save_peft(w.model, w.folder / "peft", name="one"),
    "save_pretrained": lambda w: w.bare.save_pretrained(w.folder / "whole"),
    "fit": fit,
    "fit, checkpoints": lambda w: fit(w, checkpoint=w.folder / "run.npz", save_every=1),
}


ONCE = ("backward", "backward, recomputed", "loss scale", "fit, checkpoints")  # the tape is used up


def on_shapes():
    with ml.using("shapes"):
        ml.xp.zeros(3).sum()


def traced(call, after: int, event: str) -> int:
    """Run it, and raise at the `after`-th such event; return how many there were."""
    count = 0

    def trace(frame, what, arg):
        nonlocal count
        if not frame.f_code.co_filename.startswith(TRACED):
            return None
        frame.f_trace_opcodes = event == "opcode"
        count += what == event
        if what == event and count == after:
            sys.settrace(None)
            raise Interrupt
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
    return count


def timed(call, after: float, event: str) -> float:
    """Run it, and raise after that many seconds (0: never); return the seconds that it took."""
    began = time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, after)
    try:
        call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return time.perf_counter() - began


def ring(number, frame):
    signal.setitimer(signal.ITIMER_REAL, 0)
    raise Interrupt


def works() -> bool:
    """A shared product still ends."""
    done = threading.Event()

    def compute():
        ops.linear(np.ones((4, 3), "float32"), np.ones((5, 3), "float32"))
        done.set()

    threading.Thread(target=compute, daemon=True).start()
    return done.wait(5)


ATTACKS = {"line": (traced, "line"), "opcode": (traced, "opcode"), "timer": (timed, "")}


def traces(name: str, attacks: dict[str, int], show=lambda line: None) -> dict[str, tuple]:
    """Interrupt the verb at so many random instants by each attack: (interrupts, traces left)."""
    call, rng, result = CALLS[name], random.Random(name), {}
    library, flags, among = ml.current(), np.geterr(), ml.threads()
    handlers = {number: signal.getsignal(number) for number in BOTH}
    set_threads, get_threads = threads._blas()
    of_blas = get_threads() if get_threads else 0

    def clean(number_of_blas):
        vars(settings.thread_settings).clear()
        np.seterr(**flags)
        threads._own.sharing = False
        tracemalloc.stop()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        ml.use(library)
        if set_threads:
            set_threads(number_of_blas)

    def fresh():
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        world = World(folder)
        return world, world.state()

    alarm, unraisable = signal.signal(signal.SIGALRM, ring), sys.unraisablehook

    def lost(what):
        """Python drops an interrupt in a `__del__` or in a callback of the garbage collection."""
        if not isinstance(what.exc_value, Interrupt):
            unraisable(what)

    sys.unraisablehook = lost
    try:
        with tempfile.TemporaryDirectory() as place, in_pieces():
            folder = Path(place)
            clean(2)
            world, _ = fresh()
            call(world)
            after = world.state()
            for attack, times in attacks.items():
                run, event = ATTACKS[attack]
                (world, before), hits, left = fresh(), 0, 0
                most, now = run(lambda w=world: call(w), 0, event), world.state()
                for _ in range(times):
                    if name in ONCE or now != before:
                        world, before = fresh()
                    held, at = None, rng.randint(1, most) if event else rng.random() * most
                    try:
                        run(lambda w=world: call(w), at, event)
                    except BaseException as error:
                        held = error  # it keeps its frames, and all that they refer to
                    now = world.state()
                    bad = {key for key in before if now[key] != before[key]}
                    if all(now[key] == after[key] for key in now if key != "objects"):
                        bad = set()  # it was done
                    if held and not isinstance(held, Interrupt):
                        bad.add(repr(held))
                    if not works():
                        bad.add("the next product hangs")
                    hits += held is not None
                    if held and bad:
                        left += 1
                        show(f"{name}, {attack} {at}: {', '.join(sorted(bad))}")
                        held = None
                        clean(2)
                result[attack] = hits, left
    finally:
        clean(of_blas)
        ml.threads(among)
        signal.signal(signal.SIGALRM, alarm)
        sys.unraisablehook = unraisable
    return result


# What open() or rmtree() had opened when it was interrupted is closed by Python, with a warning
@pytest.mark.filterwarnings("ignore:Exception ignored in. <(_io.FileIO|posix.ScandirIterator)")
@pytest.mark.parametrize("name", CALLS)
def test_an_interrupt_at_any_instant_leaves_what_was_there(name):
    lines = []
    few = {"line": 1} if [*CALLS].index(name) % 2 else {"timer": 1}
    traces(name, few, lines.append)
    assert not lines


def main(times: int, names: list[str]) -> None:
    print(f"{'verb':<22}" + "".join(f"{attack:>12}" for attack in ATTACKS))
    for name in names or CALLS:
        row = traces(name, dict.fromkeys(ATTACKS, times), print if names else lambda line: None)
        print(f"{name:<22}" + "".join(f"{left:>6}/{hits:>5}" for hits, left in row.values()))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
