"""Cross-task paths (X-Task: Zamir et al., Robust Learning Through Cross-Task Consistency, CVPR 2020), for fully labelled data.

Frozen networks f_{1k}, from the label of one task to that of another, judge a prediction by what follows from it:

    L = |ŷ₁ − y₁| + Σ_k |f_{1k}(ŷ₁) − f_{1k}(y₁)|

The first term is the task loss, which the objective has already; the others are the regulariser's. `fit_paths` trains the
networks, on images labelled for both tasks, before the training that uses them.

Inferred: the networks, and how the paper's recipe is carried over to the benchmarks of partial labels, are ours.

>>> fit(model, data, regularizers={"x-task": {"epochs": 20}})               # fits the paths first
>>> paths = fit_paths(tasks, lambda epoch: loader, "paths", epochs=20)      # paths/paths.safetensors, paths/paths.json
>>> fit(model, data, regularizers={"x-task": {"paths": "paths"}})
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import permutations
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from multidense.files import plain, read_json, write_json, written_aside
from multidense.models.layers import conv3x3, initialise_convolutions
from multidense.ops import masked_mean, resize
from multidense.progress import Reporter, silent
from multidense.regularizer import Regularizer
from multidense.task import Task
from multidense.types import Batch, MultidenseError, Outputs

WEIGHTS, REQUEST = "paths.safetensors", "paths.json"


class PathNetwork(nn.Module):
    """One path: maps of one task's embedding to those of another's, `[b c h w]` to `[b c2 h w]`, by a small U-Net.

    GroupNorm, so that it does the same in training and after it.
    """

    def __init__(self, channels_in: int, channels_out: int, width: int = 16):
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(
            [_block(before, after) for before, after in zip([channels_in, *widths], widths, strict=False)]
        )
        self.up = nn.ModuleList([_block(widths[level] + widths[level + 1], widths[level]) for level in (1, 0)])
        self.head = nn.Conv2d(width, channels_out, kernel_size=1)
        initialise_convolutions(self)

    def forward(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        levels = [self.down[0](maps)]
        for block in self.down[1:]:
            levels.append(block(F.avg_pool2d(levels[-1], kernel_size=2, ceil_mode=True)))
        found = levels.pop()
        for block in self.up:
            beside = levels.pop()
            found = block(torch.cat([beside, resize(found, tuple(beside.shape[-2:]))], dim=1))
        return self.head(found)


class TaskPaths(nn.ModuleDict):
    """A path for every ordered pair of tasks, by the names of both."""

    def __init__(self, tasks: Sequence[Task], width: int = 16):
        made = {
            path_name(source.name, target.name): PathNetwork(source.embedding_channels, target.embedding_channels, width)
            for source, target in permutations(tasks, 2)
        }
        super().__init__(made)
        self.width = width


class XTask(Regularizer):
    """Cross-task consistency by frozen paths: Σ over labelled tasks 1 and over k of |f_{1k}(ŷ₁) − f_{1k}(y₁)|.

    A mean over channels and over the pixels where y₁ is valid, divided by the number of tasks, as the objective does with task
    losses. Classes enter as probabilities.

    Args:
        weight: of the loss.
        paths: the folder that `fit_paths` wrote; left out, the training fits them first, on its own labels.
        epochs: passes of that fitting.
    """

    def __init__(self, tasks: Sequence[Task], *, weight: float = 1.0, paths: str | Path = "", epochs: int = 20):
        super().__init__(tasks, weight=weight)
        if not paths:
            raise ValueError("expected the folder of fitted paths, found none: make it with fit_paths, and set paths to it")
        self.paths = load_paths(paths, tasks).requires_grad_(False)

    @classmethod
    def prepared(
        cls, settings: Mapping, tasks: Sequence[Task], batches: Callable[[int], Iterable[Batch]], folder: Path, **told
    ) -> dict:
        """The settings with a folder of paths, fitted on the training's own labels where none is named."""
        if settings.get("paths"):
            return dict(settings)
        fit_paths(tasks, batches, folder / "paths", epochs=settings.get("epochs", 20), **told)
        return {**settings, "paths": str(folder / "paths")}

    def forward(self, model: nn.Module, batches: Sequence[Batch], outputs: Sequence[Outputs]) -> dict[str, Tensor]:
        batch, dtype = batches[0], batches[0].image.dtype
        total = batch.image.new_zeros(len(batch))
        for task in model.tasks:
            label = batch.targets[task.name]
            chosen = label.valid.flatten(1).any(1).nonzero()[:, 0]
            if not len(chosen) or len(self.task_names) == 1:
                continue
            valid = label.valid[chosen]
            meant = task.embed(label.value[chosen], valid).to(dtype)
            said = torch.where(valid, task.embed_logits(outputs[0].logits[task.name][chosen]).to(dtype), meant)
            for other in self.task_names:
                if other != task.name:
                    path = self.paths[path_name(task.name, other)]
                    with torch.no_grad():
                        wanted = path(meant)
                    apart = masked_mean((path(said) - wanted).abs(), valid) / wanted.shape[1]
                    total = total.index_add(0, chosen, apart.to(total.dtype) / len(self.task_names))
        return {"paths": total}

    def groups(self) -> list[dict]:
        """None: the paths are frozen."""
        return []


