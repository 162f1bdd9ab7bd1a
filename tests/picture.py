"""Draw README's picture: python tests/picture.py > tutorials/lora.svg"""

from minilora import Tensor, xp
from minilora.ops import linear
from minilora.viz import graph, watching

STYLE = "<style>svg{color:#1d1f23}@media(prefers-color-scheme:dark){svg{color:#e4e4e1}}</style>"


def picture() -> str:
    """Return a LoRA layer as the engine records it: W0 is frozen, A and B are trained."""
    x, W0 = (Tensor(xp.zeros(shape)) for shape in ((1, 160), (160, 160)))
    A, B = (Tensor(xp.zeros(shape), requires_grad=True) for shape in ((8, 160), (160, 8)))
    with watching() as seen:
        W0x, Ax = linear(x, W0), linear(x, A)
        BAx = linear(Ax, B)
        y = W0x + BAx * 2.0  # alpha / r
    names = {"x": x, "W0": W0, "A": A, "B": B, "W0 x": W0x, "A x": Ax, "B A x": BAx, "y": y}
    return graph(y, names, values=False, seen=seen).svg.replace("<g", f"{STYLE}<g", 1)


if __name__ == "__main__":
    print(picture())
