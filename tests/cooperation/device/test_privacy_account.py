import json

import pytest

pytest.importorskip("opacus.accountants", reason="needs the extra dp")

from taskedge.cooperation.device.privacy_account import (
    BudgetSpent,
    PrivacyAccount,
    PrivacyBudget,
    noise_for,
    spent_epsilon,
)
from taskedge.errors import InputError


def test_epsilon_is_below_opacus_renyi_bound_and_near_a_known_value():
    """Abadi et al. state ε = 1.26 by moments for q = 0.01, noise 4, T = 10,000, δ = 1e-5; PRV is tighter."""
    epsilon = spent_epsilon(((4.0, 0.01, 10_000),), 1e-5)
    assert 0.8 < epsilon < 1.26
    assert spent_epsilon((), 1e-5) == 0.0


def test_little_noise_has_an_epsilon_without_the_grid_that_grows_with_it():
    """The grid of the numerical bound would need terabytes here."""
    rdp = pytest.importorskip("opacus.accountants").RDPAccountant()
    rdp.history = [(0.001 / 8, 1.0, 80)]
    with pytest.warns(UserWarning, match="smallest alpha"):
        assert spent_epsilon(((0.001 / 8, 1.0, 80),), 1e-5) == rdp.get_epsilon(1e-5) > 1e9


def test_the_budget_is_enforced_and_outlives_the_process(tmp_path):
    budget, path = PrivacyBudget(epsilon=3.0, noise=1.0), tmp_path / "privacy.json"
    account = PrivacyAccount(budget, path)
    left = account.steps_left(0.1)
    assert spent_epsilon(((1.0, 0.1, left),), 1e-5) <= 3.0 < spent_epsilon(((1.0, 0.1, round(1.03 * left) + 1),), 1e-5)
    account.spend(0.1, left)
    again = PrivacyAccount(budget, path)
    assert (again.steps, again.epsilon) == (left, account.epsilon)
    with pytest.raises(BudgetSpent, match=f"ε = .* of 3 at δ = 1e-05 after {left} steps"):
        again.spend(0.1, left)
    assert PrivacyAccount(budget, path).steps == left  # a refused release is not written down
    assert "ε = " in str(again)


def test_two_processes_share_one_budget(tmp_path):
    """A supervisor starts a successor while the first process still hangs in a step."""
    budget, path = PrivacyBudget(epsilon=3.0, noise=1.0), tmp_path / "privacy.json"
    first, second = PrivacyAccount(budget, path), PrivacyAccount(budget, path)
    left = first.steps_left(0.1)
    first.spend(0.1, left - 1)
    with pytest.raises(BudgetSpent):
        second.spend(0.1, left)
    assert second.steps == left - 1
    path.unlink()  # what this process knows still counts
    with pytest.raises(BudgetSpent):
        second.spend(0.1, left)


def test_releases_with_other_noise_add_up(tmp_path):
    path = tmp_path / "privacy.json"
    PrivacyAccount(PrivacyBudget(8.0, noise=2.0), path).spend(0.1, 50)
    account = PrivacyAccount(PrivacyBudget(8.0, noise=1.0), path)
    account.spend(0.2, 3)
    assert account.epsilon == spent_epsilon(((1.0, 0.2, 3), (2.0, 0.1, 50)), 1e-5)
    assert account.epsilon > spent_epsilon(((2.0, 0.1, 50),), 1e-5)


def test_noise_for_a_budget_is_enough_and_not_much_more():
    noise = noise_for(3.0, 1e-5, 0.1, 50)
    assert spent_epsilon(((noise, 0.1, 50),), 1e-5) <= 3.0 < spent_epsilon(((0.95 * noise, 0.1, 50),), 1e-5)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[]", "no account of a privacy budget"),
        ("not JSON", "no account of a privacy budget"),
        (json.dumps({"format": "taskedge.privacy", "version": 2, "releases": []}), "install a newer taskedge"),
        (json.dumps({"format": "taskedge.privacy", "version": 1, "releases": [[1.0]]}), "no account"),
    ],
)
def test_a_damaged_account_is_never_taken_for_an_empty_one(tmp_path, content, why):
    path = tmp_path / "privacy.json"
    path.write_text(content)
    with pytest.raises(InputError, match=why):
        PrivacyAccount(PrivacyBudget(1.0), path)


@pytest.mark.parametrize("fields", [{"epsilon": 0}, {"noise": -1}, {"clip": float("inf")}, {"delta": 1}])
def test_a_budget_has_sound_numbers(fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        PrivacyBudget(**{"epsilon": 1.0, **fields})
