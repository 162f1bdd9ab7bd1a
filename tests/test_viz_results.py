"""What stands in the figures of results: read from the axes. (test_viz.py draws them all, too.)"""

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.colors import to_rgb  # noqa: E402
from test_viz import band, legend, lines  # noqa: E402

from minilora import analysis, viz  # noqa: E402


@pytest.fixture(autouse=True)
def backend():
    """The backend does not matter here."""
    yield
    plt.close("all")


RESULTS = {
    "LoRA on q, v": {512: [0.5, 0.3, 0.1], 2048: [0.2, 0.1, 0.3, 0.4]},
    "LoRA on all": {2304: [0.4, 0.2, 0.3]},
    "Adapter-H": {520: [0.9, 0.7, 0.8]},
    "full fine-tuning": {110_336: [0.1, 0.2, 0.3]},
}


def test_the_spread_of_a_single_setting_is_a_line():
    """Else a seed that failed could not be seen."""
    ax = viz.quality_vs_parameters({"full": {512: [0.7, 0.5, 0.8]}, "lora": {4: [0.6]}})
    drawn = [x.get_segments()[0].tolist() for x in ax.collections if hasattr(x, "get_segments")]
    assert drawn == [[[512.0, 0.5], [512.0, 0.8]]]
    assert "1–3 seeds, band: minimum to maximum,\ndots: each seed" in ax.get_xlabel()


def test_quality_is_a_median_with_a_band_over_a_log_axis_of_parameters():
    ax = viz.quality_vs_parameters(RESULTS, levels={"frozen base": 2.5}, ylabel="error")
    seen = lines(ax)
    assert np.allclose(seen["LoRA on q, v"], [[512, 2048], [0.3, 0.25]])
    assert np.allclose(band(ax), [(512, 0.1, 0.5), (2048, 0.1, 0.4)])
    assert len(ax.collections) == len(RESULTS)
    assert seen["frozen base"][1].tolist() == [2.5, 2.5]
    assert ax.get_xscale() == "log" and ax.get_ylabel() == "error"
    assert ax.get_xlabel() == (
        "trained parameters\n(median of 3–4 seeds, band: minimum to maximum)")
    low, high = ax.get_xlim()
    assert low < 512 and high > 110_336
    assert legend(ax) == [*RESULTS, "frozen base"]


def test_methods_of_one_colour_differ_in_marker_and_line():
    ax = viz.quality_vs_parameters(RESULTS)
    style = {line.get_label(): (line.get_color(), line.get_marker(), line.get_linestyle())
             for line in ax.lines}
    one, other = style["LoRA on q, v"], style["LoRA on all"]
    assert one[0] == other[0] == viz.COLOURS["LoRA"] and one[1] != other[1] and one[2] != other[2]
    assert len({marker for _, marker, _ in style.values()}) == len(RESULTS)


@pytest.mark.parametrize(("counts", "ticks"), [
    ((512, 110_336), ["1k", "10k", "100k"]), ((1000, 3000), ["1k", "1.5k", "2k", "3k"]),
    ((500, 5000), ["500", "1k", "2k", "5k"]), ((64, 70), ["50", "70"]), ((1, 1), ["1"]),
    ((400_000, 175_000_000_000), ["1M", "10M", "100M", "1G", "10G", "100G"]),
    ((1, 10**12), ["1", "1k", "1M", "1G", "1000G"]),
])
def test_the_ticks_of_parameters_are_short_and_there_is_at_least_one(counts, ticks):
    ax = viz.quality_vs_parameters({"LoRA": dict.fromkeys(counts, 1.0)})
    ax.figure.canvas.draw()
    low, high = ax.get_xlim()
    assert low < min(counts) and max(counts) < high
    assert all(low <= x <= high for x in ax.get_xticks())
    seen = [tick.get_text() for tick in ax.get_xticklabels()]
    assert seen == ticks
    assert "1 seed: no band" in ax.get_xlabel()


def test_a_method_has_one_colour_wherever_it_stands():
    for name in ("BitFit", "Adapter-H, r = 8", "PreEmbed", "PreLayer"):
        assert len({viz.colour(name, i) for i in range(4)}) == 1
    rivals = {viz.colour(name) for name in ("BitFit", "Adapter", "PreEmbed", "PreLayer")}
    assert len(rivals) == 4 and rivals == set(viz.OTHERS)


