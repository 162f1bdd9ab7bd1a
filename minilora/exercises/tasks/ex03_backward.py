"""03. Walk back through a computation.

A computation is a graph of nodes. In
    c = a * b
    d = c + a
c has the parents a and b, and d has the parents c and a. The walk goes back from d. Each node gets
one share of its gradient from every use of it: a gets one share from d and one from c. Its
gradient is the sum of its shares. A node may pass on its gradient only after all its shares have
arrived.

A Node (below) has
    .value    a number or an array
    .parents  tuple of the nodes from which it was computed; () for an input; for a * a it is (a, a)
    .rules    tuple of functions, one for each parent: rules[i](gradient of this node) is the share
              of parents[i]
    .grad     its gradient, 0.0 at first

backward(node) takes
    node   Node whose value is one number; its own gradient is 1.0
and returns nothing. It works on `node`, its parents, their parents, and so on. To the .grad of each
such node n it adds the derivative of node.value with respect to n.value. It does not delete the old
.grad: after backward(y) and backward(z), a.grad is the derivative of y + z.

A graph can be long: 10,000 nodes in a row. Python does not let a function call itself that often.
Call each rule only once: it may be a large matrix product. A Node can be a key of a dict.

The function `example` below computes the two lines above with a = 2 and b = 3, calls backward, and
returns the .grad of a, b, c and d:

    example()  ->  (4, 2, 1, 1)
"""


class Node:
    """A value, its parents, and the rules for their shares of gradient."""

    def __init__(self, value, parents=(), rules=()):
        self.value, self.parents, self.rules, self.grad = value, parents, rules, 0.0


def example():
    """The .grad of a, b, c and d, after backward(d)."""
    a, b = Node(2.0), Node(3.0)
    c = Node(6.0, (a, b), (lambda g: g * 3.0, lambda g: g * 2.0))  # c = a * b
    d = Node(8.0, (c, a), (lambda g: g, lambda g: g))  # d = c + a
    backward(d)
    return a.grad, b.grad, c.grad, d.grad


def backward(node):
    """Add d node / d n to the .grad of `node` and of every node n from which it was computed."""
    ### BEGIN SOLUTION
    uses, nodes = {node: 0}, [node]  # uses: the number of shares that are still missing
    for one in nodes:  # the list grows during the loop
        for parent in one.parents:
            if parent not in uses:
                uses[parent] = 0
                nodes.append(parent)
            uses[parent] += 1
    gradient, ready = {node: 1.0}, [node]  # of this walk only
    while ready:
        one = ready.pop()
        one.grad = one.grad + gradient[one]
        for parent, rule in zip(one.parents, one.rules):
            gradient[parent] = gradient.get(parent, 0.0) + rule(gradient[one])
            uses[parent] -= 1
            if uses[parent] == 0:  # all shares have arrived
                ready.append(parent)
    ### END SOLUTION


### DRIVERS

import numpy as np

from minilora.exercises.student import Raised


def gradients(file, values, lines, ends):
    """Run the lines, and backward for each of `ends`: {name: .grad}, calls of rules, returned."""
    calls = []

    def rule(f):
        def share(g):
            calls.append(f)
            return f(g)

        return share

    nodes = {name: file.Node(value) for name, value in values.items()}
    for line in lines:
        name, _, expression = line.partition(" = ")
        value, rules = _computed(expression.split(), nodes)
        parents = tuple(nodes[part] for part in expression.split() if part in nodes)
        nodes[name] = file.Node(value, parents, tuple(map(rule, rules)))
    returned = [file.backward(nodes[end]) for end in ends]
    return dict(zip(nodes, file.each([*nodes.values()], "grad"))), len(calls), returned


def chain(file, length):
    """The gradients at both ends of the chain x, -x, -(-x), ...; text for a RecursionError."""
    first = last = file.Node(1.0)
    for i in range(length):
        last = file.Node((-1.0) ** (i + 1), (last,), (np.negative,))
    try:
        file.backward(last)
    except Raised as error:
        if "calls itself" not in error.message:
            raise
        return "RecursionError: a function calls itself once for each node"
    return file.each([first, last], "grad")


