"""Training: one visible loop on Lightning Fabric. Seeded, resumable at any moment, any number of devices.

The order of images is a function of (seed, epoch), an image's augmentation of (seed, epoch, index), the learning rate of the
step: a checkpoint needs only weights, optimiser, what balancer and regularisers remember, counters and the generator's state,
and a resumed run ends in the same weights, bit for bit on the CPU. Several processes make the steps of one, up to rounding.
"""

from __future__ import annotations

import copy
import math
import os
import tempfile
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from multidense.balancing import Balancing, Trunk, make_balancer
from multidense.checkpoint import Curves, State, finished, held
from multidense.data import Augment, Reader
from multidense.evaluation import measure
from multidense.feed import Feed
from multidense.files import write_json
from multidense.models.multitask import MultiTask, load_model
from multidense.objective import Objective, Terms
from multidense.parameters import Frozen, frozen_names, groups
from multidense.processes import gathered, sum_gradients, synchronised
from multidense.progress import Reporter, silent
from multidense.regularizers import REGULARIZERS, check_regularizers, make_regularizers
from multidense.store import Discovered
from multidense.suggest import nearest
from multidense.types import Batch, MultidenseError, Outputs

INITIAL_WEIGHTS = "initial_weights.json"
"""Beside a training whose backbone began with given weights: how they fitted."""

Schedule = Literal["step", "poly", "constant"]
Precision = Literal["32-true", "bf16-mixed"]


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    Args:
        epochs: passes over the training images.
        batch_size: images a step, over all devices together.
        lr: learning rate of Adam at the start.
        weight_decay: Adam's weight decay (L2, as in the papers).
        schedule: "step" multiplies the rate by `decay` at each of `milestones`; "poly" is (1 − progress)^0.9; or "constant".
        milestones: shares of the training at which "step" acts.
        decay: factor of "step".
        backbone_lr: learning rate of the backbone over that of the rest.
        layer_decay: factor from each layer of the backbone to the one before it, nearer to the image; 1 lets all learn alike.
        freeze: parts that do not learn, by the beginnings of their names, such as "backbone" or "backbone.layer1"; their
            BatchNorm keeps its running averages and normalises by them.
        clip: largest gradient norm; 0 clips nothing.
        precise_bn: whether BatchNorm's running averages, which remember the last few batches only, are taken anew over one
            epoch after the last step. With small batches the scores hang on chance without it.
        objective: weights of the terms.
        balancing: how the task losses are balanced.
        regularizers: training-only terms across tasks: settings by name.
        augment: what is drawn for each image.
        checkpoint_every: steps between checkpoints; one is also written after every epoch.
        validate_every: epochs between validation scores in the curves; 0 takes none.
        validate_last: how many epochs at the end all have validation scores in the curves.
        workers: processes that load data beside the training; 0 loads in it.
        threads: CPU threads of a process; 0 leaves torch's choice, 1 is best where several networks share the cores. Results
            are equal bit for bit only for equal numbers.
        accelerator: "cpu", "cuda", "mps" or "auto".
        devices: how many of them; more than one trains in as many processes.
        precision: as Lightning Fabric names it; "bf16-mixed" saves memory and time on GPUs.
    """

    epochs: int = 40
    batch_size: int = 4
    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: Schedule = "step"
    milestones: tuple[float, ...] = (0.5, 0.75)
    decay: float = 0.5
    backbone_lr: float = 1.0
    layer_decay: float = 1.0
    freeze: list[str] = field(default_factory=list)
    clip: float = 0.0
    precise_bn: bool = True
    objective: Objective = field(default_factory=Objective)
    balancing: Balancing = field(default_factory=Balancing)
    regularizers: dict[str, dict[str, Any]] = field(default_factory=dict)
    augment: Augment = field(default_factory=Augment)
    checkpoint_every: int = 200
    validate_every: int = 0
    validate_last: int = 0
    workers: int = 0
    threads: int = 0
    accelerator: str = "auto"
    devices: int = 1
    precision: Precision = "32-true"

    def __post_init__(self):
        for name in ("epochs", "batch_size", "checkpoint_every", "devices"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} must be at least 1, found {getattr(self, name)}")
        for name in ("weight_decay", "clip", "validate_every", "validate_last", "workers", "threads"):
            if getattr(self, name) < 0:
                raise ValueError(f"training.{name} must not be negative, found {getattr(self, name)}")
        for name in ("lr", "decay", "backbone_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"training.{name} must be positive, found {getattr(self, name)}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"training.layer_decay must be above 0 and at most 1, found {self.layer_decay}")
        if not all(0 < milestone < 1 for milestone in self.milestones):
            raise ValueError(f"training.milestones must be shares between 0 and 1, found {list(self.milestones)}")
        for name, kind in (("schedule", Schedule), ("precision", Precision)):
            if getattr(self, name) not in get_args(kind):
                found = getattr(self, name)
                raise ValueError(f"training.{name} must be one of {', '.join(get_args(kind))}, found {found!r}")
        check_regularizers(self.regularizers)
        if self.batch_size % self.devices:
            raise ValueError(f"training.batch_size ({self.batch_size}) must be a multiple of devices ({self.devices})")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate at `step` of `steps`."""
        progress = step / steps
        if self.schedule == "step":
            return self.lr * self.decay ** sum(progress >= milestone for milestone in self.milestones)
        return self.lr * (1 - progress) ** 0.9 if self.schedule == "poly" else self.lr


