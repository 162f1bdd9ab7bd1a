# ruff: noqa: E501 - a slip keeps its long line
"""Right answers in other styles than the solution's, and each of them with one slip.

ANSWERS: exercise -> [(source, [(text, its replacement, mistake), ...]), ...]. A mistake is words of
the known mistake that the slip is; "" is a slip that no known mistake has. It was written before
the judge could name a mistake by behaviour, and the judge is not changed because of it.
"""

ANSWERS: dict[str, list[tuple[str, list[tuple[str, str, str]]]]] = {}

ANSWERS["01"] = [('''
def grad_add(g, x, y):
    dx, dy = np.empty(x.shape), np.empty(y.shape)
    dx[...] = g
    dy[...] = g
    return dx, dy

def grad_mul(g, x, y):
    dx, dy = np.zeros(x.shape), np.zeros(y.shape)
    for p in np.ndindex(*x.shape):
        dx[p] = g[p] * y[p]
        dy[p] = g[p] * x[p]
    return dx, dy

def grad_matmul(g, x, y):
    (m, k), n = x.shape, y.shape[1]
    dx, dy = np.zeros((m, k)), np.zeros((k, n))
    for a in range(m):
        for b in range(k):
            for c in range(n):
                dx[a, b] += g[a, c] * y[b, c]
                dy[b, c] += x[a, b] * g[a, c]
    return dx, dy
''', [
    ("dy[...] = g\n", "dy[...] = -g\n", "gradients of x - y"),
    ("dx[p] = g[p] * y[p]\n        dy[p] = g[p] * x[p]", "dx[p] = g[p] * x[p]\n        dy[p] = g[p] * y[p]", "swap them"),
    ("dx[p] = g[p] * y[p]\n        dy[p] = g[p] * x[p]", "dx[p] = y[p]\n        dy[p] = x[p]", "leave out g in the product"),
    ("dx[a, b] += g[a, c] * y[b, c]\n                dy[b, c] += x[a, b] * g[a, c]", "dx[a, b] += y[b, c]\n                dy[b, c] += x[a, b]", "leave out g in the matrix product"),
    ("dx[...] = g\n    dy[...] = g", "dx[...] = 0.5 * g\n    dy[...] = 0.5 * g", "one half of g each"),
    ("dx[a, b] += g[a, c] * y[b, c]", "dx[a, b] = g[a, c] * y[b, c]", ""),
]), ('''
def grad_add(g, x, y):
    return [np.copy(g), np.copy(g)]

def grad_mul(g, x, y):
    return tuple(np.multiply(g, other) for other in (y, x))

def grad_matmul(g, x, y):
    return np.einsum("mn,kn->mk", g, y), np.einsum("mk,mn->kn", x, g)
''', [
    ("(y, x))", "(x, y))", "swap them"),
    ("[np.copy(g), np.copy(g)]", "[np.ones(g.shape), np.ones(g.shape)]", "leave out g in the sum"),
    ('np.einsum("mk,mn->kn", x, g)', 'np.einsum("mk,mn->nk", x, g)', "you return dy transposed"),
    ("np.multiply(g, other) for", "g * x * y for", "multiply by both x and y"),
    ("np.multiply(g, other) for", "np.copy(g) for", "g alone for the product"),
]), ('''
def grad_add(g, x, y):
    slope = np.ones_like(x)
    return g * slope, g * slope

def grad_mul(g, x, y):
    dx = y * g
    dy = x * g
    return dx, dy

def grad_matmul(g, x, y):
    dx = np.dot(y, np.transpose(g)).T
    dy = np.dot(np.transpose(g), x).T
    return dx, dy
''', [
    ("np.transpose(g)).T", "np.transpose(g))", ""),
    ("return g * slope, g * slope", "return g * x, g * y", "multiply by x and y in the sum"),
    ("np.dot(y, np.transpose(g)).T\n    dy = np.dot(np.transpose(g), x).T", "np.dot(y, np.transpose(g))\n    dy = np.dot(np.transpose(g), x)", "dx and dy transposed"),
    ("dx = np.dot(y, np.transpose(g)).T\n    dy = np.dot(np.transpose(g), x).T\n    return dx, dy", "dx = np.dot(y, np.transpose(g)).T\n    dy = np.dot(np.transpose(g), x).T\n    return dy, dx", "dy first, then dx"),
    ("dy = x * g", "dy = x * dx", ""),
])]

ANSWERS["02"] = [('''
def unbroadcast(g, shape):
    while g.ndim > len(shape):
        g = np.add.reduce(g, axis=0)
    for axis, size in enumerate(shape):
        if size == 1:
            g = np.add.reduce(g, axis=axis, keepdims=True)
    return np.array(g)
''', [
    ("np.add.reduce(g, axis=0)", "np.mean(g, axis=0)", ""),
    ("np.add.reduce(g, axis=axis, keepdims=True)", "g", "not the repeated ones"),
    ("np.add.reduce(g, axis=0)", "np.max(g, axis=0)", ""),
    ("return np.array(g)", "return np.array(g, float)", "float64 for any dtype"),
    ("axis=axis, keepdims=True)", "axis=0, keepdims=True)", ""),
    ("return np.array(g)", "return np.array(g, np.float32)", "float64 to float32"),
]), ('''
def unbroadcast(g, shape):
    full = (1,) * (g.ndim - len(shape)) + tuple(shape)
    out = np.zeros(full, g.dtype)
    for p in np.ndindex(*g.shape):
        out[tuple(i if size > 1 else 0 for i, size in zip(p, full))] += g[p]
    return out.reshape(shape)
''', [
    ("+= g[p]", "= g[p]", ""),
    ("np.zeros(full, g.dtype)", "np.zeros(full)", "float64 for any dtype"),
    ("return out.reshape(shape)", "return out.reshape(shape) * out.size / max(g.size, 1)", "mean of the uses"),
    ("np.zeros(full, g.dtype)", "np.zeros(full, np.float32)", "float64 to float32"),
    ("return out.reshape(shape)", "return out", ""),
    ("out[tuple(i if size > 1 else 0 for i, size in zip(p, full))] += g[p]", "at = tuple(i if size > 1 else 0 for i, size in zip(p, full))\n        out[at] = np.maximum(out[at], g[p]) if out[at] else g[p]", ""),
]), ('''
def unbroadcast(g, shape):
    front = g.ndim - len(shape)
    axes = tuple(range(front)) + tuple(front + i for i, n in enumerate(shape) if n == 1)
    return np.sum(g, axis=axes).reshape(shape)
''', [
    ("np.sum(g, axis=axes)", "np.mean(g, axis=axes)", "mean of the uses"),
    ("np.sum(g, axis=axes)", "np.max(g, axis=axes)", "largest use"),
    ("np.sum(g, axis=axes).reshape(shape)", "np.sum(g, axis=axes)", "without keepdims=True"),
    ("np.sum(g, axis=axes)", "np.sum(g, axis=axes, dtype=float)", "float64 for any dtype"),
    ("return np.sum(g, axis=axes).reshape(shape)", "out = np.sum(g, axis=axes).reshape(shape)\n    g[...] = 0\n    return out", "change g in place"),
])]