def test_quality_needs_results_by_a_number_of_parameters():
    for results in ({}, {"LoRA": {}}, {"base": {0: [1.0]}}):
        with pytest.raises(ValueError, match="at least 1: draw the base with levels="):
            viz.quality_vs_parameters(results)


SPREAD = {
    "LoRA": {"r = 1": ([1.0, 1.2, 1.1], [2.0, 2.1, 2.3]), "r = 4": ([0.9, 0.8, 0.7], [2.5] * 3)},
    "full fine-tuning": {"all": ([0.5], [3.0])},
}


def test_forgetting_is_learned_against_kept_with_the_spread_of_the_seeds():
    ax = viz.forgetting(SPREAD, base=(1.5, 1.9), xlabel="new", ylabel="old")
    seen = lines(ax)
    assert np.allclose(seen["LoRA"], [[1.1, 0.8], [2.1, 2.5]])
    assert np.allclose(seen["full fine-tuning, all"], [[0.5], [3.0]])
    spreads = [np.array(line.get_data()).tolist() for line in ax.lines[1:5]]
    assert spreads == [[[1.0, 1.2], [2.1, 2.1]], [[1.1, 1.1], [2.0, 2.3]],
                       [[0.7, 0.9], [2.5, 2.5]], [[0.8, 0.8], [2.5, 2.5]]]
    down, across = ax.lines[-2:]
    assert list(down.get_xdata()) == [1.5, 1.5] and list(across.get_ydata()) == [1.9, 1.9]
    assert legend(ax) == ["LoRA", "full fine-tuning, all", "frozen base"]
    assert ax.get_xlabel() == "new\n(median of 1–3 seeds, lines: minimum to maximum)"
    assert ax.get_ylabel() == "old"
    assert [(text.get_text(), text.xy) for text in ax.texts] == [
        ("r = 1", (1.1, 2.1)), ("r = 4", (0.8, 2.5))]
    both = viz.forgetting(SPREAD, base=(1.5, 19.0), log=True)
    assert both.get_xscale() == both.get_yscale() == "log"
    assert both.get_ylim()[1] > 19 and both.get_xlim()[0] < 0.5
    assert viz.forgetting({"LoRA": {"": (1, 2)}}).get_xlabel().endswith("(median of 1 seed)")
    with pytest.raises(ValueError, match="LoRA, r = 1: 2 losses on the new task, 1 on the base's"):
        viz.forgetting({"LoRA": {"r = 1": ([1, 2], [3])}})


@pytest.mark.parametrize("count", [3, 10])
def test_labels_are_at_their_points_and_cover_no_other_label_nor_point(count):
    """Points on a line, so near to each other that labels on one side would overlap."""
    dots = {f"r = {2**i}": (1 - i / 40, 2 + i / 40) for i in range(count)}
    ax = viz.forgetting({"LoRA": dots, "full": {"all": (0.3, 3.0)}})
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    at = ax.transData.transform([text.xy for text in ax.texts])
    assert len(boxes) == count  # that of the single setting stands in the legend
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert not any(box.contains(*point) for point in at)
        x, y = np.clip(at[i], (box.x0, box.y0), (box.x1, box.y1))
        assert np.hypot(*(at[i] - (x, y))) < 26 * ax.figure.dpi / 72


def test_latency_bars_are_medians_compared_with_one_of_them():
    times = {"base": [9.0, 10.0, 14.0], "merged LoRA": [10.0], "Adapter-H": [13.0, 12.0, 12.5]}
    ax = viz.latency_bars(times)
    assert [bar.get_width() for bar in ax.patches] == [10, 10, 12.5]
    assert [text.get_text() for text in ax.texts] == [
        "10.0 ms", "10.0 ms  (+0 %)", "12.5 ms  (+25 %)"]
    assert [list(line.get_xdata()) for line in ax.lines] == [[9, 14], [12, 13]]
    assert to_rgb(viz.COLOURS["merged"]) == ax.patches[1].get_facecolor()[:3]
    assert ax.yaxis_inverted() and ax.get_xlim()[0] == 0
    assert ax.get_xlabel().endswith("in brackets: compared with base")
    ax = viz.latency_bars({"a": 250, "b": 200}, against="b", unit="µs")
    assert [text.get_text() for text in ax.texts] == ["250 µs  (+25 %)", "200 µs"]
    assert ax.get_xlabel().startswith("time (µs): median;")
    assert viz.latency_bars({"a": 0.0125}).texts[0].get_text() == "0.013 ms"
    with pytest.raises(ValueError, match="no 'c' to compare with: give one of a, b"):
        viz.latency_bars({"a": 1, "b": 2}, against="c")


