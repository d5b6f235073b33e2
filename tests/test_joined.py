"""Collections joined: union and disagreement, sampling, what is discovered where, scores of each collection, whole runs."""

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import multidense as md
from multidense import MultidenseError, discovery, store
from multidense.checkpoint import State
from multidense.cli import main
from multidense.config import load_recipe
from multidense.data import Augment, Folder, Joined, Reader, collate, partial
from multidense.data.across import across
from multidense.data.check import check
from multidense.data.joined import Listed, quotas, spread
from multidense.data.reader import Wrapped, batches
from multidense.data.subset import Subset, Tasks
from multidense.discovery import discover
from multidense.evaluation import measure
from multidense.feed import Feed, numbered
from multidense.joining import Collection, joined_reader
from multidense.results import Results
from multidense.run import Run
from multidense.tasks import from_spec
from multidense.types import Sample

SIZE = (32, 32)
TASKS = (md.SemanticSegmentation(3), md.Edges(), md.Saliency())
HAS = {"streets": ("semseg",), "objects": ("saliency",), "lines": ("edges", "saliency")}
ALONE = SimpleNamespace(global_rank=0, world_size=1, device=torch.device("cpu"))


class Toy(Reader):
    """Images of one colour each with labels of some tasks; counts what is read. `poison`: labels that must not be read."""

    def __init__(self, name, length, tasks, split="train", size=SIZE, poison=()):
        self.name, self.split, self.class_names = name, split, {}
        self.tasks = tuple(task for task in TASKS if task.name in tasks) if isinstance(tasks[0], str) else tuple(tasks)
        self.ids = [f"{number:03d}" for number in range(length)]
        self.size, self.poison, self.read = size, poison, Counter()

    def annotated(self, index):
        return frozenset(task.name for task in self.tasks)

    def load(self, index, tasks):
        self.read[index] += 1
        rng = np.random.default_rng((len(self.name), index))
        targets = {}
        for task in (task for task in self.tasks if task.name in set(tasks)):
            assert task.name not in self.poison, f"{self.name}: '{task.name}' was read"
            values = rng.integers(0, getattr(task, "classes", 2), self.size)
            targets[task.name] = task.encode(values if hasattr(task, "classes") else values.astype(np.float32))
        return Sample(torch.from_numpy(rng.random((3, *self.size), np.float32)), targets, self.ids[index])

    def provenance(self):
        return {"name": self.name, "split": self.split, "size": list(self.size), "length": len(self)}


def readers(lengths=(5, 2, 3), **more):
    return {name: Toy(name, length, HAS[name], **more) for (name, length) in zip(HAS, lengths, strict=True)}


def joined(lengths=(5, 2, 3), sampling="size", **more) -> Joined:
    return Joined(readers(lengths, **more), sampling)


# Union ----------------------------------------------------------------------------------------------------------------


def test_tasks_are_the_union_and_each_image_is_annotated_for_what_its_collection_labels():
    data = joined()
    assert [task.name for task in data.tasks] == ["semseg", "saliency", "edges"]
    assert len(data) == 10
    for index, one in enumerate(data.ids):
        name, _, own = one.partition("/")
        assert data.collection_of(index) == name
        assert data.annotated(index) == set(HAS[name])
        sample = data[index]
        assert (sample.id, set(sample.targets)) == (one, set(HAS[name]))
        alone = data.readers[name][data.readers[name].ids.index(own)]
        assert torch.equal(sample.image, alone.image)
    assert data[-1].id == "lines/002"
    assert data.provenance()["labelled"] == {"semseg": 5, "saliency": 5, "edges": 3}


def test_wrapped_readers_know_the_collection_of_their_images():
    data = joined()
    inner = Subset(partial.one_label(Tasks(data, ["saliency", "edges"]), seed=0), [9, 0, 6])
    assert inner.collections == ("streets", "objects", "lines")
    assert [inner.collection_of(index) for index in range(3)] == ["lines", "streets", "objects"]
    shown = Listed(data, {"lines": ["edges"]})
    assert [shown.annotated(index) for index in (0, 5, 9)] == [set(), set(), {"edges"}]
    assert set(shown.load(9, ["edges", "saliency"]).targets) == {"edges"}