ANSWERS["03"] = [('''
def backward(node):
    order, seen, stack = [], set(), [(node, iter(node.parents))]
    seen.add(node)
    while stack:
        one, left = stack[-1]
        for parent in left:
            if parent not in seen:
                seen.add(parent)
                stack.append((parent, iter(parent.parents)))
                break
        else:
            order.append(one)
            stack.pop()
    flow = {node: 1.0}
    for one in reversed(order):
        g = flow[one]
        one.grad = one.grad + g
        for parent, rule in zip(one.parents, one.rules):
            share = rule(g)
            flow[parent] = share if parent not in flow else flow[parent] + share
''', [
    ("flow[parent] = share if parent not in flow else flow[parent] + share", "flow[parent] = share", "last share"),
    ("one.grad = one.grad + g", "one.grad = g", "lose the old content"),
    ("flow = {node: 1.0}", "flow = {node: 0.0}", "do not start with the gradient 1.0"),
    ("        one.grad = one.grad + g", "        if not one.parents:\n            one.grad = one.grad + g", "only for inputs"),
    ("rule(g)", "rule(one.grad)", "earlier calls left in .grad"),
    ("one.grad = one.grad + g", "one.grad = one.grad - g", ""),
]), ('''
def backward(node):
    missing = {}
    todo, known = [node], {id(node)}
    while todo:
        for parent in todo.pop().parents:
            missing[id(parent)] = missing.get(id(parent), 0) + 1
            if id(parent) not in known:
                known.add(id(parent))
                todo.append(parent)
    flow, ready = {id(node): np.float64(1.0)}, [node]
    while ready:
        one = ready.pop(0)
        g = flow.pop(id(one))
        one.grad = np.add(one.grad, g)
        for i in range(len(one.parents)):
            parent = one.parents[i]
            flow[id(parent)] = np.add(flow.get(id(parent), 0.0), one.rules[i](g))
            missing[id(parent)] -= 1
            if missing[id(parent)] == 0:
                ready.append(parent)
import numpy as np
''', [
    ("np.add(flow.get(id(parent), 0.0), one.rules[i](g))", "one.rules[i](g)", "last share"),
    ("one.grad = np.add(one.grad, g)", "one.grad = np.add(0.0, g)", "lose the old content"),
    ("np.float64(1.0)", "np.float64(0.0)", "do not start with the gradient 1.0"),
    ("np.float64(1.0)", "np.float64(2.0)", ""),
    ("        one.grad = np.add(one.grad, g)", "        one.grad = np.add(one.grad, g) if not one.rules else one.grad", "only for inputs"),
]), ('''
def backward(node):
    sys.setrecursionlimit(10**6)
    order, seen = [], {}
    todo = [(0, node)]
    while todo:
        kind, one = todo.pop()
        if kind:
            order.insert(0, one)
        elif one not in seen:
            seen[one] = 0.0
            todo.append((1, one))
            for parent in one.parents:
                todo.append((0, parent))
    seen[node] = 1.0
    for one in order:
        for parent, rule in zip(one.parents, one.rules):
            seen[parent] = seen[parent] + rule(seen[one])
    for one, g in seen.items():
        one.grad = one.grad + g
import sys
''', [
    ("seen[parent] = seen[parent] + rule(seen[one])", "seen[parent] = rule(seen[one])", "last share"),
    ("one.grad = one.grad + g", "one.grad = g", "lose the old content"),
    ("seen[node] = 1.0", "pass", "do not start with the gradient 1.0"),
    ("zip(one.parents, one.rules):", "dict(zip(one.parents, one.rules)).items():", "twice, as in a * a"),
    ("    for one in order:\n", "    for one in order[:1]:\n", "stop at the parents"),
])]

