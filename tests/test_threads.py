"""Shared work: every row once, the same bits, errors are raised, BLAS's threads are restored."""

import os
import select
import signal
import threading
import time
import traceback

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import adapted, bits, ids, in_pieces, normal

import minilora as ml
from minilora import lora, ops
from minilora.backend import threads

PATIENCE = 120  # seconds: what takes longer hangs


@pytest.fixture(autouse=True)
def backend():
    """Only the host: a device shares by itself."""
    with ml.using("numpy") as host:
        yield host


@pytest.fixture
def shared():
    """Three threads share work of any size, in small pieces."""
    with in_pieces():
        yield


@pytest.fixture
def blas():
    """Return OpenBLAS's function that gets its number of threads, which is two for now."""
    set_threads, get_threads = threads._blas()
    if set_threads is None:
        pytest.skip("this NumPy's BLAS cannot be told how many threads to use")
    before = get_threads()
    set_threads(2)
    yield get_threads
    set_threads(before)


def train(seed=0, steps=4, dropout=0.2):
    """Train a small model for a few steps; return its losses and all its arrays."""
    model, _ = adapted(seed, targets=("q", "v", "o", "up"), dropout=dropout)
    optimizer = ml.AdamW(model.trainable_parameters(), 1e-2)
    history = ml.fit(model, [(ids(seed), ids(seed + 1))], optimizer, steps, progress=False)
    return history.losses, bits(model)


