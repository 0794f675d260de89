"""What a device's owner sets: a floor of rows, and a privacy budget."""

import pytest
import tiny_fleet

from taskedge.cli.cooperate.privacy_options import ACCOUNT_FILE, account_from_flags, privacy_line
from taskedge.errors import InputError

NONE = {"dp_epsilon": None, "dp_delta": None, "dp_noise": None, "dp_clip": None}


def test_without_a_budget_there_is_no_account_and_the_line_says_so(tmp_path):
    flags = {**NONE, "other": 1}
    assert account_from_flags(flags, tmp_path) is None
    assert flags == {"other": 1}
    assert privacy_line(tiny_fleet.training()) == (
        "steps have 1 rows or more; answers are not differentially private (--dp-epsilon)"
    )


def test_noise_without_a_budget_is_refused(tmp_path):
    with pytest.raises(InputError, match="--dp-noise without a budget"):
        account_from_flags({**NONE, "dp_noise": 2.0}, tmp_path)


def test_a_device_with_a_budget_does_not_answer_without_noise_later(tmp_path):
    (tmp_path / ACCOUNT_FILE).write_text("{}")
    with pytest.raises(InputError, match="answers without noise would void"):
        account_from_flags(dict(NONE), tmp_path)


def test_the_line_states_budget_noise_and_steps_before_the_run(tmp_path):
    pytest.importorskip("opacus.accountants", reason="needs the extra dp")
    from taskedge.cooperation.device.private_training import PrivateTraining

    account = account_from_flags({**NONE, "dp_epsilon": 8.0, "dp_noise": 2.0}, tmp_path)
    model = tiny_fleet.model(layers=2)
    training = PrivateTraining(model, tiny_fleet.rows(), tiny_fleet.collate, account=account)
    left = account.steps_left(8 / 20)
    assert privacy_line(training) == (
        "steps have 8 rows or more; differentially private: ε = 0.000 of 8 at δ = 1e-05 in 0 steps; with noise 2, "
        f"clipped at 1, about {left:,} more steps of 8 of 20 rows fit into the budget"
    )
    account.spend(0.4, 3)
    again = account_from_flags({**NONE, "dp_epsilon": 8.0, "dp_noise": 2.0}, tmp_path)
    assert again.steps == 3
