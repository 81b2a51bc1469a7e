"""Columns and tables of other libraries: what is missing in them, and what they hold that is no array."""

import mdm
import numpy as np
import pytest
from mdm.values import columns
from packages import needed
from servers import ROOT


class Given:
    """As a column of a library that is not here."""

    def __init__(self, dtype, values):
        self.dtype, self.values = dtype, values

    def __array__(self, *_, **__):
        if isinstance(self.values, Exception):
            raise self.values
        return np.array(self.values)


def refusal(value):
    with pytest.raises(mdm.InvalidArgument) as caught:
        columns(value, False)
    return str(caught.value)


def test_integers_and_truths_that_are_missing_are_refused():
    for dtype in ("Int64", "int64[pyarrow]", "UInt8", "Boolean"):
        assert "the input: element 1 is missing: fill it, or leave its row out" in refusal(Given(dtype, [1.0, float("nan")]))
    assert columns(Given("Float64", [1.0, float("nan")]), False)[0].dtype == "FP64"
    assert columns(Given("Int64", [1, 2]), False)[0].dtype == "INT64"


def test_no_hint_turns_floats_into_integers(client):
    for rows in (np.array([[1.5]]), np.array([[np.nan]], "f4"), mdm.BF16(np.zeros((1, 1), "u2"))):
        for expected in ("INT64", "UINT8", "BOOL"):
            with pytest.raises(mdm.InvalidArgument, match=f"expected {expected}, got [FB][PF]") as caught:
                client.infer(rows, f"echo_{expected}")
            assert "in Python" not in str(caught.value)


def test_pandas_integers_that_are_missing_are_refused():
    pandas = needed("pandas")
    integers = pandas.array([1, None], dtype="Int64")
    assert "element 1 is missing" in refusal(pandas.Series(integers))
    assert "input 'x': element 1 is missing" in refusal({"x": pandas.Series(integers)})
    assert "element 1 is missing" in refusal(pandas.Series([True, None], dtype="boolean"))
    assert "column 'n': element 1 is missing" in refusal(pandas.DataFrame({"n": integers}))
    assert "is missing" in refusal(pandas.DataFrame({"n": integers, "f": [0.5, 1.5]}))
    assert columns(pandas.Series([1.5, None]), False)[0].dtype == "FP64"


def test_polars_integers_that_are_missing_are_refused():
    polars = needed("polars")
    assert "element 1 is missing" in refusal(polars.Series([1, None]))
    assert "element 1 is missing" in refusal(polars.Series([True, None]))
    assert "column 'n': element 1 is missing" in refusal(polars.DataFrame({"f": [0.5, None], "n": [1, None]}))
    assert columns(polars.Series([1.5, None]), False)[0].dtype == "FP64"


def test_a_polars_column_of_structs_keeps_its_fields(client, needs_plugin):
    polars = needed("polars")
    rows = [{"a": 1, "b": 2.5}, {"a": None, "b": 0.5}]
    assert columns(polars.Series(rows), False)[0].dtype == "JSON"
    (name,) = (got := client.infer(polars.DataFrame({"s": rows})["s"], params={"model_proxy_path": "echo.proxy"}))
    assert list(got[name]) == rows


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_table_of_several_kinds_is_told_to_go_by_column(client, library):
    frame = needed(library).DataFrame({"ids": [1, 2], "text": ["a", "b"]})
    hint = {"pandas": "dict(df)", "polars": "df.to_dict()"}[library]
    assert f"the table's columns are of several kinds: give them as inputs by their names, {hint}" in refusal(frame)
    assert [column.dtype for column in columns(eval(hint, {"df": frame}), False)] == ["INT64", "BYTES"]


def test_bfloat16_of_a_library_that_numpy_does_not_know_is_told_what_to_do():
    said = refusal(Given("torch.bfloat16", TypeError("Got unsupported ScalarType BFloat16")))
    assert "numpy has no bfloat16: give tensor.float(), or mdm.BF16 of its bits" in said and "ScalarType" in said


def test_what_single_tests_need_is_fetched_and_required(monkeypatch):
    fetched = (ROOT / "python/requirements.txt").read_text().split()
    assert {"ml_dtypes", "pandas", "polars", "rich", "tqdm"} <= set(fetched)
    monkeypatch.setenv("REQUIRE_CLIENTS", "1")
    with pytest.raises(ImportError):
        needed("nothing_of_that_name")
    monkeypatch.delenv("REQUIRE_CLIENTS")
    with pytest.raises(pytest.skip.Exception):
        needed("nothing_of_that_name")
