"""The contents of the figures, read from their axes, not from pixels."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from conftest import kept

from minilora.accounting import Count, Ledger, Row
from minilora.training.fit import History

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.colors import to_rgb  # noqa: E402

from minilora import viz  # noqa: E402
from minilora.viz import timing  # noqa: E402
from minilora.viz.palette import COLOURS, OTHERS, ROWS  # noqa: E402


@pytest.fixture(autouse=True)
def backend():
    """The backend does not matter here."""
    yield
    plt.close("all")


def lines(ax):
    """Return label -> (x, y) of the labelled curves that have points."""
    curves = {line.get_label(): np.array(line.get_data()) for line in ax.lines}
    return {label: xy for label, xy in curves.items() if label[0] != "_" and xy.size}


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def ledger(*sizes):
    names = ("frozen weights", "trained weights", "gradients", "Adam moments", "activations")
    return Ledger(tuple(Row(n, 0, size) for n, size in zip(names, sizes)), {}, Row("peak", 0, 0))


MEASURED = {
    "minilora": {"ms": [8.0, 10.0], "peak": 100 << 20, "ratio": 1.0, "memory_ratio": 1.0},
    "torch+peft": {"ms": [9.0, 1250.0], "peak": 400 << 20, "ratio": 0.5, "memory_ratio": 0.25},
    "merged forward": {"ms": [4.0, 5.0], "peak": 80 << 20},  # its counterpart was not measured
}
HISTORY = History([4.0, 3.0], [0.1, 0.1], [(0, 4.5), (2, 3.5)])
TOKENS = ["<s>", "And", " God", " said", "\n"]
SWEEP = {1: [3.2, 3.0, 3.1], 4: [2.8, 2.7, 2.9], 16: [2.5, 2.6, 2.8, 2.4]}
DRAWN = {  # sample arguments for each function
    "loss_curves": {"frozen base": [3.5, 3.5], "LoRA": HISTORY, "full fine-tuning": HISTORY},
    "parameter_bars": {"full fine-tuning": 175_000_000_000, "LoRA, r = 4": 18_874_368, "none": 0},
    "memory_bars": {"full": ledger(0, 9 << 20, 9, 9, 1), "LoRA": ledger(5, 4, 3, 2, 1)},
    "merge_error": {"float16": ([1e-4, 0], [1e-3, 2e-3]), "bfloat16": ([2e-2], 1e-2)},
    "rank_sweep": {"attention only": SWEEP, "all layers": {2: [2.0], 8: [1.0]}},
    "rate_sweep": {(r, lr): [(r + lr, 0.0)] * 3 for r in (1, 4, 16) for lr in (3e-4, 1e-3, 3e-3)},
    "spectrum": {"W0": [3, 2, 1], "full fine-tuning": np.geomspace(1, 1e-9, 64)},
    "curves": {"float16": ([1, 2], [3, 4]), "bfloat16": [1, 2, 3]},
    "bench_bars": MEASURED,
    "unbroadcast": np.arange(3.0),
    "quality_vs_parameters": {
        "full fine-tuning": {110_336: [0.1, 0.2, 0.3]},
        "LoRA on q, v": {512: SWEEP[1], 2048: SWEEP[4]},
        "LoRA on all": {2304: SWEEP[16], 9216: SWEEP[4]}, "Adapter-H": {520: SWEEP[4]},
    },
    "forgetting": {
        "full fine-tuning": {"all": ([0.5, 0.6, 0.4], [3.0, 3.1, 3.2])},
        "LoRA": {f"r = {r}": ([1 - x / 9, 1.0, 1.1], [2.0, 2.1 + x / 7, 2.2])
                 for x, r in enumerate((1, 2, 4, 8, 16))},
        "LoRA, all layers": {"r = 1": (0.95, 2.15), "r = 2": (0.94, 2.2)},
    },
    "cross_table": {"base": {"e2e": 10.5, "sql": 12.0}, "sql": {"e2e": 9.25, "sql": 0.5}},
    "latency_bars": {"base": [9.0, 10.0, 12.0], "LoRA, not merged": [12.0], "Adapter-H": [13.0]},
    "subspace_similarity": {"two seeds": np.eye(8, 64), "random": np.full((8, 64), 0.25)},
}
MORE = {
    "rank_sweep": {"levels": {"frozen base": 3.5, "full fine-tuning": 2.2}},
    "curves": {"xlabel": "size", "ylabel": "share", "log": "xy", "dotted": {"float16": ([1], [1])}},
    "unbroadcast": {"g": np.ones((2, 3))},
    "quality_vs_parameters": {"levels": {"frozen base": 3.5}},
    "forgetting": {"base": (1.5, 1.9)},
    "cross_table": {"xlabel": "task", "ylabel": "adapter"},
}


def drawn(name, ax=None, **more):
    """Call the function of this name on its sample; return the axes and the figure."""
    settings = MORE.get(name, {}) | more
    if name == "attention_map":
        ax = viz.attention_map(np.eye(5)[::-1], TOKENS, ax=ax, **settings)
    else:
        ax = getattr(viz, name)(DRAWN[name], ax=ax, **settings)
    return ax, ax.figure


NAMES = [*DRAWN, "attention_map"]
some = pytest.mark.parametrize("name", kept(NAMES, *NAMES[::2]))
every = pytest.mark.parametrize("name", NAMES)


@some
def test_a_figure_draws_on_the_given_axes_and_returns_them(name):
    (given,) = viz.panels(1, 1, (4, 3))
    before = plt.get_fignums()
    assert drawn(name, ax=given)[0] is given
    assert plt.get_fignums() == before
    assert drawn(name)[0] is not given
    assert len(plt.get_fignums()) == len(before) + 1


@every
def test_a_figure_names_its_quantities_and_has_an_alt_text(name):
    ax, figure = drawn(name, title="What it shows")
    assert ax.get_xlabel()
    assert ax.get_ylabel() or all(tick.get_text() for tick in ax.get_yticklabels())
    words = viz.alt(figure)
    assert "What it shows" in words and "\n" not in words
    assert " ".join(ax.get_xlabel().split()) in words


def texts(figure):
    """Return every visible text with its box in pixels."""
    candidates = [*figure.texts, figure._suptitle] if figure._suptitle else [*figure.texts]
    for ax in figure.axes:
        candidates += [ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
        candidates += ax.get_legend().get_texts() if ax.get_legend() else []
        for axis, low, high in ((ax.xaxis, *ax.get_xlim()), (ax.yaxis, *ax.get_ylim())):
            low, high = sorted((low, high))
            ticks = axis.get_major_ticks() + axis.get_minor_ticks()
            candidates += [t for tick in ticks if low <= tick.get_loc() <= high
                      for t in (tick.label1, tick.label2)]
    seen = {id(t): t for t in candidates if t.get_visible() and t.get_text().strip()}
    return [(t.get_text(), t.get_window_extent()) for t in seen.values()]


@some
def test_nothing_is_cut_off_and_no_texts_overlap(name):
    figure = drawn(name, title="A long title, which states the point of what is drawn below it")[1]
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    box, inside = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= inside[0] and box.y1 <= inside[1]
    boxes = texts(figure)
    assert len(boxes) > 2
    for text, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text
    for i, (text, box) in enumerate(boxes):
        for other, its in boxes[:i]:
            assert not box.padded(-1).overlaps(its.padded(-1)), (text, other)


@every
def test_every_mark_has_a_colour_of_the_palette_or_is_grey(name):
    """No default colours of matplotlib."""
    from matplotlib.colors import to_hex

    known = {tint.upper() for tint in (*COLOURS.values(), *OTHERS, *ROWS.values())}
    for ax in drawn(name)[1].axes:
        marks = [line.get_markeredgecolor() if line.get_linestyle() == "None" else line.get_color()
                 for line in ax.lines]
        marks += [part for patch in ax.patches for part in [patch.get_facecolor()[:3]]]
        for tint in (to_hex(mark).upper() for mark in marks):
            assert tint in known or tint[1:3] == tint[3:5] == tint[5:7], tint


def test_a_sequence_of_losses_is_drawn_as_it_is():
    seen = lines(viz.loss_curves({"LoRA": [3.0, 2.0, 1.5]}))
    assert all(tick == int(tick) for tick in plt.gca().get_xticks())
    assert seen["LoRA"].tolist() == [[0, 1, 2], [3.0, 2.0, 1.5]]


def test_the_held_out_losses_of_a_history_have_the_label():
    history = History([4.0, 3.0], [0.1, 0.1], [(0, 4.5), (2, 3.5)])
    ax = viz.loss_curves({"LoRA": history})
    assert lines(ax)["LoRA"].tolist() == [[0, 2], [4.5, 3.5]]
    assert any(list(line.get_ydata()) == [4.0, 3.0] for line in ax.lines)
    assert legend(ax) == ["LoRA", "held out", "the batch trained on"]
    assert ax.get_ylabel() == "loss (nats a token)"


def test_only_where_all_losses_are_held_out_the_axis_says_so():
    level = History(held_out=[(0, 4.5), (2, 4.5)])
    assert viz.loss_curves({"base": level}).get_ylabel() == "held-out loss (nats a token)"
    mixed = viz.loss_curves({"base": level, "LoRA": [3.0, 2.0]})
    assert mixed.get_ylabel() == "loss (nats a token)"
    assert legend(mixed) == ["base", "LoRA", "held out", "the batch trained on"]
    assert viz.loss_curves({"a": [1.0]}, ylabel="error").get_ylabel() == "error"


def test_a_history_without_held_out_losses_shows_those_of_its_batches():
    ax = viz.loss_curves({"LoRA": History([4.0, 3.0], [0.1, 0.1])})
    assert lines(ax)["LoRA"].tolist() == [[0, 1], [4.0, 3.0]]
    assert legend(ax) == ["LoRA"]


def test_a_colour_depends_on_the_word_not_on_its_place():
    assert viz.colour("LoRA, r = 8") == viz.colour("with LoRA") == viz.COLOURS["LoRA"]
    assert viz.colour("full fine-tuning") == viz.COLOURS["full"]
    assert viz.colour("frozen base") == viz.COLOURS["frozen"]
    assert viz.colour("another") == viz.OTHERS[0]
    assert viz.colour("fullness", 1) == viz.OTHERS[1]  # a full word only


def test_the_colours_differ_in_lightness_or_are_far_apart_for_every_eye():
    """Linear RGB as protanopes and deuteranopes see it, from Machado et al. 2009."""
    names = ("frozen", "A", "B", "merged", "full", "wrong")
    rgb = np.array([to_rgb(viz.COLOURS[name]) for name in names])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen_by = {
        "most": np.eye(3),
        "protanopes": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
        "deuteranopes": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    }
    for eye, matrix in seen_by.items():
        seen = np.clip(linear @ np.array(matrix).T, 0, 1) ** (1 / 2.2)
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + 9 * np.eye(len(names))
        assert apart.min() > 0.15, (eye, apart.round(2))


def luminance(rgb):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(rgb, page):
    low, high = sorted((luminance(rgb), luminance(page)))
    return (high + 0.05) / (low + 0.05)


HUE = np.array([[-0.574, 1.43, 0.144], [0.426, 0.43, 0.144], [0.426, 1.43, -0.856]])  # turned 180°


@pytest.mark.parametrize("colour", sorted({*COLOURS.values(), *OTHERS, *ROWS.values()}))
def test_every_colour_stands_out_on_the_page_light_and_dark(colour):
    """As the site shows figures: multiplied in the light; inverted and screened in the dark."""
    light, dark = to_rgb("#fdfdfc"), np.array(to_rgb("#17181c"))
    assert contrast(np.array(to_rgb(colour)) * light, light) >= 3
    inverted = np.clip(HUE @ (1 - np.array(to_rgb(colour))), 0, 1)
    assert contrast(1 - (1 - inverted) * (1 - dark), dark) >= 3


ON_PAGES = [name for name in (*DRAWN, "attention_map") if name != "bench_bars"]


@pytest.mark.parametrize("name", ON_PAGES)
def test_a_figure_of_a_chapter_can_be_read_on_a_phone(name):
    """On a screen of 360 pixels, its smallest letters are 11 pixels high."""
    figure = drawn(name, title="A title")[1]
    wide = figure.get_size_inches()[0] * 96
    assert viz.axes.smallest(figure) * min(1, 360 / wide) >= 11


@pytest.mark.parametrize("name", ["loss_curves", "rank_sweep", "memory_bars", "curves"])
def test_a_legend_is_below_the_label(name):
    ax = drawn(name)[0]
    ax.figure.canvas.draw()
    assert ax.get_legend().get_window_extent().y1 <= ax.xaxis.label.get_window_extent().y0 + 1


def test_a_sweep_of_rates_has_a_line_for_each_rank_of_the_first_number():
    results = {(r, lr): [(3.0 + r + lr + seed, 9.0) for seed in range(3)]
               for r in (1, 4) for lr in (0.1, 0.2)}
    ax = viz.rate_sweep(results, above=7.5)
    assert lines(ax)["r = 1"].tolist() == [[0.1, 0.2], [5.1, 5.2]]
    assert lines(ax)["r = 4"].tolist() == [[0.1, 0.2], [8.1, 8.2]]
    assert ax.get_ylim()[1] == 7.5 and ax.get_xlabel().startswith("learning rate")


def test_levels_are_horizontal_and_a_spectrum_can_be_scaled():
    ax = viz.loss_curves({"LoRA": [3.0, 2.0]}, levels={"base": 3.5})
    assert lines(ax)["base"][1].tolist() == [3.5, 3.5]
    ax = viz.spectrum({"W0": [3.0, 4.0]}, norm=1.0)
    assert np.allclose(lines(ax)["W0"][1], [0.8, 0.6]) and "norm 1" in ax.get_xlabel()


def test_parameter_bars_take_counts():
    count = Count(3, 5)
    assert [bar.get_width() for bar in viz.parameter_bars({"a": count, "b": 7}).patches] == [3, 7]


def test_parameter_bars_are_as_long_as_the_numbers_written_at_them():
    ax = viz.parameter_bars({"full": 1_442_240, "LoRA": 92_160})
    assert ax.get_xscale() == "linear" and ax.get_xlim()[0] == 0
    assert [bar.get_width() for bar in ax.patches] == [1_442_240, 92_160]
    assert [text.get_text() for text in ax.texts] == ["1,442,240", "92,160  (6.4 %)"]
    assert ax.get_xlim()[1] > 1_442_240
    assert ax.yaxis_inverted()
    ax.figure.canvas.draw()
    ticks = [tick.get_text() for tick in ax.get_xticklabels()]
    assert ticks[0] == "0" and "1 million" in ticks


def test_memory_bars_are_stacked_end_to_end_and_sum_to_the_total():
    mib = 2**20
    ax = viz.memory_bars({
        "full": ledger(0, 2 * mib, 2 * mib, 4 * mib, 3 * mib),
        "LoRA": ledger(2 * mib, mib, mib, 2 * mib, 2 * mib),
    })
    rows = [[(b.get_x(), b.get_width()) for b in bars] for bars in ax.containers]
    assert rows[0] == [(0, 0), (0, 2)]
    for lower, upper in pairwise(rows):
        assert [x + width for x, width in lower] == [x for x, _ in upper]
    assert [text.get_text() for text in ax.texts] == ["11.0 MiB", "8.0 MiB"]
    assert legend(ax)[0] == "frozen weights"
    assert len(legend(ax)) == 5


def test_bench_bars_are_medians_with_their_ratios_and_the_fastest_turn_marked():
    ax = viz.bench_bars(MEASURED)
    assert [bar.get_width() for bar in ax.patches] == [10, 1250, 5]
    assert [text.get_text() for text in ax.texts] == ["10.0  (1.00)", "1,250  (0.50)", "5.0"]
    assert list(ax.lines[0].get_xdata()) == [8, 9, 4]
    assert to_rgb(viz.COLOURS["LoRA"]) == ax.patches[0].get_facecolor()[:3]
    assert to_rgb(viz.COLOURS["merged"]) == ax.patches[2].get_facecolor()[:3]
    assert ax.yaxis_inverted()


def test_engines_that_do_different_work_have_different_colours():
    apart = ("minilora", "minilora full", "torch+peft", "torch", "autograd", "base forward")
    assert len({timing._ENGINES[name] for name in (*apart, "merged forward")}) == 7


def test_bench_bars_of_peak_memory_have_no_mark():
    ax = viz.bench_bars(MEASURED, of="peak")
    assert [bar.get_width() for bar in ax.patches] == [100, 400, 80]
    assert [text.get_text() for text in ax.texts] == ["100  (1.00)", "400  (0.25)", "80.0"]
    assert not ax.lines and "MiB" in ax.get_xlabel()


def test_a_page_of_the_bench_has_time_and_memory_of_every_shape_uncut():
    empty = {"threads": 2, "rounds": 1, "missing": {}}
    figure = viz.bench_page({**empty, "tiny": MEASURED, "long": MEASURED})
    figure.canvas.draw()
    assert [ax.get_title("left") for ax in figure.axes] == ["tiny", "", "long", ""]
    assert all(len(ax.patches) == len(MEASURED) for ax in figure.axes)
    for ax in figure.axes:
        edge = ax.get_window_extent()
        for text in ax.texts:
            assert text.get_window_extent().x1 <= edge.x1
    box, inside = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= inside[0] and box.y1 <= inside[1]
    with pytest.raises(ValueError, match="no shape"):
        viz.bench_page(empty)


def test_merge_error_draws_every_number_and_its_own_bound():
    error, bound = np.array([3e-7, 0.0, 1e-7]), np.array([3e-6, 1e-6, 2e-6])
    ax = viz.merge_error({"float32": (error, bound)})
    dots, crosses, line = ax.lines[:3]
    assert dots.get_ydata().tolist() == [1e-7, 3e-7]  # in order of their bounds
    assert crosses.get_ydata().size == 0
    assert line.get_ydata().tolist() == sorted(bound)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["float32\n1 equal"]
    assert legend(ax) == ["bound", "an output"]
    assert "outputs in order of their bounds" in ax.get_xlabel()
    assert ax.get_yscale() == "log"


def test_merge_error_marks_errors_above_the_bound_and_nan():
    ax = viz.merge_error({"a": ([1e-7], [1e-6]), "b": ([1e-3, np.nan], [1e-6, 1e-6])})
    crosses = ax.lines[4]
    assert crosses.get_marker() == "x"
    assert len(crosses.get_ydata()) == 2
    assert legend(ax)[-1] == "above its bound"


def band(ax):
    """Return (x, lowest, highest) of the band."""
    (path,) = ax.collections[0].get_paths()
    xs = sorted(set(path.vertices[:, 0]))
    return [(x, *(f(path.vertices[path.vertices[:, 0] == x, 1]) for f in (min, max))) for x in xs]


def test_a_sweep_is_a_median_with_a_min_max_band():
    ax = viz.rank_sweep(SWEEP, levels={"full fine-tuning": 2.3})
    assert lines(ax)["LoRA"].tolist() == [[1, 4, 16], [3.1, 2.8, 2.55]]
    assert band(ax) == [(1, 3.0, 3.2), (4, 2.7, 2.9), (16, 2.4, 2.8)]
    assert lines(ax)["full fine-tuning"][1].tolist() == [2.3, 2.3]
    assert "3–4 seeds" in ax.get_xlabel()
    ax.figure.canvas.draw()
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "4", "16"]
    assert ax.get_xscale() == "log"


@pytest.mark.parametrize("least", [0, 1])
def test_a_sweep_with_0_has_a_linear_axis(least):
    ax = viz.rank_sweep({least: [3.0] * 3, 4: [2.0] * 3, 16: [1.0] * 3})
    ax.figure.canvas.draw()
    assert ax.get_xscale() == ("log" if least else "linear")
    assert np.isfinite(ax.transData.transform([(x, 2.0) for x in (least, 4, 16)])).all()


def test_fewer_than_three_seeds_make_dots_and_no_band():
    ax = viz.rank_sweep({"q, v": {1: [3.0, 3.2], 2: [2.0, 2.1]}}, xlabel="learning rate")
    assert not ax.collections and ax.get_xlabel() == "learning rate\n(2 seeds: no band)"
    assert [y for line in ax.lines[1:] for y in line.get_ydata()] == [3.0, 3.2, 2.0, 2.1]


def test_a_spectrum_falls_from_the_first():
    ax = viz.spectrum({"W0": [1.0, 3.0, 2.0]}, log="")
    assert lines(ax)["W0"].tolist() == [[1, 2, 3], [3.0, 2.0, 1.0]]
    assert ax.get_yscale() == "linear"
    assert viz.spectrum({"W0": [1.0, 3.0]}).get_yscale() == "log"


def test_a_curve_and_its_dotted_line_share_a_colour():
    ax = viz.curves({"a": [1, 2], "b": ([5, 6], [3, 4])}, dotted={"b": ([5, 6], [1, 1])}, log="x")
    a, b, dotted = ax.lines
    assert np.array(a.get_data()).tolist() == [[0, 1], [1, 2]]
    assert np.array(b.get_data()).tolist() == [[5, 6], [3, 4]]
    assert dotted.get_color() == b.get_color() != a.get_color() and dotted.get_linestyle() == ":"
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")


def test_an_attention_map_has_queries_as_rows_and_keys_as_columns():
    ax = viz.attention_map([[0.25, 0.75]], [" a"], keys=["b", ""])
    assert ax.images[0].get_array().tolist() == [[0.25, 0.75]]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["·a"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["b", "∅"]
    with pytest.raises(ValueError, match=r"weights \(1, 2\) need a label .* there are 2 and 2$"):
        viz.attention_map([[0.25, 0.75]], ["a", "b"])


@pytest.mark.parametrize("name", ["parameter_bars", "memory_bars", "bench_bars"])
def test_the_numbers_at_bars_are_inside_the_axes(name):
    ax = drawn(name)[0]
    ax.figure.canvas.draw()
    for text in ax.texts:
        assert text.get_window_extent().x1 <= ax.get_window_extent().x1


def test_panels_come_in_reading_order():
    left, right, below, _ = viz.panels(2, 2)
    assert left.get_subplotspec().colspan.start == 0 < right.get_subplotspec().colspan.start
    assert below.get_subplotspec().rowspan.start == 1


WITHOUT = """
import sys
sys.modules["matplotlib"] = None
import minilora as ml
from minilora import cli, viz
assert not viz.available()
assert viz.panels(1, 2) == [None, None]
assert viz.loss_curves({"LoRA": [1.0]}, ax=None, title="a") is None
assert viz.attention_map([[1.0]], ["a"]) is None
x = ml.Tensor(3.0, requires_grad=True)
viz.show(viz.stepper([("a caption", viz.parameter_bars({"LoRA": 1})), ("b", viz.graph(x * x))]))
viz.source(ml.ops.neg)
viz.show()
print("refused:", cli.main(["bench", "--shapes", "tiny", "--chart", "a.png"]))
"""


def test_without_matplotlib_it_says_what_to_install_and_goes_on():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True
    )
    left_out = "figure left out: pip install '.[viz]' in the checkout of minilora"
    assert done.stdout.split("\n")[:3] == [left_out] * 3
    assert "[1/2] a caption\n(figure left out)" in done.stdout
    assert "mul" in done.stdout and "-x, (dx,)" in done.stdout
    assert "refused: 2" in done.stdout.splitlines()[-1]  # before the work
    assert "figures need matplotlib: pip install '.[viz]'" in done.stderr