ANSWERS["04"] = [('''
def softmax(z):
    top = np.max(z, axis=-1, keepdims=True)
    e = np.exp(np.subtract(z, top))
    return np.divide(e, np.sum(e, axis=-1, keepdims=True))

def _log(z):
    top = np.max(z, axis=1)
    return top + np.log(np.sum(np.exp(z - top[:, None]), axis=1))

def cross_entropy(z, targets):
    right = np.take_along_axis(z, targets[:, None], axis=1)[:, 0]
    return (_log(z) - right).mean()

def grad_cross_entropy(z, targets):
    p = softmax(z)
    hot = np.zeros_like(p)
    np.put_along_axis(hot, targets[:, None], 1, axis=1)
    return (p - hot) / len(targets)
''', [
    ("np.subtract(z, top)", "z", "do not subtract the largest logit"),
    ("np.max(z, axis=-1, keepdims=True)", "np.max(z)", "largest logit of the entire array"),
    ("np.sum(e, axis=-1, keepdims=True)", "np.sum(e)", "sum of the entire array"),
    ("(_log(z) - right).mean()", "(_log(z) - right).sum()", "sum over the examples"),
    ("(_log(z) - right).mean()", "(right - _log(z)).mean()", "leave out the minus sign"),
    ("hot, targets[:, None], 1, axis=1)", "hot, targets[:, None], 0, axis=1)", "leave out the -1"),
    ("(p - hot) / len(targets)", "p - hot", "do not divide the gradient"),
    ("(p - hot) / len(targets)", "(hot - p) / len(targets)", "wrong sign"),
]), ('''
def softmax(z):
    rows = z.reshape(-1, z.shape[-1])
    out = np.empty_like(rows)
    for i, row in enumerate(rows):
        e = np.exp(row - row.max())
        out[i] = e / e.sum()
    return out.reshape(z.shape)

def cross_entropy(z, targets):
    total = 0.0
    for row, t in zip(z, targets):
        row = row - row.max()
        total += np.log(np.exp(row).sum()) - row[t]
    return total / len(z)

def grad_cross_entropy(z, targets):
    out = np.empty_like(z)
    for i, t in enumerate(targets):
        out[i] = softmax(z[i])
        out[i, t] -= 1
        out[i] /= len(z)
    return out
''', [
    ("np.exp(row - row.max())\n        out", "np.exp(row)\n        out", "do not subtract the largest logit"),
    ("out[i] = e / e.sum()", "out[i] = e", "do not divide by the sum"),
    ("return total / len(z)", "return total", "sum over the examples"),
    ("return total / len(z)", "return total / z.size", "divide by the number of all logits"),
    ("        out[i, t] -= 1\n", "", "leave out the -1"),
    ("        out[i] /= len(z)\n", "", "do not divide the gradient"),
    ("out[i] /= len(z)", "out[i] /= z.size", "gradient by the number of all logits"),
    ("np.log(np.exp(row).sum()) - row[t]", "np.log2(np.exp(row).sum()) - row[t]", ""),
]), ('''
def softmax(z):
    low = z - np.amax(z, -1)[..., None]
    return np.exp(low - np.log(np.exp(low).sum(-1))[..., None])

def cross_entropy(z, targets):
    rows = np.arange(len(targets))
    return -np.average(z[rows, targets] - np.logaddexp.reduce(z, axis=1))

def grad_cross_entropy(z, targets):
    grad = np.exp(z - np.logaddexp.reduce(z, axis=1, keepdims=True)).astype(z.dtype)
    np.subtract.at(grad, (np.arange(len(z)), targets), 1)
    return (grad / z.dtype.type(len(z))).astype(z.dtype)
''', [
    ("low = z - np.amax(z, -1)[..., None]", "low = z - np.amin(z, -1)[..., None]", ""),
    ("-np.average(", "np.average(", "leave out the minus sign"),
    ("-np.average(", "-np.sum(", "sum over the examples"),
    ("    np.subtract.at(grad, (np.arange(len(z)), targets), 1)\n", "", "leave out the -1"),
    ("targets), 1)", "targets), 2)", ""),
    ("np.exp(low - np.log(np.exp(low).sum(-1))[..., None])", "low - np.log(np.exp(low).sum(-1))[..., None]", "log of the probabilities"),
])]

ANSWERS["05"] = [('''
def causal_attention(q, k, v, heads):
    out = np.zeros_like(v)
    size = q.shape[2] // heads
    for b in range(q.shape[0]):
        for h in range(heads):
            at = slice(h * size, (h + 1) * size)
            for i in range(q.shape[1]):
                s = k[b, : i + 1, at] @ q[b, i, at] / math.sqrt(size)
                e = np.exp(s - s.max())
                out[b, i, at] = (e / e.sum()) @ v[b, : i + 1, at]
    return out.astype(q.dtype)
''', [
    ("k[b, : i + 1, at] @ q[b, i, at] / math.sqrt(size)\n", "k[b, :, at] @ q[b, i, at] / math.sqrt(size)\n", ""),
    (" / math.sqrt(size)", "", "do not divide by the square root"),
    ("math.sqrt(size)", "size", "not by its square root"),
    ("math.sqrt(size)", "math.sqrt(q.shape[2])", "square root of d"),
    ("np.exp(s - s.max())", "np.exp(s)", "do not subtract the largest score"),
    ("k[b, : i + 1, at] @ q[b, i, at]", "q[b, : i + 1, at] @ k[b, i, at]", "swap queries and keys"),
    (".astype(q.dtype)", ".astype(float)", "float64 output"),
    ("(e / e.sum()) @", "e @", ""),
]), ('''
def causal_attention(q, k, v, heads):
    n, t, d = q.shape
    split = lambda a: np.stack(np.split(a, heads, axis=2), 1)
    s = np.einsum("bhic,bhjc->bhij", split(q), split(k)) * (d // heads) ** -0.5
    seen = np.tril(np.ones((t, t), dtype=bool))
    s = np.where(seen, s, -np.inf)
    s = s - np.max(s, 3, keepdims=True)
    w = np.exp(s)
    w = w / np.sum(w, 3, keepdims=True)
    y = np.einsum("bhij,bhjc->bihc", w, split(v))
    return y.reshape(n, t, d).astype(q.dtype)
''', [
    ("dtype=bool))\n", "dtype=bool), 1)\n", "sees the next one too"),
    ("np.where(seen, s, -np.inf)", "s", "hide nothing"),
    ("np.where(seen, s, -np.inf)", "np.where(seen.T, s, -np.inf)", "hide the earlier tokens"),
    (" * (d // heads) ** -0.5", "", "do not divide by the square root"),
    ("(d // heads) ** -0.5", "d ** -0.5", "square root of d"),
    ("np.where(seen, s, -np.inf)", "np.where(seen, s, 0)", "later tokens to 0"),
    ("np.where(seen, s, -np.inf)", "np.where(seen, s, -20)", "not low enough"),
    ("bhij,bhjc->bihc", "bhij,bhjc->bhic", "axis of the heads back"),
]), ('''
def causal_attention(q, k, v, heads):
    def one(q, k, v):
        s = (q / math.sqrt(q.shape[-1])) @ k.T
        s[np.triu_indices(len(q), 1)] = -math.inf
        s -= s.max(1)[:, None]
        w = np.exp(s)
        return (w @ v) / w.sum(1)[:, None]

    c = q.shape[-1] // heads
    parts = [[one(*(x[b, :, h * c : h * c + c] for x in (q, k, v))) for h in range(heads)]
             for b in range(len(q))]
    return np.array([np.concatenate(row, axis=1) for row in parts])
''', [
    ("np.triu_indices(len(q), 1)", "np.triu_indices(len(q), 2)", "sees the next one too"),
    ("np.triu_indices(len(q), 1)", "np.triu_indices(len(q), 0)", "hides the token from itself, so"),
    ("(q / math.sqrt(q.shape[-1]))", "q", "do not divide by the square root"),
    ("        s -= s.max(1)[:, None]\n", "", "do not subtract the largest score"),
    ("s[np.triu_indices(len(q), 1)] = -math.inf", "s[np.tril_indices(len(q), -1)] = -math.inf", "hide the earlier tokens"),
    ("/ w.sum(1)[:, None]", "/ w.sum(0)[:, None]", ""),
])]

