"""What is wrong with a script of exercise 13: each probe calls its parts, and yields the faults.

The probes run in the judge's process. They believe what the model does, not what the script says.
"""
# mypy: ignore-errors

import numpy as np

import minilora as ml
from minilora.exercises.tasks.small_model import (
    LENGTH,
    LR,
    NAMES,
    SIZE,
    WIDTH,
    Theirs,
    logits,
    losses_of,
    model,
    text,
)

FEW = 2  # steps of a training run
IDLE = "fine_tune does not train the model on batches of ids"


def found(file, seed, r, alpha):
    """The faults of the script of fine_tune; IDLE alone if it does not train."""
    ids = text(seed, 12)
    together = [*_together(file, ids, seed, r, alpha)]
    if IDLE in together:
        return [IDLE]
    probes = (_layers, _training, _steps, _batches, _modes, _mean, _merged)
    return [what for probe in probes for what in probe(file, ids, seed, r, alpha)] + together


def _together(file, ids, seed, r, alpha):
    """Compare fine_tune with the parts of the same file, right or wrong, called one by one."""
    at, held_out = Theirs(file, seed).watched(), text(seed + 1, 2)[: LENGTH + 3]
    result = file.fine_tune(at.model, ids, held_out, r, alpha, FEW, LR, 0.01)
    steps = [tokens for tokens in at.read if len(tokens) == SIZE]
    if not steps or not _apart(logits(at.model, ids), logits(model(seed), ids)):
        yield IDLE
        return
    if len(steps) != FEW:
        yield f"fine_tune takes {len(steps)} steps, not {FEW}"
    elif any(not np.array_equal(one, file.batch(ids, i)[0]) for i, one in enumerate(steps)):
        yield "fine_tune trains on other tokens than those of batch(ids, step)"
    else:
        ours = Theirs(file, seed).prepare(seed, r, alpha).start_like(at)
        losses = [file.evaluate(ours.model, held_out)]
        steps = file.train(ours.model, ours.optimizer, ids, FEW, LR, 0.01)
        losses += [file.evaluate(ours.model, held_out)]
        file.merge(ours.model)
        if len(at.model.parameters()) != len(ours.model.parameters()):
            yield "fine_tune does not leave the model that merge makes"
        elif any(map(_apart, at.numbers(), ours.numbers())):
            yield "fine_tune does not train as train does"
        losses += [file.evaluate(at.model, held_out), *steps]
        if _apart(_returned(result), losses):
            yield "fine_tune does not return the losses of its model"


def _returned(result):
    names = ("before", "after", "merged", "losses")
    whole = isinstance(result, dict) and all(name in result for name in names)
    return np.hstack([result[name] for name in names]) if whole else np.zeros(0)


def _apart(got, expected):
    """Do these numbers differ by more than 0.1 % of the largest one?"""
    got, expected = np.array(got), np.array(expected)
    if got.shape != expected.shape:
        return True
    return not np.abs(got - expected).max() <= 1e-3 * np.abs(expected).max()


def _layers(file, ids, seed, r, alpha):
    at = Theirs(file, seed)
    before = logits(at.model, ids)
    if not (logits(at.prepare(seed, r, alpha).model, ids) == before).all():
        yield "with new adapters, the model does not compute the same as the base"
    at = Theirs(file, seed).prepare(seed, r, alpha, B=1.0)
    x = np.random.default_rng(seed).normal(size=(3, WIDTH)).astype("float32")
    wrong, given = [], at.engine.Tensor(x)
    for i, (block, base) in enumerate(zip(at.model.blocks, model(seed).blocks)):
        for name in NAMES:
            layer = getattr(block.attn, name)
            arrays = {data.shape: data for data in file.each(layer.parameters(), "data")}
            A, B = (arrays.get(shape, np.zeros(shape)) for shape in ((r, WIDTH), (WIDTH, r)))
            added = layer(given).data - getattr(base.attn, name)(ml.Tensor(x)).data
            if not A.any() or _apart(added, alpha / r * x @ A.T @ B.T):
                wrong.append(f"blocks[{i}].attn.{name}")
    if wrong:
        yield f"a layer does not add (alpha / r) B A x: {', '.join(wrong)}"


