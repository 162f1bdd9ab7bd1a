"""The figure of broadcasting, read from its cells, not from pixels."""

from itertools import pairwise

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")

import matplotlib.pyplot as plt  # noqa: E402

from minilora import viz  # noqa: E402

G = np.arange(1.0, 13).reshape(4, 3)
COLUMN, ROW = np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([10.0, 20.0, 30.0])


@pytest.fixture(autouse=True)
def backend():
    """The backend does not matter here."""
    yield
    plt.close("all")


def cells(ax, many):
    """Return the four grids, each a list of (number, colour); many: numbers of cells of x and g."""
    numbers = [float(t.get_text()) for t in ax.texts if t.get_text().replace(".", "").isdigit()]
    colours = [patch.get_facecolor() for patch in ax.patches if isinstance(patch, plt.Rectangle)]
    assert len(numbers) == len(colours)
    small, large = many
    ends = np.cumsum([0, small, large, small, large])
    assert ends[-1] == len(numbers)
    return [list(zip(numbers[a:b], colours[a:b])) for a, b in pairwise(ends)]


@pytest.mark.parametrize(("x", "axis"), [(COLUMN, 1), (ROW, 0)], ids=["column", "row"])
def test_a_number_and_all_its_copies_and_their_sum_have_one_colour(x, axis):
    own, copies, sums, arrived = cells(viz.unbroadcast(x, G), (x.size, G.size))
    assert [n for n, _ in own] == x.ravel().tolist()
    assert [n for n, _ in copies] == np.broadcast_to(x, G.shape).ravel().tolist()
    assert [n for n, _ in arrived] == G.ravel().tolist()
    assert [n for n, _ in sums] == G.sum(axis=axis).tolist()
    assert len({colour for _, colour in own}) == x.size
    by_number = dict(own)
    assert all(colour == by_number[n] for n, colour in copies)
    assert [colour for _, colour in sums] == [colour for _, colour in own]
    assert [colour for _, colour in arrived] == [colour for _, colour in copies]


def test_it_draws_on_the_given_axes_with_title_and_name():
    ax = plt.subplots()[1]
    assert viz.unbroadcast(ROW, G, ax, "down the rows", name="b") is ax
    assert ax.get_title() == "down the rows"
    assert "of b" in ax.get_xlabel()
    texts = " ".join(text.get_text() for text in ax.texts)
    assert "b (3,)" in texts and "(4, 3)" in texts and "copy" in texts and "sum" in texts


def test_arrows_lead_to_the_copies_and_back():
    ax = viz.unbroadcast(ROW, G)
    there, back = (t for t in ax.texts if getattr(t, "arrow_patch", None))
    assert there.xy[0] > there.xyann[0] and back.xy[0] < back.xyann[0]
    assert there.xy[1] > back.xy[1]


@pytest.mark.parametrize("x", [COLUMN, ROW], ids=["column", "row"])
def test_numbers_are_centred_in_their_cells_and_x_is_centred_at_its_arrow(x):
    ax = viz.unbroadcast(x, G)
    ax.figure.canvas.draw()
    boxes = [patch.get_window_extent() for patch in ax.patches if isinstance(patch, plt.Rectangle)]
    numbers = [t for t in ax.texts if t.get_text().replace(".", "").isdigit()]
    for box, text in zip(boxes, numbers, strict=True):
        middle = text.get_window_extent()
        assert abs(middle.x0 + middle.x1 - box.x0 - box.x1) < 2
        assert abs(middle.y0 + middle.y1 - box.y0 - box.y1) < 2
    own, arrow = boxes[: x.size], next(t for t in ax.texts if getattr(t, "arrow_patch", None))
    _, y = ax.transData.transform(arrow.xy)
    assert abs(2 * y - own[0].y1 - own[-1].y0) < 2


def test_nothing_is_cut_off():
    ax = viz.unbroadcast(COLUMN, G, title="along the rows")
    ax.figure.canvas.draw()
    page = ax.figure.bbox
    for text in (*ax.texts, ax.title, ax.xaxis.label):
        box = text.get_window_extent()
        assert page.x0 <= box.x0 and box.x1 <= page.x1
        assert page.y0 <= box.y0 and box.y1 <= page.y1


def test_arrays_that_cannot_be_drawn_are_an_error():
    with pytest.raises(ValueError, match=r"g \(2, 4, 3\) has 3 axes: give at most two"):
        viz.unbroadcast(ROW, np.ones((2, 4, 3)))
    with pytest.raises(ValueError, match="broadcast"):
        viz.unbroadcast(np.ones(2), G)
