"""Options of a device for what may be learned of its rows: a floor of rows per step, and a privacy budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from taskedge.errors import InputError

if TYPE_CHECKING:
    from taskedge.cooperation.device.local_training import LocalTraining
    from taskedge.cooperation.device.privacy_account import PrivacyAccount

ACCOUNT_FILE = "privacy.json"
"""In the device's bundle: what was spent of its privacy budget."""

min_rows_option = click.option(
    "--min-rows",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Refuse steps and statistics on fewer rows: a gradient of few rows tells what they are.",
)


def privacy_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a privacy budget."""
    for decorate in (
        click.option("--dp-clip", type=float, help="Largest norm that a row's gradient counts with.  [default: 1]"),
        click.option(
            "--dp-noise",
            type=float,
            help="Standard deviation of the noise, as a multiple of --dp-clip: more noise, more steps.  [default: 1]",
        ),
        click.option("--dp-delta", type=float, help="Probability of exceeding the budget.  [default: 1e-5]"),
        click.option(
            "--dp-epsilon",
            type=float,
            help="Privacy budget ε of every row of this device, over all runs: answers are clipped and noised, and the "
            "device stops answering when it is spent. What was spent is kept in the bundle.",
        ),
    ):
        command = decorate(command)
    return command


def account_from_flags(flags: dict[str, Any], bundle: Path) -> PrivacyAccount | None:
    """Return the account that the flags describe, None without a budget. The flags are removed.

    Raises:
        InputError: There is noise without a budget, or an earlier budget that this command does not state.
    """
    given = {name.removeprefix("dp_"): flags.pop(name) for name in ("dp_epsilon", "dp_delta", "dp_noise", "dp_clip")}
    given = {name: value for name, value in given.items() if value is not None}
    path = bundle / ACCOUNT_FILE
    if "epsilon" not in given:
        if given:
            raise InputError(f"--dp-{next(iter(given))} without a budget: state --dp-epsilon as well")
        if path.exists():
            raise InputError(
                f"{path}: this device has answered within a privacy budget, which answers without noise would void: "
                "state --dp-epsilon, or delete the file to give the protection up"
            )
        return None
    from taskedge.cooperation.device.privacy_account import PrivacyAccount, PrivacyBudget

    return PrivacyAccount(PrivacyBudget(**given), path)


def privacy_line(training: LocalTraining) -> str:
    """Return what a device says about its rows' privacy before it takes part."""
    from taskedge.cooperation.device.private_training import PrivateTraining

    floor = f"steps have {training.min_rows} rows or more"
    if not isinstance(training, PrivateTraining):
        return f"{floor}; answers are not differentially private (--dp-epsilon)"
    account, budget = training.account, training.account.budget
    left = account.steps_left(training.rate(training.min_rows))
    return (
        f"{floor}; differentially private: {account}; with noise {budget.noise:g}, clipped at {budget.clip:g}, about "
        f"{left:,} more steps of {training.min_rows} of {len(training.rows):,} rows fit into the budget"
    )
