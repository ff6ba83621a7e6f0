"""A table in a .csv file is data with names; what is wrong is named by line and column."""

import csv

import numpy as np
import pytest

from dynalyze.cli import main
from dynalyze.datasets import load_csv
from dynalyze.errors import InvalidInputError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "table.csv"


def test_features_and_target_are_those_of_the_file(path):
    X = np.random.default_rng(0).standard_normal((6, 2))
    y = X @ [2.0, -1.0]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["age, years", "target", "bmi"])
        writer.writerows(zip(X[:, 0], y, X[:, 1], strict=True))
    data = load_csv(path, target="target")
    np.testing.assert_array_equal(data.X, X)
    np.testing.assert_array_equal(data.y, y)
    assert data.feature_names == ("age, years", "bmi")


def test_the_command_names_the_products_after_the_columns(path, capsys):
    path.write_text("\ufeffage,größe,y\n1,2,3\n\n2,1,0\n0,1e0, 1\n", encoding="utf-8")
    assert main(["predict", "--data", str(path), "--target", "y"]) == 0
    table = capsys.readouterr().out
    assert "größe" in table
    assert "age" in table


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("", "y", "has no header: its first line must name the columns"),
        ("1,2,3\n4,5,6\n", "3", "has no header: its first line, 1, 2, 3, must name the columns"),
        ("a,y\n", "y", "has a header and no rows"),
        ("a,b,y\n1,2,3\n", None, r"\(--target NAME\): one of a, b, y"),
        ("a,b,y\n1,2,3\n", "z", "no column 'z' for the target: it has a, b, y"),
        ("a;b;y\n1;2;3\n", "y", "are its columns separated by commas"),
        ("y\n1\n", "y", "has no column beside the target 'y'"),
        ("a,a,y\n1,2,3\n", "y", "names column 'a' twice"),
        ("a,,y\n1,2,3\n", "y", "names a column nothing"),
        ("a,b,y\n1,2,3\n1,2\n", "y", "line 3 has 2 values for 3 columns"),
        ("a,b,y\n1,2,3,4\n", "y", "line 2 has 4 values for 3 columns"),
        ("a,b,y\n1,2,3\n1,,3\n", "y", "line 3: b is missing"),
        ("a,b,y\n1,high,3\n", "y", "line 2: b is 'high', not a finite number"),
        ("a,b,y\n1,nan,3\n", "y", "line 2: b is 'nan', not a finite number"),
        ("a,b,y\n1,2,1e999\n", "y", "line 2: y is '1e999', not a finite number"),
        ('a,b,y\n1,"2,3\n', "y", "cannot be read as a table in UTF-8"),
        (b"a,b,y\n1,\xff,3\n", "y", "cannot be read as a table in UTF-8"),
        (b"PK\x03\x04\x00\x00", "y", "table.csv"),
    ],
)
def test_what_is_wrong_is_named(path, text, target, message):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidInputError, match=message):
        load_csv(path, target=target)