def fit(
    model: MultiTask,
    data: Reader,
    *,
    discovered: Discovered | Sequence[Discovered] = (),
    out: Path | str | None = None,
    resume: bool = False,
    seed: int = 0,
    val: Reader | None = None,
    settings: Training | None = None,
    reporter: Reporter = silent,
    **overrides,
) -> MultiTask:
    """Train `model` on `data`, and on what was `discovered` for it; the trained model comes back, in evaluation mode.

    Args:
        model: from `build_model`. Codebooks that are not fitted yet are inherited from `discovered`, or fitted on the labels of
            `data`.
        data: a reader; what it is not annotated for is not seen.
        discovered: from `discover()`, or several such, each for tasks of its own: adds L_p and L_f (HiTTs, equation 8).
        out: folder for checkpoint, history and the finished `model/`. None keeps nothing.
        resume: go on from the folder's checkpoint, or return its finished model; the settings must be the same.
        seed: of order, augmentation and anything random in the network (its weights were drawn by `build_model`).
        val: what the curves' validation scores are taken on, as the settings say; nothing is chosen by them.
        settings: a `Training`; its fields may also be given as keywords, such as `epochs=5`.
    """
    settings = _settings(settings, overrides)
    if not len(data):
        raise MultidenseError(f"there is nothing to train on: no image of '{data.name}' is labelled for any of these tasks")
    discovered = (discovered,) if isinstance(discovered, Discovered) else tuple(discovered)
    folder = Path(out) if out else None
    if folder is None:
        return _fit(model, data, discovered, None, seed, val, settings, reporter)
    request = {
        "model": model.spec,
        "training": asdict(settings),
        "seed": seed,
        "data": data.provenance(),
        "discovered": [found.identity for found in discovered],
    }
    with held(folder):
        if finished(folder, request, resume, defaults={"training": asdict(Training())}):
            return load_model(folder / "model").eval()
        write_json(folder / "training.json", request)
        weights = getattr(model.backbone, "fit", None)
        if weights is not None:
            write_json(folder / INITIAL_WEIGHTS, weights.provenance())
        return _fit(model, data, discovered, folder, seed, val, settings, reporter)


def _fit(
    model: MultiTask,
    data: Reader,
    discovered: Sequence[Discovered],
    folder: Path | None,
    seed: int,
    val: Reader | None,
    settings: Training,
    reporter: Reporter,
) -> MultiTask:
    from multidense.spawned import fabric_for, launched

    if settings.threads:
        torch.set_num_threads(settings.threads)
    fit_codebooks(model, data, discovered, seed)
    for found in discovered:
        data = found.attach(data)
    check_regularizers(settings.regularizers)
    fabric = fabric_for(settings.accelerator, settings.devices, settings.precision)
    # With several devices the loop runs in as many new processes, and the weights come back from the first of them.
    with tempfile.TemporaryDirectory(prefix="multidense-") as handover:
        settings = _prepared(settings, model, data, folder or Path(handover), seed, reporter)
        _beside(model, settings)  # what cannot be made is refused before anything starts
        frozen_names(model, settings.freeze)
        weights = Path(handover) / "weights.safetensors"
        job = {"model": model, "data": data, "discovered": discovered, "folder": folder, "weights": weights}
        loop = partial(train_loop, **job, seed=seed, val=val, settings=settings, reporter=reporter)
        cost = launched(fabric, loop, Path(handover))
        model.load_state_dict(safetensors.torch.load_file(weights))
    model.eval()
    if folder:
        model.save_pretrained(folder / "model.new")
        write_json(folder / "cost.json", cost)
        os.rename(folder / "model.new", folder / "model")
        (folder / State.file).unlink(missing_ok=True)
    return model


