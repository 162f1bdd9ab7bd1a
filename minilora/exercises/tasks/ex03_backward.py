"""03. Walk back through a computation.

A computation is a graph of nodes. In
    c = a * b
    d = c + a
c has the parents a and b, d has the parents c and a. Walking back from d, each node gets shares of
gradient from the nodes that it went into, and its gradient is their sum: a gets one share from d
and one from c. A node passes on its gradient only once it has all of it.

A Node (below) has
    .value    a number or an array
    .parents  tuple, the nodes that it was computed from; () for what was not computed; a node that
              was used twice is there twice
    .rules    tuple of functions, one for each parent: rules[i](gradient of this node) is the share
              of parents[i]
    .grad     its gradient, 0.0 at first

backward(node) takes
    node   Node whose value is one number; its own gradient is 1.0
and returns nothing. To the .grad of node, and of each node that it was computed from, it adds how
fast node.value grows with that node's value. What was in .grad before stays in the sum: after
backward(y) and backward(z), a.grad is the slope of y + z.

Graphs may be long, 10,000 nodes in a row: more than Python lets a function call itself. And each
rule is to be called once, as it may be a large matrix product. Nodes can be keys of a dict.

The function `example` below has the two lines from above, with a = 2 and b = 3, and calls backward:

    example()  ->  (4, 2, 1, 1)
"""


class Node:
    """A value, what it was computed from, and how gradient flows there."""

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
    """Add d node / d n to the .grad of every node n that `node` was computed from."""
    ### BEGIN SOLUTION
    uses, found = {node: 0}, [node]  # how many shares a node waits for
    for one in found:  # the list grows while we go through it
        for parent in one.parents:
            if parent not in uses:
                uses[parent] = 0
                found.append(parent)
            uses[parent] += 1
    gradient, ready = {node: 1.0}, [node]  # of this walk; .grad may hold that of earlier ones
    while ready:
        one = ready.pop()
        one.grad = one.grad + gradient[one]
        for parent, rule in zip(one.parents, one.rules):
            gradient[parent] = gradient.get(parent, 0.0) + rule(gradient[one])
            uses[parent] -= 1
            if uses[parent] == 0:  # that was the last share
                ready.append(parent)
    ### END SOLUTION


### BESIDE THE STUDENT

import numpy as np


def gradients(student, values, lines, ends):
    """Run the lines, call backward on each of `ends`, and give ({name: .grad}, calls of rules)."""
    make, calls = getattr(student, "Node", Node), []

    def rule(f):
        def share(g):
            calls.append(f)
            return f(g)

        return share

    nodes = {name: make(value) for name, value in values.items()}
    for line in lines:
        name, _, expression = line.partition(" = ")
        value, rules = _computed(expression.split(), nodes)
        parents = tuple(nodes[part] for part in expression.split() if part in nodes)
        nodes[name] = make(value, parents, tuple(map(rule, rules)))
    for end in ends:
        student.backward(nodes[end])
    return {name: node.grad for name, node in nodes.items()}, len(calls)


def chain(student, length):
    """The gradients of both ends of x, -x, -(-x), ...; text where Python's stack is full."""
    make = getattr(student, "Node", Node)
    first = last = make(1.0)
    for _ in range(length):
        last = make(-last.value, (last,), (lambda g: -g,))
    try:
        student.backward(last)
    except RecursionError:
        return "RecursionError: a function calls itself once for each node"
    return first.grad, last.grad


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

TITLE = "backward through a graph"
MINUTES = 35
CHAPTER = "01"

HINTS = (
    "When may a node pass on its gradient? When every node that it went into has sent its share. "
    "So two walks: the first counts how many shares each node has to wait for.",
    "Keep a list of nodes to visit instead of a function that calls itself. First walk: for each "
    "node found, uses[parent] += 1 for each of its parents. Second walk: take a node that waits "
    "for nothing, hand on its shares, and count uses[parent] down; at 0 the parent is ready.",
    "gradient, ready = {node: 1.0}, [node]; while ready: one = ready.pop(); one.grad = one.grad + "
    "gradient[one]; for each parent and rule: gradient[parent] = gradient.get(parent, 0.0) + "
    "rule(gradient[one]); uses[parent] -= 1; if uses[parent] == 0: ready.append(parent)",
)
NAMES = "abcdefghijkl"


