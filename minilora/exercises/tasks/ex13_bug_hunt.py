"""13. Bug hunt: find three mistakes in a training script.

The script below fine-tunes a small GPT-2 with LoRA on a text, and merges the adapters. It raises no
error, but it has three bugs. Real scripts had bugs like these. Each bug is in a different function
or class. Find and repair them. You may rewrite anything, but each function must do what its
docstring says: the checks call the functions one by one, and all together through `fine_tune`.

These statements must be true:
    the model with new adapters computes the same as the base, bit for bit
    an adapted layer adds (alpha / r) B A x to the output of the base layer
    every adapter is trained, and nothing else: the arrays of the base keep their bits
    each step uses only the gradient of its own batch; each step has another batch; a second run
        draws the same batches; a target is the next token
    the learning rate falls from lr to 0, as in rate
    dropout is on in training (also after an evaluation), and off in an evaluation
    an evaluation gives the mean loss over all tokens
    the merged and the unmerged model compute the same

    rate(0, 10, 0.5)    -> 0.5
    rate(5, 10, 0.5)    -> 0.25

fine_tune(model, ids, held_out, r, alpha, steps, lr, decay) takes a GPT2 of minilora, two arrays of
token ids (one axis), and numbers. It returns a dict. "before", "after" and "merged" are the
held-out losses at the start, after training and after the merge. "losses" are the losses of the
steps.
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

from minilora.exercises.tasks.small_model import LR, WIDTH, Theirs, logits, losses_of, model, text

STEPS = 60


def faults(file, seed, r, alpha):
    """The faults of the script of fine_tune."""
    probes, ids = (_layers, _training, _steps, _batches, _modes, _mean, _merged), text(seed, 12)
    return [what for probe in probes for what in probe(file, ids, seed, r, alpha)]


def _layers(file, ids, seed, r, alpha):
    at = Theirs(file, seed)
    before = logits(at.model, ids)
    if not (logits(at.prepare(seed, r, alpha).model, ids) == before).all():
        yield "with new adapters, the model does not compute the same as the base"
    layer = Theirs(file, seed).prepare(seed, r, alpha, B=1.0).model.blocks[0].attn.q
    arrays = {data.shape: data for data in file.each(layer.parameters(), "data")}
    x = np.random.default_rng(seed).normal(size=(3, WIDTH)).astype("float32")
    if (r, WIDTH) not in arrays or (WIDTH, r) not in arrays:
        raise ValueError("blocks[0].attn.q has no A and B of rank r")
    update = alpha / r * x @ arrays[r, WIDTH].T @ arrays[WIDTH, r].T
    added = layer(at.engine.Tensor(x)).data - model(seed).blocks[0].attn.q(ml.Tensor(x)).data
    if np.abs(added - update).max() > 1e-3 * np.abs(update).max():
        yield "an adapted layer does not add (alpha / r) B A x"


def _training(file, ids, seed, r, alpha):
    at = Theirs(file, seed).prepare(seed, r, alpha)
    file.train(at.model, at.optimizer, ids, 4, LR, 0.0)
    idle = sum((now == before).all() for before, now in at.changes())
    if idle:
        yield f"{idle} of {len(at.new)} matrices of the adapters are never trained"
    if not at.intact():
        yield "the base is trained too"
    at = Theirs(file, seed).prepare(seed, r, alpha, B=1.0)
    for p, _ in at.base:
        p.requires_grad = False
    file.train(at.model, at.still(), ids, 2, LR, 1.0)
    if not at.intact():
        yield "weight decay changes the base"
    if any(np.abs(now).sum() >= np.abs(before).sum() for before, now in at.changes()):
        yield "weight decay does not change the trained parameters"


def _steps(file, ids, seed, r, alpha):
    at = Theirs(file, seed).prepare(seed, r, alpha, B=0.5)
    same = 0 * ids[: LENGTH + 1]  # all batches are equal
    losses = file.train(at.model, at.still(), 0 * ids, 4, LR, 0.0)
    first, *later = at.seen
    far = [np.abs(a - b).max() / np.abs(a).max() for seen in later for a, b in zip(first, seen)]
    if len(later) != 3 or max(far) > 1e-2:
        yield "a step does not use the gradient of its batch only"
    if at.rates != sorted(at.rates, reverse=True) or at.rates[0] != LR or at.rates[-1] > 0.6 * LR:
        yield "the learning rate does not fall from lr to 0"
    expected = np.mean(losses_of(logits(at.model, same), same))
    if len(losses) != 4 or np.abs(np.array(losses) / expected - 1).max() > 1e-3:
        yield "train does not return the losses of the steps"


def _batches(file, ids, seed, r, alpha):
    pairs = [file.batch(np.arange(100), step) for step in (0, 1, 2, 2)]
    if any(not np.array_equal(inputs + 1, targets) for inputs, targets in pairs):
        yield "a target is not the token that follows"
    if all(np.array_equal(pairs[0][0], inputs) for inputs, _ in pairs):
        yield "every step uses the same batch"
    if not np.array_equal(pairs[2][0], pairs[3][0]):
        yield "a second run draws other batches"


def _modes(file, ids, seed, r, alpha):
    at = Theirs(file, seed, dropout=0.3).prepare(seed, r, alpha)
    if file.evaluate(at.model, ids) != file.evaluate(at.model, ids):
        yield "dropout is on in an evaluation"
    at.watched()
    file.train(at.model, at.still(), ids, 2, LR, 0.0)
    if not all(at.modes):
        yield "after an evaluation, dropout stays off in training"


def _mean(file, ids, seed, r, alpha):
    ids = ids[: 2 * LENGTH + 3]
    windows = (ids[at : at + LENGTH + 1] for at in range(0, len(ids) - 1, LENGTH))
    losses = [loss for one in windows for loss in losses_of(logits(model(seed), one[:-1]), one)]
    if abs(file.evaluate(Theirs(file, seed).model, ids) - np.mean(losses)) > 1e-3 * np.mean(losses):
        yield "an evaluation is not the mean over all tokens"


def _merged(file, ids, seed, r, alpha):
    at = Theirs(file, seed).prepare(seed, r, alpha, B=0.3)
    before = logits(at.model, ids)
    file.merge(at.model)
    if np.abs(logits(at.model, ids) - before).max() > 1e-2 * np.abs(before).max():
        yield "the merged and the unmerged model do not compute the same"
    elif len(at.model.parameters()) > len(at.base):
        yield "after the merge, a layer still has its adapter"
    if not at.intact():
        yield "the merge changes the base"


def run_script(file, seed, r, alpha):
    """(loss before, after, merged) of the script, and whether the base kept its bits."""
    at, ids = Theirs(file, seed, 0.05), text(seed, 30)
    result = file.fine_tune(at.model, ids, ids[:45], r, alpha, STEPS, LR, 0.01)
    losses = np.array([result[name] for name in ("before", "after", "merged")], "float32")
    return losses, at.intact()


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
SCRIPT = Path(__file__).read_text("utf-8").partition("\n\n\n### DRIVERS")[0]
GIVEN = re.sub(r" *### (BEGIN|END) SOLUTION\n", "", SCRIPT + "\n")
PLACE = {name: GIVEN[: GIVEN.index(old)].count("\n\n\n") for name, (old, _) in BUGS.items()}
THREES = [t for t in itertools.combinations(BUGS, 3) if len({PLACE[name] for name in t}) == 3]


def with_bugs(*names):
    return functools.reduce(lambda text, name: text.replace(*BUGS[name]), names, GIVEN)


def drawn(seed):
    """The stub: the seed in the first line, and three bugs."""
    names = THREES[np.random.default_rng(seed).integers(len(THREES))]
    return f"# Bugs drawn with seed {seed}: minilora ex init --seed {seed}\n{with_bugs(*names)}"


cases = st.fixed_dictionaries(
    {"seed": st.integers(0, 3), "r": st.sampled_from([2, 3]), "alpha": st.sampled_from([4.0, 1.0])}
)


def _remaining(student, most, seed, r, alpha):
    bugs = student.faults(seed, r, alpha)
    if len(bugs) > most:
        wanted = f"at most {most} of the three bugs" if most else "no bug"
        more = (" " * 12 + bug for bug in bugs[1:])
        raise kit.Wrong(f"expected {wanted}", f"got      {len(bugs)}: {bugs[0]}", *more)


@kit.check(cases, points=3, examples=2)
def one_gone(student, seed, r, alpha):
    """One of the three bugs is gone."""
    _remaining(student, 2, seed, r, alpha)


@kit.check(cases, points=3, examples=2)
def two_gone(student, seed, r, alpha):
    """Two of the three bugs are gone."""
    _remaining(student, 1, seed, r, alpha)


@kit.check(cases, points=4, examples=2)
def all_gone(student, seed, r, alpha):
    """All three bugs are gone: the script reaches its loss, and the base keeps its bits."""
    _remaining(student, 0, seed, r, alpha)
    (before, after, merged), intact = student.run_script(seed, r, alpha)
    kit.holds(intact, "the base's arrays unchanged, bit for bit", "other arrays")
    words = f"training to lower the held-out loss from {before:.3g} to less than {0.6 * before:.3g}"
    kit.holds(after < 0.6 * before, words, f"{after:.3g}")
    kit.equal(merged, after, "the loss of the merged model", rtol=1e-3)


def _written(name):
    exec(with_bugs(name), space := {"__name__": "script"})
    return space["fine_tune"]


WRONG = {"fine_tune": {name: _written(name) for name in BUGS}}
