"""The experiments as a whole: the choice of rates, the report, its command, and what each declares.
"""

import json
import re
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from fake_runs import faked, journal_of, one, results_of, train
from hypothesis import given, settings
from hypothesis import strategies as st

from minilora import cli, viz
from minilora.data.tasks import TASKS
from minilora.experiments import (
    Scale,
    facts,
    html,
    markdown,
    reporting,
    reproduce,
    setup,
    shipped,
    training,
)
from minilora.experiments import experiment as experiments
from minilora.experiments.cells import GRID, START, cell
from minilora.experiments.experiment import Effect, experiment
from minilora.experiments.order import NAMES, SECTIONS
from minilora.experiments.results import Results, best, next_rates
from minilora.experiments.running import estimate, needed, run, trainings
from minilora.experiments.variations import VARIATIONS
from minilora.files import atomic, owned
from minilora.files.journal import Journal
from minilora.jobs.executors import Pool

pytestmark = pytest.mark.usefixtures("numpy_only")
FULL, FAST = Scale(), Scale(2, True)
PICTURES = pytest.mark.skipif(not viz.available(), reason="needs pip install '.[viz]'")
every = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def rank() -> Results:
    return results_of("rank")


@pytest.fixture
def plain(monkeypatch):
    """No figures: they take most of the time."""
    monkeypatch.setattr(viz, "available", lambda: False)


# The choice of a rate.


def searched(score):
    """The rates that a search tries: score(i) of the i-th rate of the grid, None if it diverges."""
    tried, steps = {}, 0
    while rates := next_rates(tried, "bleu", FULL):
        for rate in rates:
            value = score(GRID.index(rate))
            tried[rate] = {"diverged": True} if value is None else {
                "validation": {"bleu": value}, "loss": {"validation": 1.0}}
        steps += 1
        assert steps < 9
    return tried


@given(peak=st.integers(0, len(GRID) - 1), slopes=st.tuples(st.floats(0.1, 9), st.floats(0.1, 9)),
       limit=st.integers(0, len(GRID)))
def test_a_score_with_one_peak_is_climbed_to_it_past_the_first_rates(peak, slopes, limit):
    def score(i):
        return None if i > limit else -slopes[i > peak] * abs(i - peak)

    tried = searched(score)
    found = GRID.index(best(tried, "bleu"))
    assert found == min(peak, limit) and set(START) <= set(tried)
    around = {i for i in (found - 1, found + 1) if 0 <= i < len(GRID)}
    assert {GRID[i] for i in around} <= set(tried)
    at = sorted(GRID.index(rate) for rate in tried)
    assert at == [*range(at[0], at[-1] + 1)]  # no rate between is left out


def test_a_search_ends_where_all_diverge_or_all_are_equal():
    tried = searched(lambda i: None)
    assert best(tried, "bleu") == GRID[0] and GRID[-1] not in tried
    assert searched(lambda i: 1.0) and next_rates({}, "bleu", FAST) == [START[1]]
    assert not next_rates({START[1]: {"diverged": True}}, "bleu", FAST)


def test_of_equal_scores_the_lower_validation_loss_wins():
    runs = {rate: {"validation": {"bleu": 1}, "loss": {"validation": loss}}
            for rate, loss in ((1e-3, 3.0), (3e-3, 2.0), (1e-2, 2.5))}
    assert best(runs, "bleu") == 3e-3


def test_the_choice_does_not_depend_on_what_else_has_run():
    one_cell, journal = cell("mini-e2e", "lora", r=4), Journal(None)
    with faked():
        for rate in GRID[4:]:
            job = one_cell.run(rate, 0, FULL)
            journal.add(job.key, {"result": train(**job.config)})
    assert Results(journal, FULL).search(one_cell) == ({}, [1e-3, 3e-3])


# Runs.