def _computed(words, nodes):
    """The value of `a + b`, `a - b`, `a * b` or `sum a`, and a rule for each of its names."""
    if words[0] == "sum":
        x = nodes[words[1]].value
        return float(np.sum(x)), (lambda g: g * np.ones_like(x),)
    x, y = nodes[words[0]].value, nodes[words[2]].value
    if words[1] == "*":
        return x * y, (lambda g: g * y, lambda g: g * x)
    if words[1] == "-":
        return x - y, (lambda g: g, lambda g: -g)
    return x + y, (lambda g: g, lambda g: g)


### CHECKS
# mypy: ignore-errors

from itertools import pairwise

from hypothesis import strategies as st

from minilora.exercises import kit
from minilora.exercises.tasks.forward import below, sizes, slopes

TITLE = "backward through a graph"
MINUTES = 35
CHAPTER = "01"

HINTS = (
    "When may a node pass on its gradient? When every node that uses it has sent its share. So "
    "walk twice. The first walk counts the shares of each node.",
    "Use a list of nodes to visit, not a function that calls itself. First walk: for each node "
    "and each of its parents, uses[parent] += 1. Second walk: take a node that is ready, send its "
    "shares, and count uses[parent] down; at 0, the parent is ready.",
    "gradient, ready = {node: 1.0}, [node]; while ready: one = ready.pop(); one.grad = one.grad + "
    "gradient[one]; for each parent and rule: gradient[parent] = gradient.get(parent, 0.0) + "
    "rule(gradient[one]); uses[parent] -= 1; if uses[parent] == 0: ready.append(parent)",
)
NAMES, HOW = "abcdefghijkl", st.sampled_from("+*-")


def _right(student, values, lines, ends):
    got, _, returned = student.gradients(values, lines, ends)
    most = sizes(values, lines, ends)
    for name, slope in slopes(values, lines, ends).items():
        kit.holds(got[name] is not None, f"{name}.grad = {kit.shown(slope)}", f"{name}.grad = None")
        kit.equal(got[name], np.float64(slope), f"{name}.grad", size=most[name])
    kit.holds(not any(map(np.any, returned)), "backward to return nothing", kit.shown(returned))


@st.composite
def computations(draw, least_ends=1, most_ends=1):
    """Lines that use any earlier names, and the names for which backward is called."""
    numbers = draw(kit.numbers())
    values = {name: float(numbers()) for name in "ab"}
    names, lines = [*values], []
    for name in NAMES[2 : 2 + draw(st.integers(1, 5))]:
        a, b = draw(st.sampled_from(names)), draw(st.sampled_from(names))
        lines.append(f"{name} = {a} {draw(HOW)} {b}")
        names.append(name)
    many = st.lists(st.sampled_from(names[2:]), min_size=least_ends, max_size=most_ends)
    return {"values": values, "lines": lines, "ends": draw(many)}


@st.composite
def trees(draw):
    """Lines that use each name once."""
    numbers, left = draw(kit.numbers()), [*NAMES[: draw(st.integers(2, 4))]]
    values, lines = {name: float(numbers()) for name in left}, []
    for name in NAMES[len(left) : 2 * len(left) - 1]:
        a, b = (left.pop(draw(st.integers(0, len(left) - 1))) for _ in range(2))
        lines.append(f"{name} = {a} {draw(HOW)} {b}")
        left.append(name)
    return {"values": values, "lines": lines, "ends": [name]}


@st.composite
def meeting(draw, most_ends=1):
    """Lines in which c gets a share over e and d, and one from f, which comes too early."""
    numbers, (one, two, three, four) = draw(kit.numbers()), draw(st.tuples(*[HOW] * 4))
    lines = [f"c = a {one} b", f"d = c {two} b", f"e = d {three} a", f"f = e {four} c"]
    more = draw(st.lists(st.sampled_from("cdef"), min_size=most_ends > 1, max_size=most_ends - 1))
    return {"values": {name: float(numbers()) for name in "ab"}, "lines": lines,
            "ends": ["f", *more]}


