"""Two processes on the CPU make the steps of one: same losses, same weights, whatever balances the tasks.

In double precision. Sums over two halves of a batch are rounded otherwise than over the whole; a gradient summed over thousands
of pixels differs by some 1e-14. Adam divides a gradient by its own size plus 1e-8, so where there is next to none (a bias
before BatchNorm) a weight moves by up to lr · 1e-14 / 1e-8 = 1e-9 a step. Measured after four steps: losses agree to 3e-11,
weights to 3e-9. The tests ask for 1e-9 and 1e-7; a real difference is of the size of lr, 1e-3.
"""

import importlib.util
import json
import math
from dataclasses import replace
from functools import partial

import pytest
import safetensors.torch
import torch

import multidense as md
from multidense.balancing import Balancing
from multidense.checkpoint import State
from multidense.data import Augment, Reader, Rooms, Wrapped
from multidense.data import partial as labels
from multidense.feed import parts
from multidense.processes import GlobalBatchNorm, synchronised
from multidense.progress import silent
from multidense.spawned import fabric_for, launched
from multidense.train import Training, fit, train_loop
from multidense.types import Target

SIZE = (32, 48)
METHODS = ["fixed", "uncertainty", "gradnorm", "lps"]
if importlib.util.find_spec("torchjd"):
    METHODS += ["mgda", "mgda on features"]


def tasks() -> list:
    return [md.SemanticSegmentation(13), md.Depth(), md.Normals()]


class Double(Wrapped):
    """Images in double precision, from memory."""

    def __init__(self, reader: Reader):
        super().__init__(reader)
        self.kept = [reader[index] for index in range(len(reader))]

    def load(self, index, names):
        sample = self.kept[index]
        targets = {name: target for name, target in sample.targets.items() if name in names}
        return replace(sample, image=sample.image.double(), targets=targets)


@pytest.fixture(scope="module")
def data() -> Reader:
    """Five images, each labelled for one task: a batch of four, and one that is left for one of the processes."""
    return Double(labels.one_label(Rooms(tasks(), "train", size=SIZE, length=5), seed=0))


def settings(name: str, devices: int) -> Training:
    method, _, on = name.partition(" on ")
    return Training(
        epochs=2,
        batch_size=4,
        clip=1.0,
        balancing=Balancing(method, {"on": on} if on else {}),
        augment=Augment(scales=(1.0,), flip=0.5),
        accelerator="cpu",
        devices=devices,
    )


def trainings(fabric, data, folder):
    """One training after the other, in processes that are started once; the first writes weights and losses."""
    add = State.add
    for name in METHODS:
        losses = []

        def note(state, found, loss, seconds, losses=losses):
            losses.append(loss.item())
            add(state, found, loss, seconds)

        State.add = note
        model = md.build_model("segnet", "shared", tasks(), width=0.0625, seed=0).double()
        job = {"model": model, "data": data, "discovered": (), "folder": None, "weights": folder / f"{name}.safetensors"}
        try:
            train_loop(fabric, **job, seed=0, val=None, settings=settings(name, fabric.world_size), reporter=silent)
        finally:
            State.add = add
        (folder / f"{name}.{fabric.global_rank}.json").write_text(json.dumps(losses))


@pytest.fixture(scope="module")
def ends(data, tmp_path_factory):
    """Weights and losses of every training, in one process and in two."""
    folders = []
    for devices in (1, 2):
        folder = tmp_path_factory.mktemp(f"devices{devices}")
        handover = tmp_path_factory.mktemp("handover")
        launched(fabric_for("cpu", devices, "32-true"), partial(trainings, data=data, folder=folder), handover)
        folders.append(folder)
    return folders


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_end_in_the_weights_of_one(ends, name):
    one, two = (safetensors.torch.load_file(folder / f"{name}.safetensors") for folder in ends)
    start = md.build_model("segnet", "shared", tasks(), width=0.0625, seed=0).double().state_dict()
    assert one.keys() == two.keys()
    for key in one:
        assert torch.allclose(one[key].double(), two[key].double(), rtol=1e-7, atol=1e-7), key
    assert max((one[key] - start[key]).abs().max() for key in one if key.endswith("weight")) > 1e-3, "it has learnt"
    assert any(one[key].any() for key in one if key.endswith("running_mean"))


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_see_the_losses_of_one_and_both_the_same(ends, name):
    one, first, second = (
        json.loads((folder / f"{name}.{rank}.json").read_text()) for folder, rank in ((ends[0], 0), (ends[1], 0), (ends[1], 1))
    )
    assert len(one) == 4
    assert one == pytest.approx(first, rel=1e-9)
    assert first == second, "to the last bit"


def test_methods_end_in_weights_of_their_own(ends):
    found = [safetensors.torch.load_file(ends[0] / f"{name}.safetensors") for name in METHODS]
    key = next(key for key in found[0] if key.startswith("backbone") and key.endswith("weight"))
    assert len({found[i][key].sum().item() for i in range(len(METHODS))}) == len(METHODS)


class Broken(Double):
    """One image whose depth is infinite."""

    def load(self, index, names):
        sample = super().load(index, names)
        depth = sample.targets.get("depth")
        if depth is None or index != 3:
            return sample
        return replace(
            sample, targets=dict(sample.targets) | {"depth": Target(torch.full_like(depth.value, math.inf), depth.valid)}
        )


def test_what_goes_wrong_in_one_process_is_told_in_one_line():
    data = Broken(Rooms(tasks(), "train", size=SIZE, length=4))
    model = md.build_model("segnet", "shared", tasks(), width=0.0625, seed=0).double()
    with pytest.raises(md.MultidenseError) as error:
        fit(model, data, epochs=1, batch_size=4, augment=Augment.none(), accelerator="cpu", devices=2)
    assert "not finite is the labelled loss of 'depth' on image train-000003" in str(error.value)
    assert "\n" not in str(error.value)


# Without a second process


@pytest.mark.parametrize(("images", "size", "world"), [(9, 4, 2), (7, 4, 2), (5, 4, 4), (8, 4, 2), (3, 4, 3)])
def test_parts_make_up_the_whole_in_its_order(images, size, world):
    order = list(range(100, 100 + images))
    found = [parts(order, size, rank, world) for rank in range(world)]
    for step in range(-(-images // size)):
        whole = order[step * size : (step + 1) * size]
        counted = [indices[step] for indices, shares in found if shares[step].counts]
        assert [index for part in counted for index in part] == whole
        assert {shares[step].images for _, shares in found} == {len(whole)}
        assert max(map(len, counted)) - min(map(len, counted)) <= 1
        assert all(indices[step] for indices, _ in found), "no process is without an image"


def test_a_synchronised_model_is_the_same_model():
    model = md.build_model("segnet", "mtan", tasks(), width=0.0625, seed=0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    image = torch.rand(2, 3, *SIZE)
    logits = model.eval()(image).logits
    assert synchronised(model) is model
    assert any(isinstance(layer, GlobalBatchNorm) for layer in model.modules())
    assert not any(type(layer) is torch.nn.BatchNorm2d for layer in model.modules())
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert all(torch.equal(value, logits[name]) for name, value in model(image).logits.items())


def test_a_batchnorm_of_another_kind_is_refused():
    class Activated(torch.nn.BatchNorm2d):
        def forward(self, input):
            return super().forward(input).relu()

    with pytest.raises(md.MultidenseError, match="'0' is a Activated, whose statistics cannot be taken over several"):
        synchronised(torch.nn.Sequential(Activated(3)))
