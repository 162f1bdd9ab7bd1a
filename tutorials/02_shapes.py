# %% [markdown]
# # 02. Shapes
#
# *The reader can then:* sum a gradient back to the shape of its input, and read a shape error.
# *Time:* 15 minutes. *Needs:* chapter 01.
# *Remember:* What the forward pass copies, the backward pass sums.
#
# NumPy adds a bias of 3 numbers to a batch of 4 rows without any message. The gradient of the
# result has 4 rows, but the bias has only one. How does the gradient get back to one row? Many
# shape errors in training code come from this step. So do mistakes that raise no error.

# %%
import numpy as np

import minilora as ml
from minilora import ops, viz

rng = np.random.default_rng(0)

# %% [markdown]
# ## One bias, four rows
#
# We have four examples with three features each, and one bias for all of them. Our loss is
# `(g * y).sum()`, with a fixed number in `g` for each output. Then the gradient of the loss with
# respect to `y` is `g` itself.

# %%
x = np.arange(12.0).reshape(4, 3)  # (4, 3)
b = np.array([10.0, 20.0, 30.0])  # (3,)
g = np.array([[1.0, 2, 3], [0, 1, 0], [5, 0, 1], [2, 2, 2]])  # (4, 3)
y = x + b
print(y)

# %% [markdown]
# NumPy computes `x + b` as if `b` were copied into each of the four rows: it *broadcasts* `b`. In
# other words, `b` takes part in four additions, one for each row. As in chapter 01, we add the
# gradients of the four paths.

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
# **Predict.** Let $u$ be a column of shape `(4, 1)`. The shape of `u * b` is `(4, 3)`, because
# NumPy broadcasts both sides. What is the shape of the gradient of $u$, and along which axis is it
# a sum?
#
# <details><summary>Answer</summary>
#
# `(4, 1)`, the shape of $u$: a gradient always has the shape of its array. NumPy copied `u[i]` into
# the three columns of row $i$. So we sum along axis 1, one sum for each row. NumPy copied $b$ down
# the rows, so for $b$ we sum along axis 0.
#
# </details>
#
# ## Every case
#
# NumPy aligns two shapes at their *right* ends. Then it copies in two ways:
#
# - It adds a missing axis in front: `(3,)` becomes `(1, 3)`, then `(4, 3)`.
# - It stretches an axis of size 1: `(4, 1)` becomes `(4, 3)`.
#
# On the way back, a sum undoes each copy. First we sum over the axes that were added in front. Then
# we sum over the stretched axes, and keep them as axes of size 1.

# %%
def unbroadcast(g, shape):
    """Sum g over the axes along which `shape` was broadcast."""
    in_front = tuple(range(g.ndim - len(shape)))  # the added axes
    g = g.sum(axis=in_front)
    stretched = tuple(i for i, n in enumerate(shape) if n == 1)
    return g.sum(axis=stretched, keepdims=True)

# %%
u = np.array([[1.0], [2.0], [3.0], [4.0]])  # (4, 1)
du = unbroadcast(g * b, u.shape)  # the rule of the product gives g * b
db = unbroadcast(g * u, b.shape)
print("du:", *du.ravel(), "  db:", *db)

U, B = ml.Tensor(u, requires_grad=True), ml.Tensor(b, requires_grad=True)
(ml.Tensor(g) * (U * B)).sum().backward()
assert (ml.asnumpy(U.grad) == du).all() and (ml.asnumpy(B.grad) == db).all()

# %%
viz.unbroadcast(u, g * b, None, "u: copies and sum along each row", "u")
viz.unbroadcast(b, g * u, None, "b: copies and sum down the rows", "b")
viz.show()

# %% [markdown]
# Each colour is one number of $u$ or of $b$. The upper half shows its copies. The lower half shows
# the gradients of these copies, which are added up. minilora's engine does this for every op: if a
# gradient is larger than its input, the engine sums it. So the rules of `mul` are those of chapter
# 01, without shapes:

# %%
viz.source(ops.mul)

# %% [markdown]
# ## A check without finite differences
#
# Copying is linear. Write the copies as one long vector: then broadcasting is a matrix $M$ of zeros
# and ones, with exactly one 1 in each row. The backward pass is $M^\top$. So for any $g$ and $x$,
# $g \cdot (Mx) = (M^\top g) \cdot x$. In other words, two inner products are equal:
#
# $$ \langle g, \mathrm{broadcast}(x) \rangle = \langle \mathrm{unbroadcast}(g), x \rangle. $$
#
# This is the *adjoint identity*. It tests a backward pass with two inner products.

