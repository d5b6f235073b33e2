"""Training: it learns, it can be killed and resumed to the same weights, and hidden labels never reach it."""

import math
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import multidense as md
from multidense.checkpoint import State
from multidense.data import Augment, Reader, Rooms, Wrapped, partial
from multidense.files import read_json, write_json
from multidense.models.multitask import weights_hash
from multidense.progress import Reporter
from multidense.train import Training, fit, settle
from multidense.types import Sample, Target

SIZE = (32, 48)


def tasks() -> list:
    return [md.SemanticSegmentation(13), md.Depth(bins=8), md.Normals(centers=6)]


@pytest.fixture(scope="module")
def rooms() -> Reader:
    return Rooms(tasks(), "train", size=SIZE, length=9)


def network(decoder: str = "hitts", seed: int = 0):
    return md.build_model("segnet", decoder, tasks(), width=0.125, seed=seed)


def test_the_loss_falls(rooms):
    losses = []

    class Watch(Reporter):
        @contextmanager
        def work(self, title, total, done=0):
            yield lambda steps=1, note="": losses.append(float(note.split()[-1]))

    fit(network(), rooms, epochs=6, batch_size=3, lr=3e-3, augment=Augment.none(), reporter=Watch())
    assert losses[-1] < 0.9 * losses[2]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(rooms):
    data = partial.one_label(rooms, seed=0)
    first, second, other = (weights_hash(fit(network(), data, epochs=1, batch_size=4, seed=seed)) for seed in (1, 1, 2))
    assert first == second != other


def test_workers_change_nothing(rooms):
    alone, helped = (weights_hash(fit(network("shared"), rooms, epochs=1, batch_size=4, workers=workers)) for workers in (0, 2))
    assert alone == helped


def test_an_interrupted_training_ends_in_the_same_weights(rooms, tmp_path, monkeypatch):
    settings = Training(epochs=2, batch_size=4, checkpoint_every=2)
    whole = weights_hash(fit(network(), rooms, settings=settings, out=tmp_path / "whole"))
    add, made = State.add, []

    def stop_at_five(state, *arguments):
        add(state, *arguments)
        made.append(1)
        if len(made) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(State, "add", stop_at_five)
    with pytest.raises(KeyboardInterrupt):
        fit(network(), rooms, settings=settings, out=tmp_path / "cut")
    monkeypatch.undo()
    assert (tmp_path / "cut" / "checkpoint.pt").exists()
    resumed = fit(network(seed=7), rooms, settings=settings, out=tmp_path / "cut", resume=True)
    assert weights_hash(resumed) == whole
    assert (tmp_path / "cut" / "history.csv").read_text() == (tmp_path / "whole" / "history.csv").read_text()


