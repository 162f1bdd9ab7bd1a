"""07. Freeze, count, and train the rest.

A model's parameters are arrays with names, such as "blocks.0.q.W", "blocks.0.q.A", "head.b". LoRA
freezes most of them. Training must not change a frozen parameter, not even by one bit.

freeze(parameters, pattern) takes
    parameters  dict, name -> array
    pattern     text: a parameter is frozen if its full name matches. A * matches any text, also an
                empty one. Use fnmatchcase(name, pattern), imported below: it is True for a match
and returns the list of the other names, in the order of the dict. These parameters are trained.

    len(freeze({"q.W": np.ones(2), "q.A": np.ones(2), "q.B": np.ones(2)}, "*.W"))  ->  2

count_lora(shapes, r) takes
    shapes  list of (d, k), the shapes of the matrices W that get an update B A of rank r
    r       integer; A is (r, k), B is (d, r)
and returns how many numbers all A and B have together.

    count_lora([(3, 5), (4, 4)], 2)  ->  32

train_step(params, grads, trained, lr, decay) takes
    params   dict, name -> array of floats
    grads    dict, name -> gradient; the names of frozen parameters may be in it or not
    trained  list of the names that are trained; all others are frozen
    lr       number, the learning rate
    decay    number, the weight decay
and changes each trained parameter p to p - lr (g + decay p), where g is its gradient. Write the new
numbers into the same array, because the model uses it. train_step returns nothing, and does not
change grads. With p = 2, g = 1, lr = 0.1 and decay = 0.5, the new p is 2 - 0.1 (1 + 0.5 · 2) = 1.8.
"""

from fnmatch import fnmatchcase

import numpy as np


def freeze(parameters, pattern):
    """The names that do not match the pattern."""
    ### BEGIN SOLUTION
    return [name for name in parameters if not fnmatchcase(name, pattern)]
    ### END SOLUTION


def count_lora(shapes, r):
    """The number of entries of all A (r, k) and B (d, r)."""
    ### BEGIN SOLUTION
    return sum(r * (d + k) for d, k in shapes)
    ### END SOLUTION


def train_step(params, grads, trained, lr, decay):
    """One step of gradient descent with weight decay, in place, for the trained parameters."""
    ### BEGIN SOLUTION
    for name in trained:
        p = params[name]
        p -= lr * (grads[name] + decay * p)
    ### END SOLUTION


### DRIVERS


def step_of_shared(file, params, grads, trained, lr, decay):
    """The arrays after a step, as seen by a model that has the same arrays in its own dict."""
    arrays = {name: p.copy() for name, p in params.items()}
    file.train_step(dict(arrays), grads, trained, lr, decay)
    return arrays


### CHECKS
# mypy: ignore-errors

from hypothesis import strategies as st

from minilora.exercises import kit

TITLE = "freeze, count, train"
MINUTES = 20
CHAPTER = "07"
IN_PLACE = {"train_step": ("params",)}

HINTS = (
    "freeze: keep a name unless it matches. count_lora: how many numbers has an array of shape "
    "(r, k)? train_step: loop over `trained`, not over params.",
    "The count is r · k + d · r for each matrix, summed. In place means p -= ... or p[...] = ...; "
    "p = p - ... makes a new array.",
    "for name in trained: p = params[name]; p -= lr * (grads[name] + decay * p)",
)
NAMES = ("blocks.0.q.W", "blocks.0.q.W.old", "q", "blocks.0.q.b", "blocks.0.q.B", "q.W",
         "blocks.0.q.A", "blocks.1.q.W", "blocks.10.q.W", "blocks.1.mlp.up.W",
         "ln.g", "tok.W", "head.W", "head.b")


