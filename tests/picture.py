"""Write README's pictures.

python tests/picture.py          tutorials/lora.svg, drawn by the engine
python tests/picture.py site     and tutorials/site.png, the first page of the site in this folder

The second needs `minilora tutorials build -o site`, playwright and Chromium.
"""

import io
import shutil
import sys
from pathlib import Path

from minilora import Tensor, xp
from minilora.ops import linear
from minilora.viz import graph, watching

TUTORIALS = Path(__file__).parent.parent / "tutorials"
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


def screenshot(page: Path) -> bytes:
    """Return the upper part of a page as a small PNG."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 620})
        tab.goto(page.resolve().as_uri())
        image, file = Image.open(io.BytesIO(tab.screenshot())), io.BytesIO()
        browser.close()
    image.convert("P", palette=Image.Palette.ADAPTIVE, colors=200).save(file, "PNG", optimize=True)
    return file.getvalue()


def main(arguments: list[str]) -> None:
    """Write the pictures, and print their names."""
    files = {TUTORIALS / "lora.svg": f"{picture()}\n".encode()}
    if arguments:
        files[TUTORIALS / "site.png"] = screenshot(Path(arguments[0], "index.html"))
    for path, data in files.items():
        path.write_bytes(data)
        print(f"{path}: {len(data):,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
