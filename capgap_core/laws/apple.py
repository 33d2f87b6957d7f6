"""Apple's distillation scaling law (arXiv 2502.08606), and its supervised control.

A model of N non-embedding parameters that learned from D tokens has the loss ::

    L(N, D) = E + (A / N^α + B / D^β)^γ

and a student of a teacher whose loss is L_T ::

    L_S = L_T + L_T^-c0 (1 + (L_T / (d1 L(N, D)))^(1/f1))^(-c1 f1) (A' / N^α' + B' / D^β')^γ'

Losses are nats for a token. Everything is computed in logarithms: 1/f1 is about 11, c1 f1 about 47, and the powers
themselves overflow. The teacher counts through its loss alone.
"""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from capgap_core.laws.grid import Floats

L = TypeVar("L", bound="_Coefficients")


@dataclass(frozen=True, kw_only=True)
class _Coefficients:
    """Coefficients, which stand as logarithms in the vector that a fit moves."""

    def vector(self) -> Floats:
        """Return the natural logarithms of the coefficients, in the order of the fields."""
        return np.log(np.array(astuple(self), dtype=np.float64))

    @classmethod
    def of(cls: type[L], vector: Floats) -> L:
        """Return the coefficients of such a vector."""
        values = np.exp(vector).tolist()
        return cls(**{field.name: value for field, value in zip(fields(cls), values, strict=True)})


@dataclass(frozen=True, kw_only=True)
class Supervised(_Coefficients):
    """Coefficients of L(N, D); all positive."""

    e: float
    a: float
    b: float
    alpha: float
    beta: float
    gamma: float

    def loss(self, parameters: ArrayLike, tokens: ArrayLike) -> Floats:
        """Return L(N, D) in nats for a token; the arguments are broadcast."""
        return np.exp(log_supervised(self.vector(), np.log(parameters), np.log(tokens))[0])


@dataclass(frozen=True, kw_only=True)
class Distilled(_Coefficients):
    """Coefficients of the gap between a student and its teacher; all positive."""

    a: float
    b: float
    alpha: float
    beta: float
    gamma: float
    c0: float
    c1: float
    f1: float
    d1: float

    def loss(self, parameters: ArrayLike, tokens: ArrayLike, teacher_loss: ArrayLike, supervised: Supervised) -> Floats:
        """Return the loss of a student in nats for a token; the arguments are broadcast.

        Parameters
        ----------
        parameters, tokens
            The student's N, and how many tokens it is distilled on.
        teacher_loss
            L_T, in nats.
        supervised
            The law of models that were trained without a teacher.
        """
        alone = log_supervised(supervised.vector(), np.log(parameters), np.log(tokens))[0]
        return np.exp(log_distilled(self.vector(), np.log(parameters), np.log(tokens), np.log(teacher_loss), alone)[0])


PUBLISHED_SUPERVISED = Supervised(e=1.220, a=3355, b=18186, alpha=0.408, beta=0.431, gamma=0.452)
PUBLISHED_DISTILLED = Distilled(
    a=2243, b=24181, alpha=0.321, beta=0.637, gamma=0.764, c0=2.549, c1=522.6, f1=0.090, d1=1.315
)
"""Of English text (C4), a vocabulary of about 32,000 and models of 143M to 12.6B; other data have others."""


SYMBOLS: Mapping[type, tuple[str, ...]] = {
    Supervised: ("E", "A", "B", "α", "β", "γ"),
    Distilled: ("A'", "B'", "α'", "β'", "γ'", "c0", "c1", "f1", "d1"),
}
"""What the coefficients are called, in the order of the fields."""


def log_supervised(vector: Floats, log_n: ArrayLike, log_d: ArrayLike) -> tuple[Floats, Floats]:
    """Return log L(N, D), (k,), and its gradient for the vector of ``Supervised``, (k, 6).

    Parameters
    ----------
    vector
        (6,): the logarithms of e, a, b, alpha, beta and gamma.
    log_n, log_d
        (k,), or what broadcasts to it.
    """
    log_e, log_a, log_b, alpha, beta, gamma = *vector[:3], *np.exp(vector[3:])
    log_n, log_d = np.broadcast_arrays(np.atleast_1d(log_n), np.atleast_1d(log_d))
    inner, from_a = _sum(log_a - alpha * log_n, log_b - beta * log_d)
    value, from_e = _sum(np.full_like(inner, log_e), gamma * inner)
    slope = (1.0 - from_e) * gamma
    gradient = [
        from_e,
        slope * from_a,
        slope * (1.0 - from_a),
        -slope * from_a * alpha * log_n,
        -slope * (1.0 - from_a) * beta * log_d,
        slope * inner,
    ]
    return value, np.stack(gradient, axis=-1)


def log_distilled(
    vector: Floats, log_n: ArrayLike, log_d: ArrayLike, log_teacher: ArrayLike, log_alone: ArrayLike
) -> tuple[Floats, Floats]:
    """Return log L_S, (k,), and its gradient for the vector of ``Distilled``, (k, 9).

    Parameters
    ----------
    vector
        (9,): the logarithms of a, b, alpha, beta, gamma, c0, c1, f1 and d1.
    log_n, log_d, log_teacher, log_alone
        (k,), or what broadcasts to it: the student's parameters and tokens, the loss of its teacher, and the loss
        that the supervised law gives to the student.
    """
    log_a, log_b = vector[:2]
    alpha, beta, gamma, c0, c1, f1 = np.exp(vector[2:8])
    given = (np.atleast_1d(x) for x in (log_n, log_d, log_teacher, log_alone))
    log_n, log_d, log_t, log_alone = np.broadcast_arrays(*given)
    inner, from_a = _sum(log_a - alpha * log_n, log_b - beta * log_d)
    u = (log_t - log_alone - vector[8]) / f1
    bend, above = np.logaddexp(0.0, u), _sigmoid(u)
    value, from_t = _sum(log_t, -c0 * log_t - c1 * f1 * bend + gamma * inner)
    gap = 1.0 - from_t
    gradient = [
        gap * gamma * from_a,
        gap * gamma * (1.0 - from_a),
        -gap * gamma * from_a * alpha * log_n,
        -gap * gamma * (1.0 - from_a) * beta * log_d,
        gap * gamma * inner,
        -gap * c0 * log_t,
        -gap * c1 * f1 * bend,
        -gap * c1 * f1 * (bend - u * above),
        gap * c1 * above,
    ]
    return value, np.stack(gradient, axis=-1)


def _sum(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return log(exp x + exp y), and the share of x in the sum."""
    return np.logaddexp(x, y), _sigmoid(x - y)


def _sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -x))
