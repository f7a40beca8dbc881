"""Linear models between parties that trust nobody: ridge, LASSO, elastic net and logistic models on joined rows.

Status: the protocol between parties is not built yet. What exists is each party's own side, and the exact arithmetic
of a session in one process: rows from arrays or files, public scaling, models, statistics and privacy. So one can find
out whether an agreement converges, which bounds the data need, and what the fixed point costs, before anybody signs.

Rules:

* Everything public is agreed before: columns, categories, scaling, bounds, penalties, the number of steps.
* A model that the certificate does not find near-optimal is not given.
* A party's data that break what was agreed are refused at home, by a message that says what to do.

>>> import numpy as np
>>> columns = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [3.0, 3.0], [4.0, 2.0], [6.0, 2.0]])
>>> response = 3 * columns[:, 0] - 2 * columns[:, 1] + 1
>>> model = Lasso(alpha=0.01).fit_local([(columns[:3], response[:3]), (columns[3:], response[3:])])
>>> model.coef_.round(1)
array([ 3., -2.])
"""

from cloister.linear._estimators import ElasticNet, Lasso, Ridge
from cloister.linear._logistic import LogisticRegression
from cloister.linear._noise import Privacy
from cloister.linear._scaling import Scaling
from cloister.linear._sources import Source, read_source
from cloister.linear._statistics import Statistics, statistics_local

__all__ = [
    "ElasticNet",
    "Lasso",
    "LogisticRegression",
    "Privacy",
    "Ridge",
    "Scaling",
    "Source",
    "Statistics",
    "read_source",
    "statistics_local",
]