@kit.check(trees(), points=2)
def used_once(student, values, lines, ends):
    """Every .grad is right if each name is used once."""
    _right(student, values, lines, ends)


@kit.check(computations(), meeting(), points=2, examples=100)
def used_again(student, values, lines, ends):
    """A name that is used several times gets the sum of its shares: a * a, and paths that meet."""
    _right(student, values, lines, ends)


@kit.check(computations(2, 3), meeting(3), points=2, examples=60)
def added_up(student, values, lines, ends):
    """backward called for several nodes: each call adds its slopes to .grad."""
    _right(student, values, lines, ends)


def _doubled(steps):
    names = NAMES[: steps + 1]
    lines = [f"{new} = {old} + {old}" for old, new in pairwise(names)]
    return {"values": {"a": 1.0}, "lines": lines, "ends": [names[-1]]}


@kit.check(st.integers(1, 9).map(_doubled), computations(2, 2), points=1, examples=40)
def rules_once(student, values, lines, ends):
    """Each rule is called once, even if many paths lead back, as in b = a + a, c = b + b"""
    _, calls, _ = student.gradients(values, lines, ends)
    wanted = 2 * sum(below(end, lines) for end in ends)
    kit.holds(calls == wanted, f"{wanted} calls of rules", f"{calls}")


@kit.check(st.sampled_from([0, 1, 2, 10_000]).map(lambda n: {"length": n}), points=2, examples=8)
def long_chain(student, length):
    """A chain of 10,000 nodes: a loop can follow it, a function that calls itself cannot."""
    got = student.chain(length)
    kit.holds(not isinstance(got, str), "backward to end", got)
    kit.equal(got[1], np.float64(1.0), "the .grad of the last node")
    kit.equal(got[0], np.float64((-1.0) ** length), "the .grad of the first node")


@st.composite
def sharing(draw):
    """c gives a and b one gradient, which can be one array; then each gets another share from d."""
    line = draw(st.sampled_from(["e = c + d", "e = d + c"]))
    lines, values = ["c = a + b", f"d = a {draw(HOW)} b", line], dict.fromkeys("ab", 0.0)
    return {"values": values, "lines": lines, "ends": ["e", draw(st.sampled_from("cde"))]}


@st.composite
def arrays(draw, cases):
    """A computation of arrays. y and z are the sums of the numbers in two of them."""
    case, numbers, size = draw(cases), draw(kit.numbers()), draw(kit.sizes(1, 3))
    values = {name: numbers(size) for name in case["values"]}
    return {"values": values, "lines": case["lines"], "of": case["ends"]}


@kit.check(*map(arrays, (computations(2, 2), meeting(2), sharing())), points=1, examples=100)
def of_arrays(student, values, lines, of):
    """Values can be arrays: the slopes of y + z, the sums of all numbers in two arrays."""
    sums = [f"{name} = sum {one}" for name, one in zip("yz", of)]
    got, _, _ = student.gradients(values, [*lines, *sums], ["y", "z"])
    most, zeros = sizes(values, lines, of), np.zeros(len(values["a"]))
    for name, slope in slopes(values, lines, of).items():
        expected = slope + zeros if np.any(slope) or np.shape(got[name]) else np.float64(0.0)
        kit.equal(got[name], expected, f"{name}.grad", size=most[name])


PROMISES = {
    used_once: ("Its gradient is the sum of its shares", "and returns nothing",
                "backward(node) takes", "A Node (below) has"),
    used_again: ("A node may pass on its gradient only after", "It works on `node`"),
    added_up: ("To the .grad of each", "It does not delete the old .grad"),
    rules_once: ("Call each rule only once",),
    long_chain: ("A graph can be long", "Python does not let"), of_arrays: ("A Node (below) has",),
}
EXPLAINS = ("Walk back through", "A computation is a graph", "c has the parents", "The walk goes",
            "Each node gets one share", "A Node can be a key", "The function `example` below")


