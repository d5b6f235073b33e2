"""Label settings: who is labelled for what, the tables that say so, and that what is hidden is never read."""

from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from multidense.data import Reader, partial
from multidense.data.partial import Assignment
from multidense.tasks import Depth, Edges, HumanParts, Normals, Saliency, SemanticSegmentation
from multidense.types import MultidenseError, Sample

ASSIGNMENTS = Path(partial.__file__).parent / "assignments"
THREE = (SemanticSegmentation(3), Depth(), Normals())
FIVE = (SemanticSegmentation(3), HumanParts(), Normals(), Saliency(), Edges())


class Listed(Reader):
    """A reader of blank images that remembers which labels were read."""

    def __init__(self, tasks, available):
        self.name, self.split, self.tasks, self.class_names = "listed", "train", tuple(tasks), {}
        self.available, self.ids, self.opened = available, [f"i{n}" for n in range(len(available))], []

    def annotated(self, index):
        return frozenset(self.available[index])

    def load(self, index, tasks):
        names = self.annotated(index) & set(tasks)
        self.opened += [(self.ids[index], name) for name in sorted(names)]
        targets = {task.name: task.unlabelled((2, 2)) for task in self.tasks if task.name in names}
        return Sample(torch.zeros(3, 2, 2), targets, self.ids[index])

    def provenance(self):
        return {"name": self.name, "length": len(self)}


def reader_of(tasks=THREE, length=30, rare=None, share=0.3):
    """All labelled, but the task `rare` on a `share` of the images only."""
    names = {task.name for task in tasks}
    drawn = np.random.default_rng(5).random(length) < share
    return Listed(tasks, [names if rare is None or keep else names - {rare} for keep in drawn])


SETTINGS = {
    "full": partial.full,
    "one_label": partial.one_label,
    "random_labels": partial.random_labels,
    "few_shot": lambda reader, seed=0: partial.few_shot(reader, "depth", 4, seed),
    "shown": lambda reader, seed=0: partial.hold_out(partial.random_labels(reader, seed), 0.2, seed)[0],
    "held": lambda reader, seed=0: partial.hold_out(partial.random_labels(reader, seed), 0.2, seed)[1],
}


# Every setting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_the_seed_decides(name):
    hashes = [SETTINGS[name](reader_of(), seed=seed).assignment.hash for seed in (1, 1, 2)]
    assert hashes[0] == hashes[1]
    assert (hashes[1] == hashes[2]) == (name == "full")


@pytest.mark.parametrize("name", SETTINGS)
def test_only_existing_labels_are_shown(name):
    reader = reader_of(rare="depth")
    shown = SETTINGS[name](reader)
    for index, one in enumerate(shown.ids):
        assert shown.annotated(index) <= reader.annotated(reader.ids.index(one))


@pytest.mark.parametrize("name", SETTINGS)
def test_hidden_labels_are_never_read(name):
    reader = reader_of()
    shown = SETTINGS[name](reader)
    every = [task.name for task in reader.tasks]
    for index, one in enumerate(shown.ids):
        assert shown.load(index, every).id == shown[index].id == one
        assert set(shown.load(index, every).targets) == shown.annotated(index)
    allowed = {(one, name) for index, one in enumerate(shown.ids) for name in shown.annotated(index)}
    assert set(reader.opened) == allowed


@pytest.mark.parametrize("name", SETTINGS)
def test_tables_survive_their_file(name, tmp_path):
    shown = SETTINGS[name](reader_of(), seed=3)
    shown.assignment.to_csv(tmp_path / "labels.csv")
    again = Assignment.from_csv(tmp_path / "labels.csv")
    assert (again.ids, again.tasks, again.scheme, again.seed) == (
        shown.assignment.ids,
        shown.assignment.tasks,
        shown.assignment.scheme,
        3,
    )
    assert again.hash == shown.assignment.hash
    assert again.counts() == shown.assignment.counts() == shown.provenance()["labels"][-1]["labelled"]


# Each setting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [30, 31, 32, 1])
def test_one_label_is_one_label_and_even(length):
    assignment = partial.one_label(reader_of(length=length)).assignment
    assert (assignment.table.sum(1) == 1).all()
    assert np.ptp(assignment.table.sum(0)) <= 1


def test_one_label_is_even_where_few_images_have_a_task():
    assignment = partial.one_label(reader_of(FIVE, 500, rare="parts")).assignment
    assert set(assignment.counts().values()) == {100}


def test_one_label_goes_as_far_as_the_labels_do():
    reader = Listed(THREE, [{"semseg"}] * 10 + [{"semseg", "depth"}] * 6 + [{"depth", "normals"}] * 3 + [set()])
    assignment = partial.one_label(reader).assignment
    assert assignment.counts() == {"semseg": 10, "depth": 6, "normals": 3}
    assert assignment.table.sum(1).tolist() == [1] * 19 + [0]


def test_one_label_moves_labels_along_a_chain():
    reader = Listed(THREE, [{"semseg"}] * 4 + [{"semseg", "depth"}] * 4 + [{"depth", "normals"}] * 4)
    assert set(partial.one_label(reader).assignment.counts().values()) == {4}


