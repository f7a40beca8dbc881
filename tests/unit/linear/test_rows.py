"""What a party's data must be: each fault has its code, and the message names the column."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.linear_data import conditioned

from cloister.errors import InputError
from cloister.linear._rows import read_features, read_rows, require_columns
from cloister.linear._scaling import Scaling


class Frame:
    """What is asked of a data frame: named columns, and an array."""

    def __init__(self, columns: list[str], table: Any) -> None:
        self.columns = columns
        self.table = np.asarray(table)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.table


def refusal(code: int, features: Any, response: Any) -> str:
    with pytest.raises(InputError) as refused:
        read_rows(features, response)
    assert refused.value.code == code
    return f"{refused.value.what} {refused.value.got}"


GOOD = [[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]]


def test_numbers_of_all_kinds_are_read() -> None:
    for table in (GOOD, np.array(GOOD, dtype=np.float32), np.array(GOOD, dtype=object), np.array(GOOD).astype(np.int8)):
        assert read_rows(table, [True, False, True]).features.tolist() == GOOD
    rows = read_rows(Frame(["age", "income"], GOOD), [1, 2, 3])
    assert rows.names == ("age", "income")
    assert "5.0" not in repr(rows)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), None])
def test_2904_missing_or_infinite(bad: Any) -> None:
    text = refusal(2904, Frame(["age", "income"], np.array([[1, 2], [3, bad], [4, bad]], dtype=object)), [1, 2, 3])
    assert "'income' has 2" in text
    assert "first in row 1" in text
    assert "the response" in refusal(2904, GOOD, np.array([1, 2, bad], dtype=object))


def test_2904_what_is_masked_is_missing() -> None:
    masked = np.ma.masked_array(GOOD, mask=np.zeros_like(GOOD, dtype=bool))
    assert np.array_equal(read_features(masked)[1], np.asarray(GOOD, dtype=float))
    masked[0, 0] = np.ma.masked
    refusal(2904, masked, [1, 2, 3])
    refusal(2904, GOOD, np.ma.masked_array([1, 2, 3], mask=[False, True, False]))


def test_2908_text_is_no_number_even_when_it_looks_like_one() -> None:
    assert "'sex'" in refusal(2908, Frame(["age", "sex"], np.array([[1, "f"], [2, "m"]], dtype=object)), [1, 2])
    refusal(2908, np.array([["1", "2"], ["3", "4"]]), [1, 2])
    refusal(2908, np.array([[1, "2"], [3, 4]], dtype=object), [1, 2])
    refusal(2908, np.array([[1, b"2"], [3, 4]], dtype=object), [1, 2])
    refusal(2908, np.array([[1, {}], [3, 4]], dtype=object), [1, 2])
    refusal(2908, np.array([[1 + 2j]]), [1])
    refusal(2908, np.array([["2026-01-01"]], dtype="datetime64[D]"), [1])
    refusal(2908, GOOD, ["yes", "no", "yes"])


def test_2906_and_2907_shapes() -> None:
    refusal(2906, [1.0, 2.0], [1, 2])
    refusal(2906, np.zeros((3, 0)), [1, 2, 3])
    refusal(2906, GOOD, [[1], [2], [3]])
    refusal(2907, GOOD, [1, 2])
    refusal(2907, np.zeros((0, 2)), [])


def test_2909_too_many_features() -> None:
    assert read_features(np.zeros((1, 300)))[1].shape == (1, 300)
    refusal(2909, np.zeros((1, 301)), [1])


def test_2906_columns_of_another_name_or_order() -> None:
    require_columns(("x0", "x1"), ("age", "income"))  # an array has no names
    for names in (("income", "age"), ("age",), ("age", "height"), ("x0", "x1", "x2")):
        with pytest.raises(InputError) as refused:
            require_columns(names, ("age", "income"))
        assert refused.value.code == 2906


def test_scaling_is_the_standard_scalers() -> None:
    from sklearn.preprocessing import StandardScaler

    features, response = conditioned(500, 7, 30)
    parts = [read_rows(features[:100], response[:100]), read_rows(features[100:], response[100:])]
    scaling, scaler = Scaling.of(parts), StandardScaler().fit(features)
    assert np.allclose(scaling.centres[:-1], scaler.mean_, rtol=1e-12)
    assert np.allclose(scaling.scales[:-1], scaler.scale_, rtol=1e-12)
    assert np.isclose(scaling.scales[-1], response.std(), rtol=1e-12)
    chunks = np.vstack([chunk for part in parts for chunk in scaling.chunks(part)])
    assert np.allclose(chunks[:, 1:-1], scaler.transform(features), atol=1e-12)
    assert (chunks[:, 0] == 1).all()
    model = np.arange(8.0)
    coefficients, intercept = scaling.unscale(model)
    expected = (model[0] + chunks[:, 1:-1] @ model[1:]) * response.std() + response.mean()
    assert np.allclose(features @ coefficients + intercept, expected)


@pytest.mark.parametrize("value", [0.0, 3.0, 0.1, 1e9 + 0.1])
def test_2905_a_column_that_is_constant_over_all_parties(value: float) -> None:
    features, response = conditioned(60, 3, 3)
    features[:, 1] = value
    parts = [read_rows(features[:30], response[:30]), read_rows(features[30:], response[30:])]
    with pytest.raises(InputError) as refused:
        Scaling.of(parts)
    assert refused.value.code == 2905
    assert "'x1'" in refused.value.what
    features[30:, 1] += 1.0  # constant at each party, not over all: a site's own indicator
    assert Scaling.of([read_rows(features[:30], response[:30]), read_rows(features[30:], response[30:])])


@pytest.mark.parametrize(
    ("names", "centres", "scales", "code"),
    [
        (("a",), (0.0, 0.0), (1.0, 0.0), 2905),
        (("a",), (0.0, 0.0), (-1.0, 1.0), 2905),
        (("a",), (0.0, float("nan")), (1.0, 1.0), 2904),
        (("a",), (0.0, 0.0), (1.0, float("inf")), 2904),
        (("a", "b"), (0.0, 0.0), (1.0, 1.0), 2906),
        (("a",), (0.0, 0.0), (1.0, 1.0, 1.0), 2906),
    ],
)
def test_a_scaling_that_is_none_is_refused(
    names: tuple[str, ...], centres: tuple[float, ...], scales: tuple[float, ...], code: int
) -> None:
    with pytest.raises(InputError) as refused:
        Scaling(names, centres, scales)
    assert refused.value.code == code


class Missing:
    """What pandas has for a missing value: no number, and neither equal to itself nor not."""

    def __eq__(self, other: object) -> Any:
        return self

    __ne__ = __eq__
    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise TypeError

    __float__ = __bool__


def test_2904_a_missing_value_that_is_no_number() -> None:
    text = refusal(2904, Frame(["age", "income"], np.array([[1, 2], [3, Missing()]], dtype=object)), [1, 2])
    assert "'income' has 1" in text
    assert "first in row 1" in text


def hinted(features: Any, response: Any) -> str:
    with pytest.raises(InputError) as refused:
        read_rows(features, response)
    return f"{refused.value.what} {refused.value.hint}"


def test_hints_say_what_to_call() -> None:
    from scipy import sparse

    assert "y.ravel()" in hinted(GOOD, [[1], [2], [3]])
    assert ".toarray()" in hinted(sparse.csr_matrix(GOOD), [1, 2, 3])
    assert "reshape(-1, 1)" in hinted([1.0, 2.0], [1, 2])
    assert "the features do not hold numbers" in hinted(np.array([["1", "2"]]), [1])
    assert "'x1'" in hinted(np.array([[1, {}]], dtype=object), [1])
