"""Two processes on the CPU make the steps of one: same losses, same weights, whatever balances or regularises the tasks.

In double precision. Sums over two halves of a batch are rounded otherwise than over the whole; a gradient summed over thousands
of pixels differs by some 1e-14. Adam divides a gradient by its own size plus 1e-8, so where there is next to none (a bias
before BatchNorm) a weight moves by up to lr · 1e-14 / 1e-8 = 1e-9 a step. Measured after four steps: losses agree to 3e-11,
weights to 3e-9. The tests ask for 1e-9 and 1e-7; a real difference is of the size of lr, 1e-3. XTC's mapping network, which
normalises each of these small maps by itself, makes rounding a thousand times larger with every step, also in one process whose
images come in another order: regularisers make two steps, at a hundredth of the rate.
"""

import importlib.util
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch

import multidense as md
from multidense.balancing import Balancing
from multidense.checkpoint import State
from multidense.data import Augment, Reader, Rooms, Wrapped, collate
from multidense.data import partial as labels
from multidense.feed import parts
from multidense.files import read_json, write_json
from multidense.models import MultiTask
from multidense.processes import GlobalBatchNorm, synchronised
from multidense.progress import silent
from multidense.spawned import fabric_for, launched
from multidense.task_paths import fit_paths
from multidense.train import Training, fit, train_loop
from multidense.types import Target

SIZE = (32, 48)
SHORT = {"epochs": 1, "lr": 1e-5}
CASES = {
    "fixed": {},
    "uncertainty": {"balancing": Balancing("uncertainty")},
    "dwa": {"balancing": Balancing("dwa"), "epochs": 3},  # its weights move in the third
    "gradnorm": {"balancing": Balancing("gradnorm")},
    "log-sum": {"balancing": Balancing("log-sum")},
    "lps": {"balancing": Balancing("lps"), "epochs": 3},
    "xtc": SHORT | {"regularizers": {"xtc": {"ramp_up": 0}}},
    "ssl": SHORT | {"regularizers": {"ssl": {"threshold": 0.0}}},  # 13 classes at the start: none is sure
    "x-task": SHORT | {"regularizers": {"x-task": {}}},
    "ccr": SHORT | {"regularizers": {"ccr": {"weight": 1.0}}},
    "xtc on mtan": SHORT | {"decoder": "mtan", "regularizers": {"xtc": {"ramp_up": 0}}},  # BatchNorm in the branch of each task
}
"""What differs, by name. Each image is labelled for one task; X-Task's paths were fitted before, on others."""
if importlib.util.find_spec("torchjd"):
    CASES["mgda"] = {"balancing": Balancing("mgda")}
    CASES["mgda on features"] = {"balancing": Balancing("mgda", {"on": "features"})}
every_case = pytest.mark.parametrize("name", CASES)


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
    """Five images, each labelled for one task: four at first, two for each process that have one task alone, then one that is
    left for one of the processes.
    """
    return Double(labels.one_label(Rooms(tasks(), "train", size=SIZE, length=5), seed=1))


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """X-Task's paths, fitted on images with all labels."""
    folder = tmp_path_factory.mktemp("paths")
    images = Rooms(tasks(), "train", size=SIZE, length=2)
    batch = collate([images[index] for index in range(len(images))], tasks())
    fit_paths(tasks(), lambda epoch: [batch], folder, epochs=1, width=4)
    return folder


def network(name: str) -> MultiTask:
    return md.build_model("segnet", CASES[name].get("decoder", "shared"), tasks(), width=0.0625, seed=0).double()


def settings(name: str, devices: int, paths: Path) -> Training:
    case = {key: value for key, value in CASES[name].items() if key != "decoder"}
    regularizers = {
        each: {"paths": str(paths)} if each == "x-task" else given for each, given in case.get("regularizers", {}).items()
    }
    return Training(
        **{"epochs": 2, "lr": 1e-3} | case | {"regularizers": regularizers},
        batch_size=4,
        clip=1.0,
        augment=Augment(scales=(1.0,), flip=0.5),
        accelerator="cpu",
        devices=devices,
    )


def trainings(fabric, data, folder, paths):
    """One training after the other, in processes that are started once; the first writes weights, each writes its losses."""
    add = State.add
    for name in CASES:
        losses, terms = [], []

        def note(state, found, loss, seconds, losses=losses, terms=terms):
            losses.append(loss.item())
            terms.append(dict(found.means))
            add(state, found, loss, seconds)

        State.add = note
        weights = folder / f"{name}.safetensors"
        job = {"model": network(name), "data": data, "discovered": (), "folder": None, "weights": weights}
        chosen = settings(name, fabric.world_size, paths)
        try:
            train_loop(fabric, **job, seed=0, val=None, settings=chosen, reporter=silent)
        finally:
            State.add = add
        write_json(folder / f"{name}.{fabric.global_rank}.json", {"losses": losses, "terms": terms})


@pytest.fixture(scope="module")
def ends(data, paths, tmp_path_factory):
    """Weights and losses of every training, in one process and in two."""
    folders = []
    for devices in (1, 2):
        folder = tmp_path_factory.mktemp(f"devices{devices}")
        handover = tmp_path_factory.mktemp("handover")
        job = partial(trainings, data=data, folder=folder, paths=paths)
        launched(fabric_for("cpu", devices, "32-true"), job, handover)
        folders.append(folder)
    return folders


@every_case
def test_two_processes_end_in_the_weights_of_one(ends, name):
    one, two = (safetensors.torch.load_file(folder / f"{name}.safetensors") for folder in ends)
    start = network(name).state_dict()
    assert one.keys() == two.keys()
    for key in one:
        assert torch.allclose(one[key].double(), two[key].double(), rtol=1e-7, atol=1e-7), key
    lr = CASES[name].get("lr", 1e-3)
    assert max((one[key] - start[key]).abs().max() for key in one if key.endswith("weight")) > lr / 2, "it has learnt"
    assert any(one[key].any() for key in one if key.endswith("running_mean"))


@every_case
def test_two_processes_see_the_losses_of_one_and_both_the_same(ends, name):
    one, first, second = (
        read_json(folder / f"{name}.{rank}.json") for folder, rank in ((ends[0], 0), (ends[1], 0), (ends[1], 1))
    )
    assert len(one["losses"]) == 2 * CASES[name].get("epochs", 2)
    assert one["losses"] == pytest.approx(first["losses"], rel=1e-9)
    assert first == second, "to the last bit"
    for ours, theirs in zip(one["terms"], first["terms"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-8)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "regularizers" in case])
def test_every_term_of_a_regulariser_had_something_to_say(ends, name):
    terms = read_json(ends[0] / f"{name}.0.json")["terms"]
    for regularizer in CASES[name]["regularizers"]:
        mine = [term for term in terms[0] if term.startswith(f"{regularizer}.")]
        assert mine
        assert all(any(step[term] > 0 for step in terms) for term in mine)


def test_cases_end_in_weights_of_their_own(ends):
    found = [safetensors.torch.load_file(ends[0] / f"{name}.safetensors") for name in CASES]
    key = next(key for key in found[0] if key.startswith("backbone") and key.endswith("weight"))
    assert len({each[key].sum().item() for each in found}) == len(CASES)


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