def test_label_settings_choose_among_what_an_image_has():
    data = partial.one_label(joined((6, 6, 6)), seed=0)
    for index in range(len(data)):
        assert len(data.annotated(index)) == 1
        assert data.annotated(index) <= set(HAS[data.collection_of(index)])


def test_hidden_labels_are_never_read():
    kept = partial.Assignment(tuple(joined().ids), ("semseg", "edges", "saliency"), np.zeros((10, 3), bool))
    kept.table[:5, 0] = kept.table[7:, 1] = True
    hiding = Joined(readers(poison=("saliency",)), "equal")
    data = partial.Partial(hiding, kept)
    tasks = [task.with_codebook(None) for task in data.tasks]
    for part, _ in Feed(data, Augment(), 0, 4, tasks, 1, 0).batches(0, 0, ALONE):
        assert not part[0].annotated["saliency"].any()


@pytest.mark.parametrize(
    ("other", "names", "said"),
    [
        (md.SemanticSegmentation(4), None, "'streets' and 'rooms' do not agree about 'semseg': classes 3 and 4"),
        (md.SemanticSegmentation(3, weight=2.0), None, "weight 1.0 and 2.0"),
        (md.SemanticSegmentation(3), ("sky", "tree", "road"), "class 1 is 'car' and 'tree'"),
    ],
)
def test_collections_that_disagree_about_a_task_are_refused_with_the_remedy(other, names, said):
    streets, rooms = Toy("streets", 2, ["semseg"]), Toy("rooms", 2, [other])
    streets.class_names = {"semseg": ("sky", "car", "road")}
    rooms.class_names = {"semseg": names} if names else {}
    with pytest.raises(MultidenseError, match="leave the task out of one of them") as error:
        Joined({"streets": streets, "rooms": rooms})
    assert said in str(error.value)


@pytest.mark.parametrize(("what", "value"), [("size", (32, 48)), ("split", "val")])
def test_collections_of_different_size_or_split_are_refused(what, value):
    with pytest.raises(MultidenseError, match=f"should have one {what}.*'streets'.*'rooms'"):
        Joined({"streets": Toy("streets", 2, ["semseg"]), "rooms": Toy("rooms", 2, ["edges"], **{what: value})})


# Sampling -------------------------------------------------------------------------------------------------------------


def test_by_size_the_order_is_that_of_any_reader():
    data = joined()
    assert data.order(3, 7) == np.random.default_rng((3, 7)).permutation(10).tolist()
    assert Toy("streets", 10, ["semseg"]).order(3, 7) == data.order(3, 7)


@pytest.mark.parametrize(
    ("sampling", "each"),
    [
        ("size", (16, 4, 4)),
        ("equal", (8, 8, 8)),
        ("sqrt", (12, 6, 6)),
        ({"streets": 1, "objects": 2, "lines": 3}, (4, 8, 12)),
    ],
)
def test_an_epoch_is_shared_out_exactly(sampling, each):
    data = joined((16, 4, 4), sampling)
    for epoch in range(3):
        order = data.order(0, epoch)
        assert tuple(Counter(data.collection_of(index) for index in order)[name] for name in HAS) == each


@settings(max_examples=40)
@given(
    sizes=st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 300), min_size=1),
    rule=st.sampled_from(["size", "equal", "sqrt", "shares"]),
)
def test_quotas_add_up_and_leave_nothing_out(sizes, rule):
    wanted = quotas(sizes, {one: 0.01 + number**3 for number, one in enumerate(sizes)} if rule == "shares" else rule)
    assert sum(wanted.values()) == sum(sizes.values())
    assert min(wanted.values()) >= 1
    if rule == "size":
        assert wanted == sizes


