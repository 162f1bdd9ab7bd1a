# %% [markdown]
# # 02. Shapes
#
# *The reader can then:* sum a gradient back to the shape it came from, and read a shape error.
# *Time:* 15 minutes. *Needs:* chapter 01.
# *Remember:* What was copied on the way forward is summed on the way back.
#
# NumPy adds a bias of 3 numbers to a batch of 4 rows without a word. The gradient of that sum has 4
# rows, and the bias has one. This chapter is about what happens in between. Most shape errors in
# training code come from here, and so do the mistakes that raise no error at all.

# %%
import numpy as np

import minilora as ml
from minilora import ops, viz

rng = np.random.default_rng(0)

# %% [markdown]
# ## One bias, four rows
#
# Four examples with three features each, and one bias for all of them. So that there is something
# to differentiate, let the loss be `(g * y).sum()` with fixed numbers `g`, one for each output.
# Then the gradient of the loss with respect to `y` is `g` itself.

# %%
x = np.arange(12.0).reshape(4, 3)  # (4, 3)
b = np.array([10.0, 20.0, 30.0])  # (3,)
g = np.array([[1, 2, 3], [0, 1, 0], [5, 0, 1], [2, 2, 2]], dtype=float)  # (4, 3)
y = x + b
print(y)

# %% [markdown]
# To compute `x + b`, NumPy acts as if `b` were copied into each of the four rows: `b` is
# *broadcast*. In other words, `b` goes into four additions, one for each row. Chapter 01 says what
# that means: gradients add where paths meet.

# %%
db = np.zeros(3)
for i in range(4):  # y[i] = x[i] + b, so b gets g[i]
    db += g[i]
print("by hand: ", db)
print("in short:", g.sum(axis=0))

B = ml.Tensor(b, requires_grad=True)
(ml.Tensor(g) * (ml.Tensor(x) + B)).sum().backward()
print("minilora:", ml.asnumpy(B.grad))
assert (ml.asnumpy(B.grad) == db).all() and (g.sum(axis=0) == db).all()

# %% [markdown]
# **Predict.** Let $u$ be a column of shape `(4, 1)`. `u * b` has shape `(4, 3)`, and here both
# sides are broadcast. What is the shape of the gradient of $u$, and along which axis is it a sum?
#
# <details><summary>Answer</summary>
#
# `(4, 1)`, like $u$: a gradient always has the shape of what it belongs to. `u[i]` was copied along
# row $i$, into its three columns. So the sum runs along axis 1, and each row keeps its own. For $b$
# it is the other way round: copied down the rows, summed along axis 0.
#
# </details>
#
# ## Every case
#
# NumPy lines up two shapes at their *right* ends. Then it copies in two ways:
#
# - an axis that is missing is put in front: `(3,)` becomes `(1, 3)`, then `(4, 3)`;
# - an axis of size 1 is stretched: `(4, 1)` becomes `(4, 3)`.
#
# Going back, each copy is undone by a sum: first over the axes that were put in front, then over
# those that were stretched, which stay as axes of size 1.


# %%
def unbroadcast(g, shape):
    """Sum g down to `shape`, from which it was broadcast."""
    in_front = tuple(range(g.ndim - len(shape)))
    g = g.sum(axis=in_front)
    stretched = tuple(i for i, n in enumerate(shape) if n == 1)
    return g.sum(axis=stretched, keepdims=True)


u = np.array([[1.0], [2.0], [3.0], [4.0]])  # (4, 1)
du = unbroadcast(g * b, u.shape)  # the rule of the product gives g * b: (4, 3)
db = unbroadcast(g * u, b.shape)
print("du:", *du.ravel(), "  db:", *db)

U, B = ml.Tensor(u, requires_grad=True), ml.Tensor(b, requires_grad=True)
(ml.Tensor(g) * (U * B)).sum().backward()
assert (ml.asnumpy(U.grad) == du).all() and (ml.asnumpy(B.grad) == db).all()

left, right = viz.panels(1, 2, size=(8.3, 4.1))
viz.unbroadcast(u, g * b, left, "u: copied, and summed, along its row", "u")
viz.unbroadcast(b, g * u, right, "b: copied, and summed, down the rows", "b")
viz.show()

# %% [markdown]
# One colour is one number of $u$, or of $b$. Above, it is copied. Below, the gradients that arrive
# at its copies are added up. minilora's engine does this for every op: what comes back larger than
# it went out is summed. So the rules of `mul` are those of chapter 01, with no word about shapes:

# %%
viz.source(ops.mul)

# %% [markdown]
# ## A check without nudging
#
# Copying is linear: stack the copies as one long vector, and broadcasting is a matrix $M$ of zeros
# and ones, with a single one in each row. Backward is $M^\top$. So for any $g$ and $x$ the inner
# products agree, $g \cdot (Mx) = (M^\top g) \cdot x$, that is
#
# $$ \langle g, \mathrm{broadcast}(x) \rangle = \langle \mathrm{unbroadcast}(g), x \rangle. $$
#
# This is called the *adjoint identity*. It tests a backward pass with two inner products.