ANSWERS["06"] = [('''
def lora_init(d, k, r, rng):
    A = rng.standard_normal((r, k)) * 0.02
    B = np.full((d, r), 0.0)
    return A, B

def lora_forward(x, W, A, B, alpha):
    V = W + np.multiply(alpha / np.shape(A)[0], np.dot(B, A))
    return np.dot(x, V.T)
''', [
    ("alpha / np.shape(A)[0]", "alpha", "by alpha, not by alpha / r"),
    ("alpha / np.shape(A)[0]", "1.0", "do not scale the update"),
    ("alpha / np.shape(A)[0]", "alpha / np.shape(A)[1]", "divide by k"),
    ("alpha / np.shape(A)[0]", "np.shape(A)[0] / alpha", "by r / alpha"),
    ("np.dot(x, V.T)", "np.dot(x, V)", "without the transpose"),
    ("np.full((d, r), 0.0)", "rng.standard_normal((d, r))", "B random too"),
    ("return A, B", "return B, A", "B before A"),
    ("rng.standard_normal((r, k)) * 0.02", "np.zeros((r, k))", "A zero too"),
]), ('''
def lora_init(d, k, r, rng):
    A = np.empty((r, k))
    for s in range(r):
        A[s] = rng.normal(scale=k**-0.5, size=k)
    return [A, np.zeros((d, r))]

def lora_forward(x, W, A, B, alpha):
    low = np.einsum("...k,rk->...r", x, A)
    up = np.einsum("...r,dr->...d", low, B)
    return np.einsum("...k,dk->...d", x, W) + up * alpha / B.shape[1]
''', [
    ("up * alpha / B.shape[1]", "up * alpha", "by alpha, not by alpha / r"),
    ("up * alpha / B.shape[1]", "up", "do not scale the update"),
    ("up * alpha / B.shape[1]", "up * alpha / B.shape[0]", "divide by d"),
    ('np.einsum("...k,dk->...d", x, W) + ', "", "leave out x W^T"),
    ("rng.normal(scale=k**-0.5, size=k)", "rng.uniform(-0.5, 0.5, k)", "rng.uniform"),
    ("up * alpha / B.shape[1]", "up * alpha / B.shape[1] ** 0.5", ""),
]), ('''
def lora_init(d, k, r, rng):
    return rng.normal(0, 0.5, r * k).reshape(r, k), np.zeros(d * r).reshape(d, r)

def lora_forward(x, W, A, B, alpha):
    y = x @ W.T
    for s in range(len(A)):
        y = y + (x @ A[s])[..., None] * B[:, s] * (alpha / len(A))
    return y
''', [
    ("(alpha / len(A))", "(alpha)", "by alpha, not by alpha / r"),
    ("(alpha / len(A))", "(len(A) / alpha)", "by r / alpha"),
    ("(alpha / len(A))", "(alpha // len(A))", "drops the fraction"),
    ("y = x @ W.T\n", "y = 0.0\n", "leave out x W^T"),
    ("rng.normal(0, 0.5, r * k)", "rng.random(r * k)", "rng.random"),
    ("rng.normal(0, 0.5, r * k)", "np.random.default_rng(3).normal(0, 0.5, r * k)", "your own generator"),
    ("range(len(A))", "range(1)", ""),
])]