def _slopes(values, lines, ends):
    """name -> how fast the sum of the ends grows with it: forwards, for one name at a time."""
    found = {}
    for start in [*values, *(line[0] for line in lines)]:
        value, slope = dict(values), dict.fromkeys(values, 0.0)
        slope[start] = 1.0
        for line in lines:
            name, a, how, b = line[0], *line[4:].split()
            u, v, du, dv = value[a], value[b], slope[a], slope[b]
            value[name] = u * v if how == "*" else u + v if how == "+" else u - v
            slope[name] = du * v + u * dv if how == "*" else du + dv if how == "+" else du - dv
            if name == start:
                slope[name] = 1.0
        found[start] = sum(slope[end] for end in ends)
    return found


def _right(student, values, lines, ends):
    got, _ = student.gradients(values, lines, ends)
    for name, slope in _slopes(values, lines, ends).items():
        kit.holds(got[name] is not None, f"{name}.grad = {kit.shown(slope)}", f"{name}.grad = None")
        kit.equal(got[name], np.float64(slope), f"{name}.grad")


@st.composite
def computations(draw, least_ends=1, most_ends=1):
    """Lines that use any names above them, and of which names backward is called."""
    rng = draw(kit.generators())
    values = {name: float(kit.small(rng)) for name in "ab"}
    names, lines = [*values], []
    for name in NAMES[2 : 2 + draw(st.integers(1, 5))]:
        a, b = draw(st.sampled_from(names)), draw(st.sampled_from(names))
        lines.append(f"{name} = {a} {draw(st.sampled_from('+*-'))} {b}")
        names.append(name)
    many = st.lists(st.sampled_from(names[2:]), min_size=least_ends, max_size=most_ends)
    return {"values": values, "lines": lines, "ends": draw(many)}


@st.composite
def trees(draw):
    """Lines in which each name is used once."""
    rng = draw(kit.generators())
    left = [*NAMES[: draw(st.integers(2, 4))]]
    values, lines = {name: float(kit.small(rng)) for name in left}, []
    for name in NAMES[len(left) : 2 * len(left) - 1]:
        a, b = (left.pop(draw(st.integers(0, len(left) - 1))) for _ in range(2))
        lines.append(f"{name} = {a} {draw(st.sampled_from('+*-'))} {b}")
        left.append(name)
    return {"values": values, "lines": lines, "ends": [name]}


@kit.check(trees(), points=2)
def used_once(student, values, lines, ends):
    """Where each name is used once, every .grad is right."""
    _right(student, values, lines, ends)


@kit.check(computations(), points=2, examples=100)
def used_again(student, values, lines, ends):
    """Where names are used again, a .grad is the sum of all shares: a * a, and paths that meet."""
    _right(student, values, lines, ends)


@kit.check(computations(2, 3), points=2, examples=60)
def added_up(student, values, lines, ends):
    """backward of several nodes, one after the other: each adds its own slopes to .grad."""
    _right(student, values, lines, ends)


@kit.check(st.integers(1, 9).map(lambda n: {"steps": n}), points=1, examples=10)
def rules_once(student, steps):
    """Each rule is called once, also where many paths lead back, as in b = a + a, c = b + b"""
    names = NAMES[: steps + 1]
    lines = [f"{new} = {old} + {old}" for old, new in pairwise(names)]
    _, calls = student.gradients({"a": 1.0}, lines, [names[-1]])
    kit.holds(calls == 2 * steps, f"{2 * steps} calls of rules", f"{calls}")


