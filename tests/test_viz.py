"""What the figures show, read from the axes and not from pixels."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from minilora.accounting import Ledger, Row
from minilora.train import History

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.colors import to_rgb  # noqa: E402

from minilora import viz  # noqa: E402


@pytest.fixture(autouse=True)
def backend():
    """Figures are drawn from numbers on the host."""
    yield
    plt.close("all")


@pytest.fixture
def ax():
    return plt.subplots()[1]


def lines(ax):
    """label -> (x, y) of the curves that the legend names and that have points."""
    found = {line.get_label(): np.array(line.get_data()) for line in ax.lines}
    return {label: xy for label, xy in found.items() if label[0] != "_" and xy.size}


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def ledger(*sizes):
    names = ("frozen weights", "trained weights", "gradients", "Adam moments", "activations")
    return Ledger(tuple(Row(n, 0, size) for n, size in zip(names, sizes)), {}, Row("peak", 0, 0))


DRAWN = {
    "loss_curves": {"LoRA": [3.0, 2.0]},
    "parameter_bars": {"LoRA": 10, "full": 1000},
    "memory_bars": {"LoRA": ledger(5, 4, 3, 2, 1)},
    "merge_error": {"float32": ([1e-7, 2e-7], [1e-6, 2e-6])},
}

MEASURED = {
    "minilora": {"ms": [8.0, 10.0], "peak": 100 << 20, "ratio": 1.0, "memory_ratio": 1.0},
    "torch+peft": {"ms": [9.0, 1250.0], "peak": 400 << 20, "ratio": 0.5, "memory_ratio": 0.25},
    "merged forward": {"ms": [4.0, 5.0], "peak": 80 << 20},  # what it compares with was not there
}
DRAWN["bench_bars"] = MEASURED


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_draws_on_the_axes_it_is_given_and_returns_them(name, ax):
    before = plt.get_fignums()
    assert getattr(viz, name)(DRAWN[name], ax=ax) is ax
    assert plt.get_fignums() == before
    assert getattr(viz, name)(DRAWN[name]) is not ax
    assert len(plt.get_fignums()) == len(before) + 1


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_names_its_quantities(name):
    ax = getattr(viz, name)(DRAWN[name])
    assert ax.get_ylabel() if name in ("loss_curves", "merge_error") else ax.get_xlabel()
    ax.figure.canvas.draw()


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_is_cut_off_at_the_edge(name):
    figure = getattr(viz, name)(DRAWN[name]).figure
    figure.canvas.draw()
    box, inside = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= inside[0]
    assert box.y1 <= inside[1]


def test_a_sequence_of_losses_is_drawn_as_it_is():
    drawn = lines(viz.loss_curves({"LoRA": [3.0, 2.0, 1.5]}))
    assert drawn["LoRA"].tolist() == [[0, 1, 2], [3.0, 2.0, 1.5]]


def test_of_a_history_the_held_out_losses_carry_the_label():
    history = History([4.0, 3.0], [0.1, 0.1], [(0, 4.5), (2, 3.5)])
    ax = viz.loss_curves({"LoRA": history})
    assert lines(ax)["LoRA"].tolist() == [[0, 2], [4.5, 3.5]]
    assert any(list(line.get_ydata()) == [4.0, 3.0] for line in ax.lines)
    assert legend(ax) == ["LoRA", "the batch trained on"]


def test_a_history_without_held_out_losses_shows_those_of_its_batches():
    ax = viz.loss_curves({"LoRA": History([4.0, 3.0], [0.1, 0.1])})
    assert lines(ax)["LoRA"].tolist() == [[0, 1], [4.0, 3.0]]
    assert legend(ax) == ["LoRA"]


def test_a_colour_means_the_same_wherever_its_word_stands():
    assert viz.colour("LoRA, r = 8") == viz.colour("with LoRA") == viz.COLOURS["LoRA"]
    assert viz.colour("full fine-tuning") == viz.COLOURS["full"]
    assert viz.colour("frozen base") == viz.COLOURS["frozen"]
    assert viz.colour("fullness", 1) == viz.OTHERS[1]  # a word, not a part of one


def test_the_colours_differ_in_lightness_or_are_far_apart_for_every_eye():
    """Machado et al. 2009: what protanopes and deuteranopes see of linear RGB."""
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


def test_parameter_bars_are_as_long_as_the_numbers_written_at_them():
    ax = viz.parameter_bars({"full": 1_442_240, "LoRA": 92_160})
    assert ax.get_xscale() == "log"
    assert [bar.get_width() for bar in ax.patches] == [1_442_240, 92_160]
    assert [text.get_text() for text in ax.texts] == ["1,442,240", "92,160"]
    assert ax.get_xlim()[1] > 1_442_240
    assert ax.yaxis_inverted()


def test_memory_bars_are_stacked_end_to_end_and_sum_to_the_total():
    mib = 2**20
    ax = viz.memory_bars({
        "full": ledger(0, 2 * mib, 2 * mib, 4 * mib, 3 * mib),
        "LoRA": ledger(2 * mib, mib, mib, 2 * mib, 2 * mib),
    })  # fmt: skip
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


def test_bench_bars_of_peak_memory_have_no_mark():
    ax = viz.bench_bars(MEASURED, of="peak")
    assert [bar.get_width() for bar in ax.patches] == [100, 400, 80]
    assert [text.get_text() for text in ax.texts] == ["100  (1.00)", "400  (0.25)", "80.0"]
    assert not ax.lines and "MiB" in ax.get_xlabel()


def test_a_page_of_the_bench_has_time_and_memory_of_every_shape_and_cuts_nothing_off():
    told = {"threads": 2, "rounds": 1, "missing": {}, "growth": {}}
    figure = viz.bench_page({**told, "tiny": MEASURED, "long": MEASURED})
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
        viz.bench_page(told)


def test_merge_error_draws_every_number_and_its_own_bound():
    error, bound = np.array([3e-7, 0.0, 1e-7]), np.array([3e-6, 1e-6, 2e-6])
    ax = viz.merge_error({"float32": (error, bound)})
    dots, crosses, line = ax.lines[:3]
    assert dots.get_ydata().tolist() == [1e-7, 3e-7]  # in order of their bounds
    assert crosses.get_ydata().size == 0
    assert line.get_ydata().tolist() == sorted(bound)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["float32\n1 equal"]
    assert legend(ax) == ["bound", "under its bound"]
    assert ax.get_yscale() == "log"


def test_merge_error_marks_what_is_above_its_bound_and_what_is_not_a_number():
    ax = viz.merge_error({"a": ([1e-7], [1e-6]), "b": ([1e-3, np.nan], [1e-6, 1e-6])})
    crosses = ax.lines[4]
    assert crosses.get_marker() == "x"
    assert len(crosses.get_ydata()) == 2
    assert legend(ax)[-1] == "above its bound"


def test_show_does_nothing_where_there_is_nowhere_to_show():
    viz.loss_curves({"LoRA": [1.0]})
    viz.show()
    assert len(plt.get_fignums()) == 1


def test_show_asks_matplotlib_where_there_is_a_window(monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "get_backend", lambda: "module://inline")
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    viz.show()
    assert shown == [True]


def test_without_matplotlib_it_says_what_to_install():
    code = "import sys; sys.modules['matplotlib'] = None; import minilora.viz"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode
    assert "pip install 'minilora[viz]'" in done.stderr
