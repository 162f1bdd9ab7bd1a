"""config: valid settings are stored as plain numbers; anything else is refused at once."""

import copy
import dataclasses
import json
import math
import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora.lora.config import LoRAConfig
from minilora.models.families import SHAPES
from minilora.models.gpt2 import GPT2Config
from minilora.words import table

KINDS = [GPT2Config, LoRAConfig]
SIZES = ["vocab_size", "n_positions", "d_model", "n_layers", "n_heads"]
names = st.text("abqv.*", min_size=1, max_size=5)
alphas = st.one_of(st.integers(1, 64), st.floats(0.01, 100))
configs = st.one_of(
    st.builds(
        lambda heads, times, **sizes: GPT2Config(n_heads=heads, d_model=heads * times, **sizes),
        st.integers(1, 4), st.integers(1, 5), n_layers=st.integers(1, 9), d_ff=st.integers(0, 9),
        dropout=st.floats(0, 0.99),
    ),
    st.builds(
        LoRAConfig, r=st.integers(1, 99), alpha=alphas, targets=names | st.lists(names),
        dropout=st.floats(0, 0.99), init=st.sampled_from(["gaussian", "kaiming"]),
        bias=st.sampled_from(["none", "lora", "all"]), trainable=st.lists(names),
        rank_pattern=st.dictionaries(names, st.integers(1, 9), max_size=3),
        alpha_pattern=st.dictionaries(names, alphas, max_size=3),
    ),
)


@given(configs)
def test_a_config_survives_copies_pickles_and_json(config):
    kind, settings = type(config), dataclasses.asdict(config)
    others = [
        copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config)),
        dataclasses.replace(config), kind(*settings.values()), kind(**settings),
        kind(**json.loads(json.dumps(settings))),
    ]
    assert all(type(other) is kind and other == config for other in others)
    assert dataclasses.replace(config, dropout=0.25).dropout == 0.25


@given(st.sampled_from(KINDS), st.sampled_from([np.int64, np.uint8, np.float32, np.float64]))
def test_numpy_numbers_become_numbers_that_json_can_store(kind, number):
    integer = number if np.issubdtype(number, np.integer) else int
    given_ = {"dropout": number(0)}
    if kind is LoRAConfig:
        given_ |= {"r": integer(3), "alpha": number(5), "rank_pattern": {"q": integer(2)},
                   "alpha_pattern": {"q": number(7)}}
    else:
        given_ |= {name: integer(4) for name in [*SIZES, "d_ff"]}
    config = kind(**given_)
    assert json.loads(json.dumps(dataclasses.asdict(config))) | {"targets": 0, "trainable": 0} == (
        dataclasses.asdict(kind()) | given_ | {"targets": 0, "trainable": 0}
    )


def test_one_pattern_may_stand_alone_and_mappings_are_copied():
    ranks = {"q": 3}
    config = LoRAConfig(targets="attn.q", trainable=["ln_f"], rank_pattern=ranks)
    ranks["q"] = 0
    assert (config.targets, config.trainable) == (("attn.q",), ("ln_f",))
    assert config.rank_pattern == {"q": 3} and config.alpha_pattern == {}


def test_the_defaults_are_gpt2_small_and_the_papers():
    c = GPT2Config()
    assert [getattr(c, name) for name in SIZES] == [50257, 1024, 768, 12, 12] and c.d_ff == 0
    assert LoRAConfig() == LoRAConfig(8, 8.0, ("q", "v"), 0.0, "gaussian", "none", ())
    assert {name: c.d_model // c.n_heads for name, c in SHAPES.items()} == {
        "gpt2": 64, "gpt2-medium": 64, "gpt2-large": 64, "gpt2-xl": 64, "gpt3-175b": 128,
        "bert-base": 64, "roberta-base": 64, "roberta-large": 64, "deberta-v2-xxlarge": 64,
        "smollm2-135m": 64,
    }


def refused(kind, name, value, words, error=ValueError):
    with pytest.raises(error, match=f"^{kind.__name__}: {words}"):
        kind(**{name: value})


