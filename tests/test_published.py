"""The published tables as they are shipped, and what a recipe may say of them."""

from dataclasses import FrozenInstanceError, asdict
from importlib.resources import files

import pytest

from multidense import published
from multidense.files import plain
from multidense.published import CONDITIONS, GAIN, SINGLE, TITLES, Published
from multidense.results import delta_mtl, score_of
from multidense.types import MultidenseError

TABLES = published.tables()
ROWS = [
    pytest.param(table, setting, method, id=f"table {table.number}, {setting}, {method}")
    for table in TABLES.values()
    for setting, methods in table.rows.items()
    for method in methods
]
GAINS = [case for case in ROWS if GAIN in case.values[0].rows[case.values[1]][case.values[2]]]


def test_all_values_of_the_file_are_in_the_tables():
    values = [value for table in TABLES.values() for rows in table.rows.values() for row in rows.values() for value in row]
    assert len(values) == 532
    assert list(TABLES) == list(TITLES) == list(range(1, 10))


def test_values_are_those_of_the_paper():
    assert published.table(1).rows["one-label"]["HiTTs w. Lp+Lf"]["semseg.mIoU"] == 35.81
    assert published.table(2).settings == ("full-labels",)
    assert published.table(8).rows["cost, SegNet"]["HiTTs"] == {"params_M": 25.32, "flops_G": 83.14, "train_memory_G": 21.19}
    assert published.table(1).decimals["depth.absErr"] == 4
    assert (published.table(4).decimals["normals.mErr"], published.table(1).columns[-1]) == (1, GAIN)


def test_so_many_rows_print_a_gain():
    assert len(GAINS) == 54


@pytest.mark.parametrize(("table", "setting", "method"), GAINS)
def test_the_printed_gain_is_the_mean_over_all_columns(table, setting, method):
    ours, single = ({name: table.rows[setting][each][name] for name in table.scores} for each in (method, SINGLE))
    assert delta_mtl(ours, single) == pytest.approx(table.rows[setting][method][GAIN], abs=0.011)


@pytest.mark.parametrize(("table", "setting", "method"), ROWS)
def test_every_row_has_every_column(table, setting, method):
    found = set(table.rows[setting][method])
    assert found == set(table.columns) - ({GAIN} if method == SINGLE else set())


@pytest.mark.parametrize("table", TABLES.values(), ids=str(list(TABLES)).strip("[]").split(", "))
def test_every_table_has_known_scores_and_conditions(table):
    assert table.dataset in CONDITIONS
    assert table.conditions.epochs > 0
    assert all(score_of(name) for name in table.scores if "." in name)


def test_where_the_numbers_come_from_is_shipped_with_them():
    assert "arXiv 2411.18823" in (files("multidense.published") / "README.md").read_text(encoding="utf-8")


def test_an_unknown_table_is_named():
    with pytest.raises(MultidenseError, match="no published table 12; there are 1, 2, 3"):
        published.table(12)


# What a recipe says


def said(**changes) -> Published:
    """The claims of a usual recipe, changed."""
    return Published(**{"table": 1, "dataset": "nyuv2", "setting": "one-label", "rows": {"mtl": "MTL baseline"}} | changes)


def test_a_row_is_made_wherever_the_paper_shows_it():
    assert said().serves(1) == said().serves(5) == [("one-label", "MTL baseline", "mtl")]
    assert said().serves(6) == [(f"one-label, train {part}", "MTL baseline", "mtl") for part in ("labelled", "unlabelled")]
    assert said().serves(8) == [("cost, SegNet", "MTL baseline", "mtl")]
    assert said().serves(2) == said().serves(3) == said().serves(4) == said().serves(7) == []
    assert said(setting="random-labels").serves(5) == said(setting="random-labels").serves(6) == []


def test_several_networks_make_one_row():
    several = said(rows={"stl-a": "STL", "stl-b": "STL"})
    assert several.serves(1) == [("one-label", "STL", "stl-a"), ("one-label", "STL", "stl-b")]


def test_a_network_may_make_rows_of_several_settings():
    both = said(rows={"one": [[1, "one-label", "MTAN"], [2, "full-labels", "MTAN"]]})
    assert both.serves(1) == [("one-label", "MTAN", "one")]
    assert both.serves(2) == [("full-labels", "MTAN", "one")]


def test_a_setting_may_be_called_by_what_it_begins_with():
    few = said(table=7, setting="few-shot", rows={"mtl": "HiTTs"})
    assert few.serves(7) == [(published.table(7).settings[0], "HiTTs", "mtl")]
    assert published.table(1).settings_of("one") == ()


def test_what_a_recipe_says_survives_its_file():
    both = said(rows={"mtl": "MTL baseline", "one": [[5, "one-label", "HiTTs"]]}, epochs=200)
    back = Published(**plain(asdict(both)))
    assert [back.serves(number) for number in TABLES] == [both.serves(number) for number in TABLES]


def test_claims_do_not_change():
    with pytest.raises(FrozenInstanceError):
        said().table = 2


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"table": 10}, "no published table 10"),
        ({"dataset": "cityscapes"}, r"published\.dataset: table 1 is of nyuv2, found 'cityscapes'"),
        ({"setting": "one-labels"}, r"published\.setting: table 1 has no setting 'one-labels' \(did you mean 'one-label'\?\)"),
        ({"rows": {"mtl": "MTL"}}, r"published\.rows\.mtl: table 1, one-label, has no method 'MTL'.*it has STL, MTL baseline"),
        ({"rows": {"mtl": [[2, "full-labels", "MTL"]]}}, r"published\.rows\.mtl: table 2, full-labels, has no method 'MTL'"),
        ({"rows": {"mtl": [[2, "MTL"]]}}, r"published\.rows\.mtl: expected a method or a list of \[table, setting, method\]"),
        ({"rows": {"mtl": []}}, r"published\.rows\.mtl: expected a method, found an empty list"),
        ({"epochs": 0}, r"published\.epochs must be at least 1, found 0"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_claims_that_the_paper_does_not_hold_are_refused(changes, complaint):
    with pytest.raises(MultidenseError, match=complaint):
        said(**changes)


def test_rows_of_networks_that_there_are_not_are_refused():
    said().check_networks(["mtl", "hitts"])
    with pytest.raises(MultidenseError, match=r"published\.rows: there is no network 'mtl' \(did you mean 'mtl2'\?\)"):
        said().check_networks(["mtl2", "hitts"])
