"""Freezing, rates by layer: what is frozen stays to the bit, the rest learns at the rates that are said."""

from dataclasses import dataclass

import pytest
import torch
import yaml
from torch import nn

import multidense as md
from multidense.balancing import Balancing
from multidense.config import load_recipe
from multidense.data import Augment, Rooms
from multidense.files import read_json
from multidense.models import build_model, load_model, weights_hash
from multidense.parameters import Frozen, frozen_names, groups, layers_of
from multidense.progress import Reporter
from multidense.run import Run
from multidense.train import fit
from multidense.types import MultidenseError

SIZE = (32, 48)
QUICK = {"epochs": 1, "batch_size": 4, "augment": Augment.none(), "accelerator": "cpu", "threads": 1}


def tasks() -> list:
    return [md.SemanticSegmentation(13), md.Normals()]


def network(decoder: str = "shared") -> md.models.MultiTask:
    return build_model("segnet", decoder, tasks(), width=0.0625, seed=0)


@pytest.fixture(scope="module")
def rooms() -> Rooms:
    return Rooms(tasks(), "train", size=SIZE, length=6)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: each.clone() for name, each in model.state_dict().items()}


# Rates


def test_by_default_all_parameters_are_one_group_in_their_order():
    model = network()
    (group,) = groups(model)
    assert list(group) == ["params"]
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]


def test_layer_decay_gives_each_layer_its_rate():
    model = network()
    made = groups(model, backbone_lr=0.5, layer_decay=0.8)
    scale = {id(p): group.get("lr_scale", 1.0) for group in made for p in group["params"]}
    assert len(scale) == len(list(model.parameters()))
    layers = layers_of(model.backbone)
    assert layers[0] == ("encoder.0",)
    assert layers[4:6] == [("encoder.4",), ("decoder.4",)]
    assert layers[-1] == ("decoder.0",), "the finest map is made last"
    for name, parameter in model.named_parameters():
        part, _, rest = name.partition(".")
        depth = next((9 - i for i, (each,) in enumerate(layers) if rest.startswith(f"{each}.")), None)
        expected = 0.5 * 0.8**depth if part == "backbone" else 1.0
        assert scale[id(parameter)] == pytest.approx(expected), name
    assert "lr_scale" not in made[0], "the first group's rate is the training's"


