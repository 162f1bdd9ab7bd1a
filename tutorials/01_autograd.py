# %% [markdown]
# # 01. Autograd
#
# *The reader can then:* do reverse mode by hand, and say in which order a graph must be walked.
# *Time:* 20 minutes. *Needs:* NumPy.
# *Remember:* A node passes on its gradient, once, when it has all of it.
#
# Training asks one question over and over: if this weight grew a little, how much would the loss
# grow? The answer is a slope, the derivative of the loss with respect to it, or its *gradient*.
# *Reverse mode* finds those of millions of weights in one walk through the computation,
# from its end to its start. We do it on paper, then with our own engine, then with minilora's.

# %%
import numpy as np

import minilora as ml
from minilora import ops, viz

# %% [markdown]
# ## One expression
#
# Keep an eye on $p$ in the computation below. It goes into $q$, and into $y$ as well: from $y$ back
# to $p$ there are two paths, and drawn as a graph they make a diamond. How fast does $y$ move with
# $a$ and with $b$? That can be measured: nudge one of them a little up, then a little down, and see
# how far $y$ moves. This is the *central difference*. It is good for checking. For training it is
# too slow: it runs $f$ twice for every number. Write `da` for the slope of $y$ with respect to
# $a$, and so on for every letter.


# %%
def f(a, b):
    p = a * b
    q = p + a
    return p * q


a, b, e = 2.0, 3.0, 1e-5
measured = [(f(a + e, b) - f(a - e, b)) / (2 * e), (f(a, b + e) - f(a, b - e)) / (2 * e)]
print("measured: da = {:.6f}, db = {:.6f}".format(*measured))

# %% [markdown]
# ## By hand
#
# Start at the end, where `dy` is 1, and go up. Each line sends a share to what it was made of:
#
# - $z = u + v$. Nudge $u$ by a little $e$, and $z$ moves by $e$. So $u$ gets `dz`, and so does $v$.
# - $z = u\,v$. Nudge $u$ by $e$, and $z$ moves by $e\,v$. So $u$ gets `dz * v`; $v$ gets `dz * u`.
#
# **Predict.** The last line, `p * q`, sends $p$ a share. The line before it, `p + a`, sends $p$
# another one. Which is `dp`: the first share, the second, the larger one, or their sum?
#
# <details><summary>Answer</summary>
#
# Their sum. Nudge $p$ by a little $e$. Through the factor $p$, $y$ moves by $e\,q$. The factor $q$
# moves by $e$ too, and through it $y$ moves by $e\,p$. Both happen at once. In all $y$ moves by
# $e\,(q + p)$, and by $e^2$, which is too small to count.
#
# </details>

# %%
p = a * b
q = p + a
y = p * q
dy = 1.0
dp, dq = dy * q, dy * p  # y = p * q
dp, da = dp + dq, dq  # q = p + a: the second share of p
da, db = da + dp * b, dp * a  # p = a * b: the second share of a
print(f"by hand: dp = {dp}, da = {da}, db = {db}")
assert np.allclose([da, db], measured)

# %% [markdown]
# That was reverse mode: one pass gave the slope for every letter. Here it is again, in pictures.
# minilora's `Tensor` records each operation on a *tape*, and `viz` walks back along it. What was
# not made of anything, here $a$ and $b$, is a *leaf* of the graph.


# %%
def recorded(a, b):
    p = a * b
    q = p + a
    y = p * q
    return viz.backward_steps(y, locals())  # locals(): what the letters name


steps = recorded(ml.Tensor(a, requires_grad=True), ml.Tensor(b, requires_grad=True))
viz.show(viz.stepper(steps, "p passes on its gradient once both shares are there", start=-1))

# %% [markdown]
# ## Two walks that go wrong
#
# Now the computer is to do it. A value becomes a node with `+` and `*`, so that $f$ takes nodes as
# well as numbers. It has its gradient, `grad`, and for each of its inputs a *rule*: a function from
# that gradient to the input's share. Two walks come to mind. One sends on all that has arrived so
# far, the other only the share that has come last.


# %%
class Node:
    made = 0  # so far

    def __init__(self, value, *edges):  # an edge: (an input, the rule for its share)
        self.value, self.edges, self.grad = value, edges, 0.0
        Node.made = self.number = Node.made + 1  # 1, 2, 3, ... in order of birth

    def __add__(self, other):
        return Node(self.value + other.value, (self, lambda g: g), (other, lambda g: g))

    def __mul__(self, other):
        x, y = self.value, other.value
        return Node(x * y, (self, lambda g: g * y), (other, lambda g: g * x))


def send_all(node, share=1.0):
    node.grad = node.grad + share  # not +=: once these are arrays, two nodes may share one
    for source, rule in node.edges:
        send_all(source, rule(node.grad))


def send_share(node, share=1.0):
    """Returns how many calls it took."""
    node.grad = node.grad + share
    return 1 + sum(send_share(source, rule(share)) for source, rule in node.edges)


def gradients(walk, f, *inputs):
    leaves = [Node(x) for x in inputs]
    walk(f(*leaves))
    return [leaf.grad for leaf in leaves]