def test_run_does_what_the_report_reads_and_nothing_twice():
    chosen = experiment("rank")
    with faked() as calls:
        journal = Journal(None)
        before = estimate([chosen], journal, FULL, Journal(None), 1)
        results = run([chosen], journal, FULL)
        n = len(calls)
        jobs = needed(chosen, results)
        assert len({job.key for job in jobs}) == len(jobs) == len(journal) == n
        assert run([chosen], journal, FULL) and len(calls) == n
    assert 0.7 * n < before[0] < 1.5 * n and before[1] > 0
    assert estimate([chosen], journal, FULL, Journal(None), 1) == (0, 0.0)
    assert shipped.complete(chosen, results)
    part = Journal(None)
    for key in [*journal.lines][: n // 2]:
        part.add(key, journal[key])
    left, _ = estimate([chosen], part, FULL, Journal(None), 1)
    assert 0 < left < before[0] and not shipped.complete(chosen, Results(part, FULL))


def test_experiments_share_their_runs():
    one_each = [len(journal_of(name)) for name in ("gpt3", "lowdata")]
    assert max(one_each) < len(journal_of("gpt3", "lowdata")) < sum(one_each)


def test_a_planted_mistake_is_run_for_loras_cells_at_their_own_rates(rank):
    jobs = [job for job in trainings(experiment("rank"), rank) if job.config["variation"]]
    assert {job.config["variation"] for job in jobs} == {"B frozen"}
    assert all(job.config["method"] == "lora" for job in jobs)
    own = {(c.task, c.settings): rank.rate(c) for c in experiment("rank").cells if c.lora}
    for job in jobs:
        config = job.config
        same = cell(config["task"], "lora", **config["settings"])
        assert own[same.task, same.settings] == config["rate"]


def test_a_smoke_run_is_small_and_decides_nothing():
    results = results_of("rank", scale=FAST)
    assert len(results.journal) < 100
    for line in results.journal.lines.values():
        assert line["config"]["steps"] <= 8 and line["config"]["test"] <= 24
        assert line["config"]["rate"] in (0.0, START[1])
    page, _ = facts.facts(experiment("rank"), results)
    assert {claim["verdict"] for claim in page["claims"]} == {"no verdict"}
    words = markdown.page(page) + markdown.index([page])
    assert words.count(facts.SMOKE) == 2 and "**reproduces**" not in words


# The report.


BOTH = ["nlg", "lowdata"]


def pages(folder):
    """What must be the same for any number of processes and after an interrupt."""
    return {path.name: path.read_bytes() for path in folder.iterdir()
            if path.suffix in (".md", ".json", ".html") and path.name not in (
                "times.json", owned.LIST)}


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """The pages of an undisturbed run in one process."""
    out = tmp_path_factory.mktemp("usual") / "report"
    with pytest.MonkeyPatch.context() as patch, faked():
        patch.setattr(viz, "available", lambda: False)
        reproduce(BOTH, out)
    return pages(out)


@pytest.fixture(scope="module")
def journalled(tmp_path_factory) -> bytes:
    """The bytes of the journal of an undisturbed run."""
    path = tmp_path_factory.mktemp("journal") / "runs.jsonl"
    with faked(), Journal(path) as journal:
        run([experiment(name) for name in BOTH], journal, FULL)
    return path.read_bytes()


def test_threads_give_the_same_bytes(tmp_path, usual, plain):
    with faked(), ThreadPoolExecutor(3) as executor:
        reproduce(BOTH[::-1], tmp_path / "out", executor=Pool(lambda: nullcontext(executor), 3))
    assert pages(tmp_path / "out") == usual
    assert {*usual} == {"nlg.md", "nlg.json", "lowdata.md", "lowdata.json", "README.md",
                        "report.json", "index.html"}


@settings(max_examples=4)
@given(stops=st.lists(st.integers(1, 60), min_size=1, max_size=3))
def test_an_interrupted_call_goes_on_to_the_same_bytes(stops, tmp_path_factory, usual):
    out = tmp_path_factory.mktemp("stopped") / "report"
    with pytest.MonkeyPatch.context() as patch, faked() as calls:
        patch.setattr(viz, "available", lambda: False)
        for stop in stops:
            left = iter(range(stop))

            def begins(name, left=left):
                if next(left, None) is None:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                reproduce(BOTH, out, begins=begins)
            assert not (out / "report.json").exists()
        reproduce(BOTH, out)
        assert len({one(**call).key for call in calls}) == len(calls)  # nothing twice
    assert pages(out) == usual


@settings(max_examples=6)
@given(share=st.floats(0, 1))
def test_a_killed_call_whose_last_line_is_torn_goes_on_to_the_same_bytes(
    share, tmp_path_factory, usual, journalled,
):
    out = tmp_path_factory.mktemp("killed") / "report"
    out.mkdir()
    (out / "runs.jsonl").write_bytes(journalled[: int(share * len(journalled))])
    with pytest.MonkeyPatch.context() as patch, faked():
        patch.setattr(viz, "available", lambda: False)
        reproduce(BOTH, out)
    assert pages(out) == usual


def test_a_page_of_an_earlier_command_stays_in_the_index(tmp_path, usual, plain):
    with faked():
        reproduce("nlg", tmp_path)
        report = reproduce("lowdata", tmp_path)
    assert pages(tmp_path) == usual
    assert [page["name"] for page in report["experiments"]] == BOTH


def test_the_report_of_a_journal_runs_nothing(tmp_path, plain, rank):
    with faked() as calls:
        reproduce("rank", tmp_path / "out", journal=rank.journal)
        assert not calls and not (tmp_path / "out" / "runs.jsonl").exists()
        with pytest.raises(KeyError, match="there is no run of"):
            reproduce("matrices", tmp_path / "other", journal=rank.journal)


@pytest.mark.parametrize("name", ["README.md", "rank.json", "index.html", "nlg.md", "times.json"])
def test_a_file_of_the_users_is_never_overwritten(name, tmp_path, plain, rank):
    (tmp_path / name).write_text("mine")
    with faked() as calls, pytest.raises(ValueError, match=rf"{name} exists, and minilora did not"):
        reproduce("rank", tmp_path)
    assert not calls and [path.name for path in tmp_path.iterdir()] == [name]
    (tmp_path / name).unlink()
    (tmp_path / "mine.txt").write_text("mine")
    reproduce("rank", tmp_path, journal=rank.journal)
    if (tmp_path / name).exists():
        (tmp_path / name).write_text("edited")
        with pytest.raises(ValueError, match="minilora did not write it so"):
            reproduce("rank", tmp_path, journal=rank.journal)
        assert (tmp_path / name).read_text() == "edited"
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_folder_that_holds_something_else_is_refused(tmp_path, plain, rank):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    owned.write(tmp_path / "folder", {"index.html": b"a site"})
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "runs.jsonl").write_text("my notes\nof today\n")
    reproduce("rank", tmp_path / "fine", journal=rank.journal)
    for out, scale, words in (
        ("file", FULL, "is a file"), ("none/out", FULL, "none is not a folder"),
        ("folder", FULL, "is no report, but minilora wrote it"),
        ("fine", FAST, "holds a report with 3 seeds"), ("fine", Scale(4), "give another folder"),
        ("runs", FULL, "line 1 is not one of a journal"),
    ):
        with faked() as calls, pytest.raises(ValueError, match=words):
            reproduce("rank", tmp_path / out, scale=scale)
        assert not calls
    assert (tmp_path / "folder" / "index.html").read_bytes() == b"a site"