# %%
copies = [np.broadcast_to(unit, (4, 3)).ravel() for unit in np.eye(3)]
M = np.stack(copies, axis=1)  # (12, 3)
print(M.T.astype(int))  # one line for each number of b: 1 at its four copies
assert (M.T @ g.ravel() == unbroadcast(g, (3,))).all()

# %% [markdown]
# **Check.** The identity holds for every kind of broadcasting. (`np.vdot` multiplies two arrays of
# the same shape entry by entry, and sums the products.)

# %%
def sides(back, small, large):
    x, g = rng.standard_normal(small), rng.standard_normal(large)
    dx = back(g, small)
    assert dx.shape == small, f"{dx.shape} for an array of shape {small}"
    return np.vdot(g, np.broadcast_to(x, large)), np.vdot(dx, x)

for small, large in (((3,), (4, 3)), ((4, 1), (4, 3)), ((), (4, 3)),
                     ((3, 1), (2, 3, 5)), ((1, 1), (6, 1, 4))):
    one, other = sides(unbroadcast, small, large)
    assert np.isclose(one, other)
    print(f"{small} to {large}: {one:.3f} and {other:.3f}")

# %% [markdown]
# ## The weights of a layer
#
# A linear layer computes $y = x W^\top + b$ for every row of $x$. In a transformer, $x$ has the
# shape (batch, tokens, features), and every token of every sequence is a row. All rows use the same
# $W$, so its gradient is a sum over rows: row $i$ adds the outer product of $g_i$ and $x_i$.

# %%
x = rng.standard_normal((2, 4, 3))  # (batch, tokens, in)
g = rng.standard_normal((2, 4, 5))  # (batch, tokens, out)
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
# The library's rule `dW` computes the same as the two loops. `rows` puts all rows into one long
# matrix, and a matrix product is a sum of outer products. (`fits` raises the first error below.)
#
# ## Read a shape error
#
# Here are two mistakes and minilora's messages.

# %%
def message(f, *shapes):
    """Return the error message of f for inputs of these shapes."""
    try:
        f(*(ml.Tensor(np.ones(shape)) for shape in shapes))
    except ValueError as error:
        return str(error)

print(message(ops.linear, (4, 3), (3, 5)))
print(message(ops.add, (4, 3), (4,)))

# %% [markdown]
# Each message names the op, then the shape of each input, then the sizes that disagree. The first:
# `linear` takes $W$ as (out, in), so the *last* axes of `x` and `W` must be equal. Here $W$ is the
# wrong way round: pass `W.T`. The second: align the shapes at their right ends. 3 meets 4, and
# neither is 1. One number for each row needs a column, `(4, 1)`: write `y[:, None]`.
#
# Mistakes without a message are worse. A prediction of shape `(4, 1)` minus a target of shape
# `(4,)` does not give four differences:

# %%
prediction, target = u, u[:, 0]  # the same four numbers
print("shape of the difference:", (prediction - target).shape)
print("mean square:", ((prediction - target) ** 2).mean(), "(should be 0)")

# %% [markdown]
# NumPy broadcasts both, so each prediction is compared with each target. Before you subtract in a
# loss, check both shapes.
#
# ## Break it
#
# We forget the sum, in two ways. `as_it_came` returns the gradient as it is. `one_row` returns the
# right shape, but the gradient of only one row. Then we write the second mistake as an op of the
# engine: `ml.op` turns a function into an op. The function returns the value and a rule for each
# input, like the library's code above.

# %%
def as_it_came(g, shape):
    return g

def one_row(g, shape):
    return g[0]

one, other = sides(one_row, (3,), (4, 3))
assert not np.isclose(one, other), "this should have failed"
print(f"Caught: one_row: {one:.3f} is not {other:.3f}")

after = b - 0.1 * as_it_came(np.ones((4, 3)), b.shape)
assert after.shape != b.shape, "this should have failed"
print(f"Caught: as_it_came: a step makes a bias {after.shape} of {b.shape}")

# %%

@ml.op
def shift(x, b):
    return x + b, (lambda g: g, lambda g: g[0])  # one row, not the sum

try:
    ml.gradcheck(shift, np.ones((4, 3)), b)
except AssertionError as error:
    print(f"Caught: {error}")
else:
    raise RuntimeError("this should have failed")

# %% [markdown]
# ## What you built, and what is next
#
# You built the backward pass of broadcasting: a sum along each copied axis. You have a check that
# needs only two inner products. And you know why the gradient of the weights is a sum over rows.
#
# **Next:** chapter 03 puts weights, gradients and a loss together, and trains.