@kit.check(st.sampled_from([1, 2, 10_000]).map(lambda n: {"length": n}), points=2, examples=8)
def long_chain(student, length):
    """A chain of 10,000 nodes: a loop goes through it, a function that calls itself does not."""
    got = student.chain(length)
    kit.holds(not isinstance(got, str), "backward to come to its end", got)
    kit.equal(got[1], np.float64(1.0), "the .grad of the last node")
    kit.equal(got[0], np.float64((-1.0) ** length), "the .grad of the first node")


@st.composite
def arrays(draw):
    """A computation of arrays, and the sum of the entries of its last."""
    case = draw(computations())
    rng, size = draw(kit.generators()), draw(kit.sizes(1, 3))
    values = {name: kit.small(rng, size) for name in case["values"]}
    return {"values": values, "lines": case["lines"]}


@kit.check(arrays(), points=1, examples=100)
def of_arrays(student, values, lines):
    """Where values are arrays, too: of z = sum of all numbers in the last array."""
    last = lines[-1][0]
    got, _ = student.gradients(values, [*lines, f"z = sum {last}"], ["z"])
    for name, slope in _slopes(values, lines, [last]).items():
        kit.equal(got[name], slope + np.zeros(len(values["a"])) if np.any(slope) or
                  np.shape(got[name]) else np.float64(0.0), f"{name}.grad")


def _sorted(node):
    """Every node after all nodes that it went into."""
    order, done, stack = [], set(), [(node, False)]
    while stack:
        one, again = stack.pop()
        if again:
            order.append(one)
        elif one not in done:
            done.add(one)
            stack += [(one, True), *((parent, False) for parent in one.parents)]
    return order[::-1]


def _found(node, last=-1):
    """Nodes in the order of a search: last=0, breadth first; last=-1, depth first."""
    order, todo = {}, [node]
    while todo:
        one = todo.pop(last)
        if one not in order:
            order[one] = True
            todo += one.parents
    return [*order]


def _walk(order, reset=False, add=lambda old, share: old + share):
    if reset:
        for one in order:
            one.grad = 0.0
    order[0].grad = 1.0 if reset else order[0].grad + 1.0
    for one in order:
        for parent, rule in zip(one.parents, one.rules):
            parent.grad = add(parent.grad, rule(one.grad))


def _flow(order, first=1.0, edges=lambda one: zip(one.parents, one.rules), in_place=False,
          kept=lambda one: True):
    gradient = {order[0]: first}
    for one in order:
        g = gradient.get(one, 0.0)
        if kept(one):
            one.grad = one.grad + g
        for parent, rule in edges(one):
            share = rule(g)
            if parent not in gradient:
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
    if first:
        node.grad = 1.0
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
        "you set .grad to the share that comes last, and do not add it":
            lambda node: _walk(_sorted(node), add=lambda old, share: share),
        "you pass on all of .grad again each time that a share comes": _again,
        "you pass on each share by itself: a rule is called once for each path": _paths,
        "you walk in the order in which you find the nodes, breadth first, before a node has all "
        "of its shares": lambda node: _flow(_found(node, 0)),
        "you walk in the order in which you find the nodes, depth first, before a node has all of "
        "its shares": lambda node: _flow(_found(node)),
        "you pass on what earlier calls have left in .grad, too": lambda node: _walk(_sorted(node)),
        "you set all .grad to 0.0 first, and lose what was there":
            lambda node: _walk(_sorted(node), reset=True),
        "you give a node that was used twice, as in a * a, one share":
            lambda node: _flow(_sorted(node), edges=lambda one:
                               dict(zip(one.parents, one.rules)).items()),
        "you call your function from itself for each node": _recursive,
        "you do not start with a gradient of 1.0 at the node itself":
            lambda node: _flow(_sorted(node), first=0.0),
        "you give a .grad only to nodes that were not computed, such as a and b":
            lambda node: _flow(_sorted(node), kept=lambda one: not one.parents),
        "you stop at the parents, and do not walk on": lambda node: _flow([node, *node.parents],
            edges=lambda one: zip(one.parents, one.rules) if one is node else ()),
        "you add a share to an array in place, and another node has that array, too":
            lambda node: _flow(_sorted(node), in_place=True),
    }
}
