from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _short_peak():
    """Tests ask whether the machine's peak is measured, not how high it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("taskedge.profiling.step_profile.GEMM_SIZES", (64,))
        patch.setattr("taskedge.profiling.step_profile.GEMM_SECONDS", 0.0)
        yield