@st.composite
def models(draw, patterns):
    """Parameters and patterns."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=2, max_size=5, unique=True))
    return {"parameters": {name: np.ones(1) for name in names}, "patterns": draw(patterns)}


def _remaining(student, parameters, patterns):
    """Compare with a matching function of our own."""
    results = [(pattern, student.freeze(parameters, pattern)) for pattern in patterns]
    for pattern, got in results:
        names = [name for name in parameters if not _matches(name, pattern)]
        wanted = f"freeze(parameters, {pattern!r}) = {names}"
        kit.holds(isinstance(got, list | tuple), wanted, kit.described(got))
        kit.holds([*got] == names, wanted, kit.shown([*got]))


def _matches(name, pattern):
    if not pattern or not name:
        return not name and not pattern.strip("*")
    if pattern[0] == "*":
        return _matches(name, pattern[1:]) or _matches(name[1:], pattern)
    return name[0] == pattern[0] and _matches(name[1:], pattern[1:])


@kit.check(models(st.sampled_from([["*.W"], ["*.b"], ["*.B"]])), points=2)
def frozen_endings(student, parameters, patterns):
    """freeze with a * in front: names with this ending are frozen, all others are returned."""
    _remaining(student, parameters, patterns)


PATTERNS = ("q.W", "*.q.*", "blocks.*", "blocks.1.*", "blocks.*.W", "*", "head.b", "*q*",
            "blocks.1")


@kit.check(
    models(st.permutations(PATTERNS).map(lambda drawn: [*drawn[:2], "blocks.1", "blocks.1.*"])),
    points=1, examples=60,
)
def frozen_anywhere(student, parameters, patterns):
    """freeze with a * anywhere, with several *, or with none."""
    _remaining(student, parameters, patterns)


def _first(simplest, most):
    """A size. The simplest is not 1: too many wrong formulas are right for 1."""
    return st.sampled_from([simplest, *range(1, most + 1)])


def counts(*sizes):
    """Shapes of the sizes that these draw, and a rank."""
    shapes = st.lists(st.tuples(*sizes), min_size=1, max_size=3)
    return st.fixed_dictionaries({"shapes": shapes, "r": _first(2, 4)})


@kit.check(
    counts(_first(3, 9), _first(5, 9)), counts(*[st.integers(2**31, 2**57)] * 2),
    points=2, examples=60,
)
def counted(student, shapes, r):
    """count_lora gives the number of entries of the arrays A and B, however large they are."""
    total = sum(r * k + d * r for d, k in shapes)
    got = student.count_lora(shapes, r)
    kit.equal(got, total, "the count")
    kit.holds(got == total, f"the count = {total}", f"{got}")  # a float64 has 53 bits


@st.composite
def steps(draw, decays=True, frozen=False, dtype=np.float64):
    """Parameters with gradients; some of them are trained.

    frozen: the names of some others begin or end like these, or are a part of one.
    """
    numbers = draw(kit.numbers())
    names = ["q.W", "q.A", "q.B", "lm.q.W"]
    names = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    trained = draw(st.permutations([name for name in names if not frozen or draw(st.booleans())]))
    if frozen:
        names += [f"{name}{more}" for name in trained for more in ("2", ".old")]
        names += [f"lm.{name}" for name in trained if name != "q.W"]
        names += {part for name in trained for part in (name[-1], name[:-2])} - {*names}
    shapes = {name: (draw(kit.sizes(1, 2)),) * draw(st.integers(0, 2)) for name in names}
    some = trained if frozen and draw(st.booleans()) else names
    params = {name: numbers(*shapes[name]).astype(dtype) for name in names}
    for name in set(names) - set(trained):
        params[name].flat[0] = -0.0  # adding 0.0 would change its bits
    grads = {name: numbers(*shapes[name]).astype(dtype) for name in some}
    still = decays and draw(st.integers(0, 2)) == 0  # p decays without a gradient too
    for g in grads.values():
        g[...] = 0.0 if still else np.where(g == 0, 1.0, g)
    return {
        "params": params, "grads": grads,
        "trained": trained, "lr": draw(kit.scalars(0.5, 0.1, 0.25, low=0.01, high=1.0)),
        "decay": draw(kit.scalars(0.5, 0.1, 2.0, low=0.01, high=2.0)) if decays else 0.0,
    }


def _stepped(params, grads, trained, lr, decay):
    return {
        name: p * (1 - lr * decay) - lr * grads[name] if name in trained else p.copy()
        for name, p in params.items()
    }


def _copied(params):
    return {name: p.copy() for name, p in params.items()}


def _sizes(params, grads, trained, lr, decay):
    """The sizes of the terms, which may cancel."""
    return {name: np.abs(p) * (1 + lr * decay) + lr * np.abs(grads.get(name, 0.0))
            for name, p in params.items()}


def _step(student, params, grads, trained, lr, decay):
    now, case = _copied(params), (params, grads, trained, lr, decay)
    returned = student.train_step(now, grads, trained, lr, decay)
    expected, sizes = _stepped(*case), _sizes(*case)
    for name, p in expected.items():
        kit.equal(now[name], p, f"{name} after the step", size=sizes[name])
    kit.holds(returned is None, "train_step to return nothing", kit.shown(returned))


@kit.check(steps(decays=False), steps(decays=False, dtype=np.float32), points=1)
def descent(student, params, grads, trained, lr, decay):
    """Without decay, a step subtracts lr times the gradient."""
    _step(student, params, grads, trained, lr, decay)


@kit.check(steps(), points=2)
def with_decay(student, params, grads, trained, lr, decay):
    """With decay, a step also subtracts lr · decay · p, with the p before the step."""
    _step(student, params, grads, trained, lr, decay)


@kit.check(steps(frozen=True), points=1, examples=60)
def base_untouched(student, params, grads, trained, lr, decay):
    """Three steps with decay change the trained parameters, and no bit of the frozen ones."""
    now, expected = _copied(params), params
    for _ in range(3):
        student.train_step(now, grads, trained, lr, decay)
        expected = _stepped(expected, grads, trained, lr, decay)
    for name, p in expected.items():
        if name in trained:
            kit.equal(now[name], p, f"{name}, which is trained, after three steps",
                      size=10 * (np.abs(params[name]) + np.abs(grads[name])))
        else:
            kit.holds(now[name].tobytes() == p.tobytes(), f"{name}, which is frozen, unchanged: "
                      f"{kit.shown(p)}", kit.shown(now[name]))


@kit.check(steps(), points=1)
def in_place(student, params, grads, trained, lr, decay):
    """The arrays themselves change, so a model with the same arrays sees the step."""
    arrays = student.step_of_shared(params, grads, trained, lr, decay)
    sizes = _sizes(params, grads, trained, lr, decay)
    for name, p in _stepped(params, grads, trained, lr, decay).items():
        kit.equal(arrays[name], p, f"the array of {name} after the step", size=sizes[name])


PROMISES = {
    frozen_endings: ("freeze(parameters, pattern) takes",),
    frozen_anywhere: ("A * matches any text", "and returns the list of the other names"),
    counted: ("count_lora(shapes, r) takes",), descent: ("train_step returns nothing",),
    with_decay: ("train_step(params, grads, trained, lr, decay) takes", "With p = 2"),
    base_untouched: ("Training must not change a frozen parameter",),
    in_place: ("Write the new numbers into the same array",),
}
EXPLAINS = ("Freeze, count, and train", "A model's parameters are", "LoRA freezes most",
            "Use fnmatchcase", "These parameters are trained")


def _updating(new, names=lambda params, trained: trained):
    def train_step(params, grads, trained, lr, decay):
        for name in names(params, trained):
            params[name][...] = new(params[name], grads[name], lr, decay)

    return train_step


def _gradient_in_place(params, grads, trained, lr, decay):
    for name in trained:
        grads[name] += decay * params[name]
        params[name][...] -= lr * grads[name]


def _another_array(params, grads, trained, lr, decay):
    for name in trained:
        params[name] = params[name] - lr * (grads[name] + decay * params[name])


def _local_name(params, grads, trained, lr, decay):
    for name in trained:
        p = params[name]
        p = p - lr * (grads[name] + decay * p)


def _decay_of_all(params, grads, trained, lr, decay):
    for name, p in params.items():
        p -= lr * ((grads[name] if name in trained else 0.0) + decay * p)


def _names(unless):
    return lambda parameters, pattern: [name for name in parameters if not unless(name, pattern)]


def _counted(each):
    return lambda shapes, r: sum(each(d, k, r) for d, k in shapes)


def _right(p, g, lr, decay):
    return p - lr * (g + decay * p)


WRONG = {
    "freeze": {
        "you return the frozen names, not the others": _names(
            lambda name, pattern: not fnmatchcase(name, pattern)),
        "you look for the pattern, with its *, as a part of the name": _names(
            lambda name, pattern: pattern in name),
        "you drop the * and look for the rest as a part of the name": _names(
            lambda name, pattern: pattern.replace("*", "") in name),
        "you give fnmatchcase the pattern first": _names(
            lambda name, pattern: fnmatchcase(pattern, name)),
        "you compare only the ends of the names": _names(
            lambda name, pattern: name.endswith(pattern.lstrip("*"))),
        "you ignore the difference between capital and small letters": _names(
            lambda name, pattern: fnmatchcase(name.lower(), pattern.lower())),
        "you return a dict with the arrays, not a list of names": lambda parameters, pattern: {
            name: p for name, p in parameters.items() if not fnmatchcase(name, pattern)
        },
    },
    "count_lora": {
        "you count the entries of W, d · k": _counted(lambda d, k, r: d * k),
        "you count A, but not B": _counted(lambda d, k, r: r * k),
        "you count B, but not A": _counted(lambda d, k, r: d * r),
        "you assume d = k, a square W": _counted(lambda d, k, r: 2 * d * r),
        "you multiply A's count by B's": _counted(lambda d, k, r: r * k * d * r),
        "you count r · d · k": _counted(lambda d, k, r: r * d * k),
        "you count W too": _counted(lambda d, k, r: d * k + r * (d + k)),
        "you count only the first matrix": lambda shapes, r: r * sum(shapes[0]),
    },
    "train_step": {
        "you go uphill: you add the gradient": _updating(
            lambda p, g, lr, decay: p + lr * (g + decay * p)),
        "you leave out the decay": _updating(lambda p, g, lr, decay: p - lr * g),
        "you decay by decay · p, not by lr · decay · p": _updating(
            lambda p, g, lr, decay: p - lr * g - decay * p),
        "your decay has the wrong sign: p grows": _updating(
            lambda p, g, lr, decay: p - lr * (g - decay * p)),
        "you decay p after the gradient step, not before": _updating(
            lambda p, g, lr, decay: (p - lr * g) * (1 - lr * decay)),
        "you add decay to the gradient, not decay · p": _updating(
            lambda p, g, lr, decay: p - lr * (g + decay)),
        "you change every parameter, trained or not": _updating(
            _right, lambda params, trained: params),
        "you decay frozen parameters too": _decay_of_all,
        "you add the decay to grads, in place": _gradient_in_place,
        "you put a new array into the dict: the model keeps the old one": _another_array,
        "you assign the new array to a local name: params keeps the old one": _local_name,
    },
}