def test_random_labels_are_one_to_one_less_than_all_and_every_set_as_likely():
    assignment = partial.random_labels(reader_of(FIVE, 4000)).assignment
    numbers = Counter(assignment.table.sum(1).tolist())
    assert set(numbers) == {1, 2, 3, 4}
    assert all(abs(count - 1000) < 110 for count in numbers.values())
    pairs = Counter(tuple(np.flatnonzero(row)) for row in assignment.table if row.sum() == 2)
    assert set(pairs) == set(combinations(range(5), 2))
    assert all(60 < count < 145 for count in pairs.values())


def test_random_labels_count_only_what_an_image_has():
    reader = Listed(THREE, [{"depth"}] * 5 + [{"depth", "semseg"}] * 50 + [set()])
    table = partial.random_labels(reader).assignment.table
    assert table.sum(1).tolist() == [1] * 55 + [0]


def test_random_labels_look_like_the_published_ones():
    """PASCAL-Context: 4998 images, of which about 1716 show people (protocol, section 2)."""
    assignment = partial.random_labels(reader_of(FIVE, 4998, rare="parts", share=1716 / 4998)).assignment
    published = {"semseg": 2450, "parts": 847, "saliency": 2445, "normals": 2480, "edges": 2557}
    for name, count in assignment.counts().items():
        assert abs(count - published[name]) < 150
    labels = Counter(assignment.table.sum(1).tolist())
    for number, count in {1: 1538, 2: 1529, 3: 1541, 4: 390}.items():
        assert abs(labels[number] - count) < 150


def test_few_shot_keeps_a_few_of_one_task_and_all_of_the_others():
    reader = reader_of(rare="normals")
    there = sum("normals" in reader.annotated(index) for index in range(30))
    assert partial.few_shot(reader, "depth", 10).assignment.counts() == {"semseg": 30, "depth": 10, "normals": there}


@pytest.mark.parametrize(
    ("task", "k", "message"), [("dept", 10, "found 'dept'"), ("depth", 31, "1 … 30"), ("depth", 0, "1 … 30")]
)
def test_few_shot_refuses_what_cannot_be(task, k, message):
    with pytest.raises(MultidenseError, match=message):
        partial.few_shot(reader_of(), task, k)


def test_hold_out_splits_the_labels_and_nothing_else():
    known = partial.random_labels(reader_of(length=200))
    shown, held = partial.hold_out(known, 0.1, seed=1)
    assert list(shown.ids) == list(known.ids)
    withheld = {one: held.annotated(index) for index, one in enumerate(held.ids)}
    assert all(withheld.values())
    for index, one in enumerate(known.ids):
        assert shown.annotated(index) | withheld.get(one, frozenset()) == known.annotated(index)
        assert not shown.annotated(index) & withheld.get(one, frozenset())
    for task, count in known.assignment.counts().items():
        assert held.assignment.counts()[task] == round(0.1 * count)


def test_hold_out_keeps_at_least_one_label_on_both_sides():
    shown, held = partial.hold_out(partial.few_shot(reader_of(), "depth", 2), 0.01)
    assert shown.assignment.counts()["depth"] == held.assignment.counts()["depth"] == 1
    with pytest.raises(MultidenseError, match="'depth' is labelled on one image only"):
        partial.hold_out(partial.few_shot(reader_of(), "depth", 1))
    with pytest.raises(MultidenseError, match="between 0 and 1"):
        partial.hold_out(reader_of(), 1.0)


def test_every_layer_of_hiding_is_in_the_provenance():
    shown, _ = partial.hold_out(partial.one_label(reader_of(), seed=4))
    assert [labels["scheme"] for labels in shown.provenance()["labels"]] == ["one-label", "one-label less 0.1 withheld"]


# Tables from outside --------------------------------------------------------------------------------------------------


def table(tmp_path, text):
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_without_comments_in_another_order_with_another_task(tmp_path):
    path = table(tmp_path, "\ufeffimage, depth ,edges,semseg,normals\r\ni1,1,1,0,0\r\n\r\ni0, 0,1,1,1\r\n")
    shown = partial.from_csv(reader_of(length=2), path)
    assert [shown.annotated(index) for index in range(2)] == [{"semseg", "normals"}, {"depth"}]
    assert (shown.assignment.scheme, shown.assignment.seed) == ("unknown", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("i0,1,0,0\n", "line 1: the header"),
        ("", "line 1: the header"),
        ("# x\nid;semseg\n", "line 2: the header"),
        ("id,semseg,semseg\n", "line 1: the header"),
        ("id,semseg,depth,normals\ni0,1,0\n", "line 2: expected 4 columns, found 3"),
        ("# c\nid,semseg,depth,normals\ni0,1,0,0\ni1,1,yes,0\n", r"line 4 \('i1'\): expected 0 or 1, found 'yes'"),
        ("id,semseg,depth,normals\ni0,1,0,0\ni0,1,1,0\n", "line 3: 'i0' stands in line 2"),
        ("id,semseg,depth,normals\ni0,1,0,0\n", "does not list all ids of 'listed'.*: i1"),
        ("id,semseg,depth,normals\ni0,1,0,0\ni1,1,0,0\nx,1,0,0\ny,0,0,1\n", "not in 'listed'.*: x, y"),
        ("id,semseg,dept,normals\ni0,1,0,0\ni1,1,0,0\n", "expected a column 'depth'.*Is it 'dept'"),
        ("id,semseg,depth,normals\ni0,1,0,0\ni1,1,0,1\n", "a 1 for 'normals' where there is no such label.*: i1"),
    ],
)
def test_mistakes_in_tables_are_named(tmp_path, text, message):
    reader = Listed(THREE, [{"semseg", "depth", "normals"}, {"semseg", "depth"}])
    with pytest.raises(MultidenseError, match=message) as caught:
        partial.from_csv(reader, table(tmp_path, text))
    assert "labels.csv" in str(caught.value)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(MultidenseError, match=r"none\.csv cannot be read"):
        partial.from_csv(reader_of(), tmp_path / "none.csv")


