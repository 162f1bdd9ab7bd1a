# %% [markdown]
# # 01. Autograd
#
# *The reader can then:* do reverse mode by hand, and say in which order a graph must be walked.
# *Time:* 20 minutes. *Needs:* NumPy.
# *Remember:* A node passes its gradient on once, after all shares of it have arrived.
#
# Training asks one question again and again: if this weight grows a little, how much does the loss
# grow? The answer is a slope: the derivative of the loss with respect to the weight, also called
# its *gradient*. *Reverse mode* computes the gradients of millions of weights in one walk through
# the computation, from its end to its start. We do it on paper, then with our own engine.

# %%
import numpy as np

import minilora as ml
from minilora import ops, viz

# %% [markdown]
# ## One expression
#
# Look at $p$ in the computation below. It is used in $q$, and again in $y$. So two paths lead from
# $y$ back to $p$. Drawn as a graph, they form a diamond. How fast does $y$ change with $a$, and
# with $b$? We can measure that: move one of them a little up, then a little down, and see how far
# $y$ moves. This is the *central difference*. It is a good check, but too slow for training: it
# runs $f$ twice for every number. Write `da` for the slope of $y$ with respect to $a$, and so on.

# %%
def f(a, b):
    p = a * b
    q = p + a
    return p * q

a, b, e = 2.0, 3.0, 1e-5
measured = [(f(a + e, b) - f(a - e, b)) / (2 * e),
            (f(a, b + e) - f(a, b - e)) / (2 * e)]
print("measured: da = {:.6f}, db = {:.6f}".format(*measured))

# %% [markdown]
# ## By hand
#
# Start at the end, where `dy` is 1, and go up. Each line sends its inputs a share of the gradient:
# - $z = u + v$. Move $u$ by a small $e$, and $z$ moves by $e$. So $u$ gets `dz`, and so does $v$.
# - $z = u\,v$. Move $u$ by $e$, and $z$ moves by $e\,v$. So $u$ gets `dz * v`; $v$ gets `dz * u`.
#
# **Predict.** The last line, `p * q`, sends a share to $p$. The line before it, `p + a`, sends
# another share to $p$. Which is `dp`: the first share, the second, the larger one, or their sum?
#
# <details><summary>Answer</summary>
#
# Their sum. Move $p$ by a small $e$. The factor $p$ changes, which moves $y$ by $e\,q$. The factor
# $q$ also changes by $e$, which moves $y$ by $e\,p$. Both happen at once, so $y$ moves by
# $e\,(q + p)$. There is also a term $e^2$, but it is too small to matter.
#
# </details>

# %%
p = a * b
q = p + a
y = p * q
dy = 1.0
dp, dq = dy * q, dy * p  # y = p * q
dp, da = dp + dq, dq  # q = p + a: p gets its second share
da, db = da + dp * b, dp * a  # p = a * b: a gets its second share
print(f"by hand: dp = {dp}, da = {da}, db = {db}")
assert np.allclose([da, db], measured)

# %% [markdown]
# That was reverse mode: one pass gave the slope for every letter. The pictures show the same pass.
# minilora's `Tensor` records each operation on a *tape*, and `viz` walks back along the tape. A
# value that is not the result of an operation, here $a$ and $b$, is a *leaf* of the graph.

# %%
def recorded(a, b):
    p = a * b
    q = p + a
    y = p * q
    return viz.backward_steps(y, locals())  # locals(): name -> value

steps = recorded(*(ml.Tensor(x, requires_grad=True) for x in (a, b)))
title = "p passes on its gradient once both shares are there"
viz.show(viz.stepper(steps, title, start=-1))

# %% [markdown]
# ## Two walks that fail
#
# Now the computer does it. A node holds a value. It has `+` and `*`, so $f$ takes nodes as well as
# numbers. A node also has its gradient, `grad`, and for each of its inputs a *rule*: a function
# from this gradient to the share of the input. We try two ways to walk the graph. The first sends
# on everything that has arrived so far. The second sends on only the share that arrived last.

# %%
class Node:
    count = 0  # nodes so far

    def __init__(self, value, *edges):  # an edge: (input, rule)
        self.value, self.edges, self.grad = value, edges, 0.0
        Node.count = self.number = Node.count + 1  # 1, 2, 3, ... by age

    def __add__(self, other):
        x, y = self.value, other.value
        return Node(x + y, (self, lambda g: g), (other, lambda g: g))

    def __mul__(self, other):
        x, y = self.value, other.value
        return Node(x * y, (self, lambda g: g * y), (other, lambda g: g * x))

# %%
def send_all(node, share=1.0):
    node.grad = node.grad + share  # not +=: two nodes may share one array
    for source, rule in node.edges:
        send_all(source, rule(node.grad))

def send_share(node, share=1.0):
    """Return the number of calls."""
    node.grad, calls = node.grad + share, 1
    for source, rule in node.edges:
        calls += send_share(source, rule(share))
    return calls