def test_the_numbers_of_latency_bars_are_inside_the_axes():
    ax = viz.latency_bars({"base": 1234.0, "LoRA, not merged": [2000.0, 2600.0]})
    ax.figure.canvas.draw()
    assert ax.texts[0].get_text() == "1,234 ms"
    assert all(text.get_window_extent().x1 <= ax.get_window_extent().x1 for text in ax.texts)


def test_a_map_of_subspaces_has_i_down_j_across_and_one_scale():
    rng = np.random.default_rng(0)
    A1, A2 = rng.standard_normal((4, 20)), rng.standard_normal((6, 20))
    grids = {"two seeds": analysis.subspace_grid(A1, A2), "random": np.full((2, 3), 0.25)}
    ax = viz.subspace_similarity(grids, names=("r = 4", "r = 6"))
    first, second = ax.images
    for image, grid in zip((first, second), grids.values()):
        assert np.array_equal(image.get_array(), grid)
        assert image.get_clim() == (0, 1) and image.origin == "upper"
        left, right, bottom, top = image.get_extent()
        assert (left, right) == (0.5, grid.shape[1] + 0.5) and bottom - top == len(grid)
    assert second.get_extent()[3] > first.get_extent()[2]  # below, with a gap for its name
    assert ax.yaxis_inverted() and ax.get_xlim() == (0.5, 6.5)
    (corner, last), texts = grids["two seeds"][[0, -1], [0, -1]], [t.get_text() for t in ax.texts]
    assert texts == [f"two seeds: φ(1, 1) = {corner:.2f}, φ(4, 6) = {last:.2f}",
                     "random: φ(1, 1) = 0.25, φ(2, 3) = 0.25"]
    assert ax.get_xlabel() == "j: the first j directions of r = 6"
    assert ax.get_ylabel() == "i: the first i of r = 4"
    assert ax.figure.axes[1].get_ylabel() == "similarity φ"


def test_the_ticks_of_a_map_are_at_their_rows():
    ax = viz.subspace_similarity({"a": np.ones((8, 64)), "b": np.ones((3, 2))})
    for y, tick in zip(ax.get_yticks(), ax.get_yticklabels()):
        image = next(i for i in ax.images if i.get_extent()[3] < y < i.get_extent()[2])
        assert y - image.get_extent()[3] == pytest.approx(int(tick.get_text()) - 0.5)
    assert {tick.get_text() for tick in ax.get_yticklabels()} >= {"8", "3"}
    assert ax.get_xticks().tolist() == [1, 8, 16, 24, 32, 40, 48, 56, 64]


@pytest.mark.parametrize("grids", [{}, {"a": np.ones(3)}, {"a": np.ones((0, 3))}])
def test_a_map_needs_grids(grids):
    with pytest.raises(ValueError, match=r"give grids \(n, m\) by name, not .*subspace_grid"):
        viz.subspace_similarity(grids)


def test_a_cross_table_has_a_number_and_a_shade_for_each_pair():
    values = {"base": {"e2e": 10.5, "sql": 12.0}, "sql": {"e2e": 9.25, "sql": 0.5}}
    ax = viz.cross_table(values, xlabel="task", ylabel="adapter", label="loss")
    assert ax.images[0].get_array().tolist() == [[10.5, 12.0], [9.25, 0.5]]
    numbers = {tuple(text.get_position()): text.get_text() for text in ax.texts}
    assert numbers == {(0, 0): "10.5", (1, 0): "12", (0, 1): "9.25", (1, 1): "0.5"}
    assert [t.get_text() for t in ax.get_xticklabels()] == ["e2e", "sql"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["base", "sql"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("task", "adapter")
    assert ax.figure.axes[1].get_ylabel() == "loss"
    for text in ax.texts:  # readable on its shade
        shade = ax.images[0].to_rgba(values["base" if text.get_position()[1] == 0 else "sql"][
            "e2e" if text.get_position()[0] == 0 else "sql"])
        light = float(np.dot(shade[:3], [0.2126, 0.7152, 0.0722]))
        assert abs(light - np.mean(to_rgb(text.get_color()))) > 0.4
    with pytest.raises(ValueError, match="the same columns in the same order: a has x; b has y"):
        viz.cross_table({"a": {"x": 1.0}, "b": {"y": 1.0}})
    with pytest.raises(ValueError, match="the same columns"):
        viz.cross_table({})
