"""The bench measures what it says: engines agree, every number is there. No time is asserted."""

import json

import pytest

import minilora as ml
from minilora import bench, cli, engines

pytestmark = pytest.mark.usefixtures("numpy_only")


@pytest.fixture
def numpy_only(backend):
    if backend.name != "numpy":
        pytest.skip("the engines run in processes of their own, on NumPy")


def test_a_bench_of_the_tiny_shape_is_complete(capsys):
    names = ["minilora", "torch+peft", "autograd", "floor", "base forward", "merged forward"]
    code = cli.main(["bench", "--json", "--shapes", "tiny", "--rounds", "2", "--no-whole",
                     "--engines", ",".join(names)])  # fmt: skip
    out, _ = capsys.readouterr()
    told = json.loads(out)
    assert code == 0 and set(told["tiny"]) | set(told["missing"]) == set(names)
    for row in told["tiny"].values():
        assert 0 < row["ms"][0] <= row["ms"][1] and row["peak"] > 1 << 20 and row["ratio"] > 0
    assert told["tiny"]["minilora"]["ratio"] == 1


def test_an_engine_that_disagrees_is_refused(monkeypatch):
    class Liar:
        engine = "autograd"

        def ask(self, word, path):
            step = engines.ours("tiny")
            loss, grads = step()
            engines.np.savez(path, **{name: 1.001 * g for name, g in grads().items()})
            return loss

    class Honest(Liar):
        engine = "minilora"

        def ask(self, word, path):
            loss, grads = engines.ours("tiny")()
            engines.np.savez(path, **grads())
            return loss

    with pytest.raises(RuntimeError, match=r"autograd and minilora disagree by 1\.0e-03"):
        bench._agree([Honest(), Liar()])


@pytest.mark.parametrize("option", [["--engines", "abacus"], ["--shapes", "round"]])
def test_unknown_names_are_told_with_what_there_is(option, capsys):
    assert cli.main(["bench", *option]) == 2
    assert "there are" in capsys.readouterr().err


def test_merged_and_base_run_the_same_ops():
    model, (ids, _) = engines.build("tiny")
    ml.lora.merge(model)
    base, _ = engines.build("tiny")
    ml.lora.detach(base)

    def names(m):
        m.requires_grad(True)
        seen, waiting = [], [m(ids)._node]
        while waiting:
            node = waiting.pop()
            seen.append(node.name)
            waiting += [to for to, _ in node.edges if not isinstance(to, ml.Tensor)]
        return seen

    assert names(model) == names(base)
