"""What the tokens of a network say: affinities, confidence before and after them, where they look. Figures 7, 8, 11, 13, 14.

NETWORK/tokens/tokens.json              every number, over some images together
NETWORK/tokens/SPLIT/ID/TASK.MAP.png    maps of a few: truth, before, even, after, gate, trust, score-CATEGORY; input.png

A network with tokens on several scales has a gate and an affinity for each: gate-0, gate-1, … from the finest on.

A decoder without tokens has nothing to say; one with some parts switched off says what is left. Nothing is trained by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from PIL import Image
from scipy.stats import rankdata, spearmanr
from torch import Tensor

from multidense import pictures
from multidense.data import Reader, collate
from multidense.data.reader import batches
from multidense.data.subset import Subset, evenly
from multidense.files import plain, read_json, write_json, written_aside
from multidense.models.decoders.hitts import Query
from multidense.models.multitask import MultiTask, weights_hash
from multidense.ops import resize
from multidense.progress import Reporter, silent
from multidense.store import found_by, seen_by
from multidense.task import Task
from multidense.thresholds import Confidences
from multidense.types import MultidenseError, Outputs, Sample

VERSION = 1
IMAGES = 48
"""Images over which tokens are averaged and confidences are counted."""
PICTURED = 3
"""Images of which maps are drawn."""
CATEGORIES = 4
"""Fine-grained tokens of one task whose maps are drawn for an image: those of the categories that cover most of it."""
PIXELS = 500
"""Pixels of each image by which it is asked whether tokens find their categories."""
WIDEST = 160
"""Maps are drawn at most this wide."""
LEVELS = 48
"""Steps of colour in a map: as many as the eye tells apart, and a third of the bytes in the page."""


@dataclass(frozen=True)
class Look:
    """One batch seen through a decoder with tokens.

    `gates[task]` are g_i, what each global token lets through, as the forward pass used it: one `[b 1 h w]` for each scale,
    fine to coarse, each as large as its map. `before[task]` `[b k height width]` is G_i at the image's size, which fine-grained
    tokens turn into the logits G'_i. No loss ever reads G_i as logits, so there is also `even[task]`: G'_i where each token's
    Softplus(φ_i F'_i) is replaced by its mean over the image, so that all that is lost is where it looks. Each mapping may be
    empty.
    """

    outputs: Outputs
    gates: Mapping[str, Sequence[Float[Tensor, "b 1 _ _"]]]
    before: Mapping[str, Float[Tensor, "b _ h w"]]
    even: Mapping[str, Float[Tensor, "b _ h w"]]


def look(model: MultiTask, image: Float[Tensor, "b 3 h w"]) -> Look:
    """Outputs, gates and logits without refinement of a batch; evaluation mode, no gradient."""
    gates: list[Tensor] = []
    queries = [module for module in model.decoder.modules() if isinstance(module, Query)]
    hooks = [query.register_forward_hook(lambda module, given, made: gates.append(made)) for query in queries]
    try:
        outputs = seen_by(model, image)
    finally:
        for hook in hooks:
            hook.remove()
    each = zip(*(gate.split(1, dim=1) for gate in gates), strict=True)
    of_task = dict(zip(model.task_names, each, strict=True)) if gates else {}
    before, even = {}, {}
    for name, scores in outputs.score_maps.items():
        head, size = model.decoder.fine_grained[name], tuple(image.shape[-2:])
        with torch.no_grad():
            maps = head.to_maps(outputs.features[name])
            before[name] = resize(maps, size)
            even[name] = resize(head.to_logits(maps * F.softplus(scores).mean((2, 3), keepdim=True)), size)
    return Look(outputs, of_task, before, even)


def cosines(tokens: Float[Tensor, "k c"]) -> Float[Tensor, "k k"]:
    """Cosine similarity of every token with every other."""
    rows = F.normalize(tokens.double(), dim=1)
    return (rows @ rows.T).clamp(-1, 1).float()


def principal(tokens: Float[Tensor, "n c"]) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " 2"]]:
    """Places of tokens along their first two principal axes, and the share of the variance along each.

    An axis points to where its largest loading is positive, so that neither order nor chance turns the picture round.
    """
    centred = tokens.double() - tokens.double().mean(0)
    _, singular, axes = torch.linalg.svd(centred, full_matrices=False)
    axes, singular = F.pad(axes, (0, 0, 0, 2))[:2], F.pad(singular, (0, 2))
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    places = centred @ (axes * largest.sign()).T
    shares = singular.square() / singular.square().sum().clamp(min=1e-30)
    return places.float(), shares[:2].float()


def agreement(task: Task, tokens: Float[Tensor, "k c"]) -> float | None:
    """Rank correlation (Spearman) of how alike two tokens are with how close their centres lie, over all pairs.

    1 where the nearest centres have the most similar tokens throughout, 0 where the tokens know nothing of it. None for a task
    without centres, or where all pairs are alike.
    """
    if task.codebook is None or len(tokens) < 3:
        return None
    book, size = task.codebook.cpu(), len(tokens)
    there, here = book.T[None, :, None].expand(1, -1, size, size), book.T[None, :, :, None].expand(1, -1, size, size)
    apart = (task.distance(here, there) + task.distance(there, here))[0, 0]
    pairs = torch.triu_indices(size, size, offset=1)
    alike, close = cosines(tokens)[*pairs], -apart[*pairs]
    if alike.std() == 0 or close.std() == 0:
        return None
    return float(spearmanr(alike.numpy(), close.numpy()).statistic)


def separation(seen: Confidences) -> float | None:
    """How well confidence tells right from wrong: the chance that a right pixel is surer than a wrong one, ties counting half.

    It is the area under the ROC curve: 1 is perfect, 0.5 chance. None where nothing, or everything, is right.
    """
    if seen.right is None:
        return None
    right = seen.right.double()
    wrong = seen.counts.double() - right
    pairs = right.sum() * wrong.sum()
    return float((right * (wrong.cumsum(0) - wrong / 2)).sum() / pairs) if pairs > 0 else None


def finding(scores: Float[Tensor, "n k"], category: Int[Tensor, " n"]) -> float | None:
    """How well each fine-grained token's score finds the pixels of its own category, as the mean area under the ROC curve.

    That is the chance that it is higher in a pixel of the category than in another: 1 is perfect, 0.5 chance; below, the token
    avoids its category, which serves as well where G_i is negative. Over the categories that occur; None where none does.
    """
    areas = []
    for index in range(scores.shape[1]):
        own = (category == index).numpy()
        inside, outside = int(own.sum()), int((~own).sum())
        if inside and outside:
            ranks = rankdata(scores[:, index].numpy())
            areas.append((ranks[own].sum() - inside * (inside + 1) / 2) / (inside * outside))
    return float(sum(areas) / len(areas)) if areas else None


def write_tokens(
    model: MultiTask,
    data: Reader,
    folder: Path,
    *,
    images: int = IMAGES,
    pictured: int = PICTURED,
    batch_size: int = 8,
    reporter: Reporter = silent,
) -> dict | None:
    """Look at the tokens of a network on `images` of `data`, and draw maps of `pictured` ones of them, into `folder`.

    Returns what `folder/tokens.json` holds; None, and nothing written, where the decoder has no tokens. What is there of the
    same weights is kept as it is.
    """
    if not len(data):
        raise MultidenseError(f"there is nothing to look at: '{data.name}' has no image in its split '{data.split}'")
    folder, request = Path(folder), {"version": VERSION, "weights": weights_hash(model), "images": images, "pictured": pictured}
    kept = _kept(folder / "tokens.json")
    if kept.get("request") == request:
        return kept
    chosen = Subset(data, evenly(len(data), images))
    tallies = {task.name: _Tally(task) for task in model.tasks}
    device = next(model.parameters()).device
    training = model.training
    try:
        first = look(model, data.load(0, ()).image[None].to(device)).outputs
        if not first.tokens and not first.fine_tokens:
            return None
        (folder / "tokens.json").unlink(missing_ok=True)
        for _, samples in reporter.track(
            batches(chosen, batch_size), "looking at tokens", len(chosen), size=lambda item: len(item[0])
        ):
            batch = collate(samples, model.tasks).to(device)
            seen = look(model, batch.image)
            for name, tally in tallies.items():
                tally.add(seen, batch.targets[name].value, batch.targets[name].valid)
        drawn = [_draw(model, chosen, index, folder) for index in evenly(len(chosen), pictured)]
    finally:
        model.train(training)
    told = {
        "request": request,
        "split": data.split,
        "images": len(chosen),
        "tasks": {name: tally.told(data.class_names.get(name)) for name, tally in tallies.items()},
        "plane": _plane(tallies),
        "affinity": _affinity(model),
        "pictures": drawn,
    }
    write_json(folder / "tokens.json", told)  # written last: it says that the maps are there
    return told


class _Tally:
    """One task's fine-grained tokens summed, and its confidences counted before and after they refine."""

    def __init__(self, task: Task):
        self.task, self.images, self.tokens = task, 0, None
        self.stages: dict[str, tuple[Confidences, list[float]]] = {}
        self.scored: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, seen: Look, truth: Tensor, valid: Bool[Tensor, "b 1 h w"]) -> None:
        name = self.task.name
        if name not in seen.outputs.fine_tokens:
            return
        summed = seen.outputs.fine_tokens[name].cpu().double().sum(0)
        self.tokens = summed if self.tokens is None else self.tokens + summed
        self.images += len(seen.outputs.fine_tokens[name])
        self._sample(seen.outputs.score_maps[name], seen.outputs.logits[name], truth, valid)
        if not self.task.has_confidence:
            return
        for stage, logits in _stages(seen, name).items():
            value, confidence = found_by(self.task, replace(seen.outputs, logits={name: logits}))
            counted, sums = self.stages.setdefault(stage, (Confidences(), [0.0, 0.0]))
            counted.add(confidence, valid, self.task.distance(value, truth) <= self.task.tolerance)
            sums[0] += float(confidence.cpu().double().sum())
            sums[1] += confidence.numel()

    def _sample(
        self,
        scores: Float[Tensor, "b k _ _"],
        logits: Float[Tensor, "b k h w"],
        truth: Tensor,
        valid: Bool[Tensor, "b 1 h w"],
    ) -> None:
        """Scores, logits and true categories of some pixels, evenly spread over those whose category is known."""
        category, tokens = self.task.category(truth), scores.shape[1]
        if tokens == 1 and self.task.categories == 2:
            category = 1 - category  # the only token stands for "yes"
        elif tokens == 1 or tokens != self.task.categories:
            return
        known = valid.flatten().nonzero()[:, 0]
        some = known[:: max(1, len(known) // (PIXELS * len(truth)))]
        scores, logits = (maps.movedim(1, -1).flatten(0, 2)[some].cpu() for maps in (resize(scores, logits.shape[-2:]), logits))
        self.scored.append((scores, logits, category.flatten()[some].cpu()))

    @property
    def mean(self) -> Float[Tensor, "k c"] | None:
        """φ_i, averaged over the images."""
        return None if self.tokens is None else (self.tokens / self.images).float()

    def told(self, names: Sequence[str] | None) -> dict:
        """Everything as plain data; without fine-grained tokens, the names of the categories alone."""
        names, colours = categories(self.task, names)
        book = self.task.codebook
        told = {
            "categories": names,
            "colours": colours,
            "centres": None if book is None else _rounded(book),
            "tolerance": self.task.tolerance,
        }
        if self.mean is None:
            return told
        places, shares = principal(self.mean)
        told |= {"cosines": _rounded(cosines(self.mean)), "places": _rounded(places), "variance": _rounded(shares)}
        told["agreement"] = agreement(self.task, self.mean)
        if self.scored:
            scores, logits, category = map(torch.cat, zip(*self.scored, strict=True))
            told |= {"finding": finding(scores, category), "finding_by_logits": finding(logits, category)}
        for stage, (counted, (summed, pixels)) in self.stages.items():
            known, right = int(counted.counts.sum()), 0 if counted.right is None else int(counted.right.sum())
            told[stage] = {
                "confidence": summed / pixels,
                "right": right / known if known else None,
                "separation": separation(counted),
            }
        return told


def _stages(seen: Look, name: str) -> dict[str, Tensor]:
    return {"before": seen.before[name], "even": seen.even[name], "after": seen.outputs.logits[name]}


def categories(task: Task, names: Sequence[str] | None = None) -> tuple[list[str], list[str]]:
    """What each logit of a task stands for, in words, and the colour `#rrggbb` in which pictures show it."""
    size, names = task.channels, tuple(names or task.group_names)
    if task.codebook is not None:
        form = "{:.3g}" if task.codebook.shape[1] == 1 else "{:z.1f}"
        said = [", ".join(map(form.format, centre)).replace("-", "−") for centre in task.codebook.tolist()]
        values = task.codebook.cpu().T[:, None]
    elif len(names) == size > 1:
        said, values = list(names), torch.arange(size)[None, None]
    elif len(names) == 2 and size == 1:  # the only logit says "yes"
        said, values = [names[1]], torch.ones(1, 1, 1)
    else:
        return [f"channel {index}" for index in range(size)], ["#808080"] * size
    picture = task.picture(values.to(task.fill((1, size)).dtype))[0]
    return said, [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in picture.tolist()]


def _plane(tallies: Mapping[str, _Tally]) -> dict | None:
    """All tasks' fine-grained tokens along their common principal axes."""
    means = {name: tally.mean for name, tally in tallies.items() if tally.mean is not None}
    if not means:
        return None
    places, shares = principal(torch.cat(list(means.values())))
    parts = places.split([len(mean) for mean in means.values()])
    return {
        "variance": _rounded(shares),
        "places": {name: _rounded(part) for name, part in zip(means, parts, strict=True)},
    }


def _affinity(model: MultiTask) -> list[list[float]] | dict[str, list[list[float]]] | None:
    """A of (1): how much of each task (column) goes into each (row); by the name of the scale where there are several, None
    where nothing is mixed.
    """
    with torch.no_grad():
        told = {scale: _rounded(each) for scale, each in getattr(model.decoder, "affinities", dict)().items()}
    return told.get("", told or None)


def _draw(model: MultiTask, data: Reader, index: int, folder: Path) -> dict:
    """The maps of one image as files, and what their colours stand for: the lowest and highest value of each."""
    sample: Sample = data[index]
    seen = look(model, sample.image[None].to(next(model.parameters()).device))
    named = f"{data.split}/{sample.id.replace('/', '__')}"
    place, tasks = folder / named, {}
    for old in place.glob("*.png"):
        old.unlink()
    _save(place / "input.png", pictures.from_image(_small(sample.image[None])[0].cpu().numpy()))
    for task in model.tasks:
        name = task.name
        if name in sample.targets:
            target = task.resize(sample.targets[name], _small(sample.image[None]).shape[-2:])
            _save(place / f"{name}.truth.png", task.picture(target.value, target.valid))
        maps: dict[str, tuple[Tensor, bool]] = {}
        if name in seen.before and task.has_confidence:
            maps |= {stage: (task.confidence(logits), False) for stage, logits in _stages(seen, name).items()}
        gates = seen.gates.get(name, ())
        maps |= {f"gate-{j}" if len(gates) > 1 else "gate": (gate, True) for j, gate in enumerate(gates)}
        if name in seen.outputs.confidence:
            maps["trust"] = (seen.outputs.confidence[name], True)
        covered = _covered(seen.outputs.logits[name]) if name in seen.outputs.score_maps else {}
        for category in covered:
            maps[f"score-{category}"] = (seen.outputs.score_maps[name][:, category : category + 1], True)
        ranges = {
            kind: _picture(resize(values, tuple(sample.image.shape[-2:])), stretched, place / f"{name}.{kind}.png")
            for kind, (values, stretched) in maps.items()
        }
        tasks[name] = {"ranges": ranges, "covered": {str(category): share for category, share in covered.items()}}
    return {"id": sample.id, "folder": named, "tasks": tasks}


def _covered(logits: Float[Tensor, "1 k h w"]) -> dict[int, float]:
    """The categories that are highest in most pixels, with their share of them."""
    counts = torch.bincount(logits.argmax(1).flatten(), minlength=logits.shape[1]).double()
    shares, found = counts.div(counts.sum()).topk(min(CATEGORIES, len(counts)))
    return {int(category): float(share) for share, category in zip(shares, found, strict=True) if share > 0}


def _picture(values: Float[Tensor, "1 1 h w"], stretched: bool, path: Path) -> list[float]:
    """Draw a map from dark (its lowest value if `stretched`, else 0) to bright (its highest, or 1); its true range."""
    low, high = float(values.min()), float(values.max())
    shown = (values - low) / max(high - low, 1e-12) if stretched else values
    levels = _small(shown).mul(LEVELS).round().div(LEVELS)
    _save(path, pictures.colour_share(levels[0, 0].cpu().numpy()))
    return [round(low, 4), round(high, 4)]


def _small(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
    height, width = maps.shape[-2:]
    return resize(maps, (max(1, round(height * WIDEST / width)), WIDEST)) if width > WIDEST else maps


def _save(path: Path, picture: pictures.Picture) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as beside:
        Image.fromarray(picture).save(beside)


def _kept(file: Path) -> Mapping:
    """What was told before; nothing where it cannot be read, for then it is told again."""
    try:
        return read_json(file)
    except MultidenseError:
        return {}


def _rounded(values: Tensor) -> list:
    return plain(values.double().mul(1e4).round().div(1e4).tolist())