@pytest.mark.parametrize("sampling", ["equal", {"streets": 1, "objects": 5, "lines": 1}])
def test_no_image_comes_again_before_its_collection_was_seen_across_epochs_too(sampling):
    data = joined((7, 2, 3), sampling)
    wanted = quotas({"streets": 7, "objects": 2, "lines": 3}, data.sampling)
    times = Counter(index for epoch in range(21) for index in data.order(0, epoch))
    for name in HAS:
        own = [times[index] for index in range(len(data)) if data.collection_of(index) == name]
        assert sum(own) == 21 * wanted[name]
        assert max(own) - min(own) <= 1
    seen = [index for epoch in range(2) for index in data.order(0, epoch) if data.collection_of(index) == "streets"]
    assert len(set(seen)) == min(len(seen), 7)


def test_the_order_is_a_function_of_seed_and_epoch_and_not_of_what_was_asked_before():
    data = joined((7, 2, 3), "equal")
    orders = {epoch: data.order(0, epoch) for epoch in (4, 0, 2)}
    assert orders == {epoch: joined((7, 2, 3), "equal").order(0, epoch) for epoch in (0, 2, 4)}
    assert len({tuple(data.order(seed, 0)) for seed in range(4)}) == 4


def test_the_order_reaches_through_wrappers_to_the_images_that_are_there():
    data = joined((7, 2, 3), "equal")
    shown = Subset(partial.full(data), [0, 1, 2, 3, 4, 7])  # five streets, one object
    for epoch in range(4):
        order = Tasks(shown, ["semseg", "saliency"]).order(0, epoch)
        assert Counter(shown.collection_of(index) for index in order) == {"streets": 3, "objects": 3}
    alone = Subset(data, range(7))
    assert all(sorted(alone.order(0, epoch)) == list(range(7)) for epoch in range(3))


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ("even", "should be 'size', 'equal', 'sqrt'"),
        ({"streats": 1}, "did you mean 'streets'"),
        ({"streets": 0, "objects": 1, "lines": 1}, "the share of 'streets' should be positive"),
        ({"streets": 1, "objects": 1}, "'lines' has no share"),
    ],
)
def test_a_sampling_that_makes_no_sense_is_refused(sampling, said):
    with pytest.raises(MultidenseError, match=said):
        joined(sampling=sampling)


def test_an_image_that_comes_again_in_an_epoch_is_augmented_anew():
    data = joined((9, 1, 2), "equal")
    feed = Feed(data, Augment(scale_range=(1.0, 2.0)), 0, 1, data.tasks, 1, 0)
    seen = {}
    for (batch,), _ in feed.batches(0, 0, ALONE):
        seen.setdefault(batch.ids[0], []).append(batch.image)
    again = seen["objects/000"]
    assert len(again) == 4
    assert not any(torch.equal(again[0], other) for other in again[1:])
    assert [count for _, count in numbered([5, 3, 5, 5])] == [0, 0, 1, 2]


def test_several_processes_and_a_later_start_see_the_same_images():
    data = joined((7, 2, 3), "equal")

    def fed(first, rank, world):
        fabric = SimpleNamespace(global_rank=rank, world_size=world, device=ALONE.device)
        feed = Feed(data, Augment(scale_range=(1.0, 2.0)), 0, 4, data.tasks, 1, 0)
        return [
            [(one, image.sum().item()) for one, image in zip(batch.ids, batch.image, strict=True)]
            for (batch,), _ in feed.batches(1, first, fabric)
        ]

    alone = fed(0, 0, 1)
    assert [len(step) for step in alone] == [4, 4, 4]
    assert [one + other for one, other in zip(fed(0, 0, 2), fed(0, 1, 2), strict=True)] == alone
    assert fed(2, 0, 1) == alone[2:]


def test_batches_in_order_do_not_cross_collections():
    data = joined((5, 2, 3))
    assert [indices for indices, _ in batches(data, 4)] == [[0, 1, 2, 3], [4], [5, 6], [7, 8, 9]]


# Training -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    data = joined((4, 2, 2), "equal")
    return md.fit(md.build_model("segnet", "hitts", data.tasks, width=0.0625, seed=0), data, epochs=1, batch_size=4)