def test_kills_at_random_moments_end_in_the_same_weights(tmp_path):
    """Real processes, real SIGKILLs; `kills.py` is a program of its own, which also does ten of them by hand."""
    program = Path(__file__).with_name("kills.py")
    done = subprocess.run([sys.executable, str(program), "2", str(tmp_path)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "same weights" in done.stdout


class Poisoned(Wrapped):
    """Every label that `shown` hides is filled with NaN, or nonsense where NaN cannot be."""

    def __init__(self, reader: Reader, shown: Reader):
        super().__init__(reader)
        self.shown = shown

    def load(self, index, names) -> Sample:
        sample = self.reader.load(index, names)
        hidden = {
            name: Target(torch.full_like(target.value, math.nan if target.value.is_floating_point() else 12), target.valid)
            for name, target in sample.targets.items()
            if name not in self.shown.annotated(index)
        }
        return replace(sample, targets=dict(sample.targets) | hidden)


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_hidden_labels_never_reach_anything(rooms, mode):
    clean = partial.one_label(rooms, seed=3)
    poisoned = partial.Partial(Poisoned(rooms, clean), clean.assignment)
    ends = []
    for data in (clean, poisoned):
        teacher = fit(network(), data, epochs=1, batch_size=3)
        found = md.discover(teacher, data, mode=mode)
        student = fit(network(), data, discovered=found, epochs=1, batch_size=3)
        assert all(parameter.isfinite().all() for parameter in student.parameters())
        books = {name: book.tolist() for name, book in teacher.codebooks.items()}
        ends.append((weights_hash(teacher), books, found.thresholds, weights_hash(student)))
    assert ends[0] == ends[1]


def test_codebooks_are_inherited_by_the_student(rooms):
    data = partial.one_label(rooms, seed=0)
    teacher = fit(network(), data, epochs=1)
    found = md.discover(teacher, data)
    student = fit(network(), partial.one_label(rooms, seed=5), discovered=found, epochs=1)
    assert all(torch.equal(student.codebooks[name], book) for name, book in teacher.codebooks.items())


def test_a_loss_that_is_not_finite_names_task_and_image_and_keeps_the_checkpoint(rooms, tmp_path):
    class Broken(Wrapped):
        def load(self, index, names):
            sample = self.reader.load(index, names)
            if index != 4 or "depth" not in sample.targets:
                return sample
            spoiled = Target(torch.full_like(sample.targets["depth"].value, math.inf), sample.targets["depth"].valid)
            return replace(sample, targets=dict(sample.targets) | {"depth": spoiled})

    model = network()
    model.set_codebook("depth", torch.linspace(1, 5, 8)[:, None])
    with pytest.raises(md.MultidenseError, match=r"loss of 'depth' on image train-000004.*last good checkpoint is kept"):
        fit(model, Broken(rooms), epochs=1, batch_size=3, out=tmp_path, checkpoint_every=1, augment=Augment.none())


def test_a_folder_of_another_training_is_refused_by_what_differs(rooms, tmp_path):
    fit(network("shared"), rooms, epochs=1, out=tmp_path)
    with pytest.raises(md.MultidenseError, match=r"training\.lr was 0\.001, is now 0\.01"):
        fit(network("shared"), rooms, epochs=1, lr=0.01, out=tmp_path, resume=True)
    with pytest.raises(md.MultidenseError, match="holds this training already: resume it"):
        fit(network("shared"), rooms, epochs=1, out=tmp_path)


def test_a_finished_training_is_read_back(rooms, tmp_path):
    trained = fit(network("shared"), rooms, epochs=1, out=tmp_path)
    again = fit(network("shared", seed=9), rooms, epochs=1, out=tmp_path, resume=True)
    assert weights_hash(again) == weights_hash(trained)


def test_a_training_of_an_older_version_is_read_back_where_settings_have_come_since(rooms, tmp_path):
    trained = fit(network("shared"), rooms, epochs=1, out=tmp_path)
    told = read_json(tmp_path / "training.json")
    del told["training"]["precise_bn"], told["training"]["objective"]["auxiliary"]
    write_json(tmp_path / "training.json", told)
    again = fit(network("shared", seed=9), rooms, epochs=1, out=tmp_path, resume=True)
    assert weights_hash(again) == weights_hash(trained)
    told["training"]["objective"]["features"] = 0.5
    write_json(tmp_path / "training.json", told)
    with pytest.raises(md.MultidenseError, match=r"objective\.features was 0\.5, is now 1\.0"):
        fit(network("shared"), rooms, epochs=1, out=tmp_path, resume=True)


def test_a_damaged_checkpoint_is_named(rooms, tmp_path):
    fit(network("shared"), rooms, epochs=1, out=tmp_path)
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    (tmp_path / "checkpoint.pt").write_bytes(b"PK not a checkpoint")
    with pytest.raises(md.MultidenseError, match=r"checkpoint\.pt cannot be read .* delete it"):
        fit(network("shared"), rooms, epochs=1, out=tmp_path, resume=True)


def test_a_full_disk_keeps_the_last_checkpoint(rooms, tmp_path):
    """A limit on file sizes fails writes in the middle, as a full disk does."""
    program = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_train import *
from multidense.checkpoint import State
data = Rooms(tasks(), "train", size=SIZE, length=9)
save = State.save
def tight(state, *arguments):
    if state.step == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    save(state, *arguments)
State.save = tight
try:
    fit(network("shared"), data, epochs=1, batch_size=3, out={str(tmp_path)!r}, checkpoint_every=1)
except md.MultidenseError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    assert "cannot write" in done.stdout, done.stdout + done.stderr
    assert "What was there before is untouched" in done.stdout
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 1
    assert not list(tmp_path.glob(".*.tmp*"))


def test_a_folder_in_use_is_refused(rooms, tmp_path):
    import fcntl

    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(md.MultidenseError, match="another process is training"):
            fit(network("shared"), rooms, epochs=1, out=tmp_path)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epohcs": 3}, "did you mean 'epochs'"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"lr": -1.0}, "lr must be positive"),
        ({"batch_size": 3, "devices": 2}, "multiple of devices"),
    ],
)
def test_settings_that_make_no_sense_are_refused(rooms, wrong, said):
    with pytest.raises(md.MultidenseError, match=said):
        fit(network("shared"), rooms, **wrong)