def _sorted(node):
    """The nodes, each after all nodes that use it."""
    order, done, stack = [], set(), [(node, False)]
    while stack:
        one, again = stack.pop()
        if again:
            order.append(one)
        elif one not in done:
            done.add(one)
            stack += [(one, True), *((parent, False) for parent in one.parents)]
    return order[::-1]


def _search(node, last=-1):
    """The nodes in the order of a search: breadth first (last=0) or depth first (last=-1)."""
    order, todo = {}, [node]
    while todo:
        one = todo.pop(last)
        if one not in order:
            order[one] = True
            todo += one.parents
    return [*order]


def _walk(order, reset=False, add=lambda old, share: old + share):
    for one in order if reset else ():
        one.grad = 0.0
    order[0].grad = 1.0 if reset else order[0].grad + 1.0
    for one in order:
        for parent, rule in zip(one.parents, one.rules):
            parent.grad = add(parent.grad, rule(one.grad))


def _flow(order, first=1.0, edges=lambda one: zip(one.parents, one.rules), in_place=False,
          wanted=lambda one: True, last=False):
    gradient = {order[0]: first}
    for one in order:
        g = gradient.get(one, 0.0)
        if wanted(one):
            one.grad = one.grad + g
        for parent, rule in edges(one):
            share = rule(g)
            if parent not in gradient or last:
                gradient[parent] = share
            elif in_place:
                gradient[parent] += share
            else:
                gradient[parent] = gradient[parent] + share


def _paths(node, g=1.0):
    node.grad = node.grad + g
    for parent, rule in zip(node.parents, node.rules):
        _paths(parent, rule(g))


def _again(node, first=True):
    node.grad = 1.0 if first else node.grad
    for parent, rule in zip(node.parents, node.rules):
        parent.grad = parent.grad + rule(node.grad)
        _again(parent, False)


def _recursive(node):
    order, done = [], set()

    def visit(one):
        if one not in done:
            done.add(one)
            for parent in one.parents:
                visit(parent)
            order.append(one)

    visit(node)
    _flow(order[::-1])


WRONG = {
    "backward": {
        "you set .grad to the last share, and do not add the shares":
            lambda node: _walk(_sorted(node), add=lambda old, share: share),
        "you pass on the last share of a node, not the sum of its shares":
            lambda node: _flow(_sorted(node), last=True),
        "you pass on all of .grad again whenever a share arrives": _again,
        "you pass on each share alone: a rule is called once for each path": _paths,
        "you walk breadth first: a node passes on its gradient before all its shares have arrived":
            lambda node: _flow(_search(node, 0)),
        "you walk depth first: a node passes on its gradient before all its shares have arrived":
            lambda node: _flow(_search(node)),
        "you also pass on the gradient that earlier calls left in .grad":
            lambda node: _walk(_sorted(node)),
        "you set every .grad to 0.0 first, and lose the old content":
            lambda node: _walk(_sorted(node), reset=True),
        "you send only one share to a node that was used twice, as in a * a":
            lambda node: _flow(_sorted(node), edges=lambda one:
                               dict(zip(one.parents, one.rules)).items()),
        "your function calls itself for each node": _recursive,
        "you do not start with the gradient 1.0 at the node itself":
            lambda node: _flow(_sorted(node), first=0.0),
        "you set .grad only for inputs, such as a and b":
            lambda node: _flow(_sorted(node), wanted=lambda one: not one.parents),
        "you stop at the parents": lambda node: _flow([node, *node.parents],
            edges=lambda one: zip(one.parents, one.rules) if one is node else ()),
        "you add a share to an array in place, but another node uses that array too":
            lambda node: _flow(_sorted(node), in_place=True),
    }
}
