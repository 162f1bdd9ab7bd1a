"""07. Freeze, count, and train what is left.

A model's parameters are arrays with names, such as "blocks.0.q.W", "blocks.0.q.A", "head.b". LoRA
freezes most of them: a frozen one is not to change, not by one bit, whatever is done in training.

freeze(parameters, pattern) takes
    parameters  dict, name -> array
    pattern     text: the names that it matches are frozen. A * in it stands for any text, also for
                none; fnmatchcase(name, pattern), imported below, says whether it matches all of it
and returns the list of the names that are left to train, in the order of the dict.

    len(freeze({"q.W": np.ones(2), "q.A": np.ones(2), "q.B": np.ones(2)}, "*.W"))  ->  2

count_lora(shapes, r) takes
    shapes  list of (d, k), the shapes of the matrices W that get an update B A of rank r
    r       whole number; A is (r, k), B is (d, r)
and returns how many numbers are trained, all A and B together.

    count_lora([(3, 5), (4, 4)], 2)  ->  32

train_step(params, grads, trained, lr, decay) takes
    params   dict, name -> array of floats
    grads    dict, name -> gradient; of what is frozen there may be a gradient, or none
    trained  list of the names that are trained; all others are frozen
    lr       number, the learning rate
    decay    number, the weight decay
and changes what is trained to p - lr (g + decay p), in place: the arrays themselves get new
numbers, since the model holds these arrays, too. It returns nothing; grads stays as it is. With
p = 2, g = 1, lr = 0.1 and decay = 0.5 the new p is 2 - 0.1 (1 + 0.5 · 2) = 1.8.
"""

from fnmatch import fnmatchcase

import numpy as np


def freeze(parameters, pattern):
    """The names that the pattern does not match."""
    ### BEGIN SOLUTION
    return [name for name in parameters if not fnmatchcase(name, pattern)]
    ### END SOLUTION


def count_lora(shapes, r):
    """How many numbers all A (r, k) and B (d, r) have."""
    ### BEGIN SOLUTION
    return sum(r * (d + k) for d, k in shapes)
    ### END SOLUTION


def train_step(params, grads, trained, lr, decay):
    """One step of gradient descent with weight decay, in place, of what is trained."""
    ### BEGIN SOLUTION
    for name in trained:
        p = params[name]
        p -= lr * (grads[name] + decay * p)
    ### END SOLUTION


### BESIDE THE STUDENT


def step_of_shared(student, params, grads, trained, lr, decay):
    """The arrays after a step, as a model sees them that holds the same arrays in its own dict."""
    held = {name: p.copy() for name, p in params.items()}
    student.train_step(dict(held), grads, trained, lr, decay)
    return held


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
    "The count is r · k + d · r for each matrix, added up. In place means p -= ... or "
    "p[...] = ...; p = p - ... makes another array.",
    "for name in trained: p = params[name]; p -= lr * (grads[name] + decay * p)",
)
NAMES = ("blocks.0.q.W", "blocks.0.q.b", "blocks.0.q.B", "q.W", "blocks.0.q.A", "blocks.1.q.W",
         "blocks.10.q.W", "blocks.1.mlp.up.W", "ln.g", "tok.W", "head.W", "head.b")