def test_the_learning_rate_follows_its_schedule():
    step = Training(lr=1.0, schedule="step", milestones=(0.5, 0.75), decay=0.5)
    assert [step.rate(i, 8) for i in (0, 3, 4, 6, 7)] == [1, 1, 0.5, 0.25, 0.25]
    assert Training(lr=1.0, schedule="poly").rate(5, 10) == pytest.approx(0.5**0.9)


def test_validation_scores_are_in_the_curves_and_change_no_weight(rooms, tmp_path):
    val = Rooms(tasks(), "val", size=SIZE, length=3)
    settings = Training(epochs=2, batch_size=4)
    plain = weights_hash(fit(network(), rooms, settings=settings))
    watched = fit(network(), rooms, settings=settings, val=val, validate_every=2, out=tmp_path)
    assert weights_hash(watched) == plain
    head, first, second = (line.split(",") for line in (tmp_path / "history.csv").read_text().splitlines())
    column = head.index("val.semseg.mIoU")
    assert first[column] == ""
    assert float(second[column]) == pytest.approx(md.evaluate(watched, val).scores["semseg.mIoU"], rel=1e-4)


def test_the_last_epochs_can_all_be_validated(rooms, tmp_path):
    val = Rooms(tasks(), "val", size=SIZE, length=2)
    fit(network(), rooms, settings=Training(epochs=4, batch_size=4), val=val, validate_last=2, out=tmp_path)
    head, *rows = (line.split(",") for line in (tmp_path / "history.csv").read_text().splitlines())
    assert [row[head.index("val.semseg.mIoU")] != "" for row in rows] == [False, False, True, True]


# BatchNorm's averages


def test_settled_averages_are_the_means_over_all_batches_and_weights_stay():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4, momentum=0.3))
    before = net[0].weight.clone()
    batches = [torch.randn(2, 3, 4, 4) + shift for shift in (0.0, 5.0, 1.0)]
    settle(net, batches)
    with torch.no_grad():
        seen = [net[0](batch).transpose(0, 1).flatten(1) for batch in batches]
    assert torch.allclose(net[1].running_mean, torch.stack([each.mean(1) for each in seen]).mean(0), atol=1e-5)
    assert torch.allclose(net[1].running_var, torch.stack([each.var(1) for each in seen]).mean(0), atol=1e-4)
    assert net[1].momentum == 0.3
    assert torch.equal(net[0].weight, before)


def test_training_ends_with_settled_averages_that_can_be_left_as_they_are(rooms):
    settled, last = (fit(network("shared"), rooms, epochs=2, batch_size=3, precise_bn=on).state_dict() for on in (True, False))
    moved = {name for name in settled if not torch.equal(settled[name], last[name])}
    assert moved
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in moved)
    assert all(torch.isfinite(settled[name]).all() for name in moved)
