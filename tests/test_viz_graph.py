"""The computation graph, the backward pass in steps, the slider, and how they are displayed."""

import base64
import dataclasses
import re
import shutil
import subprocess
import sys
import types
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import picture
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora import ops, viz
from minilora.tensor import Node
from minilora.viz import layout
from minilora.viz.layout import LETTER, arrange

ROOT = Path(__file__).parent.parent
SVG = "{http://www.w3.org/2000/svg}"


def leaf(value):
    return ml.Tensor(ml.backend.asarray(np.array(value, np.float64)), requires_grad=True)


def diamond():
    """x -> u -> v, and u again: u has to wait for v."""
    x, y = leaf(3.0), leaf(2.0)
    with viz.watching() as seen:
        u = x * y
        v = u + x
        loss = u * v * 2
    return loss, {"x": x, "y": y, "u": u, "v": v, "loss": loss}, seen


def rows(text):
    return [" ".join(row.split()) for row in text.splitlines()]


def pictured(svg):
    """Return (width, height), [(x0, y0, x1, y1, texts with middle and baseline)], arrow tips."""
    root = ET.fromstring(svg)
    boxes = []
    for group in root.findall(f"{SVG}g"):
        rect = group.find(f"{SVG}rect")
        if rect is not None:
            x, y, w, h = (float(rect.get(key)) for key in ("x", "y", "width", "height"))
            texts = [(t.text, float(t.get("x")), float(t.get("y")))
                     for t in group.findall(f"{SVG}text")]
            boxes.append((x, y, x + w, y + h, texts))
    tips = [tuple(map(float, head.get("points").split()[0].split(",")))
            for head in root.iter(f"{SVG}polygon")]
    return tuple(map(float, root.get("viewBox").split()[2:])), boxes, tips


def fits(svg):
    """Check that boxes are in the picture and apart, texts in their boxes, arrow tips at boxes."""
    (width, height), boxes, tips = pictured(svg)
    for x0, y0, x1, y1, texts in boxes:
        assert x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height
        for n, (text, middle, base) in enumerate(texts):
            assert x0 + 4 <= middle - LETTER * len(text) / 2
            assert middle + LETTER * len(text) / 2 <= x1 - 4
            assert y0 + 12 <= base <= y1 - 4
            assert n == 0 or base >= texts[n - 1][2] + 15
    for (x0, y0, x1, y1, _), (u0, v0, u1, v1, _) in combinations(boxes, 2):
        assert x1 <= u0 or u1 <= x0 or y1 <= v0 or v1 <= y0
    for x, y in tips:
        assert any(abs(y - side) <= 1 and x0 <= x <= x1
                   for x0, y0, x1, y1, _ in boxes for side in (y0, y1))


