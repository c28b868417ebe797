"""What moved between two results."""

from small import altered

from fastcsm.bench.compare import compare


def test_compare_tells_what_moved(steady):
    assert compare(steady, steady) == ([], 1)
    (slower,), _ = compare(steady, altered(steady, "fastcsm", 1.25))
    assert slower.worse
    assert "N = 97" in slower.text
    assert "fastcsm: 25% slower against eager double backward" in slower.text
    (faster,), _ = compare(altered(steady, "fastcsm", 1.25), steady)
    assert not faster.worse
    assert compare(steady, altered(steady, "fastcsm", 1.02))[0] == []


def test_compare_allows_for_a_slower_machine_and_for_noise(steady):
    assert compare(steady, altered(steady, "all", 1.7))[0] == []
    noisy = altered(steady, "fastcsm", 1.25, spread=0.1)
    assert compare(steady, noisy)[0] == []
    noisy["results"][0]["rounds"] = 50
    assert len(compare(steady, noisy)[0]) == 1


def test_compare_names_what_failed(steady):
    broken = altered(steady, "all", 1.0)
    row = next(row for row in broken["results"][0]["rows"] if row["own"])
    row |= {"status": "failed", "reason": "loss is off by 1"}
    (change,), _ = compare(steady, broken)
    assert change.worse
    assert "ok -> failed (loss is off by 1)" in change.text
    assert not compare(broken, steady)[0][0].worse