def test_a_training_stopped_in_mid_epoch_ends_in_the_same_bits(tmp_path, monkeypatch):
    data, how = joined((4, 1, 3), "equal"), {"epochs": 1, "batch_size": 2, "checkpoint_every": 3}

    def begin():
        return md.build_model("segnet", "shared", data.tasks, width=0.0625, seed=0)

    whole = md.fit(begin(), data, out=tmp_path / "whole", **how)
    save = State.save

    def save_and_die(state, *args):
        save(state, *args)
        if state.step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(State, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        md.fit(begin(), data, out=tmp_path / "torn", **how)
    monkeypatch.setattr(State, "save", save)
    again = md.fit(begin(), data, out=tmp_path / "torn", resume=True, **how)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


# Discovery ------------------------------------------------------------------------------------------------------------

LISTED = {"streets": ["saliency", "edges"], "objects": ["edges"]}
PAIRS = {("streets", "saliency"), ("streets", "edges"), ("objects", "edges")}


@pytest.fixture(scope="module")
def data():
    return joined((4, 2, 2))


@pytest.fixture(scope="module", params=["offline", "online"])
def found(request, teacher, data, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param)
    return discover(teacher, data, out, mode=request.param, threshold="share 0.9", collections=LISTED)


def test_only_listed_pairs_are_taught(found, data, teacher):
    attached = found.attach(data)
    for index in range(len(data)):
        batch = found.complete(collate([attached[index]], data.tasks))
        for task in data.tasks:
            pair = (data.collection_of(index), task.name)
            assert bool(batch.discovered[task.name].valid.any()) == (pair in PAIRS), pair
            taught = task.name in batch.features and bool((batch.features[task.name].confidence > 0).any())
            assert taught == (pair in PAIRS), pair


def test_losses_touch_listed_pairs_only_in_mixed_batches(found, data, teacher):
    attached = found.attach(data)
    batch = found.complete(collate([attached[index] for index in range(len(data))], data.tasks))
    with torch.no_grad():
        outputs = teacher(batch.image)
    off = replace(outputs, features={name: value + 1 for name, value in outputs.features.items()})
    terms = md.Objective().terms(data.tasks, off, batch)
    for term in ("discovered", "features"):
        for name, losses in terms[term].items():
            for index, loss in enumerate(losses.tolist()):
                assert (loss > 0) == ((data.collection_of(index), name) in PAIRS), (term, name, index)


def test_no_other_image_is_even_run_through_the_teacher(teacher, monkeypatch):
    data = joined((4, 2, 2))
    seen = []
    monkeypatch.setattr(discovery, "seen_by", lambda network, image: seen.append(image) or store.seen_by(network, image))
    discover(teacher, data, threshold="share 0.5", collections={"objects": ["edges"]})
    assert [len(images) for images in seen] == [2, 2]
    assert not data.readers["streets"].read
    assert not data.readers["lines"].read


def test_what_is_labelled_already_is_looked_at_for_its_features_alone(teacher):
    data = joined((4, 2, 2))
    without = discover(teacher, data, collections={"streets": ["semseg"], "objects": ["edges"]}, features=False)
    assert not data.readers["streets"].read
    assert without.manifest["tasks"]["semseg"]["images"] == 0
    kept = discover(teacher, data, collections={"streets": ["semseg"]})
    assert set(kept.features("streets/000")) == {"semseg"}
    assert kept.label("semseg", "streets/000") is None


def test_the_manifest_tells_each_collection(found):
    told = found.manifest["tasks"]
    assert {(one, task) for task, entry in told.items() for one in entry["collections"]} == PAIRS
    assert told["edges"]["collections"]["objects"]["images"] == 2
    assert told["edges"]["images"] == 6
    for entry in (told["edges"], told["saliency"]):
        shares = [each["images"] * each["kept_share"] for each in entry["collections"].values()]
        assert sum(shares) / entry["images"] == pytest.approx(entry["kept_share"])
        assert all(0 <= each["confidence"] <= 1 for each in entry["collections"].values())
    again = store.Discovered.open(found.folder, found.teacher)
    assert again.wanted("objects/001") == {"edges"}
    assert again.wanted("lines/000") == again.wanted("elsewhere") == frozenset()


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        (None, "joined of streets, objects, lines: list with collections"),
        ({"streats": ["edges"]}, "did you mean 'streets'"),
        ({"streets": ["edgs"]}, "did you mean 'edges'"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(teacher, data, listed, said):
    with pytest.raises(MultidenseError, match=said):
        discover(teacher, data, collections=listed)
    with pytest.raises(MultidenseError, match="is not joined"):
        discover(teacher, Toy("streets", 2, TASKS), collections={"streets": ["edges"]})


# Scores ---------------------------------------------------------------------------------------------------------------


def test_scores_of_a_collection_are_those_of_evaluating_it_alone(teacher, tmp_path):
    data = joined((3, 5, 4))
    results = measure(teacher, data, batch_size=2)
    assert set(results.collections) == set(HAS)
    for name, reader in data.readers.items():
        assert results.collections[name] == measure(teacher, reader, batch_size=2).scores
    assert results.collections["streets"]["semseg.mIoU"] == results.scores["semseg.mIoU"]
    assert {name.partition(".")[0] for name in results.collections["lines"]} == {"edges", "saliency"}
    assert results.provenance["images"] == {"semseg": 3, "saliency": 9, "edges": 4}
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json").collections == results.collections


def test_pooled_scores_are_those_of_one_reader_with_all_images(teacher):
    data = joined((3, 5, 4))

    class Plain(Wrapped):
        collection_of = Reader.collection_of

    plain = Plain(data)
    plain.collections = ()
    pooled = measure(teacher, data).scores
    assert pooled == pytest.approx(measure(teacher, plain).scores, rel=1e-4)


def test_pictures_are_of_every_collection():
    data = joined((9, 2, 3))
    assert Counter(data.collection_of(index) for index in spread(data, 4)) == {"streets": 2, "objects": 2, "lines": 2}
    assert spread(Toy("streets", 9, TASKS), 4) == [0, 2, 4, 6]


# Recipes and runs -----------------------------------------------------------------------------------------------------


def write_tree(root, tasks, train, val, size, classes=3):
    rng = np.random.default_rng(len(root.name))
    for kind in ("rgb", *tasks):
        (root / kind).mkdir(parents=True, exist_ok=True)
    ids = [f"{number:02d}" for number in range(train + val)]
    for one in ids:
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(root / "rgb" / f"{one}.png")
        for task in tasks:
            values = rng.integers(0, classes, size) if task == "semseg" else 255 * (rng.random(size) < 0.3)
            Image.fromarray(values.astype(np.uint8)).save(root / task / f"{one}.png")
    described = {task: {"files": f"{task}/{{id}}.png"} | ({"classes": classes} if task == "semseg" else {}) for task in tasks}
    told = {"name": root.name, "images": "rgb/{id}.png", "splits": {"val": ids[train:], "train": "rest"}, "tasks": described}
    (root.parent / f"{root.name}.yaml").write_text(yaml.safe_dump(told | {"root": root.name}))


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Three trees of different sizes and their descriptions."""
    folder = tmp_path_factory.mktemp("trees")
    write_tree(folder / "streets", ["semseg"], 4, 2, (40, 50))
    write_tree(folder / "objects", ["saliency"], 2, 2, (36, 36))
    write_tree(folder / "lines", ["edges", "saliency"], 3, 2, (50, 34))
    return folder


RECIPE = """
name: joined
data:
  reader: joined
  size: [32, 32]
  sampling: equal
  collections:
    streets: {description: streets.yaml}
    objects: {description: objects.yaml}
    lines: {description: lines.yaml, train: 2}
tasks:
  semseg: {classes: 3}
  edges: {}
  saliency: {}
width: 0.0625
networks:
  joined: {decoder: shared}
  apart: {decoder: shared, collections: [lines, objects], tasks: [saliency]}
  student: {decoder: shared, teacher: joined, objective: {features: 0}}
baseline: joined
training: {epochs: 1, batch_size: 4, threads: 1, accelerator: cpu}
discovery: {features: false, collections: {streets: [saliency], objects: [edges]}}
pictures: 3
"""


def write_recipe(trees, name="recipe.yaml", **changes):
    path = trees / name
    text = RECIPE
    for before, after in changes.values():
        assert before in text
        text = text.replace(before, after)
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def done(trees, tmp_path_factory):
    work = Run(load_recipe(write_recipe(trees)), tmp_path_factory.mktemp("runs") / "joined")
    work.run()
    return work


def test_a_joined_run_ends_in_a_report_that_tells_each_collection(done):
    results = done.results()
    assert set(results["joined"].collections["lines"]) == {
        name for name in results["joined"].scores if not name.startswith("semseg")
    }
    assert set(results["apart"].collections) == {"streets", "objects", "lines"}
    assert set(done.gains()) == {"joined", "student"}
    told = (done.folder / "report.md").read_text()
    for name in ("streets", "objects", "lines"):
        assert f"### On the collection {name} alone" in told
    table = told.partition("### On the collection streets alone")[2].partition("###")[0]
    assert "| apart |" not in table
    assert "| student |" in table
    assert "| objects · edges | 2 |" in told
    assert told.count("No delta_mtl for apart: only scores of the same names compare with joined.") == 1
    assert "| streets · saliency | 4 |" in told
    page = (done.folder / "report.html").read_text()
    assert "On the collection streets alone" in page
    assert "On each collection" in page
    assert {path.name.partition("__")[0] for path in (done.folder / "pictures" / "val").iterdir()} == set(HAS)


def test_the_command_tells_what_is_discovered_on_each_collection(done, capsys):
    main(["discover", str(done.folder)])
    lines = capsys.readouterr().out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("saliency: 4 images"))
    assert lines[at + 1].startswith("  on streets: 4 images, kept ")
    assert sum(line.startswith("  on ") for line in lines) == 2


def test_a_network_apart_sees_its_collections_only_and_is_scored_on_all(done):
    shown, _ = done.labels_of("apart")
    assert {shown.collection_of(index) for index in range(len(shown))} == {"lines", "objects"}
    assert len(shown) == 4
    assert done.results()["apart"].provenance["images"] == {"saliency": 4}
    assert not (done.folder / "apart" / "training_images.json").exists()


def test_discovered_files_are_of_listed_pairs(done):
    there = {path.parent.relative_to(done.folder / "discovered") for path in (done.folder / "discovered").rglob("0*.png")}
    assert {str(place) for place in there if place.parts[0] not in ("confidence", "pictures")} == {
        "saliency/streets",
        "edges/objects",
    }
    manifest = json.loads((done.folder / "discovered" / "manifest.json").read_text())
    assert manifest["collections"] == {"streets": ["saliency"], "objects": ["edges"]}
    assert [from_spec(entry["spec"]).name for entry in manifest["tasks"].values()] == ["semseg", "edges", "saliency"]


def test_a_saved_joined_recipe_is_the_same_recipe(done):
    assert load_recipe(done.folder / "recipe.yaml") == done.recipe


def test_data_root_is_the_folder_of_all_collections(trees, tmp_path):
    away = tmp_path / "away"
    away.mkdir()
    for name in HAS:
        (away / name).symlink_to(trees / name)
        text = (trees / f"{name}.yaml").read_text().replace(f"root: {name}", "root: nowhere")
        (away / f"{name}.yaml").write_text(text)
    (away / "recipe.yaml").write_text(RECIPE)
    recipe = load_recipe(away / "recipe.yaml", ["--data.root", str(away), "--data.collections.streets.train", "1"])
    assert len(joined_reader(recipe, "train")) == 5
    with pytest.raises(MultidenseError, match="nowhere is not there"):
        joined_reader(replace(recipe, data=replace(recipe.data, root=None)), "train")


def test_descriptions_that_disagree_name_both_collections(trees, done):
    write_tree(trees / "rooms", ["semseg"], 1, 1, (32, 32), classes=4)

    def with_rooms(tasks):
        there = done.recipe.data.collections | {"rooms": Collection(str(trees / "rooms.yaml"), tasks=tasks)}
        return replace(done.recipe, data=replace(done.recipe.data, collections=there))

    with pytest.raises(MultidenseError, match="'streets' and 'rooms' do not agree about 'semseg': classes 3 and 4"):
        joined_reader(with_rooms(None), "train")
    assert joined_reader(with_rooms([]), "train").annotated(8) == set()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("size: [32, 32]", "seed: 0", "data.size: joined collections need one"),
        ("streets: {description: streets.yaml}", "streets: {descripton: streets.yaml}", "did you mean 'description'"),
        ("lines.yaml, train: 2", "lines.yaml, tasks: [edgs]", "data.collections.lines.tasks: there is no 'edgs' (did you mean"),
        ("lines.yaml, train: 2", "lines.yaml, train: 0", "data.collections.lines.train must be at least 1"),
        ("sampling: equal", "sampling: {streets: 1, lines: 2}", "sampling: the collection 'objects' has no share"),
        ("sampling: equal", "sampling: even", "sampling should be 'size', 'equal', 'sqrt'"),
        ("[lines, objects]", "[line]", "networks.apart.collections: there is no 'line' (did you mean 'lines'?)"),
        ("objects: [edges]}", "objectz: [edges]}", "discovery.collections: there is no 'objectz' (did you mean 'objects'?)"),
        ("objects: [edges]}", "objects: [edge]}", "discovery.collections.objects: there is no 'edge' (did you mean 'edges'?)"),
        ("features: false, collections: {streets: [saliency], objects: [edges]}", "features: false", "nothing is listed"),
        ("reader: joined", "reader: rooms", "collections are of the reader 'joined'"),
    ],
)
def test_a_mistake_about_collections_is_named(trees, before, after, said):
    path = write_recipe(trees, "wrong.yaml", change=(before, after))
    with pytest.raises(MultidenseError) as error:
        load_recipe(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_a_network_with_a_task_that_its_collections_lack_is_refused(trees, tmp_path):
    path = write_recipe(trees, "lacking.yaml", change=(", tasks: [saliency]}", "}"))
    with pytest.raises(MultidenseError, match="no training image of lines, objects is labelled for semseg"):
        Run(load_recipe(path), tmp_path).labels_of("apart")


def test_data_commands_take_joined_recipes(trees, tmp_path, capsys):
    path = str(write_recipe(trees))
    main(["data", "check", path, "--out", str(tmp_path / "check.html"), "--processes", "1"])
    said = capsys.readouterr().out
    assert [said.index(f"\n{name}\n") for name in HAS] == sorted(said.index(f"\n{name}\n") for name in HAS)
    assert "Nothing wrong in 15 images" in said.partition("\nbetween the collections\n")[2]
    assert {page.name for page in tmp_path.glob("*.html")} == {
        f"check-{name}.html" for name in (*HAS, "between-the-collections")
    }
    main(["data", "label", path, "--setting", "one-label", "--out", str(tmp_path / "labels.csv")])
    assert "8 images" in capsys.readouterr().out
    main(["data", "show", path, "--count", "3", "--out", str(tmp_path / "look.png")])
    with Image.open(tmp_path / "look.png") as sheet:
        assert sheet.height == 3 * 34 - 2


@pytest.fixture
def sharing(tmp_path):
    """Two trees: an image that the first trains on is validated on in the second, another is trained on in both, as JPEG."""
    write_tree(tmp_path / "streets", ["semseg"], 3, 2, (40, 50))
    write_tree(tmp_path / "lines", ["edges"], 2, 2, (36, 44))
    for name, (ours, theirs) in {"leak": ("00", "03"), "twice": ("01", "01")}.items():
        with Image.open(tmp_path / f"streets/rgb/{ours}.png") as image:
            image.save(tmp_path / f"{name}.jpg", quality=80)
        with Image.open(tmp_path / f"{name}.jpg") as image:
            image.resize((44, 36), Image.Resampling.BOX).save(tmp_path / f"lines/rgb/{theirs}.png")
    return tmp_path


def checked(trees, **changes):
    return {name: check(trees / f"{name}.yaml", processes=1, **changes) for name in ("streets", "lines")}


def test_an_image_trained_on_in_one_collection_and_validated_on_in_another_is_an_error(sharing):
    each = checked(sharing)
    assert not any(found.errors for found in each.values()), "nothing is wrong with either alone"
    found = across(each)
    error, warning = found.problems
    assert (error.level, error.split, error.id) == ("error", "streets train, lines val", "00")
    assert "streets/rgb/00.png in train, lines/rgb/03.png in val" in error.found
    assert "no other must validate on" in error.remedy
    assert (warning.level, warning.split, warning.file) == ("warning", "streets train, lines train", "streets/rgb/01.png")
    assert [[title for title, _ in pair.pictures] for pair in found.pairs] == [
        ["streets train 00", "lines val 03"],
        ["streets train 01", "lines train 01"],
    ]
    assert [(split.name, split.images) for split in found.splits] == [
        (f"{name} {split.name}", split.images) for name in each for split in each[name].splits
    ]


def test_collections_that_share_no_image_have_nothing_between_them(sharing):
    assert across(checked(sharing, splits=["val"])).problems == []
    assert across({"streets": checked(sharing)["streets"]}).problems == []


def two_trees(sharing, **collection):
    """The recipe that joins both trees, the second as said."""
    collections = {name: {"description": f"{name}.yaml"} for name in ("streets", "lines")}
    collections["lines"] |= collection
    recipe = {"name": "two", "data": {"reader": "joined", "size": [32, 32], "collections": collections}}
    recipe |= {"tasks": {"semseg": {"classes": 3}, "edges": {}}, "networks": {"joined": {"decoder": "shared"}}}
    (sharing / "two.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return sharing / "two.yaml"


def test_images_that_a_collection_is_without_are_not_read_nor_checked(sharing, capsys):
    (sharing / "lines/edges/01.png").write_bytes(b"no picture")
    recipe = load_recipe(two_trees(sharing, without=["01", "03"]))
    read = {split: joined_reader(recipe, split).ids for split in ("train", "val")}
    assert read["train"] == ["streets/00", "streets/01", "streets/02", "lines/00"]
    assert read["val"] == ["streets/03", "streets/04", "lines/02"]
    main(["data", "check", str(sharing / "two.yaml"), "--processes", "1"])
    assert "Nothing wrong in 7 images" in capsys.readouterr().out.partition("\nlines\n")[2].partition("\nbetween")[2]


@pytest.mark.parametrize(
    ("without", "said"),
    [
        (["04"], "data.collections.lines.without: no split has an image '04'"),
        (["00", "01"], "data.collections.lines.without leaves no image to 'train'"),
    ],
)
def test_being_without_images_that_are_not_there_or_all_that_are_is_refused(sharing, without, said):
    with pytest.raises(MultidenseError) as error:
        joined_reader(load_recipe(two_trees(sharing, without=without)), "train")
    assert said in str(error.value)


def test_the_command_fails_where_only_the_collections_together_are_wrong(sharing, capsys):
    page = sharing / "check.html"
    with pytest.raises(SystemExit) as stopped:
        main(["data", "check", str(two_trees(sharing)), "--processes", "1", "--out", str(page)])
    assert stopped.value.code == 1
    said = capsys.readouterr().out.partition("\nbetween the collections\n")[2]
    assert "1 error and 1 warning in 9 images" in said
    shown = (sharing / "check-between-the-collections.html").read_text()
    assert shown.count("<img") == 4
    assert "labelled images" not in shown


def test_a_folder_is_a_collection_like_any_other(trees):
    folder = Folder(trees / "lines.yaml", "train", size=SIZE)
    data = Joined({"lines": folder, "toys": Toy("toys", 2, ["semseg"])})
    assert data.ids == ["lines/00", "lines/01", "lines/02", "toys/000", "toys/001"]
