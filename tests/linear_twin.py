"""The linear program a second time, slowly and from the specification alone: Python integers, lists and loops."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import floor
from typing import Any

Matrix = Sequence[Sequence[int]]


def chebyshev(low: Fraction, high: Fraction, steps: int) -> list[tuple[int, int]]:
    """The textbook's recursion in fractions; β rounded down to 1/64, then γ = (1 + β)/centre."""
    sigma, rho, betas = (high + low) / (high - low), (high - low) / (high + low), [0]
    for _ in range(steps - 1):
        following = 1 / (2 * sigma - rho)
        betas.append(floor(64 * following * rho))
        rho = following
    return [(beta, floor((64 + beta) * 2 / (low + high))) for beta in betas]


class Twin:
    """One fit. ``trace`` gets every rounded value in order; ``model`` is what is opened, ties included."""

    def __init__(self, plan: Any, statistics: Matrix, coins: Sequence[Sequence[int]]) -> None:
        self.n = len(plan.rows)
        self.size = len(plan.mean_squares)
        self.kappa, self.l1, self.l2, self.theta = plan.curvature, plan.l1, plan.l2, plan.theta
        self.S = [[int(entry) for entry in row] for row in statistics]
        self.coins = [[int(coin) for coin in row] for row in coins]
        self.trace: list[list[int]] = []
        self.lam = [0] + [round(2**46 * self.l2 / self.kappa)] * (self.size - 1)
        self.model = self.ridge(plan) if plan.method == "ridge" else self.lasso(plan)
        self.bit = self.certificate(plan)
        assert not self.coins

    def trunc(self, values: Sequence[int], bits: int) -> list[int]:
        drawn = self.coins.pop(0)
        assert len(drawn) == len(values)
        half = (self.n - 1) * 2 ** (bits - 1)
        out = [(value + coin - half) // 2**bits for value, coin in zip(values, drawn, strict=True)]
        self.trace.append(out)
        return out

    def times(self, x: Sequence[int]) -> list[int]:
        return [sum(self.S[i][j] * x[j] for j in range(self.size)) for i in range(self.size)]

    def steps(self, x: list[int], b: list[int], that: int, steps: list[tuple[int, int]]) -> list[int]:
        x_prev = x
        for beta, gamma in steps:
            product = self.times(x)
            y = [
                2**52 * x[i]
                + 2**46 * beta * (x[i] - x_prev[i])
                + gamma * (b[i] - product[i] - that * x[i] - self.lam[i] * x[i])
                for i in range(self.size)
            ]
            x, x_prev = self.trunc(y, 52), x
        return x

    def threshold(self, t: list[int], tau: int, g: int) -> list[int]:
        rough = self.trunc(t[1:], 36 - g)
        limit = tau >> (36 - g)
        out = [t[0]]
        for value, near in zip(t[1:], rough, strict=True):
            out.append(value - tau if near >= limit else value + tau if near < -limit else 0)
        return out

    def ridge(self, plan: Any) -> list[int]:
        low = (self.l2 + plan.floor) / self.kappa
        steps = chebyshev(low, low + 1 + Fraction(1, 1024), plan.steps)
        return self.steps([0] * self.size, [2**36 * self.S[i][self.size] for i in range(self.size)], 0, steps)

    def lasso(self, plan: Any) -> list[int]:
        low = self.theta / self.kappa
        steps = chebyshev(low, low + 1 + self.l2 / self.kappa + Fraction(1, 1024), plan.half)
        that, tau = round(2**46 * low), round(2**36 * self.l1 / self.theta)
        x = z = u = [0] * self.size
        for _ in range(plan.rounds):
            b = [2**36 * self.S[i][self.size] + that * (z[i] - u[i]) for i in range(self.size)]
            x = self.steps(x, b, that, steps)
            x = self.steps(x, b, that, steps)
            more = self.trunc([13 * (x[i] - z[i]) for i in range(self.size)], 4)
            t = [x[i] + more[i] + u[i] for i in range(self.size)]
            z = self.threshold(t, tau, 18)
            u = [t[i] - z[i] for i in range(self.size)]
        return z

    def certificate(self, plan: Any) -> int:
        z, product = self.model, self.times(self.model)
        v = self.trunc(
            [
                2**6 * (2**46 * z[i] - (product[i] + self.lam[i] * z[i] - 2**36 * self.S[i][self.size]))
                for i in range(self.size)
            ],
            52,
        )
        if plan.method == "lasso":
            v = self.threshold(v, round(2**36 * self.l1 / self.kappa), 24)
        total = sum((z[i] - v[i]) ** 2 for i in range(self.size))
        most = floor((2**36 * plan.tolerance / self.kappa) ** 2)
        return int(self.trunc([total], 20)[0] <= most >> 20)
