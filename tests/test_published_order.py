"""The order of methods against the published one: by hand."""

import sys
from pathlib import Path

import pytest

from multidense.files import write_json

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import published_order


def test_pairs_agree_disagree_or_are_too_close():
    ours = {"a": {"0": 0.0}, "b": {"0": 5.0, "1": -90.0}, "c": {"0": 4.0}, "x": {"0": 9.0}}
    told = published_order.ordered(ours, {"a": 1.0, "b": 3.0, "c": 8.0, "y": 0.0}, 2.0)
    assert told["methods"] == ["a", "b", "c"]
    assert [pair[:2] for pair in told["agree"]] == [["b", "a"], ["c", "a"]]
    assert told["close"] == [["c", "b", -1.0]]
    assert told["disagree"] == []
    assert told["kendall_tau"] == pytest.approx(1 / 3)


def test_published_gains_are_those_of_the_paper():
    one, full = published_order.published("one-label"), published_order.published("full-labels")
    assert one["hitts+lp+lf"] == pytest.approx(13.23, abs=0.01)
    assert full["dwa"] == pytest.approx(-1.83, abs=0.01)
    assert one["stl"] == full["stl"] == 0
    assert set(one) == {"stl", "mtl", "mtan", "xtc", "hitts+lp+lf"}


def test_the_table_names_what_disagrees_and_how_many_seeds_there_are(tmp_path, capsys):
    gains = {"stl": {"0": 0.0, "1": 0.0}, "mtl": {"0": 10.0, "1": 20.0}, "hitts+lp+lf": {"0": 1.0}, "mtan": {}}
    titles = {name: name.upper() for name in gains}
    write_json(tmp_path / "mine.json", {"delta_mtl": gains, "titles": titles, "reference": "stl"})
    published_order.main([f"one-label={tmp_path / 'mine.json'}", "--out", str(tmp_path), "--noise", "0.5"])
    said = (tmp_path / "published-order.md").read_text()
    assert capsys.readouterr().out == said
    assert "| MTL | +0.1 | +15.0 (2) |" in said
    assert "| HITTS+LP+LF | +13.2 | +1.0 (1) |" in said
    assert "| MTAN | +3.3 | – |" in said
    assert "Published, not here: HITTS+LP+LF > MTL (ours -9.0)" in said


def test_a_setting_that_was_not_published_is_refused(capsys):
    with pytest.raises(SystemExit):
        published_order.main(["half=there.json"])
    assert "expected one-label=FILE or full-labels=FILE, found 'half=there.json'" in capsys.readouterr().err
