"""An agreement to start from: it explains itself, and can be signed once the FILL-IN parts are filled in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta

from cloister.errors import InputError
from cloister.linear._agreement import AGREEMENT_LABEL
from cloister.party import PublicIdentity

__all__ = ["KINDS", "draft"]

_TIME = "%Y-%m-%dT%H:%M:%SZ"

KINDS = {
    "ridge": 'type: ridge, alpha: "1"',
    "lasso": 'type: lasso, alpha: "0.1"',
    "elastic-net": 'type: elastic-net, alpha: "0.1", l1_ratio: "0.5"',
    "logistic": 'type: logistic, C: "1", method: quadratic',
    "statistics": "type: statistics, open: [means, variances]",
}
"""What can be fitted, and how it is first written."""

_HEAD = """\
# A linear model of joined rows, without an enclave: what the parties agree on. Fill in what says FILL-IN, then
#   cloister linear explore FILE --data ROWS     does it converge, which bounds do these rows need?
#   cloister linear sign FILE --as YOU           everybody, on one file or on copies of it
#   cloister linear check FILE --as YOU          everybody at the same time: could it begin?
#   cloister linear run FILE --as YOU --data ROWS
# Fractions stand in quotes. What each kind of cheater can do, and what is not protected: docs/linear.md.
format: {format}
name: {name}
purpose: "FILL-IN: one sentence that everybody signs"
valid: {{not_before: {start}, not_after: {end}}}

# In this order: the first listens for all others, the last for nobody. 'rows' is exact, and proven.
parties:
{parties}

# The columns. Every value is (value - centre) / scale; penalties act on that. Categories become columns of 0 and 1.
features:
{features}
response: {{name: {response}, {response_rest}}}

model: {{{model}}}

# That no party's data may exceed: the greatest eigenvalue of its mean of [1 X]'[1 X], and a column's mean square.
# 'explore' says what your rows need. Narrow bounds make a better model in fewer rounds.
curvature: "{curvature}"
mean_square: "2"

# Differential privacy, if the model shall have it: each party adds this noise to its own statistics. A record is
# clipped to the norm 'clip' after scaling; the noise's deviation is noise_multiplier times the square of it; ε is what
# signers hold it to. Signing says what it costs; 'explore' says which bounds the noise needs besides the rows.
# privacy: {{epsilon: "3", delta: "1e-6", noise_multiplier: "4", clip: "4"}}

adversary: {adversary}
release: coefficients
"""


def draft(
    name: str,
    *,
    kind: str,
    parties: Sequence[tuple[PublicIdentity, str]],
    features: Sequence[str],
    response: str,
    adversary: str,
    now: datetime,
) -> str:
    """A commented agreement in YAML.

    Args:
        name: Its name.
        kind: One of :data:`KINDS`.
        parties: Their public identities and addresses, in order.
        features: Names of columns; none leaves one to be filled in.
        response: The name of the response's column.
        adversary: ``malicious`` or ``semi-honest``.
        now: The start of its validity of 90 days.

    Raises:
        InputError: 2005 when the kind is unknown, or parties are fewer than two or not each once.
    """
    if kind not in KINDS:
        raise InputError(2005, "no such model", expected=", ".join(KINDS), got=kind[:40])
    names = [public.name for public, _ in parties]
    if len(names) < 2 or len(set(names)) != len(names):
        raise InputError(2005, "an agreement needs two parties or more, each once", got=", ".join(names) or "none")
    start = now.replace(hour=0, minute=0, second=0, microsecond=0)
    labels = 'labels: ["FILL-IN-NO", "FILL-IN-YES"]' if kind == "logistic" else 'centre: "0", scale: "1"'
    rows = [
        f'  - {{name: {public.name}, key: "{public.sign}", address: {json.dumps(address)}, rows: FILL-IN-NUMBER}}'
        for public, address in parties
    ]
    columns = [
        f'  - {{name: {json.dumps(one, ensure_ascii=False)}, centre: "0", scale: "1"}}'
        for one in features or ["FILL-IN"]
    ]
    return _HEAD.format(
        format=AGREEMENT_LABEL,
        name=name,
        start=start.strftime(_TIME),
        end=(start + timedelta(days=90)).strftime(_TIME),
        parties="\n".join(rows),
        features="\n".join(columns),
        response=json.dumps(response, ensure_ascii=False),
        response_rest=labels,
        model=KINDS[kind],
        curvature=max(4, len(features) + 1),
        adversary=adversary,
    )
