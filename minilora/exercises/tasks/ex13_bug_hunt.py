"""13. Bug hunt: find three mistakes in a training script.

The script below fine-tunes a small GPT-2 with LoRA on a text, and merges the adapters. It raises no
error, but it has three bugs. Real scripts had bugs like these. Each bug is in a different function
or class. Find and repair them. You may rewrite anything, but each function must do what its
docstring says: the checks call the functions one by one, and all together through `fine_tune`.

These statements must be true:
    The model with new adapters computes the same as the base, bit for bit.
    An adapted layer of any block adds (alpha / r) B A x to the output of the base layer.
    Every adapter is trained, and nothing else: the arrays of the base keep their bits.
    Each step uses only the gradient of its own batch; each step has another batch; a second run
        draws the same batches; a target is the next token.
    The learning rate falls from lr to 0, as in rate.
    Dropout is on in training (in every block, also after an evaluation), and off in an evaluation.
    An evaluation gives the mean loss over all tokens.
    The merged and the unmerged model compute the same.

    rate(0, 10, 0.5)    -> 0.5
    rate(5, 10, 0.5)    -> 0.25

fine_tune(model, ids, held_out, r, alpha, steps, lr, decay) takes a GPT2 of minilora, two arrays of
token ids (one axis), and numbers. It takes so many steps, each with a batch of ids, and never
trains on held_out. It leaves the merged model. It returns a dict. "before", "after" and "merged"
are the held-out losses at the start, after training and after the merge. "losses" are the losses of
the steps. The checks watch the model: which tokens it reads, its modes, and its numbers.
"""

import numpy as np

import minilora as ml
from minilora import nn, ops

LENGTH, SIZE = 8, 8  # tokens in a window of the text; windows in a batch
NAMES = ("q", "k", "v", "o")  # the layers that get an adapter


class LoRALinear(nn.Module):
    """W x + b + (alpha / r) B A x; W and b from the base layer; A is random and B = 0 at first."""

    def __init__(self, base, r, alpha, rng):
        d, k = base.W.shape
        self.base, self.scale = base, alpha / r
        self.A = nn.Parameter(rng.normal(0.0, k**-0.5, (r, k)).astype("float32"))
        self.B = nn.Parameter(np.zeros((d, r), "float32"))

    def forward(self, x):
        return self.base(x) + ops.linear(ops.linear(x, self.A), self.B) * self.scale


def prepare(model, r, alpha, lr, rng):
    """Freeze the base, adapt the layers in NAMES; return an optimizer of all adapters."""
    model.requires_grad_(False)
    for block in model.blocks:
        for name in NAMES:
            setattr(block.attn, name, LoRALinear(getattr(block.attn, name), r, alpha, rng))
    return ml.Adam(model.trainable_parameters(), lr=lr)


def batch(ids, step):
    """(inputs, targets), each (SIZE, LENGTH): windows at random places, different in each step."""
    rng = np.random.default_rng(step)
    starts = rng.integers(len(ids) - LENGTH, size=SIZE)
    windows = ids[starts[:, None] + np.arange(LENGTH + 1)]
    return windows[:, :-1], windows[:, 1:]


def rate(step, steps, lr):
    """The learning rate: lr in step 0, then a straight line to 0 after the last step."""
    return lr * (1 - step / steps)


def train(model, optimizer, ids, steps, lr, decay):
    """Train, with weight decay on the trained parameters; return the losses of the steps."""
    losses = []
    for step in range(steps):
        inputs, targets = batch(ids, step)
        optimizer.zero_grad()
        loss = ops.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.lr = rate(step, steps, lr)
        for p in model.trainable_parameters().values():
            p.data *= 1 - optimizer.lr * decay
        optimizer.step()
        losses.append(loss.item())
    return losses


def evaluate(model, ids):
    """The mean loss over all tokens after the first, in windows; the last may be shorter."""
    model.eval()
    total = count = 0
    with ml.no_grad():
        for start in range(0, len(ids) - 1, LENGTH):
            window = ids[start : start + LENGTH + 1]
            loss = ops.cross_entropy(model(window[None, :-1]), window[None, 1:]).item()
            total += loss * (len(window) - 1)
            count += len(window) - 1
    model.train()
    return total / count


def merge(model):
    """Replace each adapted layer by a plain layer with W + (alpha / r) B A."""
    for block in model.blocks:
        for name in NAMES:
            layer = getattr(block.attn, name)
            d, k = layer.base.W.shape
            plain = nn.Linear(k, d)
            plain.W = nn.Parameter(layer.base.W.data + layer.scale * layer.B.data @ layer.A.data)
            plain.b = layer.base.b
            setattr(block.attn, name, plain)