class Silent(nn.Module):
    """A backbone that says nothing about its layers."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)


def test_a_backbone_that_says_nothing_is_one_layer():
    model = nn.ModuleDict({"backbone": Silent(), "decoder": nn.Linear(2, 2)})
    rest, backbone = groups(model, backbone_lr=0.1, layer_decay=0.5)
    assert [len(each["params"]) for each in (rest, backbone)] == [2, 4]
    assert backbone["lr_scale"] == 0.1


def test_the_rates_are_those_of_the_steps(rooms, monkeypatch):
    """One step of Adam moves every weight by its rate."""
    model = network()
    before = state(model)
    fit(model, rooms, **(QUICK | {"batch_size": 6}), lr=1e-3, backbone_lr=0.1, layer_decay=0.5, precise_bn=False)
    moved = {name: (each - before[name]).abs().median().item() for name, each in model.state_dict().items()}
    assert moved["decoder.feature.semseg.weight"] == pytest.approx(1e-3, rel=0.05)
    layers = layers_of(model.backbone)
    for i in (0, 4, 9):
        name = f"backbone.{layers[i][0]}.0.0.weight"
        assert moved[name] == pytest.approx(1e-4 * 0.5 ** (9 - i), rel=0.05), name


# Freezing


@pytest.mark.parametrize("method", ["fixed", "mgda on features"])
def test_a_frozen_backbone_stays_to_the_bit(rooms, method):
    name, _, on = method.partition(" on ")
    if on:
        pytest.importorskip("torchjd")
    model = network()
    before = state(model)
    balancing = Balancing(name, {"on": on} if on else {})
    fit(model, rooms, **QUICK, val=rooms, validate_every=1, freeze=["backbone"], weight_decay=0.1, balancing=balancing)
    after = model.state_dict()
    assert all(torch.equal(after[key], each) for key, each in before.items() if key.startswith("backbone."))
    for part in ("feature", "head"):
        assert not torch.equal(after[f"decoder.{part}.semseg.weight"], before[f"decoder.{part}.semseg.weight"])
    assert all(parameter.requires_grad for parameter in model.parameters()), "only while it trains"


@pytest.mark.parametrize("method", ["gradnorm", "mgda", "mgda on features"])
def test_balancers_do_with_a_part_that_is_frozen(rooms, method):
    name, _, on = method.partition(" on ")
    if name == "mgda":
        pytest.importorskip("torchjd")
    model = build_model("resnet18", "aspp", tasks(), width=0.0625, seed=0, head_channels=4, rates=[1, 2])
    before = state(model)
    frozen = ["backbone.conv1", "backbone.bn1", "backbone.layer1"]
    fit(model, rooms, **QUICK, freeze=frozen, balancing=Balancing(name, {"on": on} if on else {}))
    same = {key: torch.equal(model.state_dict()[key], each) for key, each in before.items()}
    assert all(same[key] for key in same if key.startswith(tuple(f"{prefix}." for prefix in frozen)))
    assert not same["decoder.head.normals.weight"]
    assert not same["backbone.layer4.0.conv1.weight"]


def test_freezing_the_whole_backbone_leaves_gradnorm_nothing_to_weigh_by(rooms):
    with pytest.raises(MultidenseError, match="gradnorm needs a shared layer that learns"):
        fit(network(), rooms, **QUICK, freeze=["backbone"], balancing=Balancing("gradnorm"))


def test_two_processes_keep_a_frozen_backbone_too(rooms):
    model = network()
    before = state(model)
    fit(model, rooms, **QUICK, devices=2, freeze=["backbone.encoder"], layer_decay=0.9)
    after = model.state_dict()
    assert all(torch.equal(after[key], each) for key, each in before.items() if key.startswith("backbone.encoder."))
    moved = [key for key in before if key.startswith("backbone.decoder.") and not torch.equal(after[key], before[key])]
    assert any(key.endswith("weight") for key in moved)
    assert any(key.endswith("running_mean") for key in moved)


def test_prefixes_end_where_names_do():
    model = nn.ModuleDict({"backbone": nn.ModuleDict({f"layer{i}": nn.Linear(1, 1) for i in (1, 10)}), "head": nn.Linear(1, 1)})
    assert frozen_names(model, ["backbone.layer1"]) == ["backbone.layer1.weight", "backbone.layer1.bias"]
    assert frozen_names(model, ["head.bias"]) == ["head.bias"]
    frozen = Frozen(model, ["backbone"])
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    assert sum(len(group["params"]) for group in groups(model, 0.5)) == 2
    frozen.release()
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (["backbone.encoderr"], r"no parameter begins with 'backbone.encoderr' \(did you mean 'backbone.encoder'"),
        (["backbone", "decoder"], "leaves nothing that learns"),
    ],
)
def test_freezing_that_makes_no_sense_is_refused(rooms, freeze, message):
    with pytest.raises(MultidenseError, match=message):
        fit(network(), rooms, **QUICK, freeze=freeze)


@pytest.mark.parametrize("wrong", [{"backbone_lr": 0.0}, {"layer_decay": 0.0}, {"layer_decay": 1.5}], ids=str)
def test_rates_that_make_no_sense_are_refused(rooms, wrong):
    with pytest.raises(MultidenseError, match=f"training.{next(iter(wrong))} must be"):
        fit(network(), rooms, **QUICK, **wrong)


# In recipes


@dataclass
class Heard(Reporter):
    """Keeps what is told."""

    def __post_init__(self):
        self.lines = []

    def work(self, title, total, done=0):
        from contextlib import contextmanager

        @contextmanager
        def work():
            yield lambda steps=1, note="": self.lines.append((title, total, note))

        return work()


RECIPE = {
    "name": "weights",
    "tasks": {"semseg": {"classes": 13}},
    "networks": {"one": {"decoder": "aspp", "options": {"head_channels": 4, "rates": [1, 2]}}},
    "data": {"size": list(SIZE), "train": 4, "val": 2},
    "backbone": "resnet18",
    "width": 0.0625,
    "backbone_options": {"weights": "first.pth"},
    "training": {"epochs": 1, "batch_size": 4, "accelerator": "cpu", "freeze": ["backbone.layer1"]},
    "pictures": 0,
}


def recipe_file(folder, **changed):
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | changed))
    return folder / "recipe.yaml"


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # small data leave classes without a pixel
def test_a_run_tells_how_the_first_weights_fitted_and_needs_them_once(tmp_path):
    first = build_model("resnet18", "aspp", tasks(), width=0.0625, seed=5).backbone
    extra = {"fc.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)}
    torch.save(first.state_dict() | extra, tmp_path / "first.pth")
    work, heard = Run(load_recipe(recipe_file(tmp_path)), tmp_path / "run"), Heard()
    results = work.train_network("one", heard)
    where = str(tmp_path / "first.pth")
    assert heard.lines[0] == ("backbone weights", 120, f"120 of 120 tensors from {where}, 2 not used: fc.weight, fc.bias")
    assert results.provenance["initial_weights"]["source"] == where
    assert results.provenance["initial_weights"]["loaded"] == 120
    assert read_json(tmp_path / "run" / "one" / "initial_weights.json")["unused"] == ["fc.weight", "fc.bias"]
    assert work.recipe.backbone_options == {"weights": where}

    (tmp_path / "first.pth").unlink()
    model = load_model(tmp_path / "run" / "one" / "model")
    kept = model.backbone.layer1[0].conv1.weight
    assert torch.equal(kept, first.layer1[0].conv1.weight), "given, and frozen"
    again = Heard()
    Run.open(tmp_path / "run").train_network("one", again)
    assert not [line for line in again.lines if line[0] == "backbone weights"]
    assert weights_hash(work.model("one")) == weights_hash(model)


def test_options_of_a_network_come_before_those_of_the_recipe(tmp_path):
    networks = {"one": {"decoder": "aspp", "options": {"output_stride": 32}}, "two": {"decoder": "aspp"}}
    options = {"weights": "first.pth", "output_stride": 16}
    recipe = load_recipe(recipe_file(tmp_path, networks=networks, backbone_options=options))
    assert recipe.options_of(recipe.networks["one"])["output_stride"] == 32
    assert recipe.options_of(recipe.networks["two"])["output_stride"] == 16


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"backbone": "timm/test_resnett", "width": 1.0},
            r"recipe.yaml: timm .* has no network 'test_resnett'.*timm/test_resnet",
        ),
        ({"backbone": "resnet81"}, "backbone: there is no 'resnet81' .did you mean 'resnet18'"),
        ({"backbone_options": {"output_strid": 8}}, "unknown option 'output_strid'"),
        ({"training": {"freeze": ["backbone.layer7"]}}, "no parameter begins with 'backbone.layer7'"),
        ({"training": {"layer_decay": 2.0}}, "training.layer_decay must be above 0"),
    ],
)
def test_mistakes_show_when_the_recipe_is_read(tmp_path, changed, message):
    with pytest.raises(MultidenseError, match=message):
        load_recipe(recipe_file(tmp_path, **changed))


def test_a_backbone_of_the_zoo_in_a_recipe(tmp_path):
    options = {"pretrained": True}  # nothing is loaded while a recipe is read
    changed = {"backbone": "timm/test_resnet.r160_in1k", "width": 1.0, "backbone_options": options}
    recipe = load_recipe(recipe_file(tmp_path, **changed, training={"freeze": ["backbone.net"], "layer_decay": 0.9}))
    assert recipe.backbone_options == options