# %%
M = np.stack([np.broadcast_to(unit, (4, 3)).ravel() for unit in np.eye(3)], axis=1)  # (12, 3)
print(M.T.astype(int))  # a line for each number of b: ones where its four copies are
assert (M.T @ g.ravel() == unbroadcast(g, (3,))).all()

# %% [markdown]
# **Check.** The identity holds for every way in which a shape can grow. (`np.vdot` multiplies two
# arrays of one shape entry by entry, and adds up.)


# %%
def sides(back, small, large):
    x, g = rng.standard_normal(small), rng.standard_normal(large)
    dx = back(g, small)
    assert dx.shape == small, f"a gradient of shape {dx.shape} for an array of shape {small}"
    return np.vdot(g, np.broadcast_to(x, large)), np.vdot(dx, x)


CASES = [((3,), (4, 3)), ((4, 1), (4, 3)), ((1, 3), (4, 3)), ((), (4, 3)), ((4, 3), (4, 3)),
         ((3, 1), (2, 3, 5)), ((2, 1, 5), (2, 3, 5)), ((1, 1), (6, 1, 4))]
for small, large in CASES:
    one, other = sides(unbroadcast, small, large)
    assert np.isclose(one, other), (small, large)

# %% [markdown]
# ## The weights of a layer
#
# A linear layer computes $y = x W^\top + b$ for every row of $x$. In a transformer, $x$ has the
# shape (batch, tokens, features), and every token of every sequence is a row. All rows meet the
# same $W$, so its gradient is a sum over rows: row $i$ gives the outer product of $g_i$ and $x_i$.

# %%
x, g = rng.standard_normal((2, 4, 3)), rng.standard_normal((2, 4, 5))
W = rng.standard_normal((5, 3))  # (out, in)
dW = np.zeros_like(W)
for sequence in range(2):
    for token in range(4):
        dW += np.outer(g[sequence, token], x[sequence, token])

weights = ml.Tensor(W, requires_grad=True)
(ml.Tensor(g) * ops.linear(ml.Tensor(x), weights)).sum().backward()
assert np.allclose(ml.asnumpy(weights.grad), dW)
viz.source(ops.linear)

# %% [markdown]
# The library's rule `dW` says the same as the two loops: `rows` makes one long matrix of all rows,
# and a matrix product is a sum of outer products. (`fits` raises the first error below.)
#
# ## Read a shape error
#
# Here are two mistakes, and what minilora says.


# %%
def told(f, *shapes):
    """The message of f for inputs of these shapes."""
    try:
        f(*(ml.Tensor(np.ones(shape)) for shape in shapes))
    except ValueError as error:
        return str(error)


print(told(ops.linear, (4, 3), (3, 5)))
print(told(ops.add, (4, 3), (4,)))

# %% [markdown]
# Each message has the op, then the shape of each input, then what disagrees. To read the first:
# `linear` takes $W$ as (out, in), so the *last* axes of `x` and `W` must be equal. Here $W$ came
# the other way round: pass `W.T`. To read the second: line the shapes up at their right ends. 3
# meets 4, and neither is 1. One number for each row is a column, `(4, 1)`: write `y[:, None]`.

# %% [markdown]
# Worse are the mistakes without a message. A prediction of shape `(4, 1)` minus a target of shape
# `(4,)` is not four differences:

# %%
prediction, target = u, u[:, 0]  # the very same numbers
print("difference:", (prediction - target).shape)
print("mean square:", ((prediction - target) ** 2).mean(), "though all four are right")

# %% [markdown]
# Both were broadcast, and each prediction was compared with each target. Before a subtraction in a
# loss, look at both shapes.
#
# ## Break it
#
# Forget the sum, in two ways. `as_it_came` leaves the gradient alone. `one_row` has the right
# shape, but it is the gradient of a single row. And once more as an op of the engine: `ml.op` makes
# one of a function that returns the value and a rule for each input, as in the sources above.


# %%
def as_it_came(g, shape):
    return g


def one_row(g, shape):
    return g[0]


for version in (as_it_came, one_row):
    try:
        one, other = sides(version, (3,), (4, 3))
        assert np.isclose(one, other), f"{one:.3f} on one side, {other:.3f} on the other"
    except AssertionError as error:
        print(f"Caught: {version.__name__}: {error}")
    else:
        raise RuntimeError("this was meant to fail")

stepped = b - 0.1 * as_it_came(np.ones((4, 3)), b.shape)
print(f"With as_it_came, a step of training turns a bias of {b.shape} into {stepped.shape}.")


@ml.op
def shift(x, b):
    return x + b, (lambda g: g, lambda g: g[0])  # for b one row, not the sum


try:
    ml.gradcheck(shift, np.ones((4, 3)), b)
except AssertionError as error:
    print(f"Caught: {error}")
else:
    raise RuntimeError("this was meant to fail")

# %% [markdown]
# ## What you built, and what is next
#
# The backward pass of broadcasting, as a sum along what was copied, with a check that takes two
# inner products; the gradient of a layer's weights, as a sum over rows.
#
# **Next:** chapter 03 puts weights, gradients and a loss together, and trains.