def fine_tune(model, ids, held_out, r, alpha, steps, lr, decay):
    """Adapt, train and merge the model; return the losses."""
    ### BEGIN SOLUTION
    optimizer = prepare(model, r, alpha, lr, np.random.default_rng(0))
    before = evaluate(model, held_out)
    losses = train(model, optimizer, ids, steps, lr, decay)
    after = evaluate(model, held_out)
    merge(model)
    return {"before": before, "after": after, "merged": evaluate(model, held_out), "losses": losses}
    ### END SOLUTION


### DRIVERS

from minilora.exercises.tasks import script_faults
from minilora.exercises.tasks.script_faults import IDLE
from minilora.exercises.tasks.small_model import LR, Theirs, text

STEPS = 60


def faults(file, seed, r, alpha):
    """The faults of the script of fine_tune; IDLE alone if it does not train."""
    return script_faults.found(file, seed, r, alpha)


def run_script(file, seed, r, alpha):
    """Held-out loss before and of the merged model, the returned "after"; is the base intact?"""
    at, ids = Theirs(file, seed, 0.05), text(seed, 30)
    before = file.evaluate(at.model, ids[:45])
    result = file.fine_tune(at.model, ids, ids[:45], r, alpha, STEPS, LR, 0.01)
    losses = [before, file.evaluate(at.model, ids[:45]), result["after"]]
    return np.array(losses, "float32"), at.intact()


### CHECKS
# mypy: ignore-errors

import functools
import itertools
import re
from pathlib import Path

from hypothesis import strategies as st

from minilora.exercises import kit

TITLE = "bug hunt"
MINUTES = 45
CHAPTER = "08"
ENGINE = True
SEEDS = 5  # one seed costs as much as all seeds of another exercise

HINTS = (
    "The verdict describes the effect of each remaining bug. Find the function whose docstring "
    "promises the opposite. Read it line by line, and compare it with its docstring.",
    "Call a function alone: print(batch(np.arange(100), 0)). See which parameters change in "
    "train. Compare the model's output before and after prepare, and before and after merge.",
    "Places where bugs are frequent: zero_grad, requires_grad_(False), alpha / r, B = 0, targets, "
    "the seed of a batch, the direction of rate, the parameters that decay or that Adam gets, "
    "eval() and train(), the divisor of a mean, the layer that is in place after merge.",
)

BUGS = {  # bug -> (a text of the script, its replacement)
    "the gradients are never set to zero": ("        optimizer.zero_grad()\n", ""),
    "the base is not frozen": ("    model.requires_grad_(False)\n", ""),
    "the optimizer gets only the adapters of the last block": (
        "ml.Adam(model.trainable", "ml.Adam(block.trainable"),
    "the targets are the inputs, not shifted by one": ("windows[:, 1:]", "windows[:, :-1]"),
    "the update is scaled by alpha, not by alpha / r": ("base, alpha / r", "base, alpha"),
    "B is random at the start, not 0": (
        'np.zeros((d, r), "float32")', 'rng.normal(0.0, r**-0.5, (d, r)).astype("float32")'),
    "the learning rate rises": ("(1 - step / steps)", "(step + 1) / steps"),
    "every step draws its batch with the same seed": ("default_rng(step)", "default_rng(0)"),
    "weight decay changes all parameters, also those of the base": (
        "in model.trainable_parameters().values()", "in model.parameters()"),
    "an evaluation does not call eval()": ("    model.eval()\n", ""),
    "an evaluation does not call train() at its end": ("    model.train()\n", ""),
    "an evaluation takes the mean of the means of the windows": (
        "total += loss * (len(window) - 1)\n            count += len(window) - 1",
        "total += loss\n            count += 1"),
    "a merged layer keeps its adapter, so the update counts twice": (
        "setattr(block.attn, name, plain)", "layer.base = plain"),
}
HOLES = {  # the same, of mistakes that no stub has
    "fine_tune returns made-up numbers, and trains nothing": (
        "    optimizer = prepare(", "    return dict(before=1.8, after=0.1, merged=0.1, "
        "losses=[1.0] * steps)\n    optimizer = prepare("),
    "fine_tune returns other numbers than the losses of its model": (
        '"after": after, "merged": evaluate(model, held_out)', '"after": 0.1, "merged": 0.1'),
    "fine_tune never merges": ("    merge(model)\n", ""),
    "fine_tune trains on the held-out text": (
        "= train(model, optimizer, ids, steps", "= train(model, optimizer, held_out, steps"),
    "fine_tune takes ten times the steps": (
        "= train(model, optimizer, ids, steps", "= train(model, optimizer, ids, 10 * steps"),
    "fine_tune trains a second time with the same batches": (
        "    after =", "    train(model, optimizer, ids, steps, lr, decay)\n    after ="),
    "fine_tune changes the model after the training": (
        "    merge(model)\n", "    model.blocks[0].attn.q.B.data *= 0.5\n    merge(model)\n"),
    "the learning rate ends at lr / 2": ("(1 - step / steps)", "(1 - step / steps / 2)"),
    "train does not call rate": ("= rate(step, steps, lr)", "= lr"),
    "only the first block gets adapters": ("in model.blocks:", "in model.blocks[:1]:"),
    "the update of the second block is scaled by alpha": (
        "r, alpha, rng))", "r, alpha * (r if block is model.blocks[1] else 1), rng))"),
    "an evaluation leaves the last block in eval()": (
        "    model.train()\n", "    model.train()\n    model.blocks[-1].eval()\n"),
}
EDITS = BUGS | HOLES
SCRIPT = Path(__file__).read_text("utf-8").partition("\n\n\n### DRIVERS")[0]
GIVEN = re.sub(r" *### (BEGIN|END) SOLUTION\n", "", SCRIPT + "\n")
PLACE = {name: GIVEN[: GIVEN.index(old)].count("\n\n\n") for name, (old, _) in BUGS.items()}
THREES = [t for t in itertools.combinations(BUGS, 3) if len({PLACE[name] for name in t}) == 3]


