"""docs/results.md, README.md's table and its picture are what the committed files give."""

import pytest

from fastcsm.bench import publish
from fastcsm.bench.harness import report

pytest.importorskip("matplotlib")


def test_committed_results_are_whole():
    assert publish.processors()
    for document in publish.processors():
        assert document["schema"] == report.SCHEMA
        assert not any(row["status"] == "failed" for result in document["results"] for row in result["rows"])


def test_the_page_is_what_the_results_give():
    assert (publish.ROOT / "docs" / "results.md").read_text(encoding="utf-8") == publish.page()


def test_the_readme_has_their_summary():
    text = (publish.ROOT / "README.md").read_text(encoding="utf-8")
    assert publish.readme(text) == text
    assert report.summary(publish.processors()[0]).count("\n| `") == len(report.SUMMARY) == 7


def test_the_picture_is_of_the_same_results(tmp_path):
    image = pytest.importorskip("PIL.Image")
    with image.open(publish.RESULTS / "readme.png") as committed:
        assert committed.text["Comment"] == publish.sources()
        publish.picture(tmp_path / "again.png")
        with image.open(tmp_path / "again.png") as again:
            assert again.size == committed.size


def test_densities_are_found_in_the_picture_of_toys():
    from matplotlib.image import imread

    rows, columns = publish.tiles(imread(publish.RESULTS / "paper" / "toys.png"))
    assert (len(rows), len(columns)) == (6, 3)
    sides = [side.stop - side.start for side in (*rows, *columns)]
    assert max(sides) - min(sides) <= 2


def test_text_without_a_place_for_the_results():
    assert report.between("a\n[\nold\n]\nb", "[", "]", "new") == "a\n[\nnew\n]\nb"
    with pytest.raises(ValueError, match="expected the lines"):
        publish.readme("nothing here")