@st.composite
def models(draw, patterns):
    """Parameters, and patterns."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=2, max_size=5, unique=True))
    return {"parameters": {name: np.ones(1) for name in names}, "patterns": draw(patterns)}


def _left(student, parameters, patterns):
    """Against patterns taken apart by hand: each piece between stars has its place."""
    results = [(pattern, student.freeze(parameters, pattern)) for pattern in patterns]
    for pattern, got in results:
        left = [name for name in parameters if not _matches(name, pattern)]
        wanted = f"{left} left to train after freeze(parameters, {pattern!r})"
        kit.holds(isinstance(got, list | tuple), wanted, kit.described(got))
        kit.holds([*got] == left, wanted, kit.shown([*got]))


def _matches(name, pattern):
    if not pattern or not name:
        return not name and not pattern.strip("*")
    if pattern[0] == "*":
        return _matches(name, pattern[1:]) or _matches(name[1:], pattern)
    return name[0] == pattern[0] and _matches(name[1:], pattern[1:])


@kit.check(models(st.sampled_from([["*.W"], ["*.b"], ["*.B"]])), points=2)
def frozen_endings(student, parameters, patterns):
    """freeze with a * in front: all names that end so are frozen, the rest is left."""
    _left(student, parameters, patterns)


PATTERNS = (
    "q.W",
    "*.q.*",
    "blocks.*",
    "blocks.1.*",
    "blocks.*.W",
    "*",
    "head.b",
    "*q*",
    "blocks.1",
)


@kit.check(
    models(st.permutations(PATTERNS).map(lambda drawn: [*drawn[:2], "blocks.1", "blocks.1.*"])),
    points=1,
    examples=60,
)
def frozen_anywhere(student, parameters, patterns):
    """freeze with a * anywhere, with several, or with none."""
    _left(student, parameters, patterns)


def _first(simplest, most):
    """A size; the simplest is not 1, with which too many formulas agree."""
    return st.sampled_from([simplest, *range(1, most + 1)])


@kit.check(
    st.fixed_dictionaries({
        "shapes": st.lists(st.tuples(_first(3, 9), _first(5, 9)), min_size=1, max_size=3),
        "r": _first(2, 4),
    }),
    points=2, examples=50,
)
def counted(student, shapes, r):
    """count_lora gives as many numbers as the arrays A and B have."""
    made = [(np.zeros((r, k)), np.zeros((d, r))) for d, k in shapes]
    kit.equal(student.count_lora(shapes, r), sum(A.size + B.size for A, B in made), "the count")


@st.composite
def steps(draw, decays=True, frozen=False):
    """Parameters with gradients, of which some are trained."""
    rng = draw(kit.generators())
    names = draw(st.lists(st.sampled_from(["q.W", "q.A", "q.B", "lm.q.W"]), min_size=1, max_size=3,
                          unique=True))
    trained = [name for name in names if not frozen or draw(st.booleans())]
    shapes = {name: (draw(kit.sizes(1, 2)),) * draw(st.integers(1, 2)) for name in names}
    some = trained if frozen and draw(st.booleans()) else names
    params = {name: kit.small(rng, *shapes[name]) for name in names}
    for name in set(names) - set(trained):
        params[name].flat[0] = -0.0  # to which 0.0 cannot be added unseen
    still = draw(st.sampled_from([1, 1, 0])) if decays else 1  # without gradient, too, p decays
    return {
        "params": params, "grads": {name: kit.small(rng, *shapes[name]) * still for name in some},
        "trained": trained, "lr": draw(st.sampled_from([0.5, 0.1, 0.25])),
        "decay": draw(st.sampled_from([0.5, 0.1, 2.0])) if decays else 0.0,
    }


def _stepped(params, grads, trained, lr, decay):
    return {
        name: p * (1 - lr * decay) - lr * grads[name] if name in trained else p.copy()
        for name, p in params.items()
    }


def _copied(params):
    return {name: p.copy() for name, p in params.items()}


def _step(student, params, grads, trained, lr, decay):
    now, expected = _copied(params), _stepped(params, grads, trained, lr, decay)
    student.train_step(now, grads, trained, lr, decay)
    for name, p in expected.items():
        kit.equal(now[name], p, f"{name} after the step")


@kit.check(steps(decays=False), points=1)
def descent(student, params, grads, trained, lr, decay):
    """Without decay, a step takes lr times the gradient away."""
    _step(student, params, grads, trained, lr, decay)


@kit.check(steps(), points=2)
def with_decay(student, params, grads, trained, lr, decay):
    """With decay, a step takes away lr · decay · p, too, of p before the step."""
    _step(student, params, grads, trained, lr, decay)


@kit.check(steps(frozen=True), points=1)
def base_untouched(student, params, grads, trained, lr, decay):
    """After three steps with decay, what is frozen has the same bits, and what is trained moved."""
    now, expected = _copied(params), params
    for _ in range(3):
        student.train_step(now, grads, trained, lr, decay)
        expected = _stepped(expected, grads, trained, lr, decay)
    for name, p in expected.items():
        if name in trained:
            kit.equal(now[name], p, f"{name}, which is trained, after three steps")
        else:
            kit.holds(now[name].tobytes() == p.tobytes(), f"{name}, which is frozen, as it was: "
                      f"{kit.shown(p)}", kit.shown(now[name]))


@kit.check(steps(), points=1)
def in_place(student, params, grads, trained, lr, decay):
    """The arrays themselves change, so that a model with the same arrays sees the step."""
    held = student.step_of_shared(params, grads, trained, lr, decay)
    for name, p in _stepped(params, grads, trained, lr, decay).items():
        kit.equal(held[name], p, f"the array of {name} after the step")


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


def _kept(unless):
    return lambda parameters, pattern: [name for name in parameters if not unless(name, pattern)]


def _counted(each):
    return lambda shapes, r: sum(each(d, k, r) for d, k in shapes)


def _right(p, g, lr, decay):
    return p - lr * (g + decay * p)


WRONG = {
    "freeze": {
        "you return the names that are frozen, not those that are left": _kept(
            lambda name, pattern: not fnmatchcase(name, pattern)
        ),
        "you look for the pattern, with its *, as a piece of the name": _kept(
            lambda name, pattern: pattern in name
        ),
        "you drop the * and look for the rest as a piece of the name": _kept(
            lambda name, pattern: pattern.replace("*", "") in name
        ),
        "you give fnmatchcase the pattern first": _kept(
            lambda name, pattern: fnmatchcase(pattern, name)
        ),
        "you compare the ends of the names only": _kept(
            lambda name, pattern: name.endswith(pattern.lstrip("*"))
        ),
        "you take capital and small letters as the same": _kept(
            lambda name, pattern: fnmatchcase(name.lower(), pattern.lower())
        ),
        "you return a dict with the arrays, not a list of names": lambda parameters, pattern: {
            name: p for name, p in parameters.items() if not fnmatchcase(name, pattern)
        },
    },
    "count_lora": {
        "you count the numbers of W, d · k": _counted(lambda d, k, r: d * k),
        "you count A, but not B": _counted(lambda d, k, r: r * k),
        "you count B, but not A": _counted(lambda d, k, r: d * r),
        "you take d = k, as of a square W": _counted(lambda d, k, r: 2 * d * r),
        "you multiply A's count by B's": _counted(lambda d, k, r: r * k * d * r),
        "you count r · d · k": _counted(lambda d, k, r: r * d * k),
        "you count W, too": _counted(lambda d, k, r: d * k + r * (d + k)),
        "you count the first matrix only": lambda shapes, r: r * sum(shapes[0]),
    },
    "train_step": {
        "you go uphill: you add the gradient": _updating(
            lambda p, g, lr, decay: p + lr * (g + decay * p)
        ),
        "you leave out the decay": _updating(lambda p, g, lr, decay: p - lr * g),
        "you decay by decay · p, not by lr · decay · p": _updating(
            lambda p, g, lr, decay: p - lr * g - decay * p
        ),
        "you decay the wrong way, so that p grows": _updating(
            lambda p, g, lr, decay: p - lr * (g - decay * p)
        ),
        "you decay what the gradient has changed already": _updating(
            lambda p, g, lr, decay: (p - lr * g) * (1 - lr * decay)
        ),
        "you add decay to the gradient, not decay · p": _updating(
            lambda p, g, lr, decay: p - lr * (g + decay)
        ),
        "you change every parameter, trained or not": _updating(
            _right, lambda params, trained: params
        ),
        "you decay what is frozen, too": _decay_of_all,
        "you add the decay to grads, in place": _gradient_in_place,
        "you put another array into the dict, and the model keeps the old one": _another_array,
        "you give a name of your own to the new array, and params keeps the old one": _local_name,
    },
}