def test_ids_may_hold_commas_and_slashes(tmp_path):
    assignment = Assignment(('a,b/"c"', "#d"), ("depth",), np.array([[True], [False]]), "mine")
    assignment.to_csv(tmp_path / "labels.csv")
    again = Assignment.from_csv(tmp_path / "labels.csv")
    assert again.ids == assignment.ids
    assert again.hash == assignment.hash


# The assignments that papers use ----------------------------------------------------------------------------------------


PUBLISHED = {
    "cityscapes_one-label": ("120694b5fcaac84f", {"semseg": 1487, "depth": 1488}, {1: 2975}),
    "nyuv2_one-label": ("26d0cffcd06f3ecc", {"semseg": 265, "depth": 265, "normals": 265}, {1: 795}),
    "nyuv2_random-labels": ("f239c0600a1a0683", {"semseg": 392, "depth": 408, "normals": 385}, {1: 405, 2: 390}),
    "pascal-context_one-label": (
        "d6f69628ba80daf4",
        {"semseg": 1000, "parts": 999, "normals": 1000, "saliency": 1000, "edges": 999},
        {1: 4998},
    ),
    "pascal-context_random-labels": (
        "d446149a6775e30c",
        {"semseg": 2450, "parts": 847, "normals": 2480, "saliency": 2445, "edges": 2557},
        {1: 1538, 2: 1529, 3: 1541, 4: 390},
    ),
}


class Numbered(Listed):
    """A reader of a benchmark's name and ids."""

    def __init__(self, name, tasks, ids, indexed):
        super().__init__(tasks, [{task.name for task in tasks}] * len(ids))
        self.name, self.ids, self.indexed = name, ids, indexed

    def provenance(self):
        return {"name": self.name, "length": len(self), "indexed": self.indexed, "layout": "official"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_assignment_is_the_published_one(name):
    digest, counts, labels = PUBLISHED[name]
    bench, setting = name.split("_")
    tasks = [task for task in FIVE + THREE[1:2] if task.name in counts]
    given = Assignment.from_csv(ASSIGNMENTS / f"{name}.csv")
    chosen = partial.published(Numbered(bench, tasks, list(given.ids), indexed=True), setting).assignment
    assert given.hash == digest
    assert chosen.counts() == {task.name: counts[task.name] for task in tasks}
    assert Counter(chosen.table.sum(1).tolist()) == labels
    assert chosen.scheme == f"published {setting}"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_generated_assignment_has_the_statistics_of_the_published_one(name):
    _, counts, labels = PUBLISHED[name]
    bench, setting = name.split("_")
    tasks = tuple(task for task in FIVE + THREE[1:2] if task.name in counts)
    people = {"rare": "parts", "share": 1716 / 4998} if bench == "pascal-context" else {}
    chosen = partial.by_setting(reader_of(tasks, sum(labels.values()), **people), setting, seed=3).assignment
    near = 1 if setting == "one-label" else 150  # one-label is an equal split, the other is drawn
    assert all(abs(count - counts[task]) <= near for task, count in chosen.counts().items())
    assert all(abs(count - labels[number]) <= near for number, count in Counter(chosen.table.sum(1).tolist()).items())


def test_a_published_assignment_of_numbers_needs_the_layout_that_has_them():
    with pytest.raises(MultidenseError, match="number of the preprocessed file, but this copy has the layout 'official'"):
        partial.published(Numbered("nyuv2", THREE, ["1", "2"], indexed=False), "one-label")
    with pytest.raises(MultidenseError, match="no published few-shot assignment for 'listed'"):
        partial.published(Listed(THREE, []), "few-shot")
    with pytest.raises(MultidenseError, match="says nothing of saliency"):
        partial.published(Numbered("nyuv2", (*THREE, Saliency()), ["1"], indexed=True), "one-label")


def test_a_published_assignment_fits_fewer_images_too():
    chosen = partial.by_setting(Numbered("nyuv2", THREE, ["3", "0"], indexed=True), "published one-label").assignment
    assert chosen.table.tolist() == [[False, False, True], [True, False, False]]