ANSWERS["07"] = [('''
def freeze(parameters, pattern):
    kept = []
    for name in parameters.keys():
        if fnmatchcase(name, pattern):
            continue
        kept.append(name)
    return kept

def count_lora(shapes, r):
    total = 0
    for d, k in shapes:
        total += r * k + d * r
    return total

def train_step(params, grads, trained, lr, decay):
    for name in trained:
        step = grads[name] + decay * params[name]
        params[name][...] = params[name] - lr * step
''', [
    ("        if fnmatchcase(name, pattern):", "        if not fnmatchcase(name, pattern):", "frozen names, not the others"),
    ("total += r * k + d * r", "total += r * k", "A, but not B"),
    ("total += r * k + d * r", "total += d * r", "B, but not A"),
    ("total += r * k + d * r", "total += d * k", "entries of W"),
    ("params[name] - lr * step", "params[name] + lr * step", "uphill"),
    ("grads[name] + decay * params[name]", "grads[name]", "leave out the decay"),
    ("params[name][...] = params[name] - lr * step", "params[name] = params[name] - lr * step", "new array into the dict"),
    ("for name in trained:", "for name in params:", "every parameter"),
]), ('''
def freeze(parameters, pattern):
    return list(filter(lambda name: not fnmatchcase(name, pattern), parameters))

def count_lora(shapes, r):
    return r * sum(sum(pair) for pair in shapes)

def train_step(params, grads, trained, lr, decay):
    for name, p in params.items():
        if name in trained:
            np.multiply(p, 1 - lr * decay, out=p)
            np.subtract(p, lr * grads[name], out=p)
''', [
    ("not fnmatchcase(name, pattern)", "not fnmatchcase(pattern, name)", "pattern first"),
    ("not fnmatchcase(name, pattern)", "pattern not in name", "with its *"),
    ("r * sum(sum(pair) for pair in shapes)", "r * sum(d * k for d, k in shapes)", "count r · d · k"),
    ("1 - lr * decay", "1 - decay", "not by lr · decay"),
    ("1 - lr * decay", "1 + lr * decay", "wrong sign"),
    ("            np.multiply(p, 1 - lr * decay, out=p)\n            np.subtract(p, lr * grads[name], out=p)", "            np.subtract(p, lr * grads[name], out=p)\n            np.multiply(p, 1 - lr * decay, out=p)", "after the gradient step"),
    ("        if name in trained:\n            np.multiply(p, 1 - lr * decay, out=p)\n", "        np.multiply(p, 1 - lr * decay, out=p)\n        if name in trained:\n", "decay frozen parameters"),
]), ('''
def freeze(parameters, pattern):
    import fnmatch
    frozen = set(n for n in parameters if fnmatch.fnmatchcase(n, pattern))
    return [n for n in parameters if n not in frozen]

def count_lora(shapes, r):
    return int(sum(np.prod((r, k)) + np.prod((d, r)) for d, k in shapes))

def train_step(params, grads, trained, lr, decay):
    new = {n: (1 - lr * decay) * params[n] - lr * grads[n] for n in trained}
    for n, value in new.items():
        np.copyto(params[n], value)
''', [
    ("if n not in frozen]", "if n in frozen]", "frozen names, not the others"),
    ("+ np.prod((d, r)) for", "* np.prod((d, r)) for", "A's count by B's"),
    ("for d, k in shapes))", "for d, k in shapes[:1]))", "only the first matrix"),
    ("        np.copyto(params[n], value)", "        params[n] = value", "new array into the dict"),
    ("- lr * grads[n]", "+ lr * grads[n]", ""),
    ("(1 - lr * decay) * params[n]", "params[n]", "leave out the decay"),
])]

ANSWERS["08"] = [('''
def merge(W, A, B, alpha):
    out = np.array(W)
    scale = W.dtype.type(alpha / A.shape[0])
    for s in range(A.shape[0]):
        out += scale * np.outer(B[:, s], A[s])
    return out

def unmerge_exactly(W0, A, B, alpha):
    kept = W0.tobytes()

    def do_merge():
        return merge(W0, A, B, alpha)

    def undo():
        return np.frombuffer(kept, W0.dtype).reshape(W0.shape).copy()

    return do_merge, undo
''', [
    ("alpha / A.shape[0])", "alpha)", "by alpha, not by alpha / r"),
    ("alpha / A.shape[0])", "1)", "you do not scale the update"),
    ("alpha / A.shape[0])", "alpha / A.shape[1])", "divide by k"),
    ("out += scale", "out -= scale", "subtract the update"),
    ("out = np.array(W)", "out = np.zeros_like(W)", "leave out W"),
    ("out = np.array(W)", "out = W", "write into W"),
    ("return np.frombuffer(kept, W0.dtype).reshape(W0.shape).copy()", "return do_merge() - (alpha / len(A) * (B @ A)).astype(W0.dtype)", "undo by subtraction"),
    ("return do_merge, undo", "return undo, do_merge", "undo before do_merge"),
]), ('''
def merge(W, A, B, alpha):
    return np.add(W, np.matmul(B * (alpha / B.shape[1]), A), dtype=W.dtype)

def unmerge_exactly(W0, A, B, alpha):
    original, merged = W0.copy(), merge(W0, A, B, alpha)
    return (lambda: merged.copy(), lambda: original.copy())
''', [
    ("alpha / B.shape[1]", "alpha", "by alpha, not by alpha / r"),
    ("alpha / B.shape[1]", "alpha / B.shape[1] ** 2", "divide by r twice"),
    ("lambda: merged.copy()", "lambda: merged", "always return the same merged"),
    ("lambda: merged.copy(), lambda: original.copy()", "merged, original", "arrays, not functions"),
    ("np.add(W, ", "np.subtract(W, ", "subtract the update"),
    (", dtype=W.dtype)", ", dtype=float)", "float64 for a float32"),
    ("A), dtype", "A) * 0, dtype", ""),
]), ('''
class _Merge:
    def __init__(self, *given):
        self.given = given

    def __call__(self):
        return merge(*self.given)

def merge(W, A, B, alpha):
    r = A.shape[0]
    both = np.concatenate([r / alpha * W, B @ A], 1) if False else None
    update = np.einsum("dr,rk->dk", B, A)
    return (W + update * alpha / r).astype(W.dtype)

def unmerge_exactly(W0, A, B, alpha):
    return [_Merge(W0, A, B, alpha), W0.copy]
''', [
    ("update * alpha / r", "update * alpha", "by alpha, not by alpha / r"),
    ("update * alpha / r", "update", "you do not scale the update"),
    ("update * alpha / r", "update * alpha / r / r", "divide by r twice"),
    ("(W + update * alpha / r)", "((W + update) * alpha / r)", "scale W too"),
    ("(W + update * alpha / r)", "(update * alpha / r)", "leave out W"),
    ("[_Merge(W0, A, B, alpha), W0.copy]", "[_Merge(W0, A, B, alpha)(), W0.copy()]", "arrays, not functions"),
    ("[_Merge(W0, A, B, alpha), W0.copy]", "[W0.copy, _Merge(W0, A, B, alpha)]", "undo before do_merge"),
    ("update * alpha / r", "update * r / alpha", ""),
])]

