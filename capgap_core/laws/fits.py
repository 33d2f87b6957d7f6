"""Every law that the cells of a grid allow, fitted together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from capgap_core.laws.apple_fit import BOOTSTRAPS, AppleFit, fit_apple
from capgap_core.laws.grid import Alone, Cells, NotEstimable
from capgap_core.laws.line import Power, by_budget, fit_power
from capgap_core.laws.optimum import Noise, Optimum, noise_of, optima


@dataclass(frozen=True, kw_only=True)
class Fits:
    """A grid and what it says."""

    cells: Cells
    alone: Alone
    noise: Noise
    optima: Sequence[Optimum]
    powers: Mapping[float, Power | NotEstimable]
    """Tokens for each parameter of a student → the law of students on so many."""
    apple: AppleFit | NotEstimable
    teacher_tokens: float | None
    """For each parameter of a teacher; null where those of some are not known."""


def fits_of(cells: Cells, alone: Alone, *, teacher_tokens: float | None, bootstraps: int = BOOTSTRAPS) -> Fits:
    """Fit every law.

    Parameters
    ----------
    teacher_tokens
        Tokens for each parameter of a teacher; null where those of some are not known.
    bootstraps
        Of Apple's law.
    """
    noise = noise_of(cells)
    found = optima(cells, noise) if len(cells) else []
    powers = {budget: fit_power(of) for budget, of in by_budget(found).items()}
    apple: AppleFit | NotEstimable = NotEstimable(why="no cells")
    if len(cells):
        apple = fit_apple(cells, alone, teacher_tokens=teacher_tokens, bootstraps=bootstraps)
    return Fits(
        cells=cells, alone=alone, noise=noise, optima=found, powers=powers, apple=apple, teacher_tokens=teacher_tokens
    )
