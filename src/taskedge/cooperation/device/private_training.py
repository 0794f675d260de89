"""Local training whose answers are differentially private with respect to each row of the device.

Every local step samples the rows independently, clips each row's gradient, sums, and adds Gaussian noise, all with
random numbers that the coordinator does not know. What leaves the device follows from these sums alone: the gradient or
the new values, and the loss, which is one more clipped and noisy coordinate. Tokens are the expected number of rows.
Statistics are taken over random tokens, or over rows that the owner calls public.

The number of rows and the seconds of a training are not protected.

Source: differentially private SGD, arXiv 1607.00133; the loss as a coordinate, this project.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import nn

from taskedge.backbone.candidates import candidates
from taskedge.backbone.cost_model import dummy_inputs
from taskedge.cooperation.device.local_training import LocalResult, LocalTraining
from taskedge.cooperation.device.privacy_account import PrivacyAccount
from taskedge.cooperation.protocol.round_task import RoundTask, TrainingRecipe
from taskedge.errors import InputError
from taskedge.forms.row_gradients import clipped_sum
from taskedge.selection.statistics import LinearStatistics, measure

LOSS_SHARE = 0.2
"""Length of the loss among the coordinates of a row. The gradient has the rest, √(1 - 0.2²) = 0.98, in equal parts for
the head and for entries."""
MAX_LOSS = 4.0
"""Largest loss that a row counts with."""
RANDOM_TOKENS = 64
"""Tokens of a random row of statistics."""


class PrivateTraining(LocalTraining):
    """Local training within a privacy budget.

    Args:
        given: Those of :class:`LocalTraining`.
        account: What was spent so far. Training is refused once the budget does not cover it.
        public: Rows that need no protection, for statistics; empty: random tokens.
        seed: Of samples and noise; None: from the operating system. For tests: a known seed protects nothing.
        options: Those of :class:`LocalTraining`.

    Raises:
        InputError: δ is not below 1 / rows.
    """

    def __init__(
        self,
        *given: Any,
        account: PrivacyAccount,
        public: Sequence[Any] = (),
        seed: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*given, **options)
        self.account, self._public = account, public
        self._random = torch.Generator().manual_seed(secrets.randbits(63) if seed is None else seed)
        if account.budget.delta >= 1 / len(self.rows):
            raise InputError(
                f"δ = {account.budget.delta:g} protects none of {len(self.rows):,} rows: it must be below "
                f"{1 / len(self.rows):.2g}"
            )

    @property
    def note(self) -> str:
        """The spent part of the budget, as text."""
        return str(self.account)

    def rate(self, rows_per_step: int) -> float:
        """Return the probability with which each row is in the sample of a step."""
        return min(1.0, rows_per_step / len(self.rows))

    def statistics(
        self, needs: Collection[str], batches: int, batch_size: int, seed: int
    ) -> dict[str, LinearStatistics]:
        """Return statistics of the base over public rows, or over random tokens. They reveal nothing of the rows."""
        self._uninstall()
        if self._public:
            batch = self.collate(list(self._public))
        else:
            positions = getattr(getattr(self.model, "config", None), "max_position_embeddings", RANDOM_TOKENS)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                batch = dummy_inputs(self.model, batches * batch_size, min(RANDOM_TOKENS, positions))
        return measure(self.model, candidates(self.model), [batch], needs)

    def _train(
        self,
        task: RoundTask,
        recipe: TrainingRecipe,
        parameters: dict[str, nn.Parameter],
        batches: list[list[int]],
        check: Callable[[], None],
    ) -> LocalResult:
        rows_per_step = recipe.batch_size * task.accumulate
        rate = self.rate(rows_per_step)
        self.account.check(rate, recipe.local_steps)
        optimizer = self._optimizer(recipe, parameters) if recipe.local_steps > 1 else None
        losses = 0.0
        for _ in range(recipe.local_steps):
            losses += self._private_gradient(parameters, rate, recipe.batch_size, check)
            if optimizer is not None:
                optimizer.step()
        self.account.spend(rate, recipe.local_steps)  # before the result is returned, and so before it can leave
        source = {n: p.detach() if optimizer is not None else p.grad for n, p in parameters.items()}
        copies = {n: t.to(device="cpu", dtype=torch.float32, copy=True) for n, t in source.items() if t is not None}
        return LocalResult(copies, rows_per_step * recipe.local_steps, losses / recipe.local_steps)

    def _groups(self, names: Collection[str]) -> list[list[str]]:
        """Return the names that are clipped together: those of the head, and all others.

        A head's gradients are far larger than those of entries. With one norm for both, little would remain of entries.
        """
        head = set(self.full_parameters)
        groups = [[name for name in names if (name in head) == of_head] for of_head in (True, False)]
        return [group for group in groups if group]

    def _private_gradient(
        self, parameters: dict[str, nn.Parameter], rate: float, batch_size: int, check: Callable[[], None]
    ) -> float:
        """Set the parameters' gradients to a noisy mean over a sample, and return the noisy mean of the losses."""
        budget, draw = self.account.budget, self._random
        groups = self._groups(parameters)
        clip = budget.clip * ((1 - LOSS_SHARE**2) / len(groups)) ** 0.5
        total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
        loss = 0.0
        sample = (torch.rand(len(self.rows), generator=draw) < rate).nonzero().flatten().tolist()
        for start in range(0, len(sample), batch_size):
            check()
            rows = [self.rows[index] for index in sample[start : start + batch_size]]
            found = clipped_sum(self.model, rows, self.collate, parameters, clip, groups)
            for name, tensor in found.total.items():
                total[name] += tensor
            loss += float(found.losses.nan_to_num(MAX_LOSS).clamp(0.0, MAX_LOSS).sum())
        expected, deviation = rate * len(self.rows), budget.noise * budget.clip
        for name, parameter in parameters.items():
            noise = deviation * torch.randn(parameter.shape, generator=draw)
            parameter.grad = ((total[name] + noise.to(parameter.device)) / expected).to(parameter.dtype)
        per_loss = LOSS_SHARE * budget.clip / MAX_LOSS
        return (loss + deviation * float(torch.randn((), generator=draw)) / per_loss) / expected