def in_threads(*tasks):
    """Run the tasks in Python threads at the same time; return their results, or raise."""
    given, start = [None] * len(tasks), threading.Barrier(len(tasks), timeout=PATIENCE)

    def run(i, task):
        try:
            start.wait()
            given[i] = task()
        except BaseException as error:
            given[i] = error

    workers = [threading.Thread(target=run, args=at, daemon=True) for at in enumerate(tasks)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "it hangs"
    for result in given:
        if isinstance(result, BaseException):
            raise result
    return given


# How work is cut


@given(st.integers(0, 40), st.integers(0, 1 << 18), st.integers(0, 7))
def test_pieces_cover_every_row_once_and_are_not_too_large(n, size, piece):
    cuts = threads.pieces(n, size, piece)
    assert [i for at in cuts for i in range(n)[at]] == list(range(n))
    assert all(len(range(n)[at]) <= (piece or n) for at in cuts)
    if size >= threads.WORTH and n > 1:
        assert len(cuts) >= 2 and (len(cuts) % 2 == 0 or len(cuts) == n), (
            "something for each of two"
        )
        assert len(cuts) == 2 or piece, "no more than that, where little is to be done"
    elif not piece:
        assert len(cuts) == 1


@given(st.integers(0, 40), st.sampled_from([1, threads.WORTH, 9 * threads.EACH]), st.integers(0, 7))
def test_every_row_is_done_once_whatever_the_number_of_threads(n, size, piece):
    seen = []
    for among in (1, 2, 3, 8):
        done, before = np.zeros(n, int), ml.threads(among)
        cuts = []

        def task(at, done=done, cuts=cuts):
            done[at] += 1
            cuts.append((at.start, at.stop))

        try:
            threads.share(task, n, size, piece)
        finally:
            ml.threads(before)
        assert (done == 1).all()
        seen.append(sorted(cuts))
    assert all(cuts == seen[0] for cuts in seen), "cut at the same rows"


def test_small_work_stays_in_its_thread_and_in_one_of_blas(blas):
    seen = []
    task = lambda at: seen.append((threading.current_thread(), blas(), at))  # noqa: E731
    threads.share(task, 9, threads.WORTH - 1)  # too small, but the same bits
    assert seen == [(threading.current_thread(), 1, slice(0, 9))]
    assert blas() == 2


def test_large_work_is_really_shared(blas):
    """By exactly the number of threads that was set: all of them are inside at the same time."""
    before, together, who = ml.threads(3), threading.Barrier(3, timeout=PATIENCE), set()
    try:
        threads.share(lambda at: together.wait(), 3, threads.WORTH, 1)
        threads.share(lambda at: who.add(threading.current_thread()), 12, threads.WORTH, 1)
    finally:
        ml.threads(before)
    assert len(who) == 3


@pytest.mark.parametrize("n", [-1, 1.5, True, "2"])
def test_the_number_of_threads_is_a_whole_number(n):
    before = ml.threads()
    with pytest.raises(ValueError, match=r"threads: n must be an integer, 0 for one per core"):
        ml.threads(n)
    assert ml.threads() == before


def test_the_number_of_threads_is_returned_and_set():
    first = ml.threads(3)
    assert ml.threads() == 3 and ml.threads(1) == 3 and ml.threads(0) == 1
    assert ml.threads(first) == threads.cores() >= 1, "0 is one per core"


@pytest.mark.parametrize(("allowed", "blas_has", "expected"), [(7, 4, 4), (3, 4, 3), (5, 0, 5)])
def test_there_are_as_many_threads_as_cores_unless_blas_is_limited_to_fewer(
    allowed, blas_has, expected, monkeypatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(allowed), raising=False)
    monkeypatch.setattr(threads, "_blas", lambda: (None, lambda: 9))
    monkeypatch.setattr(threads, "_before", blas_has)
    monkeypatch.setattr(threads, "_inside", {0: None} if blas_has else {})
    assert threads.cores() == expected


# The same bits


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_after_an_error_no_thread_begins_its_part_and_none_is_still_at_work(error, shared, blas):
    ml.threads(2)
    for in_mine in (True, False):
        log, begun = [], threading.Event()

        def task(at, in_mine=in_mine, log=log, begun=begun):
            if at.start:
                log.append(f"begin {at.start}")
                begun.set()
                time.sleep(0.05)
                if not in_mine:
                    raise error
                log.append(f"end {at.start}")
            elif in_mine:
                assert begun.wait(PATIENCE)
                raise error

        with pytest.raises(error):
            threads.share(task, 2, 2, 1)
        assert log == ["begin 1", "end 1"][: 1 + in_mine] and blas() == 2


def test_the_bits_of_a_run_do_not_depend_on_the_number_of_threads():
    with in_pieces(among=1):
        wanted = train()
    for among in (2, 3):
        with in_pieces(among=among):
            assert train() == wanted


def test_nor_at_sizes_at_which_it_is_shared_anyway():
    """Without patches: products, norms and attention of a model that is large enough."""

    def run():
        sizes = {"d_model": 64, "n_positions": 64, "vocab_size": 97}
        model, _ = adapted(0, "float32", targets=("q", "v", "down"), sizes=sizes)
        loss = ops.cross_entropy(model(ids(0, 4, 64, 97)), ids(1, 4, 64, 97))
        loss.backward()
        return [loss.item(), *(ml.asnumpy(p.grad) for p in model.trainable_parameters().values())]

    before, results = ml.threads(1), []
    try:
        for among in (1, 2, 3):
            ml.threads(among)
            results.append(run())
    finally:
        ml.threads(before)
    for other in results[1:]:
        assert all(map(np.array_equal, other, results[0]))


def test_loss_and_gradients_are_the_same_cut_and_whole():
    def run():
        model, _ = adapted(targets=("q", "v", "o", "up"))
        loss = ops.cross_entropy(model(ids(0, 3, 9)), ids(1, 3, 9))
        loss.backward()
        return [loss.item(), *(ml.asnumpy(p.grad) for p in model.trainable_parameters().values())]

    alone = run()
    with in_pieces():
        together = run()
    for a, b in zip(alone, together):  # the same sums, other cuts
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_merged_and_unmerged_agree_when_shared(shared):
    model, _ = adapted()
    unmerged = ml.asnumpy(model(ids()).data)
    lora.merge(model)
    np.testing.assert_allclose(ml.asnumpy(model(ids()).data), unmerged, rtol=1e-11, atol=1e-12)


# Errors


@pytest.mark.parametrize("bad", range(4))
def test_an_error_in_any_thread_is_raised_and_work_goes_on(bad, shared, blas):
    done = []

    def task(at):
        if at.start == bad:
            raise ValueError(f"row {bad}")
        done.append(at.start)

    with pytest.raises(ValueError, match=f"row {bad}"):
        threads.share(task, 4, 4, 1)
    assert blas() == 2 and not threads._own.sharing and bad not in done
    done.clear()
    threads.share(lambda at: done.append(at.start), 4, 4, 1)
    assert sorted(done) == [0, 1, 2, 3]


def test_what_a_kernel_raises_in_a_worker_reaches_the_caller(shared, monkeypatch):
    def broken(x, phi, y):
        raise RuntimeError("broken")

    monkeypatch.setitem(ml.kernels.rowwise._GELU, "tanh", (broken, broken))
    with pytest.raises(RuntimeError, match="broken"):
        ops.gelu(ml.Tensor(normal(0, 3, 5)))
    monkeypatch.undo()


@pytest.mark.parametrize("among", [1, 3])
def test_numpys_errstate_holds_in_every_thread(among):
    large, by = np.full(4, 1e300), []

    def task(at):
        if at.start == 3:  # the last piece: in another thread, if there is one
            by.append(threading.current_thread())
            large[at] * large[at]

    with in_pieces(among=among):
        with np.errstate(over="raise"), pytest.raises(FloatingPointError, match="overflow"):
            threads.share(task, 4, 4, 1)
        with np.errstate(over="ignore"):  # a warning is an error
            threads.share(task, 4, 4, 1)
    if threads._blas()[0]:
        assert [thread is threading.current_thread() for thread in by] == [among == 1] * 2


# BLAS's own threads


def test_blas_has_one_thread_inside_and_its_own_afterwards_even_after_an_error(shared, blas):
    counts = []
    threads.share(lambda at: counts.append(blas()), 4, 4, 1)
    assert counts == [1] * 4 and blas() == 2

    def task(at):
        threads.share(lambda at: counts.append(blas()), 4, 4, 1)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        in_threads(lambda: threads.share(task, 4, 4, 1))
    assert set(counts) == {1} and blas() == 2


def test_a_users_numpy_keeps_the_threads_of_its_blas(blas):
    train(steps=1)
    assert blas() == 2
    ml.generate(adapted()[0], [1, 2], 2, rng=0)
    assert blas() == 2


def test_blas_has_its_threads_back_when_two_who_compute_leave_one_after_the_other(shared, blas):
    inside, leave, counts = threading.Event(), threading.Event(), []

    def first(at):
        inside.set()
        assert leave.wait(PATIENCE)

    thread = threading.Thread(target=lambda: threads.share(first, 1, 1))
    thread.start()
    assert inside.wait(PATIENCE)
    threads.share(lambda at: counts.append(blas()), 4, 4, 1)
    assert blas() == 1, "somebody is still inside"
    leave.set()
    thread.join(PATIENCE)
    assert counts == [1] * 4 and blas() == 2


def test_small_attention_has_the_same_bits_for_any_number_of_blas_threads(blas):
    q, k, v = (normal(i, 1, 61, 498, dtype="float32") for i in range(3))
    seen = []
    for n in (1, 2):
        threads._blas()[0](n)
        x = [ml.Tensor(a, requires_grad=True) for a in (q, k, v)]
        out = ops.attention(*x, heads=1)
        out.sum().backward()
        assert blas() == n
        seen.append([out.data, *(t.grad for t in x)])
    assert all(map(np.array_equal, *seen))


# Nested sharing, and two threads that share at the same time


def test_a_task_that_shares_again_does_that_by_itself(shared):
    met = []

    def outer(at):
        here = []
        threads.share(lambda at: here.append(threading.current_thread()), 6, 6, 1)
        met.append(here == [threading.current_thread()] * 6)

    in_threads(lambda: threads.share(outer, 4, 4, 1))
    assert met == [True] * 4


@pytest.mark.parametrize("among", [1, 3])
def test_two_models_trained_at_once_are_those_trained_one_after_the_other(among):
    with in_pieces(among=among):
        wanted = [train(seed, steps=6) for seed in (1, 2)]
        assert in_threads(lambda: train(1, steps=6), lambda: train(2, steps=6)) == wanted
    assert wanted[0] != wanted[1]


def test_what_one_thread_does_not_record_another_does():
    """no_grad, plain and replaced ops belong to a thread, and so does an error inside them."""
    inside, done = threading.Event(), threading.Event()

    def evaluates():
        model, _ = adapted(1)
        with ml.no_grad(), ops.plain():
            inside.set()
            assert done.wait(PATIENCE)
            return model(ids())._node is None and not ml.tensor.recording()

    def trains():
        assert inside.wait(PATIENCE)
        try:
            return train(2, steps=2)
        finally:
            done.set()

    evaluated, trained = in_threads(evaluates, trains)
    assert evaluated and trained == train(2, steps=2) and ml.tensor.recording()


def test_an_error_in_one_thread_is_not_raised_in_another(shared):
    def fails():
        def task(at):
            raise ZeroDivisionError

        for _ in range(50):
            with pytest.raises(ZeroDivisionError):
                threads.share(task, 4, 4, 1)

    def works():
        done = []
        for _ in range(50):
            threads.share(lambda at: done.append(at.start), 4, 4, 1)
        return sorted(done)

    assert in_threads(fails, works)[1] == sorted([*range(4)] * 50)


# A fork, as multiprocessing does it


def forked(child) -> int:
    """Run this in a forked child; return its exit status. A child that hangs fails."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(read)
            child()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write)
    hangs = not select.select([read], [], [], PATIENCE)[0]  # closed when the child has ended
    os.close(read)
    if hangs:
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    assert not hangs, "the child hangs"
    return os.waitstatus_to_exitcode(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # it must work
@pytest.mark.parametrize("where", ["outside", "while another thread computes", "in shared work"])
def test_a_child_of_a_fork_computes_and_leaves(where, blas):
    x, W = normal(0, 300, 40), normal(1, 30, 40)

    def product():
        y = ops.linear(ml.Tensor(x), ml.Tensor(W, requires_grad=True))
        y.sum().backward()
        return ml.asnumpy(y)

    with in_pieces():
        wanted = product()  # the threads are alive

        def child():
            assert blas() == 2, "not what shared work had set"
            assert np.array_equal(product(), wanted) and blas() == 2
            together, results = threading.Barrier(3, timeout=PATIENCE / 2), []
            threads.share(lambda at: results.append(together.wait() * 0 + blas()), 3, 3, 1)
            assert results == [1, 1, 1], "work is shared again, and BLAS uses one thread"

        if where == "outside":
            assert forked(child) == 0
        elif where == "in shared work":
            results = []
            threads.share(lambda at: at.start or results.append(forked(child)), 3, 3, 1)
            assert results == [0]
        else:
            stop = threading.Event()

            def computes():
                while not stop.is_set():
                    product()

            thread = threading.Thread(target=computes)
            thread.start()
            try:
                time.sleep(0.01)
                for _ in range(5):
                    assert forked(child) == 0
            finally:
                stop.set()
                thread.join(PATIENCE)
        assert np.array_equal(product(), wanted) and blas() == 2, "and the parent goes on"
