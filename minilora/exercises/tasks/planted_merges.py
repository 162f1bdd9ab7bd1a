"""Right and wrong merges for exercise 09: bodies of a function merge(W, A, B, alpha)."""
# mypy: ignore-errors

RIGHT = (
    "return W + alpha / r * (B @ A)",
    "return (alpha * B / r) @ A + W",
    "return (W.T + A.T @ (B.T * (alpha / r))).T",
    "S = W * 0.0; for i in range(r): S += alpha * (B[:, i : i + 1] * A[i]) / r; return W + S",
    "S = W * (r / alpha); for i in range(r): S += B[:, i : i + 1] * A[i]; return S * (alpha / r)",
)

# what a wrong merge does -> its bodies; one of them is drawn, and the number for {...} too
SCALE = {
    "forgets to divide alpha by r": ("return W + alpha * (B @ A)", "return alpha * B @ A + W"),
    "ignores alpha": ("return W + B @ A / r", "return W + B @ A", "return W + 2 / r * (B @ A)"),
    "divides r by alpha": ("return W + r / alpha * (B @ A)",),
}
NUMBER = {
    "divides alpha by r as integers, with //": ("return W + alpha // r * (B @ A)",),
    "drops the fraction of alpha": ("return W + alpha // 1 / r * (B @ A)",),
    "divides alpha by another number than r": (
        "return W + alpha / r**0.5 * (B @ A)", "return W + alpha / W.shape[0] * (B @ A)",
        "return W + alpha / W.shape[1] * (B @ A)", "return W + alpha / r / r * (B @ A)",
    ),
    "keeps the scale of its first call for all later ones": (
        "s = memory.setdefault(0, alpha / r); return W + s * (B @ A)",
    ),
}
TERMS = {
    "subtracts the update": ("return W - alpha / r * (B @ A)",),
    "adds the update twice": ("return W + 2 * alpha / r * (B @ A)",),
    "returns W without the update": ("return W * 1.0", "return W.copy()"),
    "returns the update without W": ("return alpha / r * (B @ A)",),
    "multiplies W by the update instead of adding it": ("return W * (1 + alpha / r * (B @ A))",),
}
PRODUCT = {
    "adds the update transposed": ("return W + alpha / r * (B @ A).T",),
    "multiplies A and B in the wrong order": ("return W + alpha / r * (A @ B)",),
    "adds the rows or the columns of the update in reverse order": (
        "return W + alpha / r * (B @ A)[::-1]", "return W + alpha / r * (B @ A)[:, ::-1]",
    ),
    "returns the right rows or columns in reverse order": (
        "return (W + alpha / r * (B @ A))[::-1]", "return (W + alpha / r * (B @ A))[:, ::-1]",
    ),
    "raises an error if W is not square": ("return W + W @ W * 0.0 + alpha / r * (B @ A)",),
    "is wrong if W has more columns than rows": (
        "n = W.shape[0]; S = W * 1.0; S[:, :n] += alpha / r * (B @ A)[:, :n]; return S",
    ),
    "is wrong if W has more rows than columns": (
        "n = W.shape[1]; S = W * 1.0; S[:n] += alpha / r * (B @ A)[:n]; return S",
    ),
}
PARTS = {
    "leaves out one of the r ranks": (
        "return W + alpha / r * (B[:, :-1] @ A[:-1])", "return W + alpha / r * (B[:, 1:] @ A[1:])",
    ),
    "is right only for r = 1": ("return W + alpha / r * (B[:, :1] @ A[:1])",
                                 "return W + alpha / r * (B[:, -1:] @ A[-1:])"),
    "does not change one row or column of W": (
        "S = W + alpha / r * (B @ A); S[-1] = W[-1]; return S",
        "S = W + alpha / r * (B @ A); S[0] = W[0]; return S",
        "S = W + alpha / r * (B @ A); S[:, -1] = W[:, -1]; return S",
    ),
    "does not change one number of W": (
        "S = W + alpha / r * (B @ A); S[0, 0] = W[0, 0]; return S",
        "S = W + alpha / r * (B @ A); S[-1, -1] = W[-1, -1]; return S",
    ),
}
FORM = {
    "returns an array with an extra axis": (
        "return (W + alpha / r * (B @ A))[None]", "return W[None] + alpha / r * (B @ A)",
    ),
    "returns NaN in one place": (
        "S = W + alpha / r * (B @ A); S[0, 0] = 1e999 - 1e999; return S",
        "S = W + alpha / r * (B @ A); S[-1, -1] = 1e999 - 1e999; return S",
    ),
}
SHARE = {
    "adds an update that is a few percent too large or too small": (
        "return W + {percent} * alpha / r * (B @ A)",
    ),
    "adds an update that is off by a few parts in a thousand": (
        "return W + {thousandth} * alpha / r * (B @ A)",
    ),
}
COARSE = {
    "computes in float32": (
        'return W + (alpha / r * (B.astype("f4") @ A.astype("f4"))).astype("f8")',
        'return (W + alpha / r * (B @ A)).astype("f4").astype("f8")',
        'return W.astype("f4") + alpha / r * (B @ A)',
    ),
    "is off by one part in a million": ("return W + 1.000001 * alpha / r * (B @ A)",
                                        "return 0.999999 * (W + alpha / r * (B @ A))"),
}
SWAP = "S = W + alpha / r * (B @ A); X.flat[:2] = X.flat[:2][::-1]; return S"  # same sum of X
BROKEN_W = {
    "writes its result into W": (
        "W += alpha / r * (B @ A); return W", "W += alpha / r * (B @ A); return W * 1.0",
    ),
    "swaps two numbers of W": (SWAP.replace("X", "W"),),
}
BROKEN_FACTORS = {
    "scales B in place": ("B *= alpha / r; return W + B @ A",),
    "scales A in place": ("A *= alpha / r; return W + B @ A",),
    "swaps two numbers of A or B": (SWAP.replace("X", "A"), SWAP.replace("X", "B")),
}
