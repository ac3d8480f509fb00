"""Contracts over every registered power normalisation, and the formulas of each."""

import numpy as np
import pytest
import torch

from vmp.config import get_cfg
from vmp.prompts import POWER_NORMS

NAMES = [name for name, _ in POWER_NORMS]
LEARNABLE = [name for name in NAMES if name != "identity"]


def make(name, **kwargs):
    return POWER_NORMS.get(name)(**kwargs)


def test_the_paper_its_four_rivals_and_its_ablation_are_registered():
    assert sorted(NAMES) == ["asinhe", "gamma", "identity", "maxexp", "sigme", "sigmoid"]


@pytest.mark.parametrize("name", NAMES)
def test_attention_is_bounded_and_grows_with_the_difference(name):
    with torch.no_grad():
        attention = make(name)(torch.linspace(-1, 1, 201))
    assert attention.min() >= 0
    assert attention.max() <= 1
    assert (attention.diff() >= 0).all()
    assert attention[-1] > 0.9


@pytest.mark.parametrize("name", LEARNABLE)
@pytest.mark.parametrize("learnable", [True, False])
def test_fixed_or_learned_as_asked(name, learnable):
    parameters = list(make(name, learnable=learnable).parameters())
    assert bool(parameters) is learnable


@pytest.mark.parametrize("name", LEARNABLE)
def test_state_dict_carries_the_parameter_whether_learned_or_not(name):
    learned, fixed = make(name, learnable=True), make(name, learnable=False)
    fixed.load_state_dict(learned.state_dict())
    differences = torch.linspace(-1, 1, 50)
    with torch.no_grad():
        assert torch.equal(learned(differences), fixed(differences))


@pytest.mark.parametrize("name", LEARNABLE)
def test_gradients_are_those_of_finite_differences(name):
    start = {"m": 0.7, "n": 0.2} if name == "sigmoid" else {}
    power_norm = make(name, learnable=True, **start).double()
    differences = torch.tensor([-0.9, -0.2, 0.1, 0.45, 0.9], dtype=torch.float64)
    names = [key for key, _ in power_norm.named_parameters()]

    def f(*values):
        chosen = dict(zip(names, values, strict=True))
        return torch.func.functional_call(power_norm, chosen, (differences,))

    assert torch.autograd.gradcheck(f, tuple(power_norm.parameters()))


@pytest.mark.parametrize("name", LEARNABLE)
def test_gradients_are_finite_at_the_ends_and_at_zero(name):
    power_norm = make(name, learnable=True)
    differences = torch.tensor([-1.0, -0.0, 0.0, 1e-30, 1e-8, 1.0], requires_grad=True)
    power_norm(differences).sum().backward()
    assert torch.isfinite(differences.grad).all()
    for parameter in power_norm.parameters():
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize(
    ("name", "arguments", "formula"),
    [
        ("gamma", {"exponent": 0.3}, lambda p: p**0.3),
        ("maxexp", {"eta": 3.35}, lambda p: 1 - (1 - p) ** 3.35),
        ("sigme", {"eta": 7.95}, lambda p: 2 / (1 + np.exp(-7.95 * p)) - 1),
        (
            "asinhe",
            {"gamma": 100.0},
            lambda p: np.log(100 * p + np.sqrt(1 + (100 * p) ** 2)) / np.arcsinh(100),
        ),
    ],
)
def test_rivals_follow_their_formulas_on_positive_differences(name, arguments, formula):
    differences = np.linspace(-1, 1, 101)
    ours = make(name, **arguments)(torch.from_numpy(differences))
    np.testing.assert_allclose(ours, formula(np.maximum(differences, 0)), atol=2e-6)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("gamma", {"exponent": 1.5}),
        ("gamma", {"exponent": 0.0}),
        ("maxexp", {"eta": 1.0}),
        ("sigme", {"eta": 0.5}),
        ("asinhe", {"gamma": 0.0}),
        ("sigmoid", {"alpha": 0.0}),
        ("sigmoid", {"m": 0.0}),
    ],
)
def test_values_out_of_range_are_refused(name, arguments):
    with pytest.raises(ValueError, match="must be"):
        make(name, **arguments)


@pytest.mark.parametrize("name", ["gamma", "maxexp", "sigme", "asinhe"])
def test_a_learned_parameter_keeps_to_its_range(name):
    power_norm = make(name, learnable=True)
    with torch.no_grad():
        power_norm.raw.fill_(-50.0)
        low = float(power_norm.value())
        power_norm.raw.fill_(50.0)
        high = float(power_norm.value())
    assert power_norm.lowest <= low < high
    if name == "gamma":
        assert high <= 1


def test_the_identity_is_one_everywhere_and_learns_nothing():
    power_norm = make("identity")
    assert (power_norm(torch.linspace(-1, 1, 201)) == 1).all()
    assert power_norm.describe() == {"f0": 1.0}
    assert not list(power_norm.parameters())
    assert not power_norm.state_dict()


def test_the_start_that_the_config_names_as_near_the_identity_is():
    # Eq. 2 and 3 for m = 1, n = -1, D = 0
    a, b = 5 / (0.45 * np.tanh(1.0) + 0.1), 0.6 * np.tanh(-1.0)
    still = 1 / (1 + np.exp(a * b))
    assert still == pytest.approx(0.994, abs=5e-4)
    assert float(make("sigmoid", m=1.0, n=-1.0).describe()["f0"]) == pytest.approx(still, rel=1e-6)


def test_sigmoid_describes_what_it_learned():
    described = make("sigmoid", m=0.2646, n=-0.6615).describe()
    # the values published for HMDB-51
    assert float(described["a"]) == pytest.approx(23.11, abs=0.02)
    assert float(described["b"]) == pytest.approx(-0.348, abs=0.002)
    assert float(described["f0"]) > 0.999


@pytest.mark.parametrize("name", NAMES)
def test_section_is_the_signature(name):
    import inspect

    section = get_cfg().PROMPT[name.upper()]
    parameters = inspect.signature(POWER_NORMS.get(name)).parameters
    assert {key.lower(): value for key, value in section.items()} == {
        key: parameter.default for key, parameter in parameters.items()
    }
