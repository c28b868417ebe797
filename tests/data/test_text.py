import codecs
import re

import numpy as np
import pytest

from fastcsm import data
from fastcsm.data.text import read_csv

TABLE = [[1.0, 2.5], [-3.0, 40.0], [0.5, 6.0]]
BODY = "1,2.5\n-3,4e1\n.5,6\n"


@pytest.mark.parametrize(
    "text",
    [
        BODY,
        "a,b\n" + BODY,
        "," + "b\n" + BODY,
        '"height, m","sum of\nall"\n' + BODY,
        "# made by a program\n# a,b\n" + BODY,
        BODY.replace("\n", "\r\n"),
        BODY.replace("\n", "\r"),
        BODY.strip(),
        "\n" + BODY.replace("\n", "\n\n") + "\n\n",
        BODY.replace(",", ";"),
        "a;b,c\n" + BODY.replace(",", ";"),
        BODY.replace(",", "\t"),
        BODY.replace(",", "  "),
        BODY.replace(",", " , ").replace("\n", "  \n"),
        '"1","2.5"\n"-3", "4e1"\n".5","6"\n',
        codecs.BOM_UTF8 + BODY.encode(),
        codecs.BOM_UTF8 + b"a,b\n" + BODY.encode(),
        ("größe,b\n" + BODY).encode(),
        BODY.replace(",", "\t").encode("utf-16"),
        ("ä,b\n" + BODY).encode("utf-32"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_every_spelling_of_a_table(tmp_path, text):
    (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert read_csv(tmp_path / "t.csv").tolist() == TABLE


@pytest.mark.parametrize("text", ["x\n1\n2\n3\n", "1\n2\n3\n\n\n", "a name\n1\n2\n3", "\n\n1\n2\n3"])
def test_a_single_column(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    assert read_csv(tmp_path / "t.csv").tolist() == [[1.0], [2.0], [3.0]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1.5,?,2.0\n1,2,3\n", "line 1 .* holds '\\?', expected numbers only"),
        ("?,?\n1,2\n", "line 1 .* holds '\\?'"),
        ("#N/A,1\n1,2\n", "line 1 .* holds '#N/A'"),
        ("1,2\n#N/A,4\n", "line 2 .* holds '#N/A'"),
        ("a,b\nm,kg\n1,2\n", "line 2 .* holds 'm'"),
        ("a,b\n1,2\n3,x\n", "line 3 .* holds 'x'"),
        ("a,b\n\n\n1,2\n\n3,x\n", "line 6 .* holds 'x'"),
        ('"a\nb",c\n1,2\n3,x\n', "line 4 .* holds 'x'"),
        ("1,nan\n2,3\n", "line 1 .* holds 'nan', expected finite"),
        ("1,2\n-inf,3\n", "line 2 .* holds '-inf', expected finite"),
        ("1,2\n1e999,3\n", "line 2 .* holds '1e999'"),
        ("1,2\n3\n", "line 2 .* has 1 columns, expected 2 as in line 1"),
        ("a,b\n1,2,\n", "line 2 .* has 3 columns, expected 2"),
        ("1,2,\n3,4,\n", "line 1 .* holds an empty cell"),
        (",a\n0,1\n1,\n", "line 3 .* holds an empty cell"),
        ("1\n\n2\n", "line 2 .* is empty"),
        ("1,5;2\n3,5;4\n", "line 1 .* holds '1,5', expected numbers with a decimal point"),
        ('"1,234",2\n3,4\n', "line 1 .* holds '1,234', .*without commas"),
        ("1_000,2\n3,4\n", "line 1 .* holds '1_000'"),
        ("\uff11,2\n3,4\n", "line 1 .* holds '\uff11'"),
        ("1,2 # two\n3,4\n", "line 1 .* holds '2 # two'"),
        ('1,2\n3,"4\n5,6\n', "line 2 .* is not a row of cells"),
        (b"a,b\n1,\xff\n", "line 2 .* is not text in UTF-8"),
        ("a,b\n", "at least one row"),
        ("", "at least one row"),
        ("\n\n", "at least one row"),
    ],
)
def test_what_is_no_number_is_named_with_its_line(tmp_path, text, words):
    (tmp_path / "bad.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=words) as error:
        data.load(tmp_path / "bad.csv")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("first", ["0,1,2", "1,2,3", "2019,2020,2021", '"7","8","9"'])
def test_names_that_are_numbers_are_rows_with_a_warning(tmp_path, first):
    (tmp_path / "t.csv").write_text(f"# years\n{first}\n0.5,1.5,2.5\n1.25,2.5,3.5\n")
    with pytest.warns(UserWarning, match="line 2 .* is taken for a row of numbers: remove it"):
        found = read_csv(tmp_path / "t.csv")
    assert found[0].tolist() == [float(number) for number in re.findall(r"\d+", first)]


@pytest.mark.filterwarnings("error")
def test_rows_of_whole_numbers_are_no_names(tmp_path):
    np.savetxt(tmp_path / "t.csv", [[5, 0, 1], [3, 4, 5]], fmt="%d", header="three\n1 2 3 is a row too")
    (tmp_path / "t.csv").write_text("0,1\n1,0\n0,0\n")
    assert read_csv(tmp_path / "t.csv").tolist() == [[0, 1], [1, 0], [0, 0]]