for walk in (send_all, send_share):
    print("{}: da = {}, db = {}".format(walk.__name__, *gradients(walk, f, a, b)))

x = Node(1.0)
print("calls of send_share for 1, 2, 3, ... diamonds in a row:", end=" ")
for _ in range(10):
    x = x + x  # a diamond on top of the one before
    print(send_share(x), end=" ")

# %% [markdown]
# `send_all` is wrong: when the second share reaches $p$, it sends the first one down once more.
# `send_share` is right but hopeless. It walks every *path*, and each diamond doubles their number.
#
# One cure helps both: $p$ waits until all its shares are there, then sends their sum, once. So a
# node's turn comes after the turns of all nodes it went into. This is a *topological order*. An
# easy one: the youngest node first. What a node went into is younger, and has had its turn.


# %%
def nearest_first(y):
    """y, its inputs, their inputs, and so on: each node once."""
    nodes = [y]
    for node in nodes:  # the list grows while we go through it
        for source, _ in node.edges:
            if source not in nodes:
                nodes.append(source)
    return nodes


def youngest_first(y):
    return sorted(nearest_first(y), key=lambda node: node.number, reverse=True)


def backward(y, order=youngest_first):
    y.grad = np.ones_like(y.value)  # for an array: the gradient of the sum of its entries
    for node in order(y):
        for source, rule in node.edges:
            source.grad = source.grad + rule(node.grad)


print("\nbackward: da = {}, db = {}".format(*gradients(backward, f, a, b)))

# %% [markdown]
# ## Arrays
#
# With `Node` that is a whole engine, and nothing in it says that values are single numbers. An
# array needs only its rules. Take $Y = XW$, that is $y_{ij} = \sum_k x_{ik} w_{kj}$, and let
# $g_{ij}$ be the slope of the loss with respect to $y_{ij}$. Nudge $x_{ik}$ by $e$. Every $y_{ij}$
# of row $i$ moves by $e\,w_{kj}$, and the loss by $e \sum_j g_{ij} w_{kj}$. Nudge $w_{kj}$ instead,
# and column $j$ moves. For whole matrices:
#
# $$ dX = G\,W^\top, \qquad dW = X^\top G. $$
#
# minilora writes its operations, *ops*, that way, too: the value, and one rule for each input.
# `viz.source` prints the library's own text. (`swapaxes` is `.T` for stacks of matrices.)


# %%
def matmul(x, w):
    X, W = x.value, w.value
    return Node(X @ W, (x, lambda G: G @ W.T), (w, lambda G: X.T @ G))


Node.__matmul__ = matmul
viz.source(ops.matmul)

# %% [markdown]
# **Check.** Our engine and minilora's agree on a diamond of matrices. Are both right? `gradcheck`
# nudges every number of every input, and returns the largest relative error. For a right rule that
# is what rounding leaves, as below; a wrong one is off by far more. (Some ops come later.)


# %%
def squares(x, w):
    h = x @ w
    return h * h + h  # h goes into two nodes, and twice into one of them


normal = np.random.default_rng(0).standard_normal
X, W = normal((2, 3)), normal((3, 4))
x, w = ml.Tensor(X, requires_grad=True), ml.Tensor(W, requires_grad=True)
squares(x, w).sum().backward()
for mine, tensor in zip(gradients(backward, squares, X, W), (x, w)):
    assert np.allclose(mine, ml.asnumpy(tensor.grad), rtol=1e-12)  # asnumpy: as a NumPy array
assert ml.gradcheck(squares, X, W) < 1e-6

m, n = (2, 3), (3,)
shapes = {"add": [m, m], "mul": [m, m], "matmul": [m, (3, 4)], "exp": [m], "tanh": [m],
          "softmax": [m], "layer_norm": [m, n, n], "linear": [m, (4, 3), (4,)]}
for name, sizes in shapes.items():
    print(f"{name:>10}: {ml.gradcheck(getattr(ops, name), *map(normal, sizes)):.0e}")

# %% [markdown]
# ## Break it
#
# Two slips. One sets the gradient where `backward` adds to it. The other takes the nodes in the
# order of the search, in which $p$ sends before $q$ has sent to it.


# %%
def overwrite(y):
    y.grad = 1.0
    for node in youngest_first(y):
        for source, rule in node.edges:
            source.grad = rule(node.grad)


slips = {"set, not added": overwrite, "nearest first": lambda y: backward(y, nearest_first)}
for name, walk in slips.items():
    wrong = gradients(walk, f, a, b)
    assert not np.allclose(wrong, measured), "this was meant to fail"
    print("Caught: {} gives da = {}, db = {},".format(name, *wrong), "not", *np.round(measured, 6))

# %% [markdown]
# ## What you built, and what is next
#
# Reverse mode on paper, and an engine that agrees with minilora's. minilora's also saves memory: an
# input that is not trained has no rule, and what only that rule would need is not kept.
#
# **Next:** chapter 02. NumPy stretches a small array to fit a large one; its gradient shrinks back.