def test_a_write_that_is_interrupted_anywhere_can_be_repeated(tmp_path, monkeypatch):
    old, new = ({name: f"{name} {text}".encode() for name in names}
                for names, text in (("abc", "old"), ("bcd", "new")))
    old["c"] = new["c"]
    write = atomic.writing
    for stop in range(4):
        out = tmp_path / str(stop)
        out.mkdir()
        owned.write(out, old)
        (out / "mine").write_text("mine")
        left = iter(range(stop))

        def stopped(path, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return write(path)

        monkeypatch.setattr(owned.atomic, "writing", stopped)
        if stop < 3:  # LIST, b and d
            with pytest.raises(KeyboardInterrupt):
                owned.write(out, new)
        monkeypatch.setattr(owned.atomic, "writing", write)
        owned.write(out, new)
        assert {p.name: p.read_bytes() for p in out.iterdir() if p.name != owned.LIST} == {
            **new, "mine": b"mine"}
        assert owned.theirs(out) == ["mine"]


# What a page says.


def test_a_page_says_all_that_a_claim_declares(rank):
    chosen = experiment("rank")
    page, _ = facts.facts(chosen, rank)
    text = markdown.page(page)
    for claim, told in zip(chosen.claims, page["claims"]):
        for part in (claim.says, claim.source, told["printed"], claim.rule_in_words):
            assert part in text
        assert f"**{told['verdict']}**" in text
        for effect in told["effects"]:
            assert effect["what"] in text and markdown.number(effect["floor"]) in text
    base = setup.size_of(TASKS["mini-e2e"].base)
    for part in (facts.TOY, f"{base['parameters']:,} parameters", f"{base['layers']} layers",
                 f"width {base['width']}", "3 seeds", VARIATIONS["B frozen"].says):
        assert part in text, part
    assert json.loads(json.dumps(page)) == page


def test_the_verdict_under_the_planted_mistake_is_told(rank):
    page, _ = facts.facts(experiment("rank"), rank)
    last = page["claims"][-1]
    assert last["verdict"] == "reproduces" and last["under_mistake"] != "reproduces"
    assert f"Then the verdict is: {last['under_mistake']}." in markdown.page(page)


def test_the_questions_are_answered_from_the_settings(rank, monkeypatch):
    def answers():
        return " ".join(answer for _, answer in setup.questions(experiment("rank"), rank))

    assert len(setup.questions(experiment("rank"), rank)) == 7
    for part in ("seed 0", f"from {GRID[0]:g} to {GRID[-1]:g}", "0, 1, 2", "bleu", "nist",
                 f"{TASKS['mini-e2e'].longest}", "no new head", "(200)", "400 test"):
        assert part in answers(), part
    for name, value in (("DECAY", 0.123), ("WARMUP", 0.27), ("CLIP", 7.5)):
        before = answers()
        monkeypatch.setattr(training, name, value)
        assert answers() != before
    assert "0.123" in answers() and "27 %" in answers() and "7.5" in answers()


def test_a_head_is_told_of_where_there_is_one():
    words = " ".join(setup._heads([TASKS["mini-cola"], TASKS["mini-e2e"]]))
    assert "mini-cola: a new head" in words and "mini-e2e: there is no new head" in words


def test_a_rate_at_the_edge_of_the_grid_is_warned_of(monkeypatch):
    monkeypatch.setattr("fake_runs.PEAK", GRID[0])
    page, _ = facts.facts(experiment("rank"), results_of("rank"))
    warned = [row for row in page["rates"] if row["warning"]]
    assert warned and all(row["rate"] == GRID[0] for row in warned)
    assert warned[0]["tried"]["0.0001"] and setup.EDGE in markdown.page(page)
    assert "## Rates at the edge" in markdown.index([page])
    assert f"{len(warned)} at the edge" in html.page([page], {})


@pytest.mark.parametrize(("value", "text"), [
    (None, "–"), (3, "3"), (12_345, "12,345"), (0.012345, "0.0123"), (-1234.6, "-1,235"),
    (1e-9, "1e-09"), (2.0, "2"),
])
def test_numbers_are_short(value, text):
    assert markdown.number(value) == text


def test_tables_escape_their_signs_and_align_numbers():
    words = markdown.table(["a|b", "n"], [["x|y", 1.0], ["z", "2.0 ± 0.1"]])
    assert words.splitlines()[:2] == ["| a\\|b | n |", "|---|---:|"] and "x\\|y" in words
    page = html.table(["a"], [["<b> & `code`, arXiv 2106.09685"]])
    assert "&lt;b&gt; &amp; <code>code</code>" in page
    assert '<a href="https://arxiv.org/abs/2106.09685">' in page


class Read(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@PICTURES
def test_the_page_is_one_file_with_alt_texts_landmarks_and_links_that_lead(tmp_path, rank):
    reproduce("rank", tmp_path, journal=rank.journal)
    text = (tmp_path / "index.html").read_text("utf-8")
    tags = Read(text).tags
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len({*ids})
    for tag, attrs in tags:
        assert tag not in ("script", "iframe", "object")
        if tag == "img":
            assert attrs["src"].startswith("data:image/png;base64,") and len(attrs["alt"]) > 15
            assert int(attrs["width"]) > 100 < int(attrs["height"])
        if tag == "link":
            assert attrs["href"].startswith("data:")
        if tag == "a":
            assert re.match(r"https://arxiv\.org/", attrs["href"]) or attrs["href"][1:] in ids
    assert "url(" not in text and "@import" not in text and "prefers-color-scheme: dark" in text
    heads = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert heads.count(1) == 1 and all(b <= a + 1 for a, b in pairwise(heads))
    assert {"main", "footer"} <= {tag for tag, _ in tags}
    page = json.loads((tmp_path / "rank.json").read_text("utf-8"))
    assert len(page["figures"]) == 2
    for figure in page["figures"]:
        for kind in ("png", "svg"):
            assert (tmp_path / f"{figure['name']}.{kind}").stat().st_size > 1000
            assert f"{figure['name']}.{kind}" in (tmp_path / "rank.md").read_text("utf-8")
    sums = {path.name: zlib.crc32(path.read_bytes()) for path in tmp_path.iterdir()}
    reproduce("rank", tmp_path, journal=rank.journal)  # figures too are the same
    assert {p.name: zlib.crc32(p.read_bytes()) for p in tmp_path.iterdir()} == sums


# What every experiment declares.


@every
def test_an_experiment_declares_its_claims_before_anything_runs(name):
    about = experiment(name)
    assert about.name == name and about.title.endswith("?") and about.claims
    assert len({claim.says for claim in about.claims}) == len(about.claims)
    for claim in about.claims:
        assert claim.says.endswith(".") and claim.source
        assert len(claim.rule_in_words) > 40 and claim.rule_in_words.endswith(".")
        if claim.mistake:
            assert claim.mistake in about.blunders or VARIATIONS[claim.mistake].mistake
    module = experiments.importlib.import_module(
        f"minilora.experiments.{NAMES[name]}.{name.replace('-', '_')}")
    assert len(module.__doc__) > 30


def test_the_report_has_a_place_for_each_and_an_unknown_one_is_refused():
    assert sorted(name for _, names in SECTIONS for name in names) == sorted(NAMES)
    with pytest.raises(ValueError, match="unknown experiment 'ranks': choose method, counts, glue"):
        experiment("ranks")
    with pytest.raises(ValueError, match="unknown experiment 'x'"):
        reporting.select(["rank", "x"])
    assert reporting.select(["rank", "method", "rank"]) == ["method", "rank"]





@pytest.mark.parametrize(("change", "turned"), {
    "start": ({"start": 1}, 0), "changed": ({"changed": 2}, 1), "trained": ({"trained": ["B"]}, 1),
    "nothing moves": ({"moved": 0.0}, 1), "a check fails": ({"checks": 3}, 2),
}.values())
def test_the_method_is_judged_by_each_of_its_numbers(change, turned):
    from minilora.experiments.paper import method

    right = {"start": 0, "trained": ["A", "B"], "steps": 8, "parameters": 68, "total": 10,
             "changed": 0, "moved": 1.0, "apart": 1e-15, "allowed": 1e-12, "checks": 4, "of": 4}
    journal = Journal(None)
    journal.add(method.JOB.key, {"result": right})
    results = Results(journal, FULL)
    words = [verdict.word for verdict in method.EXPERIMENT.verdicts(results)]
    assert words == ["reproduces"] * 3
    wrong = method.EXPERIMENT.verdicts(results.changed(lambda job, result: result | change))
    assert wrong[turned].word == "does not reproduce"


def test_the_counts_are_judged_by_their_statuses_and_ratios():
    from minilora.experiments.paper import counts

    def row(what, exact, status):
        return {"what": what, "exact": exact, "status": status, "source": "T", "shape": "gpt2",
                "printed": "1", "why": ""}

    def words(fewer, memory, status):
        journal = Journal(None)
        journal.add(counts.JOB.key, {"result": {
            "counts": [row("a", 1, status), row("b (tried)", 1, "mismatch")], "sizes": [],
            "ratios": [row(counts.FEWER, fewer, "match"), row(counts.OF_ADAM, memory, "match")],
        }})
        results = Results(journal, FULL)
        assert len(counts.tables(results)) == 4
        return [v.word == "reproduces" for v in counts.EXPERIMENT.verdicts(results)]

    assert words(9_284, 3.0, "match") == [True, True, True]
    assert words(90_000, 2.4, "mismatch") == [False, False, False]
    assert words(1_000, 3.6, "truncated") == [False, False, True]


# The runs that are shipped.


SHIPPED = pytest.mark.skipif(not shipped.RUNS.exists(), reason="no runs are shipped yet")


@pytest.fixture(scope="module")
def stored() -> Results:
    return Results(shipped.shipped(), FULL)


@SHIPPED
@every
def test_the_shipped_runs_are_all_that_an_experiment_needs(name, stored):
    assert shipped.complete(experiment(name), stored)
    assert not shipped.versions(stored.journal)


@SHIPPED
def test_a_planted_mistake_turns_the_verdict_on_the_shipped_runs(stored):
    turned, kept = [], []
    for name in NAMES:
        about = experiment(name)
        for claim in about.claims:
            if claim.mistake:
                before = claim.rule(stored).word
                after = claim.rule(facts.mistaken(about, claim.mistake, stored)).word
                (turned if after != before else kept).append(f"{name}: {claim.says} {before}")
                assert before != "reproduces" or after != before, f"{name}: {claim.says}"
    assert len(turned) >= 5, kept


def test_runs_are_packed_and_found_by_their_settings_in_any_version(tmp_path, monkeypatch, rank):
    path = tmp_path / "runs.jsonl.gz"
    assert not len(shipped.shipped(path))
    shipped.pack(rank.journal, path)
    data = path.read_bytes()
    shipped.pack(rank.journal, path)
    assert path.read_bytes() == data
    monkeypatch.setattr("minilora.jobs.driver.__version__", "9")
    monkeypatch.setattr(shipped, "__version__", "9")
    again = shipped.shipped(path)
    assert len(again) == len(rank.journal) and again.lines.keys() != rank.journal.lines.keys()
    assert shipped.complete(experiment("rank"), Results(again, FULL))
    assert len(shipped.versions(again)) == 1


@given(change=st.floats(-0.1, 0.1).filter(lambda x: abs(x) > 1e-6))
def test_two_results_are_compared_number_by_number(change):
    a = {"test": {"bleu": 50.0, "nist": [1, 2.0]}, "diverged": True, "name": "x"}
    assert {c.apart for c in shipped.compare("run", a, json.loads(json.dumps(a)))} == {0.0}
    b = json.loads(json.dumps(a))
    b["test"]["nist"][1] *= 1 + change
    off = [c for c in shipped.compare("run", a, b) if c.apart]
    assert [c.what for c in off] == ["test nist 1"]
    assert off[0].apart == pytest.approx(abs(change) / max(1, 1 + change))
    assert not any(c.apart for c in shipped.compare("run", [1e-12], [3e-14]))
    del b["test"]["bleu"]
    assert any(c.apart == np.inf for c in shipped.compare("run", a, b))


# The command.


def say(capsys, line):
    code = cli.main(line.split())
    done = capsys.readouterr()
    return code, done.out, done.err


@pytest.fixture
def packed(tmp_path, monkeypatch, rank):
    """The made-up runs of one experiment are those of the package."""
    monkeypatch.setattr(shipped, "RUNS", tmp_path / "runs.jsonl.gz")
    shipped.pack(rank.journal, shipped.RUNS)
    monkeypatch.setattr(shipped.shipped, "__defaults__", (shipped.RUNS,))
    monkeypatch.chdir(tmp_path)


def test_the_command_reports_verdicts_and_where_they_are(packed, plain, capsys):
    with faked() as calls:
        code, out, _ = say(capsys, "reproduce rank --jobs 1")
        assert code == 0 and len(calls) > 100
        assert "1 experiment: " in out and "open report/index.html" in out
        code, again, _ = say(capsys, "reproduce rank --jobs 1 --json")
        assert code == 0 and json.loads(again)["experiments"][0]["name"] == "rank"
        n = len(calls)
        code, out, _ = say(capsys, "reproduce rank --from-runs --out other")
        assert code == 0 and len(calls) == n
    for claim in experiment("rank").claims:
        assert claim.says in out


def test_all_from_runs_leaves_out_what_is_not_there(packed, plain, capsys):
    code, out, err = say(capsys, "reproduce all --from-runs")
    assert code == 0 and "rank:" in out
    assert "not shipped" in out + err
    code, _, err = say(capsys, "reproduce matrices --from-runs --out b")
    assert code == 2 and "has no runs of matrices" in err


def test_ctrl_c_says_how_to_go_on(packed, plain, capsys, monkeypatch):
    def stopped(**config):
        if config["seed"] == 1:
            raise KeyboardInterrupt
        return train(**config)

    monkeypatch.setattr(training, "train", stopped)
    monkeypatch.setattr("minilora.data.tasks.Task.ready", lambda task: None)
    code, _, err = say(capsys, "reproduce rank --jobs 1")
    assert code == 130 and re.search(r"the \d\d finished runs are in report.runs.jsonl: the", err)
    with faked() as calls:
        assert say(capsys, "reproduce rank --jobs 1")[0] == 0
        assert not any(call["seed"] == 0 and not call["variation"] for call in calls)


def test_some_runs_are_checked_and_a_wrong_number_is_told(packed, capsys, monkeypatch):
    with faked():
        code, out, _ = say(capsys, "reproduce rank --check --seed 3")
        assert code == 0 and "numbers are equal" in out and out.count("test bleu ") == 3
        assert re.search(r"(\d+) of \1 numbers are equal", out)
        other = say(capsys, "reproduce rank --check --seed 4")[1]
        assert other != out

    def off(**config):
        result = train(**config)
        result["loss"]["train"] *= 1 + 2 * shipped.TOLERANCE
        return result

    monkeypatch.setattr(training, "train", off)
    code, out, err = say(capsys, "reproduce rank --check --json")
    assert code == 1 and "further apart than 2%" in err
    assert json.loads(out)["passed"] is False


@pytest.mark.parametrize(("line", "words"), [
    ("reproduce", "needs to know what to reproduce: counts, an experiment such as rank, or all"),
    ("reproduce ranks", "did you mean rank?"),
    ("reproduce counts --seeds 3", "counts takes no --seeds"),
    ("reproduce counts --from-runs", "counts takes no --from-runs"),
    ("reproduce rank --markdown", "--markdown is for counts"),
    ("reproduce rank --plain", "an experiment takes no --plain"),
    ("reproduce rank --fast --seeds 3", "leave out --seeds"),
    ("reproduce rank --seeds 1", "--seeds 1: give an integer >= 2"),
    ("reproduce rank --jobs 0", "--jobs 0: give an integer >= 1"),
    ("reproduce all --check", "--check takes one experiment"),
    ("reproduce rank --check --jobs 2", "--check takes one experiment, and no other option"),
    ("reproduce rank --from-runs --jobs 2", "--from-runs runs nothing: leave out --executor"),
    ("reproduce rank --from-runs --fast", "--from-runs runs nothing"),
    ("reproduce rank --from-runs --seeds 4", "--from-runs has 3 seeds"),
    ("reproduce rank --out nowhere/out", "nowhere is not a folder"),
])
def test_options_that_do_not_go_together_are_refused(line, words, packed, capsys):
    with faked() as calls:
        code, _, err = say(capsys, line)
    assert code == 2 and words in err and not calls


def test_an_effect_that_is_not_bounded_is_shown_from_a_stored_page_too():
    one = Effect("a ratio", 1.0, -np.inf, np.inf, np.inf)
    assert str(one) == "a ratio: +1 (95 % interval – to –, noise floor –)"
    assert str(Effect(**facts.plain(vars(one)))) == str(one)


def test_a_library_that_the_scores_need_is_asked_for_before_the_first_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score", None)  # as if it were not installed
    monkeypatch.setattr("minilora.experiments.training.train", lambda **config: pytest.fail("run"))
    with pytest.raises(ImportError, match=r"need (rouge_score|sacrebleu): pip install"):
        run([experiment("nlg")], Journal(None), Scale(2, True))
