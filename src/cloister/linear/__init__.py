"""Linear models between parties that trust nobody: ridge, LASSO, elastic net and logistic models on joined rows.

Two to eight parties, of which all but one may cheat in any way, fit one model of all their rows and learn it, and one
bit besides: whether the fit converged. :meth:`Ridge.fit` does that with the other parties of a signed agreement, over
TLS, and :func:`statistics` opens means, variances or correlation in the same way; :meth:`Ridge.fit_local` does the same
arithmetic on rows that lie in one process, so one can find out before anybody signs whether an agreement converges,
which bounds the data need, and what the fixed point costs.
``docs/linear.md`` specifies the protocol.

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
from cloister.linear._load import load_model
from cloister.linear._logistic import LogisticRegression
from cloister.linear._noise import Privacy
from cloister.linear._scaling import Scaling
from cloister.linear._sources import Source, read_source
from cloister.linear._statistics import Statistics, statistics, statistics_local

__all__ = [
    "ElasticNet",
    "Lasso",
    "LogisticRegression",
    "Privacy",
    "Ridge",
    "Scaling",
    "Source",
    "Statistics",
    "load_model",
    "read_source",
    "statistics",
    "statistics_local",
]