@pytest.mark.parametrize("bad", [0, -1, 1.0, 2.5, math.nan, True, "4", None])
def test_a_size_is_an_integer_from_1(bad):
    for name in SIZES:
        refused(GPT2Config, name, bad, rf"{name} must be an integer >= 1, not .*{bad}")
    refused(LoRAConfig, "r", bad, rf"r must be an integer >= 1, not .*{bad}")
    refused(LoRAConfig, "rank_pattern", {"k": 2, "q": bad},
            rf"rank_pattern\['q'\] must be an integer >= 1, not .*{bad}")
    if bad != 0 or bad is False:
        refused(GPT2Config, "d_ff", bad, rf"d_ff must be an integer >= 0, not .*{bad}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [1, -0.1, math.nan, math.inf, True, "0.1", None])
def test_dropout_is_in_0_to_1(kind, bad):
    refused(kind, "dropout", bad, rf"dropout must be in \[0, 1\), not .*{bad}")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, True, "8", None, 10**400])
def test_alpha_is_a_finite_number(bad):
    refused(LoRAConfig, "alpha", bad, "alpha must be a finite number, not ")
    refused(LoRAConfig, "alpha_pattern", {"q": bad}, r"alpha_pattern\['q'\] must be a finite ")


def test_an_alpha_of_0_is_refused_and_a_negative_one_warns():
    refused(LoRAConfig, "alpha", 0, "alpha must not be 0: .* could change and learn nothing")
    refused(LoRAConfig, "alpha_pattern", {"q": -0.0}, r"alpha_pattern\['q'\] must not be 0: ")
    says = r"^LoRAConfig: alpha is -2.5: a negative alpha "
    with pytest.warns(UserWarning, match=says) as caught:
        assert LoRAConfig(alpha=-2.5).alpha == -2.5
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=r"^LoRAConfig: alpha_pattern\['q'\] is -1: "):
        LoRAConfig(alpha_pattern={"q": -1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LoRAConfig(alpha=1e-9)


@pytest.mark.parametrize("name", ["targets", "trainable"])
@pytest.mark.parametrize("bad", [None, 3, ["q", 3], [["q"]], b"q", True])
def test_patterns_are_text(name, bad):
    refused(LoRAConfig, name, bad, rf'{name} takes patterns such as "q" .*, not ')


@pytest.mark.parametrize("name", ["rank_pattern", "alpha_pattern"])
def test_patterns_with_a_number_are_a_mapping(name):
    for bad in (4, ["q"], "q", None):
        refused(LoRAConfig, name, bad, f'{name} must be a mapping such as {{"attn.q": 4}}, not ')
    refused(LoRAConfig, name, {3: 4}, f"{name} takes patterns .*, not 3")


def test_an_unknown_choice_lists_the_known_ones():
    refused(LoRAConfig, "init", "x", "init must be one of gaussian, kaiming, not 'x'")
    refused(LoRAConfig, "bias", None, "bias must be one of none, lora, all, not None")


def test_heads_divide_the_width():
    refused(GPT2Config, "n_heads", 7, "d_model 768 is not a multiple of n_heads 7")


@given(st.sampled_from(KINDS), st.sampled_from([*table().names, *table().remedies, *"abcdefgh"]))
def test_an_unknown_setting_is_refused_with_ours_or_a_remedy(kind, name):
    fields = [field.name for field in dataclasses.fields(kind)]
    if name in fields:
        return
    with pytest.raises(TypeError) as error:
        kind(dropout=0.1, **{name: 3})
    message = str(error.value)
    assert message.startswith(f"{kind.__name__}: ") and name in message
    ours = [word for word in table().names.get(name, ()) if word in fields]
    if ours:
        assert message == f"{kind.__name__}: {name} is called {ours[0]} here"
    elif name in table().remedies:
        assert message == f"{kind.__name__}: {name} {table().remedies[name]}"
    else:
        assert message.endswith(f"t takes {', '.join(fields)}")


@pytest.mark.parametrize(
    "kind, name, words",
    [
        (LoRAConfig, "lora_alpha", "lora_alpha is called alpha here"),
        (LoRAConfig, "target_modules", "target_modules is called targets here"),
        (GPT2Config, "hidden_size", "hidden_size is called d_model here"),
        (LoRAConfig, "target", r"unknown argument 'target': did you mean targets\? It takes r, al"),
        (GPT2Config, "vocab", r"unknown argument 'vocab': did you mean vocab_size\? It takes voca"),
        (LoRAConfig, "zzz", "unknown argument 'zzz': it takes r, alpha, targets, "),
        (LoRAConfig, "n_embd", "unknown argument 'n_embd': it takes "),
    ],
)
def test_the_answer_to_a_misspelt_setting(kind, name, words):
    refused(kind, name, 3, words, TypeError)


def test_the_public_names_are_these():
    assert ml.GPT2Config is GPT2Config and ml.LoRAConfig is LoRAConfig