def fit_paths(
    tasks: Sequence[Task],
    batches: Callable[[int], Iterable[Batch]],
    folder: str | Path,
    *,
    epochs: int = 20,
    width: int = 16,
    lr: float = 1e-3,
    seed: int = 0,
    device: torch.device | str = "cpu",
    data: Mapping | None = None,
    reporter: Reporter = silent,
) -> TaskPaths:
    """Train the path of every ordered pair of tasks, by the squared distance of embeddings; keep them in `folder`.

    A folder that holds these paths already is read, one that holds others is an error. Labels are read only where an image has
    both of a pair.

    Args:
        tasks: which to connect.
        batches: from the number of an epoch to its batches, all of whose tasks are there.
        folder: for paths.safetensors and paths.json.
        epochs: passes.
        width: channels of the finest of the three levels.
        lr: of Adam.
        seed: of the weights at the start.
        device: where to train.
        data: what the labels are, as plain data, such as a reader's `provenance()`: kept to be compared.
        reporter: told how far it is.
    """
    if epochs < 1 or width < 4 or width % 4 or not lr > 0:
        raise MultidenseError(
            f"fit_paths expects epochs of at least 1, a width that is a multiple of 4 and lr above 0, found {epochs}, {width} "
            f"and {lr}"
        )
    folder = Path(folder)
    settings = {"epochs": epochs, "width": width, "lr": lr, "seed": seed}
    request = plain({"tasks": [task.spec() for task in tasks], **settings, "data": dict(data or {})})
    if (folder / WEIGHTS).exists():
        before = read_json(folder / REQUEST)
        wrong = [key for key in before | request if before.get(key) != request.get(key)]
        if wrong:
            raise MultidenseError(
                f"{folder} holds paths fitted with another {', '.join(wrong)}: choose another folder, or delete this one"
            )
        return load_paths(folder, tasks)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        paths = TaskPaths(tasks, width).to(device)
    optimizer = torch.optim.Adam(paths.parameters(), lr=lr)
    unseen = set(paths)
    with reporter.work("fitting paths", epochs, 0) as advance:
        for epoch in range(epochs):
            for batch in batches(epoch):
                losses = path_losses(tasks, paths, batch.to(device))
                unseen -= losses.keys()
                if losses:
                    optimizer.zero_grad()
                    sum(losses.values()).backward()
                    optimizer.step()
            if unseen:
                raise MultidenseError(
                    f"no image is labelled for both tasks of the paths {', '.join(sorted(unseen))}: X-Task needs full labels, "
                    "use xtc for partial ones"
                )
            advance(1)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / REQUEST, request)
    with written_aside(folder / WEIGHTS) as beside:
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in paths.state_dict().items()}
        beside.write_bytes(safetensors.torch.save(kept))
    return paths


def path_losses(tasks: Sequence[Task], paths: TaskPaths, batch: Batch) -> dict[str, Tensor]:
    """The loss of every path for which a pixel of this batch has both labels: the mean squared distance over those."""
    embedded = {task.name: task.embed(batch.targets[task.name].value, batch.targets[task.name].valid) for task in tasks}
    losses = {}
    for source, target in permutations([task.name for task in tasks], 2):
        both = batch.targets[source].valid & batch.targets[target].valid
        chosen = both.flatten(1).any(1).nonzero()[:, 0]
        if len(chosen):
            name = path_name(source, target)
            squared = (paths[name](embedded[source][chosen]) - embedded[target][chosen]).square()
            losses[name] = masked_mean(squared, both[chosen]).mean()
    return losses


def load_paths(folder: str | Path, tasks: Sequence[Task]) -> TaskPaths:
    """The paths between these tasks from a folder of `fit_paths`."""
    folder = Path(folder)
    if not (folder / WEIGHTS).is_file() or not (folder / REQUEST).is_file():
        raise MultidenseError(f"no paths in {folder}: expected {WEIGHTS} and {REQUEST}, as fit_paths writes them")
    paths = TaskPaths(tasks, read_json(folder / REQUEST).get("width", 16))
    try:
        found = safetensors.torch.load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise MultidenseError(f"{folder / WEIGHTS} cannot be read ({error}): fit the paths again") from error
    wanted = {name: tensor.shape for name, tensor in paths.state_dict().items()}
    missing = [name for name, shape in wanted.items() if name not in found or found[name].shape != shape]
    if missing:
        affected = sorted({name.partition(".")[0] for name in missing})
        raise MultidenseError(
            f"{folder} does not hold the paths {', '.join(affected)} of these tasks: fit them with the tasks of the training"
        )
    paths.load_state_dict({name: found[name] for name in wanted})
    return paths


def path_name(source: str, target: str) -> str:
    """The name of a path."""
    return f"{source} to {target}"


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    first, second = conv3x3(channels_in, channels_out), conv3x3(channels_out, channels_out)
    return nn.Sequential(first, nn.GroupNorm(4, channels_out), nn.ReLU(), second, nn.ReLU())
