"""Folders as Hugging Face lays them out: what is written is read, and nothing else is."""

import pytest
from strategies import DEBERTAS, made, same_bytes

import minilora as ml

pytestmark = pytest.mark.usefixtures("numpy_first")
KINDS = [
    ("gpt2", {}), ("gpt2", {"d_ff": 5, "dropout": 0.25}), ("bert", {"num_labels": 3}),
    ("bert", {}), ("bert", {"head": "pooler"}), ("bert", {"head": "none"}),
    ("roberta", {"padding_id": 3}), ("roberta", {"num_labels": 1}), ("roberta", {"head": "pooler"}),
    ("deberta", {"num_labels": 2}), ("deberta", {"head": "none"}),
    *(("deberta", sizes) for sizes in DEBERTAS),
]


@pytest.mark.parametrize(("family", "sizes"), KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_a_written_model_is_read_back(tmp_path, family, sizes, dtype):
    model = made(family, 1, dtype, **sizes)
    place = model.save_pretrained(tmp_path / "model")
    assert sorted(x.name for x in place.iterdir()) == ["config.json", "model.safetensors"]
    readers = type(model).from_pretrained, ml.load_model
    for read in readers[: 1 if family == "deberta" else 2]:
        again = read(place, dtype=dtype)
        assert type(again) is type(model) and not again.training
        assert again.config == model.config
        ours, theirs = model.state_dict(), again.state_dict()
        assert [*ours] == [*theirs]
        assert all(same_bytes(ours[name], theirs[name]) for name in ours)