ANSWERS["09"] = [('''
def test_merge(merge):
    rng = np.random.default_rng(42)
    for d in (1, 2, 5):
        for k in (1, 3, 4):
            for r in (1, 2, 3):
                alpha = rng.uniform(1, 9)
                W, A, B = rng.random((d, k)), rng.random((r, k)) - 0.5, rng.random((d, r)) - 0.5
                before = [W.copy(), A.copy(), B.copy()]
                got = merge(W, A, B, alpha)
                want = before[0] + alpha / r * (before[2] @ before[1])
                assert isinstance(got, np.ndarray) and got.shape == want.shape
                assert np.all(np.isfinite(got))
                np.testing.assert_allclose(got, want, rtol=0, atol=1e-11)
                for now, old in zip([W, A, B], before):
                    np.testing.assert_array_equal(now, old)
''', [
    ("alpha / r * (before[2]", "alpha * (before[2]", "without the division by r"),
    ("alpha = rng.uniform(1, 9)", "alpha = r", "alpha = r in each"),
    ("alpha = rng.uniform(1, 9)", "alpha = 4 * r", "multiple of r"),
    ("for r in (1, 2, 3)", "for r in (1,)", "only r = 1"),
    ("for k in (1, 3, 4)", "for k in (d,)", "only square W"),
    ("rtol=0, atol=1e-11", "rtol=1e-5", "np.allclose"),
    ("rtol=0, atol=1e-11", "rtol=0, atol=0", "compares with =="),
    ("                for now, old in zip([W, A, B], before):\n                    np.testing.assert_array_equal(now, old)\n", "", "does not notice that W, A or B"),
    ("rng.random((d, r)) - 0.5", "np.zeros((d, r))", "B = 0"),
]), ('''
def test_merge(merge):
    rng = np.random.default_rng(7)

    def check(d, k, r, alpha):
        W = rng.standard_normal((d, k))
        A = rng.standard_normal((r, k))
        B = rng.standard_normal((d, r))
        W1, A1, B1 = W.copy(), A.copy(), B.copy()
        out = merge(W1, A1, B1, alpha)
        assert np.array_equal(W, W1)
        assert np.array_equal(A, A1)
        assert np.array_equal(B, B1)
        assert out.shape == W.shape
        assert out.dtype == np.float64
        exact = W.copy()
        for i in range(d):
            for j in range(k):
                exact[i, j] += alpha / r * sum(B[i, s] * A[s, j] for s in range(r))
        assert np.max(np.abs(out - exact)) < 1e-12 * (1 + np.max(np.abs(exact)))

    for _ in range(40):
        check(*rng.integers(1, 7, 3), rng.uniform(0.3, 30))
''', [
    ("        assert np.array_equal(A, A1)\n        assert np.array_equal(B, B1)\n", "", "but not A and B"),
    ("        assert np.array_equal(W, W1)\n        assert np.array_equal(A, A1)\n        assert np.array_equal(B, B1)\n", "", "does not notice that W, A or B"),
    ("range(40)", "range(1)", "only one case"),
    ("< 1e-12 *", "< 0.05 *", "5 percent"),
    ("W = rng.standard_normal((d, k))", "W = np.zeros((d, k))", "W = 0"),
    ("B = rng.standard_normal((d, r))", "B = np.zeros((d, r))", "B = 0"),
    ("rng.uniform(0.3, 30))", "float(np.pi))", ""),
    ("np.max(np.abs(out - exact))", "np.min(np.abs(out - exact))", "whether any number is right"),
]), ('''
def test_merge(merge):
    for seed in range(25):
        rng = np.random.RandomState(seed)
        d, k, r = rng.randint(1, 6), rng.randint(1, 6), rng.randint(1, 5)
        alpha = 0.25 + 10 * rng.rand()
        W, A, B = rng.randn(d, k), rng.randn(r, k), rng.randn(d, r)
        arguments = (W, A, B)
        copies = tuple(map(np.copy, arguments))
        result = merge(*arguments, alpha)
        right = copies[0] + (copies[2] * alpha) @ copies[1] / r
        if result.shape != right.shape:
            raise AssertionError("shape")
        error = abs(result - right).max() / abs(right).max()
        if not error < 1e-13 * 20:
            raise AssertionError("values")
        if any((a != b).any() for a, b in zip(arguments, copies)):
            raise AssertionError("changed")
''', [
    ("        if not error < 1e-13 * 20:", "        if error > 1e-13 * 20:", "does not see NaN"),
    ('        if result.shape != right.shape:\n            raise AssertionError("shape")\n', "", "broadcast a result of another shape"),
    ("        if not error < 1e-13 * 20:", "        if not error < 5e-2:", "5 percent"),
    ("        if not error < 1e-13 * 20:\n            raise AssertionError(\"values\")\n", "", ""),
    ("alpha = 0.25 + 10 * rng.rand()", "alpha = float(r)", "alpha = r in each"),
    ("rng.randint(1, 6), rng.randint(1, 6), rng.randint(1, 5)", "3, 3, rng.randint(1, 5)", "only square W"),
    ("        error = abs(result - right).max() / abs(right).max()", "        error = abs(result.sum() - right.sum()) / abs(right).sum()", "compares sums"),
])]