def with_bugs(*names):
    return functools.reduce(lambda text, name: text.replace(*EDITS[name]), names, GIVEN)


def drawn(seed):
    """The stub: the seed in the first line, and three bugs."""
    names = THREES[np.random.default_rng(seed).integers(len(THREES))]
    return f"# Bugs drawn with seed {seed}: minilora ex init --seed {seed}\n{with_bugs(*names)}"


cases = st.sampled_from([
    {"seed": seed, "r": r, "alpha": alpha}
    for seed in range(8) for r in (2, 3) for alpha in (4.0, 1.0, 2.7)
])


def _remaining(student, most, seed, r, alpha):
    bugs = student.faults(seed, r, alpha)
    if bugs == [IDLE]:
        raise kit.Wrong("expected fine_tune to train the model", f"got      {IDLE}")
    if len(bugs) > most:
        wanted = f"at most {most} of the three bugs" if most else "no bug"
        more = (" " * 12 + bug for bug in bugs[1:])
        raise kit.Wrong(f"expected {wanted}", f"got      {len(bugs)}: {bugs[0]}", *more)


@kit.check(cases, points=3, examples=1)
def one_gone(student, seed, r, alpha):
    """One of the three bugs is gone."""
    _remaining(student, 2, seed, r, alpha)


@kit.check(cases, points=3, examples=1)
def two_gone(student, seed, r, alpha):
    """Two of the three bugs are gone."""
    _remaining(student, 1, seed, r, alpha)


@kit.check(cases, points=4, examples=1)
def all_gone(student, seed, r, alpha):
    """All three bugs are gone: the script reaches its loss, and the base keeps its bits."""
    _remaining(student, 0, seed, r, alpha)
    (before, merged, after), intact = student.run_script(seed, r, alpha)
    kit.holds(intact, "the base's arrays unchanged, bit for bit", "other arrays")
    words = f"training to lower the held-out loss from {before:.3g} to less than {0.6 * before:.3g}"
    kit.holds(merged < 0.6 * before, words, f"{merged:.3g}")
    kit.equal(after, merged, 'the returned "after", next to the merged model,', rtol=1e-3)


PROMISES = {
    one_gone: ("It takes so many steps", "Find and repair them"),
    two_gone: ("These statements must be true", "You may rewrite anything"),
    all_gone: (
        "An adapted layer of any block", "Every adapter is trained", "Each step uses only",
        "The learning rate falls", "Dropout is on", "An evaluation gives", "The merged and the un",
        "It leaves the merged", '"before", "after"', '"losses" are', "It returns a dict",
    ),
}
EXPLAINS = ("Bug hunt", "The script below", "It raises no error", "Real scripts", "Each bug is in",
            "fine_tune(model, ids", "The checks watch")


def behaviour(student):
    """The faults of the script on one case."""
    return {"faults": student.faults(1, 2, 3.5)}


def _written(name):
    exec(with_bugs(name), space := {"__name__": "script"})
    return space["fine_tune"]


WRONG = {"fine_tune": {name: _written(name) for name in EDITS}}