def gradients(walk, f, *inputs):
    leaves = [Node(x) for x in inputs]
    walk(f(*leaves))
    return [leaf.grad for leaf in leaves]

for walk in (send_all, send_share):
    da, db = gradients(walk, f, a, b)
    print(f"{walk.__name__}: da = {da}, db = {db}")

# %%
x = Node(1.0)
print("calls of send_share for 1, 2, 3, ... diamonds:")
for _ in range(10):
    x = x + x  # a diamond on top of the one before
    print(send_share(x), end=" ")

# %% [markdown]
# `send_all` is wrong: when the second share reaches $p$, it sends the first one on again.
# `send_share` is right, but far too slow: it walks every *path*. Each diamond doubles the paths.
#
# One idea repairs both: $p$ waits until all its shares are there, then sends their sum, once. So
# a node comes after all nodes that use it: a *topological order*. One is easy to get: the youngest
# node first. A node that uses $p$ is younger than $p$, so it comes before $p$.

# %%
def nearest_first(y):
    """Return y, its inputs, their inputs, and so on: each node once."""
    nodes = [y]
    for node in nodes:  # the list grows inside the loop
        for source, _ in node.edges:
            if source not in nodes:
                nodes.append(source)
    return nodes

def youngest_first(y):
    nodes = nearest_first(y)
    return sorted(nodes, key=lambda node: node.number, reverse=True)

def backward(y, order=youngest_first):
    y.grad = np.ones_like(y.value)  # of an array: gradient of its sum
    for node in order(y):
        for source, rule in node.edges:
            source.grad = source.grad + rule(node.grad)

da, db = gradients(backward, f, a, b)
print(f"\nbackward: da = {da}, db = {db}")

# %% [markdown]
# ## Arrays
#
# With `Node` we have a complete engine. Nothing in it needs values to be single numbers: an array
# needs only its own rules. Take $Y = XW$, that is $y_{ij} = \sum_k x_{ik} w_{kj}$, and let $g_{ij}$
# be the slope of the loss with respect to $y_{ij}$. Move $x_{ik}$ by $e$. Then every $y_{ij}$ in
# row $i$ moves by $e\,w_{kj}$, and the loss by $e \sum_j g_{ij} w_{kj}$. In the same way, $w_{kj}$
# moves column $j$. For matrices:
#
# $$ dX = G\,W^\top, \qquad dW = X^\top G. $$
#
# minilora writes its operations, *ops*, in the same way: the value, and one rule for each input.
# `viz.source` prints the code of the library. (`swapaxes` is `.T` for stacks of matrices.)

# %%
def matmul(x, w):
    X, W = x.value, w.value
    return Node(X @ W, (x, lambda G: G @ W.T), (w, lambda G: X.T @ G))

Node.__matmul__ = matmul
viz.source(ops.matmul)

# %% [markdown]
# **Check.** Our engine and minilora's agree on a diamond of matrices. Are both right? `gradcheck`
# moves every number of every input, and returns the largest relative error. A right rule has only
# rounding errors, as below. The error of a wrong rule is far larger.

# %%
def squares(x, w):
    h = x @ w
    return h * h + h  # h is an input of two nodes: twice of one

rng = np.random.default_rng(0)
X, W, m = (rng.standard_normal(shape) for shape in ((2, 3), (3, 4), (2, 3)))
x, w = (ml.Tensor(array, requires_grad=True) for array in (X, W))
squares(x, w).sum().backward()
dX, dW = gradients(backward, squares, X, W)
assert np.allclose(dX, ml.asnumpy(x.grad), rtol=1e-12)
assert np.allclose(dW, ml.asnumpy(w.grad), rtol=1e-12)
assert ml.gradcheck(squares, X, W) < 1e-6

for op, arrays in ((ops.add, [m, m]), (ops.matmul, [m, W]), (ops.tanh, [m]),
                   (ops.softmax, [m]), (ops.layer_norm, [m, m[0], m[1]])):
    print(f"{op.__name__:>10}: {ml.gradcheck(op, *arrays):.0e}")

# %% [markdown]
# ## Break it
#
# The first mistake sets the gradient where `backward` adds to it. The second takes the nodes in the
# order of the search: $p$ sends its gradient before $q$ has sent a share to it.

# %%
def overwrite(y):
    y.grad = 1.0
    for node in youngest_first(y):
        for source, rule in node.edges:
            source.grad = rule(node.grad)

def in_search_order(y): return backward(y, nearest_first)

for walk in (overwrite, in_search_order):
    wrong = gradients(walk, f, a, b)
    assert not np.allclose(wrong, measured), "this should have failed"
    print(f"Caught: {walk.__name__}:", *wrong, "not", *np.round(measured, 6))

# %% [markdown]
# ## What you built, and what is next
#
# You did reverse mode on paper, and built an engine that agrees with minilora's.
#
# **Next:** chapter 02. NumPy stretches a small array to fit a large one; its gradient shrinks back.