@pytest.mark.parametrize("active", [False, True])
def test_an_edge_is_vertical_at_its_boxes_and_reaches_both(active):
    """This includes an edge that passes a box; an active edge points back."""
    loss, names, _ = diamond()
    graph = viz.graph(loss, names)
    places, routes = arrange(graph.boxes)
    for (a, b, _), points in routes.items():
        text = ET.fromstring(layout._edge(points, active)).find("path").get("d")
        ways = re.findall(r"([MLC])([-\d ]+)", text)
        ends = [tuple(map(int, way.split()[-2:])) for _, way in ways]
        assert "".join(kind for kind, _ in ways) == "ML" + "CL" * (len(ways) // 2 - 1)
        for (x, _), (u, _) in zip(ends[::2], ends[1::2]):
            assert x == u
        assert abs(ends[0][1] - places[a].y - places[a].h - layout.TIP * active) <= 1
        assert abs(ends[-1][1] - places[b].y + layout.TIP * (not active)) <= 1
        assert ends[0][0] == round(places[a].x)


def test_the_tape_of_a_diamond_as_text():
    loss, names, seen = diamond()
    assert rows(viz.graph(loss, names).text) == [
        "x : leaf value 3", "y : leaf value 2", "u = mul(x, y) value 6", "v = add(u, x) value 9",
        "%1 = mul(u, v)", "loss = mul(%1) value 108",
    ]
    assert rows(str(viz.graph(loss, names, seen=seen)))[-2:] == [
        "%1 = mul(u, v) value 54", "loss = mul(%1, 2) value 108",
    ]
    bare = viz.graph(loss, names, values=False)
    assert "value" not in bare.text + bare.svg and rows(bare.text)[2] == "u = mul(x, y)"


def test_only_tensors_have_names_and_names_with_an_underscore_are_ignored():
    x = leaf(3.0)
    out = x * x
    graph = viz.graph(out, {"_": x, "n": 3, "x": x, "again": x, "_1": out})
    assert rows(graph.text) == ["x : leaf value 3", "%1 = mul(x, x) value 9"]
    (_, boxes, tips) = pictured(graph.svg)
    assert [box[-1][0][0] for box in boxes] == ["x", "mul"]
    assert len({x for x, _ in tips}) == 2  # both edges are visible


def test_frozen_inputs_are_not_on_the_tape_and_are_drawn_if_recorded():
    x, W0, A = ml.Tensor(np.ones((2, 3))), ml.Tensor(np.ones((4, 3))), leaf(np.ones((4, 3)))
    with viz.watching() as seen:
        y = ops.linear(x, W0) + ops.linear(x, A)
    names = {"x": x, "W0": W0, "A": A, "y": y}
    tape, full = viz.graph(y, names), viz.graph(y, names, seen=seen)
    assert [box.title for box in tape.boxes] == ["A", "linear", "y = add"]
    assert [(box.title, box.frozen) for box in full.boxes] == [
        ("x", True), ("W0", True), ("linear", True), ("A", False), ("linear", False),
        ("y = add", False),
    ]
    assert rows(full.text)[1] == "W0 : frozen (4, 3) value norm 3.46"
    assert full.svg.count('stroke-dasharray="5 3"') == 3
    assert viz.COLOURS["A"] in full.svg and viz.COLOURS["frozen"] in full.svg
    assert viz.COLOURS["frozen"] not in tape.svg
    fits(full.svg)


def test_a_consumed_tape_is_drawn_if_recorded_and_has_gradients():
    loss, names, seen = diamond()
    loss.backward()
    with pytest.raises(ValueError, match=r"backward\(\) has consumed the tape of mul"):
        viz.graph(loss, names)
    assert rows(viz.graph(loss, names, seen=seen).text)[0] == "x : leaf value 3 grad 72"
    with pytest.raises(ValueError, match="nothing is recorded"):
        viz.graph(ml.Tensor(np.ones(2)))


def test_a_custom_op_is_run_and_recorded():
    @ml.op
    def twice(x):
        def dx(g):
            return 2 * g

        return 2 * x, (dx,)

    x = leaf(3.0)
    with ops.replaced(exp=twice), viz.watching() as seen:
        y = ops.exp(x * x)
    assert y.item() == 18
    assert rows(viz.graph(y, {"x": x}, seen=seen).text)[1:] == [
        "%1 = mul(x, x) value 9", "%2 = twice(%1) value 18",
    ]
    with ops.replaced(exp=lambda x: twice(x * 1.5)), viz.watching() as seen:
        y = ops.exp(x)
    names = [box.op for box in viz.graph(y, seen=seen).boxes]
    assert names == ["", "", "mul", "twice"]  # the name on the tape, not that of the call
    assert [caption.split()[0] for caption, _ in viz.backward_steps(y, seen=seen)[1:]] == [
        "twice", "mul",
    ]


def test_a_composed_op_is_drawn_as_its_inner_ops():
    frozen, x = (ml.Tensor(np.ones((1, 2, 4))) for _ in range(2))
    x.requires_grad = True
    for q, first in ((frozen, True), (x, False)):
        with viz.watching() as seen:
            y = ops.attention(q, frozen, frozen, heads=2) * x
        boxes = viz.graph(y, seen=seen).boxes
        assert [box.frozen for box in boxes if box.op == "softmax"] == [first]
        assert not any(box.op == "attention" for box in boxes)


def test_a_box_repeats_nothing_and_is_just_before_its_use():
    loss, names, seen = diamond()
    graph = viz.graph(loss, {"a < b": names["x"]}, seen=seen)
    assert [box.lines for box in graph.boxes[:2]] == [["a < b", "value 3"], ["2"]]
    assert "a < b" in [box[-1][0][0] for box in pictured(graph.svg)[1]]
    (two,) = (i for i, box in enumerate(graph.boxes) if box.frozen)
    places = arrange(graph.boxes)[0]
    assert places[two].y > places[two - 2].y  # in the row before its use


def test_a_full_model_fits_its_picture():
    sizes = {"vocab_size": 16, "n_positions": 8, "d_model": 8, "n_layers": 2, "n_heads": 2}
    model, ids = ml.GPT2(ml.GPT2Config(**sizes), rng=0), np.arange(4)[None]
    with viz.watching() as seen:
        loss = ops.cross_entropy(model(ids), ids)
    graph = viz.graph(loss, dict(model.named_parameters()), seen=seen)
    assert {box.name for box in graph.boxes} >= {name for name, _ in model.named_parameters()}
    assert "blocks.1.mlp.up.W" in graph.svg and "cross_entropy" in graph.svg
    fits(graph.svg)


def test_gradients_appear_node_by_node_and_wait_where_paths_meet():
    loss, names, seen = diamond()
    frames = viz.backward_steps(loss, names, seen)
    grads = [{box.name or box.title: box.grad for box in graph.boxes} for _, graph in frames]
    assert grads[0] == {"x": "?", "y": "?", "u": "?", "v": "?", "mul": "?", "2": "", "loss": "1"}
    assert [step["u"] for step in grads] == ["?", "?", "18 + …", "18 + 12 = 30", "18 + 12 = 30"]
    assert [step["x"] for step in grads] == ["?", "?", "?", "12 + …", "12 + 60 = 72"]
    assert [graph.boxes[graph.now].name for _, graph in frames] == ["loss", "loss", "", "v", "u"]
    assert frames[2][0] == (
        "mul has its full gradient, 2, and sends 18 to u and 12 to v. u waits for 1 more."
    )
    assert names["x"].grad == 72 and names["y"].grad == 90
    assert len({pictured(graph.svg)[0] for _, graph in frames}) == 1  # all frames have one size
    for _, graph in frames:
        fits(graph.svg)
        assert graph.svg.count('stroke-width="2.5"') == len(graph.active)
    with pytest.raises(ValueError, match=r"consumed"):
        viz.backward_steps(loss, names)


def test_the_steps_show_arrays_by_their_norms():
    x = leaf(np.full((3, 4), 2.0))
    row = leaf([1.0, 2.0, 3.0, 4.0])
    *_, (caption, graph) = viz.backward_steps((x * row).sum(), {"x": x, "row": row})
    assert graph.boxes[1].grad == "[6, 6, 6, 6]"  # summed over the rows of its copies
    assert graph.boxes[0].grad == "norm 9.49"
    assert caption == "mul has its full gradient, norm 3.46, and sends norm 9.49 to x and " \
                      "[6, 6, 6, 6] to row."
    row.grad = None
    frames = viz.backward_steps(((row * row) * (row * 1.5)).sum(), {"row": row})
    parts, total = frames[-1][1].boxes[0].grad.split(" = ")  # the engine sums in place
    shares = np.array([re.findall(r"[-\d.]+", part) for part in parts.split(" + ")], float)
    assert len(shares) == 3 and shares.sum(axis=0).tolist() == ml.asnumpy(row.grad).tolist()
    assert total == viz.tape.short(row.grad)
    with pytest.raises(ValueError, match="needs a scalar"):
        viz.backward_steps(x * 1.0)


@st.composite
def programs(draw):
    """Draw for each step an op and two earlier values."""
    steps = draw(st.integers(1, 9))
    pick = st.tuples(st.sampled_from(("add", "mul", "sub")), st.integers(0, 99), st.integers(0, 99))
    return [draw(pick) for _ in range(steps)]


@given(programs())
def test_any_expression_fits_and_follows_the_order_of_backward(program):
    def run():
        values = [leaf(1.5), leaf(-0.5), ml.Tensor(np.float64(0.25))]
        for name, a, b in program:
            pair = (values[-1 - i % len(values)] for i in (a, b))
            values.append(getattr(ops, name)(*pair))
        return values

    with viz.watching() as seen:
        values = run()
    if not values[-1].requires_grad:
        return
    names = {f"t{i}": x for i, x in enumerate(values)}
    fits(viz.graph(values[-1]).svg)
    graph = viz.graph(values[-1], names, seen=seen)
    fits(graph.svg)
    places, routes = arrange(graph.boxes)
    assert len(routes) == sum(len(box.inputs) for box in graph.boxes)
    for (a, b, _), points in routes.items():
        assert points[0] == (places[a].x, places[a].y + places[a].h)
        assert all(p[1] <= q[1] for p, q in pairwise(points))  # always down
        for (u, v), (_, w) in zip(points[2:-2:2], points[3:-2:2]):  # in the rows between
            assert not any(p.y < w and v < p.y + p.h and abs(p.x - u) <= p.w / 2 for p in places)
        assert points[-1][1] == places[b].y
    for box in graph.boxes:
        assert box.value == f"{names[box.name].item():.4g}"

    frames = viz.backward_steps(values[-1], names, seen)
    again = run()
    again[-1].backward()
    for mine, theirs in zip(values[:2], again[:2]):
        assert (mine.grad is None) == (theirs.grad is None)
        assert mine.grad is None or mine.grad == theirs.grad
    order = [graph.now for _, graph in frames[1:]]
    trained = [i for i, box in enumerate(frames[-1][1].boxes) if box.grad]
    on_tape = [i for i in trained if graph.boxes[i].op]
    assert sorted(order) == on_tape
    for n, i in enumerate(order):  # its users came before it
        assert all(j in order[:n] for j in on_tape if i in graph.boxes[j].inputs)
    for i in trained:
        total = frames[-1][1].boxes[i].grad.split(" = ")[-1]
        assert "…" not in total and "?" not in total


def test_a_node_that_backward_never_reaches_is_not_waited_for():
    x = leaf(2.0)
    aside, out = x * 3.0, x * x
    frames = viz.backward_steps(out, {"x": x, "aside": aside})
    assert frames[-1][1].boxes[0].grad == "2 + 2 = 4"
    assert isinstance(aside._node, Node) and aside._node.edges is not None


class Page(HTMLParser):
    """The (tag, attributes) of each element, and the texts of captions."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.within, self.captions = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("input", "img", "meta"):
            self.within.append(tag)
        if tag == "figcaption":
            self.captions.append("")

    def handle_endtag(self, tag):
        assert self.within.pop() == tag

    def handle_data(self, data):
        if "figcaption" in self.within:
            self.captions[-1] += data

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def test_a_stepper_is_one_piece_of_html_with_all_frames_in_it():
    loss, names, seen = diamond()
    frames = viz.backward_steps(loss, names, seen)
    html = viz.stepper(frames, "A diamond < backward", start=-1)._repr_html_()
    page = Page(html)
    assert not page.within
    assert page.captions == [caption for caption, _ in frames]
    (slider,) = page.all("input")
    assert (slider["type"], slider["min"], slider["max"]) == ("range", "0", str(len(frames) - 1))
    assert slider["value"] == str(len(frames) - 1)
    assert slider["aria-label"] == "A diamond < backward"
    assert [b["aria-label"] for b in page.all("button")] == ["previous step", "next step"]
    assert any(attrs.get("aria-live") == "polite" for _, attrs in page.elements)
    assert len(page.all("svg")) == len(frames)
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert not any("id" in attrs for _, attrs in page.elements)  # two may share a page
    outside = html.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//|@import|url\(", outside)
    script = re.search(r"<script>\n(.*)\n</script>", html, re.S)[1]
    assert len(script.splitlines()) <= 25


def test_the_kinds_of_frames(backend):
    html = '<table class="t"><tr><td>1</td></tr></table>'
    stepper = viz.stepper([("a & b", "1 < 2"), ("html", html), ("left out", None)])
    page = stepper._repr_html_()
    assert "<pre>1 &lt; 2</pre>" in page and html in page and "a &amp; b" in page
    assert str(stepper) == (
        "[1/3] a & b\n1 < 2\n\n[2/3] html\n\n[3/3] left out\n(figure left out)"
    )
    assert str(viz.stepper([("a", "b")], "T")) == "T\n\n[1/1] a\nb"
    with pytest.raises(TypeError, match="the content of 'seven' is a int: give"):
        viz.stepper([("seven", 7)])
    for frames, start in (([], 0), ([("a", "b")], 1), ([("a", "b")], -2)):
        with pytest.raises(ValueError, match=f"start {start} is out of range for {len(frames)} fr"):
            viz.stepper(frames, start=start)


def test_a_figure_becomes_an_image_with_alt_text_and_is_closed(backend):
    if backend.name != "numpy":
        pytest.skip("the backend does not matter here")
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    before = plt.get_fignums()

    def frames():
        yield "losses", viz.loss_curves({"LoRA": [3.0, 2.0]}, title='"Down"')
        yield "a list of axes", [viz.spectrum({"W0": [3.0, 2.0, 1.0]})]
        big = viz.loss_curves({"LoRA": np.random.default_rng(0).random(9000)})
        yield "long", big.figure

    stepper = viz.stepper([*frames()])
    assert plt.get_fignums() == before
    images = Page(stepper._repr_html_()).all("img")
    assert images[0]["alt"] == '"Down": loss (nats a token) against steps: LoRA'
    kinds = [re.match(r"data:image/(svg\+xml|png);base64,(.*)", image["src"]) for image in images]
    assert [kind[1] for kind in kinds] == ["svg+xml", "svg+xml", "png"]
    assert ET.fromstring(base64.b64decode(kinds[0][2])).tag == f"{SVG}svg"
    assert base64.b64decode(kinds[2][2]).startswith(b"\x89PNG")
    assert "(figure: \"Down\": loss" in str(stepper)
    again = viz.stepper([next(frames())])
    assert again.frames[0] == stepper.frames[0]  # the same bytes at every build


MOVED = """
<script>
const [one, two] = document.querySelectorAll(".minilora-stepper");
const range = one.querySelector("input");
range.value = 1;
range.dispatchEvent(new Event("input"));
one.querySelectorAll("button")[1].click();
two.querySelectorAll("button")[0].click();
</script>
"""


def test_in_a_browser_each_stepper_moves_alone(backend, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if backend.name != "numpy" or not browser:
        pytest.skip("one browser is enough, and needed")
    frames = [(f"caption {i}", f"content {i}") for i in range(4)]
    steppers = [viz.stepper(frames), viz.stepper(frames, start=1)]
    page = tmp_path / "page.html"
    page.write_text("<body>" + "".join(s._repr_html_() for s in steppers) + MOVED, "utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    done = subprocess.run([browser, *flags, "--dump-dom", page.as_uri()], timeout=600,
                          capture_output=True, text=True, check=True)
    one, two = done.stdout.split('<div class="minilora-stepper"')[1:]
    for dom, at in ((one, 2), (two, 0)):
        hidden = [" hidden" in tag for tag in re.findall("<figure[^>]*>", dom)]
        assert hidden == [i != at for i in range(4)]
        assert re.search(rf'aria-live="polite">caption {at}<', dom)
        assert f'aria-valuetext="{at + 1} of 4"' in dom
        assert f"<output>{at + 1} / 4</output>" in dom


def test_the_source_is_the_text_in_ops(capsys):
    assert viz.source(ops.softmax) is None
    printed = capsys.readouterr().out
    file = Path(ops.softmax.formula.__code__.co_filename)
    assert printed.startswith("@op\ndef softmax(x, *, axis=-1):")
    assert printed in file.read_text("utf-8")
    viz.source(ml.nn.Linear.forward)
    assert capsys.readouterr().out.startswith("def forward(self, x")  # not indented


def test_show_prints_in_a_script_and_displays_in_a_notebook(capsys, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    loss, names, _ = diamond()
    graph = viz.graph(loss, names)
    viz.show(graph, None, "words")
    assert capsys.readouterr().out == f"{graph.text}\nwords\n" and repr(graph) == graph.text

    shown = []
    ipython = types.ModuleType("IPython")
    ipython.version_info = (9, 0)  # read by matplotlib for its first figure
    ipython.display = types.ModuleType("IPython.display")
    ipython.display.display = shown.append
    ipython.display.Image = lambda data, **how: (data[:4], how)
    shell = types.SimpleNamespace(kernel=None)
    ipython.get_ipython = lambda: shell
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    viz.show(graph)  # IPython in a terminal shows no pictures
    assert capsys.readouterr().out == f"{graph}\n" and not shown
    shell.kernel = object()
    viz.show(graph)
    assert shown == [graph] and graph._repr_html_().count("<svg") == 1
    viz.source(ops.neg)
    assert "<code" in shown.pop()._repr_html_()

    plt.close("all")
    viz.loss_curves({"LoRA": [3.0, 2.0]}, title="Down")
    viz.show()
    data, how = shown.pop()
    assert data == b"\x89PNG" and how["alt"].startswith("Down: loss")
    assert not plt.get_fignums()


def test_the_readme_shows_the_picture_that_its_command_prints():
    drawn = picture.picture()
    assert (ROOT / "tutorials" / "lora.svg").read_text("utf-8") == drawn + "\n"
    ET.fromstring(drawn)
    readme = (ROOT / "README.md").read_text("utf-8")
    assert "](tutorials/lora.svg)" in readme and "python tests/picture.py" in readme


def test_the_letters_of_a_graph_stay_11_pixels_high_and_a_layers_graph_fits_a_phone():
    loss, names, seen = diamond()
    for svg in (viz.graph(loss, names, seen=seen).svg, picture.picture()):
        width = float(re.search(r' width="(\d+)"', svg)[1])
        font = float(re.search(r'font-size="(\d+)"', svg)[1])
        least = float(re.search(r"min-width:(\d+)px", svg)[1])
        assert font * least / width >= 10.95
        assert least <= 360


def test_a_long_line_of_a_box_is_broken_after_its_first_word():
    box = layout.Box("y", "add", (), (1, 4), False, "[0.5, -0.5, 1]", "[1, 2]")
    assert box.lines == ["y = add", "(1, 4)", "value", "[0.5, -0.5, 1]", "grad [1, 2]"]


def test_the_pictures_are_written_to_files(backend, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(picture, "TUTORIALS", tmp_path)
    monkeypatch.setattr(picture, "screenshot", lambda page: page.name.encode())
    picture.main([])
    assert [path.name for path in tmp_path.iterdir()] == ["lora.svg"]
    picture.main(["site"])
    assert (tmp_path / "site.png").read_bytes() == b"index.html"
    assert "<svg" not in capsys.readouterr().out


def test_the_readme_shows_a_small_picture_of_the_site():
    file = ROOT / "tutorials" / "site.png"
    assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size < 150_000
    assert 'src="tutorials/site.png"' in (ROOT / "README.md").read_text("utf-8")


def test_the_readme_speaks_of_cupy_in_one_section_at_the_end():
    parts = re.split(r"^## ", (ROOT / "README.md").read_text("utf-8"), flags=re.MULTILINE)
    assert [part.partition("\n")[0] for part in parts if re.search("cupy", part, re.I)] == [
        "On a GPU"
    ]
    assert parts[-2].startswith("On a GPU")


@pytest.mark.parametrize("screen", [False, True])
def test_in_a_script_figures_open_in_windows_if_there_is_a_screen(screen, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    opened = []
    monkeypatch.setattr(plt, "get_backend", lambda: "TkAgg" if screen else "Agg")
    monkeypatch.setattr(plt, "show", lambda: opened.append(True))
    viz.show()
    assert opened == [True] * screen


def test_graphs_and_steppers_are_immutable():
    loss, names, _ = diamond()
    graph = viz.graph(loss, names)
    for thing, field in ((graph, "text"), (viz.stepper([("once", graph)]), "frames")):
        assert hasattr(thing, field)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, field, "")