ANSWERS["10"] = [('''
def adam_step(p, g, m, v, t, lr, b1, b2, eps):
    one = p.dtype.type(1)
    b1, b2 = p.dtype.type(b1), p.dtype.type(b2)
    m1 = m + (one - b1) * (g - m)
    v1 = v + (one - b2) * (np.square(g) - v)
    top = m1 / (one - b1 ** t)
    low = np.sqrt(v1 / (one - b2 ** t)) + p.dtype.type(eps)
    return (p - p.dtype.type(lr) * top / low).astype(p.dtype), m1.astype(p.dtype), v1.astype(p.dtype)

def adam_bytes(shapes, dtype):
    total = 0
    for shape in shapes:
        n = 1
        for size in shape:
            n *= size
        total += 2 * n * np.dtype(dtype).itemsize
    return total
''', [
    ("m1 / (one - b1 ** t)\n    low = np.sqrt(v1 / (one - b2 ** t))", "m1\n    low = np.sqrt(v1)", "leave out the correction"),
    ("np.sqrt(v1 / (one - b2 ** t))", "np.sqrt(v1)", "correct m but not v"),
    ("+ p.dtype.type(eps)", "+ 0", "leave out eps"),
    ("np.sqrt(v1 / (one - b2 ** t)) + p.dtype.type(eps)", "np.sqrt(v1 / (one - b2 ** t) + p.dtype.type(eps))", "eps inside"),
    ("(p - p.dtype.type(lr)", "(p + p.dtype.type(lr)", "add the step"),
    ("np.square(g)", "np.abs(g)", "do not square"),
    ("total += 2 * n", "total += n", "one running mean"),
    ("total += 2 * n", "total += 3 * n", "count the parameters too"),
    ("n *= size", "n += size", ""),
]), ('''
def adam_step(p, g, m, v, t, lr, b1, b2, eps):
    m = np.add(b1 * m, (1 - b1) * g)
    v = np.add(b2 * v, (1 - b2) * g * g)
    step = lr * math.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + eps * math.sqrt(1 - b2**t))
    return np.asarray(p - step), m, v

def adam_bytes(shapes, dtype):
    return sum(2 * math.prod(shape) * np.dtype(dtype).itemsize for shape in shapes)
import math
''', [
    ("/ (np.sqrt(v) +", "/ (v +", ""),
    ("p - step", "p + step", "add the step"),
    ("(1 - b1) * g)", "g)", "without the factor"),
    ("np.asarray(p - step), m, v", "np.asarray(p - step), m / (1 - b1**t), v / (1 - b2**t)", "m_hat and v_hat instead"),
    ("sum(2 *", "sum(", "one running mean"),
    (" * np.dtype(dtype).itemsize for", " for", "entries, not bytes"),
    ("np.dtype(dtype).itemsize for", "4 for", "4 bytes"),
    ("(1 - b2) * g * g)", "(1 - b2) * g)", ""),
]), ('''
def adam_step(p, g, m, v, t, lr, b1, b2, eps):
    new = [p.copy(), m.copy(), v.copy()]
    new[1] = new[1] * b1 + g * (1 - b1)
    new[2] = new[2] * b2 + g * g * (1 - b2)
    first = new[1] / (1 - np.power(float(b1), t).item())
    second = new[2] / (1 - np.power(float(b2), t).item())
    new[0] = new[0] - first * lr / (second ** 0.5 + eps)
    return new

def adam_bytes(shapes, dtype):
    size = np.dtype(dtype).itemsize
    return 2 * size * sum(int(np.multiply.reduce(np.array(s, dtype=object))) for s in shapes)
''', [
    ("float(b1), t)", "float(b1), max(t - 1, 1e-3))", ""),
    ("second ** 0.5 + eps", "second + eps", "no square root"),
    ("second ** 0.5 + eps", "(second + eps) ** 0.5", "eps inside"),
    ("second ** 0.5 + eps", "second ** 0.5", "leave out eps"),
    ("new[0] = new[0] - first * lr", "new[0] = new[0] + first * lr", "add the step"),
    ("new[1] * b1 + g * (1 - b1)\n    new[2] = new[2] * b2 + g * g * (1 - b2)", "new[1] * b2 + g * (1 - b2)\n    new[2] = new[2] * b1 + g * g * (1 - b1)", ""),
    ("[p.copy(), m.copy(), v.copy()]", "[p, m, v]\n    m *= b1; m += g * (1 - b1); m -= g * (1 - b1); m /= b1", ""),
    ("np.multiply.reduce(np.array(s, dtype=object))", "sum(s)", "add the sizes"),
])]

ANSWERS["11"] = [('''
def subspace_similarity(A1, A2, i, j):
    _, _, first = np.linalg.svd(A1)
    _, _, second = np.linalg.svd(A2)
    total = 0.0
    for a in range(i):
        for b in range(j):
            total += float(first[a] @ second[b]) ** 2
    return total / min(i, j)
''', [
    ("total / min(i, j)", "total / max(i, j)", "by max(i, j)"),
    ("total / min(i, j)", "total / (i * j)", "by i * j"),
    ("total / min(i, j)", "total", "do not divide by min"),
    ("total / min(i, j)", "total ** 0.5 / min(i, j)", "not its square"),
    (") ** 2\n", ")\n", "without squaring"),
    ("for b in range(j)", "for b in range(i)", "first i directions of both"),
]), ('''
def _basis(A, n):
    values, vectors = np.linalg.eigh(A.T @ A)
    return vectors[:, np.argsort(-values)[:n]]

def subspace_similarity(A1, A2, i, j):
    overlap = _basis(A1, i).T @ _basis(A2, j)
    return np.linalg.norm(overlap) ** 2 / min(i, j)
''', [
    ("np.linalg.norm(overlap) ** 2", "np.linalg.norm(overlap)", "not its square"),
    ("np.linalg.norm(overlap) ** 2", "np.abs(overlap).max()", "largest number"),
    ("np.argsort(-values)", "np.argsort(values)", "last directions"),
    ("/ min(i, j)", "/ max(i, j)", "by max(i, j)"),
    ("_basis(A2, j)", "_basis(A2, i)", "first i directions of both"),
    ("/ min(i, j)", "/ (i + j)", ""),
]), ('''
def subspace_similarity(A1, A2, i, j):
    def projector(A, n):
        vh = np.linalg.svd(A, full_matrices=False).Vh[:n]
        return vh.T @ vh
    return float(np.trace(projector(A1, i) @ projector(A2, j)) / min(i, j))
''', [
    (".Vh[:n]", ".Vh", "all directions"),
    (".Vh[:n]", ".Vh[-n:]", "last directions"),
    ("/ min(i, j))", "/ (i * j))", "by i * j"),
    ("/ min(i, j))", ")", "do not divide by min"),
    ("vh = np.linalg.svd(A, full_matrices=False).Vh[:n]", "vh = A[:n]", "rows of A1 and A2"),
])]