def _training(file, ids, seed, r, alpha):
    at = Theirs(file, seed).prepare(seed, r, alpha)
    file.train(at.model, at.optimizer, ids, 2, LR, 0.0)
    idle = sum((now == before).all() for before, now in at.changes())
    if idle:
        yield f"{idle} of {len(at.new)} matrices of the adapters are never trained"
    if not at.intact():
        yield "the base is trained too"
    at = Theirs(file, seed).prepare(seed, r, alpha, B=1.0)
    for p, _ in at.base:
        p.requires_grad = False
    file.train(at.model, at.still(), ids, 1, LR, 1.0)
    if not at.intact():
        yield "weight decay changes the base"
    if any(np.abs(now).sum() >= np.abs(before).sum() for before, now in at.changes()):
        yield "weight decay does not change the trained parameters"


def _steps(file, ids, seed, r, alpha):
    at = Theirs(file, seed).prepare(seed, r, alpha, B=0.5)
    same = 0 * ids[: LENGTH + 1]  # all batches are equal
    losses = file.train(at.model, at.still(), 0 * ids, FEW, LR, 0.0)
    if len(at.seen) != FEW:
        yield f"train takes {len(at.seen)} steps, not {FEW}"
    far = [np.abs(a - b).max() / np.abs(a).max()
           for seen in at.seen[1:] for a, b in zip(at.seen[0], seen)]
    if max(far, default=0.0) > 1e-2:
        yield "a step does not use the gradient of its batch only"
    rates = [file.rate(step, 10, LR) for step in range(11)]
    if _apart(rates, LR * (1 - np.arange(11) / 10)):
        yield f"the learning rate does not fall from lr to 0: rate gives {rates[0]} to {rates[10]}"
    elif _apart(at.rates[:FEW], [file.rate(step, FEW, LR) for step in range(FEW)]):
        yield "train does not use the learning rates of rate"
    if _apart(losses[:FEW], [np.mean(losses_of(logits(at.model, same), same))] * FEW):
        yield "train does not return the losses of the steps"


def _batches(file, ids, seed, r, alpha):
    pairs = [file.batch(np.arange(100), step) for step in (*range(10), 9)]
    windows = [inputs for inputs, _ in pairs]
    if any(not np.array_equal(inputs + 1, targets) for inputs, targets in pairs):
        yield "a target is not the token that follows"
    if any(not np.array_equal(one, one[:, :1] + np.arange(LENGTH)) or len(one) != SIZE
           for one in windows) or np.ptp(windows) < 60:
        yield "the inputs are not SIZE windows of LENGTH tokens at random places"
    if len({one.tobytes() for one in windows}) < 10:
        yield "two steps use the same batch"
    if not np.array_equal(windows[-2], windows[-1]):
        yield "a second run draws other batches"


def _modes(file, ids, seed, r, alpha):
    at, few = Theirs(file, seed, dropout=0.3).prepare(seed, r, alpha), ids[: LENGTH + 4]
    if file.evaluate(at.model, few) != file.evaluate(at.model, few):
        yield "dropout is on in an evaluation"
    at.watched()
    file.train(at.model, at.still(), ids, 1, LR, 0.0)
    off = {where for modes in at.modes for where, on in modes.items() if not on}
    if off:
        yield f"after an evaluation, dropout stays off in training: {', '.join(sorted(off))}"


def _mean(file, ids, seed, r, alpha):
    ids = ids[: 2 * LENGTH + 3]
    windows = (ids[at : at + LENGTH + 1] for at in range(0, len(ids) - 1, LENGTH))
    losses = [loss for one in windows for loss in losses_of(logits(model(seed), one[:-1]), one)]
    if _apart(file.evaluate(Theirs(file, seed).model, ids), np.mean(losses)):
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