def train_loop(
    fabric,
    model: MultiTask,
    data: Reader,
    discovered: Sequence[Discovered],
    folder: Path | None,
    weights: Path,
    seed: int,
    val: Reader | None,
    settings: Training,
    reporter: Reporter,
) -> dict[str, float]:
    """Every step of a training, in each process; the first writes the final `weights`. Returns what the training took."""
    torch.manual_seed(seed)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if fabric.world_size > 1:
        model = synchronised(copy.deepcopy(model))  # what a spawned process is sent lies in memory that all of them share
    beside = _beside(model, settings).to(next(model.parameters()).dtype).to(fabric.device)
    balancer, regularizers = beside["balancer"], beside["regularizers"]
    frozen = Frozen(model, settings.freeze, balancer.differentiates_features)
    learning = [*groups(model, settings.backbone_lr, settings.layer_decay), *balancer.groups(), *regularizers.groups()]
    optimizer = torch.optim.Adam(learning, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    network, optimizer = fabric.setup(_AsMapping(model), optimizer)
    learnt = [*model.parameters(), *regularizers.parameters()]
    feed = Feed(data, settings.augment, seed, settings.batch_size, model.tasks, regularizers.views, settings.workers)
    per_epoch = feed.per_epoch
    steps = per_epoch * settings.epochs
    state = State.restore(folder, model, optimizer, beside)
    told = reporter if fabric.is_global_zero else silent
    curves = Curves(folder if fabric.is_global_zero else None, state.step // per_epoch)
    trunk = Trunk(model, model.backbone)

    network.train()
    if fabric.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(fabric.device)
    began = time.perf_counter()
    with told.work("training", steps, state.step) as advance:
        while state.step < steps:
            epoch, first = divmod(state.step, per_epoch)
            frozen.rest()  # what was scored comes back in training mode
            for batches, share in feed.batches(epoch, first, fabric):
                for group in optimizer.param_groups:
                    group["lr"] = settings.rate(state.step, steps) * group.get("lr_scale", 1.0)
                for found in discovered:
                    batches = [found.complete(batch) for batch in batches]
                share.mark(network)
                # The first view comes last, for it is the one whose features the trunk remembers.
                outputs = [Outputs(**network(batch.image)) for batch in reversed(batches)][::-1]
                terms = settings.objective.terms(model.tasks, outputs[0], batches[0])
                terms = terms | regularizers.terms(model, batches, outputs)
                supervised = settings.objective.supervised(model.tasks, batches[0])
                losses = settings.objective.gather(model.tasks, terms, supervised, share)
                optimizer.zero_grad()
                loss = balancer.backward(losses, trunk, fabric.backward)
                sum_gradients(learnt)
                norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip or math.inf)
                if not (loss.isfinite() and norm.isfinite()):
                    raise MultidenseError(_not_finite(terms, batches[0], state.step, epoch, folder))
                optimizer.step()
                state.add(losses, loss, time.perf_counter() - began)
                began = time.perf_counter()
                advance(1, f"loss {state.mean_loss:.3f}")
                if state.step == steps and settings.precise_bn:  # before the last validation and the last checkpoint
                    settle(network, _images(feed, settings.epochs, fabric, network), frozen.norms)
                if state.step % per_epoch == 0:
                    balancer.epoch_end(state.levels())
                    scores = _scores(model, val, settings, epoch) if fabric.is_global_zero else {}
                    scores |= {f"weight.{name}": weight for name, weight in balancer.told().items()}
                    state.end_epoch(epoch, settings.rate(state.step - 1, steps), scores)
                    curves.write(state.history)
                due = state.step % per_epoch == 0 or state.step % settings.checkpoint_every == 0
                if due and folder and fabric.is_global_zero:
                    state.save(folder, model, optimizer, beside)
                    began = time.perf_counter()
    trunk.release()
    frozen.release()
    curves.close()
    if fabric.is_global_zero:
        final = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        safetensors.torch.save_file(final, weights)
    return state.cost(fabric.device)


def _prepared(settings: Training, model: MultiTask, data: Reader, folder: Path, seed: int, reporter: Reporter) -> Training:
    """The settings once what regularisers need has been fitted, on the labels of `data` as the training will see them."""
    feed = Feed(data, settings.augment, seed, settings.batch_size, model.tasks, 1, settings.workers)
    alone = SimpleNamespace(global_rank=0, world_size=1, device=torch.device("cpu"))
    told = {"seed": seed, "data": data.provenance(), "reporter": reporter}
    made = {
        name: REGULARIZERS[name].prepared(
            given or {}, model.tasks, lambda epoch: (views[0] for views, _ in feed.batches(epoch, 0, alone)), folder, **told
        )
        for name, given in settings.regularizers.items()
    }
    return replace(settings, regularizers=made)


def _beside(model: MultiTask, settings: Training) -> nn.ModuleDict:
    """What is there for the training only: the balancer and the regularisers."""
    try:
        return nn.ModuleDict(
            {
                "balancer": make_balancer(settings.balancing, model.task_names),
                "regularizers": make_regularizers(settings.regularizers, model),
            }
        )
    except ValueError as error:
        raise MultidenseError(f"training: {error}") from error


def _images(feed: Feed, epoch: int, fabric, network: nn.Module) -> Iterable[Float[Tensor, "b 3 h w"]]:
    """The images of an epoch, a batch at a time."""
    for (batch,), share in feed.batches(epoch, 0, fabric, views=1):
        share.mark(network)
        yield batch.image


def settle(network: nn.Module, images: Iterable[Float[Tensor, "b 3 h w"]], frozen: Collection[nn.Module] = ()) -> None:
    """BatchNorm's running averages as the mean over these batches ("precise BatchNorm": Wu and Johnson, Rethinking "Batch" in
    BatchNorm, 2021). The weights stay as they are, and so do `frozen` BatchNorms.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer not in frozen]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over what follows
    network.train()
    for layer in frozen:
        layer.eval()
    with torch.no_grad():
        for image in images:
            network(image)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def _scores(model: MultiTask, val: Reader | None, settings: Training, epoch: int) -> dict[str, float]:
    """Validation scores for the curves, in the epochs that want them."""
    often = settings.validate_every > 0 and (epoch + 1) % settings.validate_every == 0
    if val is None or not (often or epoch >= settings.epochs - settings.validate_last):
        return {}
    return {f"val.{name}": value for name, value in measure(model, val, quick=True).scores.items()}


def fit_codebooks(model: MultiTask, data: Reader, discovered: Sequence[Discovered], seed: int) -> None:
    """Give every codebook its centres: inherited from the first stage, else fitted on the labelled pixels of `data` alone."""
    inherited = {name: centres for found in discovered for name, centres in found.codebooks.items()}
    for task in model.tasks:
        if not task.codebook_size or task.name in model.codebooks:
            continue
        if task.name in inherited:
            model.set_codebook(task.name, inherited[task.name])
            continue
        labelled = (i for i in range(len(data)) if task.name in data.annotated(i))
        try:
            codebook = task.fit_codebook((data.load(i, [task.name]).targets[task.name] for i in labelled), seed)
        except ValueError as error:
            raise MultidenseError(f"the codebook of '{task.name}' cannot be fitted: {error}") from error
        model.set_codebook(task.name, codebook)


def _settings(settings: Training | None, overrides: dict) -> Training:
    known = [f.name for f in fields(Training)]
    for name in overrides:
        if name not in known:
            raise MultidenseError(f"fit has no setting {name!r}{nearest(name, known)}; there are {', '.join(known)}")
    try:
        return replace(settings or Training(), **overrides)
    except (ValueError, TypeError) as error:
        raise MultidenseError(str(error)) from error


class _AsMapping(nn.Module):
    """The model with its outputs as a plain mapping, because Fabric walks through what a network returns and refuses frozen
    classes.
    """

    def __init__(self, model: MultiTask):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> dict:
        return vars(self.model(image))


def _not_finite(terms: Terms, batch: Batch, step: int, epoch: int, folder: Path | None) -> str:
    """One line that says which loss of which images is not finite."""
    culprits = [
        f"the {term} loss of '{name}' on image {', '.join(batch.ids[i] for i in (~loss.isfinite()).nonzero()[:, 0].tolist())}"
        for term, by_task in terms.items()
        for name, loss in by_task.items()
        if not loss.isfinite().all()
    ]
    culprits, images = gathered(culprits), gathered(batch.ids)
    what = "; ".join(culprits) or f"the gradient (all losses are finite) on images {', '.join(images)}"
    kept = f"; the last good checkpoint is kept in {folder}" if folder else ""
    where = f"training stopped at step {step + 1} of epoch {epoch + 1}"
    return f"{where}: not finite is {what}{kept}. Look at these labels, or lower lr"