ANSWERS["12"] = [('''
def merge_bound(x, W, A, B, alpha, dtype):
    info = np.finfo(dtype)
    u, h = float(info.eps) / 2, float(info.smallest_subnormal)
    x, W, A, B = [np.abs(a).astype(float) for a in (x, W, A, B)]
    r, k = A.shape
    s = alpha / r
    worst = 0.0
    for row in x:
        for i in range(len(W)):
            size = row @ W[i] + s * sum((row @ A[t]) * B[i, t] for t in range(r))
            n = 2 * (k + r + 3)
            lost = h * (2 * k + 2 + r * s + k * s * B[i].sum() + (r * s + 1) * row.sum())
            worst = max(worst, n * u / (1 - n * u) * size + lost)
    return worst
''', [
    ("float(info.eps) / 2", "2.0**-53", "eps of float64"),
    ("float(info.eps) / 2", "2.0**-24", "eps of float32"),
    ("n = 2 * (k + r + 3)", "n = 2 * (k + 3)", "sum over the r ranks"),
    ("n = 2 * (k + r + 3)", "n = 2 * (r + 3)", "sum over the k columns"),
    ("n = 2 * (k + r + 3)", "n = k + r + 3", "one side"),
    ("n = 2 * (k + r + 3)", "n = 2 * (k + r + 3) ** 0.5", "root of n"),
    ("+ lost)", ")", "leave out the losses"),
    ("+ s * sum(", "+ sum(", "scale alpha / r out"),
    (" + (r * s + 1) * row.sum()", "", "losses in B A"),
    (" + k * s * B[i].sum()", "", "losses in x A^T"),
]), ('''
def merge_bound(x, W, A, B, alpha, dtype):
    x64, W64, A64, B64 = (np.asarray(a, np.float64) for a in (x, W, A, B))
    r, k = A.shape
    s = alpha / r
    eps, tiny = float(np.finfo(dtype).eps), float(np.finfo(dtype).smallest_subnormal)
    base = np.abs(x64) @ np.abs(W64.T)
    update = s * (np.abs(x64) @ np.abs(A64.T) @ np.abs(B64.T))
    relative = 1.1 * eps * ((k + 2) * base + (k + r + 3) * update)
    absolute = 2 * tiny * (1 + k + r * s + k * s * np.abs(B64).sum(1)[None, :] + (1 + r * s) * np.abs(x64).sum(1)[:, None])
    return float((relative + absolute).max())
''', [
    ("np.abs(x64) @ np.abs(W64.T)", "np.abs(x64 @ W64.T)", ""),
    ("eps, tiny = float(np.finfo(dtype).eps)", "eps, tiny = float(np.finfo(np.float64).eps)", "eps of float64"),
    ("relative + absolute).max()", "relative).max()", "leave out the losses"),
    ("(relative + absolute).max()", "(relative + absolute).mean()", "mean over the outputs"),
    ("float((relative + absolute).max())", "relative + absolute", "bound for each output"),
    ("np.finfo(dtype).smallest_subnormal", "np.finfo(dtype).tiny", "smallest normal float"),
    ("(k + 2) * base + (k + r + 3) * update", "base + update", "one rounding for a sum"),
    ("update = s * (", "update = (", "scale alpha / r out"),
]), ('''
def merge_bound(x, W, A, B, alpha, dtype):
    absolute = lambda a: np.abs(np.float64(a))
    X, V, P, Q = map(absolute, (x, W, A, B))
    rank, cols = P.shape
    scale = float(alpha) / rank
    half = np.finfo(dtype).eps / 2.0
    step = np.float64(np.finfo(dtype).smallest_subnormal)
    count = cols + rank + 4
    gamma = count * float(half) / (1 - count * float(half))
    total = np.einsum("nk,dk->nd", X, V + scale * Q @ P)
    slack = 2 * cols + rank * scale + 2 + cols * scale * Q.sum(axis=1) + (rank * scale + 1) * X.sum(axis=1)[:, None]
    return np.amax(2 * gamma * total + step * slack)
''', [
    ("2 * gamma * total", "gamma * total", "one side"),
    ("count = cols + rank + 4", "count = 1", "one rounding for a sum"),
    ("count = cols + rank + 4", "count = cols + 4", "sum over the r ranks"),
    ("np.abs(np.float64(a))", "np.float64(a)", "terms may cancel"),
    ("np.amax(", "np.mean(", "mean over the outputs"),
    ("V + scale * Q @ P", "V + Q @ P", "scale alpha / r out"),
    ("+ step * slack", "", "leave out the losses"),
    ("np.amax(2", "3000 * np.amax(2", ""),
])]



def labels(words: str, known: list[str]) -> list[str]:
    """The known mistakes that these words are of; [] for none."""
    return [m for m in known if m == words] or [m for m in known if words and words in m]


def sources(number: str, solution: str):
    """(source, mistake's words, style) of each answer; the words of a right one are None."""
    for style, (source, slips) in enumerate(ANSWERS[number]):
        yield solution + source, None, style
        for old, new, words in slips:
            assert old in source, (number, old)
            yield solution + source.replace(old, new), words, style
