"""One network for many tasks: a backbone and a decoder, built by name, saved as safetensors and JSON, loaded again.

>>> model = build_model("segnet", "hitts", [SemanticSegmentation(classes=13), Depth(bins=30)], width=0.25, seed=0)
>>> outputs = model(image)                      # image float [b 3 h w]; logits, features, confidence, tokens
>>> value, confidence = model.predict(image)[model.task_names[0]]
>>> model.save_pretrained("runs/one")           # config.json, model.safetensors, README.md
>>> model = load_model("runs/one")
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from jaxtyping import Float, Shaped
from safetensors import SafetensorError
from torch import Tensor, nn

from multidense.files import read_json, write_json, written_aside
from multidense.models.backbones import BACKBONES
from multidense.models.backbones.external import PREFIX, zoo
from multidense.models.decoders import DECODERS
from multidense.suggest import nearest
from multidense.task import Task
from multidense.tasks import from_spec
from multidense.types import MultidenseError, Outputs

CONFIG, WEIGHTS = "config.json", "model.safetensors"
MODEL_CARD = """---
{{ card_data }}
---

A network for several dense prediction tasks, trained with multidense. `config.json` says which; to use it:

```python
from multidense.models import MultiTask

model = MultiTask.from_pretrained("this repository")
value, confidence = model.predict(image)[model.task_names[0]]  # image: float RGB [3 h w]
```
"""


def build_model(
    backbone: str,
    decoder: str,
    tasks: Sequence[Task],
    width: float = 1.0,
    *,
    seed: int | None = None,
    initial: bool = True,
    **options,
) -> MultiTask:
    """The model of these tasks, from the names of its parts; `width` scales all channel counts of the backbone.

    A backbone is one of `BACKBONES`, or "timm/" and the name of any network of the package timm.

    With a `seed` the weights depend on it alone, and the global random state stays as it was. The backbone is drawn first, so
    decoders can be compared on the same trunk. `options` are keyword arguments of the backbone and the decoder. With
    `initial=False` those that say where a backbone's first weights come from are kept in mind but not followed: the weights
    are to be replaced anyway.
    """
    make_backbone = zoo(backbone) if str(backbone).startswith(PREFIX) else _chosen("backbone", backbone, BACKBONES)
    make_decoder = _chosen("decoder", decoder, DECODERS)
    if make_decoder.needs_stages and not _has_stages(make_backbone):
        raise MultidenseError(
            f"decoder '{decoder}' reads the maps of every stage of its backbone, and backbone '{backbone}' gives none. "
            f"Backbones that fit: {_listed([name for name, part in BACKBONES.items() if _has_stages(part)])}."
        )
    tasks = tuple(tasks)
    _check_tasks(tasks)
    if not 0 < width < float("inf"):
        raise MultidenseError(f"width should be a positive number (1 is full size). Found {width}; try 0.25 or 1.")
    for_backbone, for_decoder = _options(make_backbone), _options(make_decoder)
    for option in options:
        if option not in for_backbone | for_decoder:
            valid = sorted(for_backbone | for_decoder)
            raise MultidenseError(
                f"unknown option '{option}' of backbone '{backbone}' with decoder '{decoder}'{nearest(option, valid)}. "
                f"Valid are: {', '.join(valid) or 'none'}."
            )
    followed = for_backbone if initial else for_backbone - set(getattr(make_backbone, "initial", ()))

    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        features = make_backbone(
            width, stages=make_decoder.needs_stages, **{name: options[name] for name in followed & options.keys()}
        )
        outputs = make_decoder(
            tasks,
            features.channels,
            features.strides,
            **{name: options[name] for name in for_decoder & options.keys()},
        )
    spec = {
        "backbone": backbone,
        "decoder": decoder,
        "width": width,
        "options": dict(options),
        "tasks": [task.spec() for task in tasks],
    }
    # Channels last: a training step on the CPU takes about a tenth to a quarter less time.
    return MultiTask(features, outputs, tasks, spec).to(memory_format=torch.channels_last)


class MultiTask(
    nn.Module,
    ModelHubMixin,
    library_name="multidense",
    model_card_template=MODEL_CARD,
    license="apache-2.0",
    tags=["dense-prediction", "multi-task-learning"],
):
    """A backbone and a decoder: image `[b 3 h w]` → `Outputs` of every task. Made by `build_model` or `load_model`.

    It also holds the codebooks of its continuous tasks as buffers, once `set_codebook` has been called. A model put together
    by hand, without a `spec`, works but cannot be saved.
    """

    def __init__(self, backbone: nn.Module, decoder: nn.Module, tasks: Sequence[Task], spec: Mapping | None = None) -> None:
        super().__init__()
        self.backbone, self.decoder = backbone, decoder
        self._tasks = tuple(task.with_codebook(None) for task in tasks)
        self._spec = copy.deepcopy(dict(spec)) if spec is not None else None
        self.centres = Codebooks(tasks)

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks, in the order they were given."""
        return tuple(task.name for task in self._tasks)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks, decoding with the fitted codebooks on the model's device."""
        fitted = self.codebooks
        return tuple(task.with_codebook(fitted[task.name]) if task.name in fitted else task for task in self._tasks)

    @property
    def spec(self) -> dict | None:
        """Backbone, decoder, width, options and tasks as plain JSON data; None for a model put together by hand."""
        return copy.deepcopy(self._spec)

    # Codebooks --------------------------------------------------------------------------------------------------------

    @property
    def codebooks(self) -> dict[str, Float[Tensor, "k c"]]:
        """The fitted centres `[k c]` by task name."""
        return {name: self.centres.get_buffer(name) for name in self.centres.names if name in self.centres.fitted}

    @property
    def missing_codebooks(self) -> tuple[str, ...]:
        """Names of the tasks that need a codebook and have none yet."""
        return tuple(name for name in self.centres.names if name not in self.centres.fitted)

    @property
    def has_codebooks(self) -> bool:
        """Whether every task that needs a codebook has one."""
        return not self.missing_codebooks

    def set_codebook(self, name: str, centres: Float[Tensor, "k c"]) -> None:
        """Give a task its centres; they are saved with the model and inherited by whoever loads it."""
        self.centres.set(name, centres)

    # Running ----------------------------------------------------------------------------------------------------------

    def forward(self, image: Tensor) -> Outputs:
        """Outputs of every task for images `[b 3 h w]`, float RGB as the model was trained on."""
        _check_image(image, self.backbone.minimum_size)
        features = self.backbone(image)
        return replace(self.decoder(features, tuple(image.shape[-2:])), bottleneck=features.bottleneck)

    def predict(self, image: Tensor) -> dict[str, tuple[Shaped[Tensor, "*b v h w"], Float[Tensor, "*b 1 h w"]]]:
        """Value and confidence of every task for `[b 3 h w]`, or for one image `[3 h w]` without the first axis.

        In evaluation mode, without gradients, on the model's device; the model is left in the mode it was in.
        """
        if self.missing_codebooks:
            raise MultidenseError(
                f"to predict, every continuous task that is classified needs its codebook; {_listed(self.missing_codebooks)} "
                "has none. Train the model with fit(), load a trained one, or call set_codebook."
            )
        single = image.ndim == 3
        batch = (image[None] if single else image).to(next(self.parameters()).device)
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            with torch.no_grad():
                logits = self(batch).logits
                found = {task.name: (task.decode(logits[task.name]), task.confidence(logits[task.name])) for task in self.tasks}
        finally:
            for module, training in modes:
                module.training = training
        return {name: (value[0], confidence[0]) for name, (value, confidence) in found.items()} if single else found

    # Saving -----------------------------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | Path, **options) -> str | None:
        """Save to a folder (and, with `push_to_hub=True`, to the Hub): config.json, model.safetensors and a model card.

        A model that is already there stays whole if the new one cannot be written.
        """
        config = Path(save_directory) / CONFIG
        before = config.read_bytes() if config.is_file() else None
        try:
            return super().save_pretrained(save_directory, **options)
        except OSError as error:
            raise MultidenseError(f"cannot save a model to {save_directory}: {error.strerror or error}") from error
        finally:
            if before is not None and not config.exists():  # the mixin takes it away before anything is written
                config.write_bytes(before)

    def _save_pretrained(self, save_directory: Path) -> None:
        if self._spec is None:
            raise MultidenseError("only a model with a spec can be saved, found one put together by hand. Use build_model.")
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        with written_aside(save_directory / WEIGHTS) as beside:
            beside.write_bytes(safetensors.torch.save(weights, metadata={"format": "pt"}))
        write_json(save_directory / CONFIG, {"multidense": version("multidense"), "model": self._spec})

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **download) -> MultiTask:
        if Path(model_id).is_dir():
            return load_model(model_id)
        for name in (CONFIG, WEIGHTS):
            folder = Path(hf_hub_download(repo_id=model_id, filename=name, **download)).parent
        return load_model(folder)

    def __repr__(self) -> str:
        if self._spec is None:
            return super().__repr__()
        parts = [repr(self._spec["backbone"]), repr(self._spec["decoder"]), repr(list(self._tasks))]
        named = {"width": self._spec["width"]} | self._spec["options"]
        return f"build_model({', '.join(parts + [f'{name}={value!r}' for name, value in named.items()])})"


class Codebooks(nn.Module):
    """The centres `[k c]` of every task that has some: buffers by task name, zero until fitted.

    Which are fitted is kept beside them, in the buffers `<name>_fitted`; `fitted` mirrors those, so that asking never has to
    wait for the device.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.names = tuple(task.name for task in tasks if task.codebook_size)
        self.fitted: frozenset[str] = frozenset()
        for task in tasks:
            if task.codebook_size:
                self.register_buffer(task.name, torch.zeros(task.codebook_size, task.value_channels))
                self.register_buffer(f"{task.name}_fitted", torch.tensor(False))
                if task.codebook is not None:
                    self.set(task.name, task.codebook)

    def set(self, name: str, centres: Float[Tensor, "k c"]) -> None:
        if name not in self.names:
            raise MultidenseError(
                f"'{name}' has no codebook to set{nearest(name, self.names)}. Tasks that take one: {_listed(self.names)}."
            )
        buffer, finite = self.get_buffer(name), bool(torch.isfinite(centres).all())
        if centres.shape != buffer.shape or not finite:
            raise MultidenseError(
                f"the codebook of '{name}' should be of shape {tuple(buffer.shape)} and finite. "
                f"Found shape {tuple(centres.shape)}, {'finite' if finite else 'not finite'}."
            )
        buffer.copy_(centres.detach())
        self.get_buffer(f"{name}_fitted").fill_(True)
        self.fitted |= {name}

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self.fitted = frozenset(name for name in self.names if self.get_buffer(f"{name}_fitted"))


def load_model(path: str | Path) -> MultiTask:
    """The model saved in the folder `path` (by `save_pretrained`, or by a run), on the CPU, in evaluation mode."""
    folder = Path(path)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise MultidenseError(
                f"no model in {folder}: expected a folder with {CONFIG} and {WEIGHTS}, as save_pretrained writes it. "
                + (f"Found no {name} there." if folder.is_dir() else "Found no such folder.")
            )
    config = read_json(folder / CONFIG)
    spec = config.get("model") if isinstance(config, dict) and "multidense" in config else None
    if not isinstance(spec, dict) or not {"backbone", "decoder", "width", "options", "tasks"} <= spec.keys():
        raise MultidenseError(
            f"{folder / CONFIG} does not describe a multidense model. Expected the keys 'multidense' and 'model'; found "
            f"{_listed(config) if isinstance(config, dict) else type(config).__name__}. Give a folder "
            "that save_pretrained wrote."
        )
    model = build_model(
        spec["backbone"],
        spec["decoder"],
        [from_spec(task) for task in spec["tasks"]],
        spec["width"],
        seed=0,  # the weights are replaced; the seed keeps the global random state as it was
        initial=False,
        **spec["options"],
    )
    try:
        weights = safetensors.torch.load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise MultidenseError(f"{folder / WEIGHTS} cannot be read: {error}. Save or copy the model again.") from error
    _check_fit(folder, model.state_dict(), weights)
    model.load_state_dict(weights)
    return model.eval()


def weights_hash(model: nn.Module) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over the names and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _chosen(kind: str, name: str, table: Mapping[str, type]) -> type:
    if name not in table:
        also = f", and {PREFIX}NAME for every network of timm" if table is BACKBONES else ""
        raise MultidenseError(f"unknown {kind} {name!r}{nearest(name, table)}. There are: {', '.join(table)}{also}.")
    return table[name]


def _options(part: Callable) -> frozenset[str]:
    """Names of what a backbone or decoder can be told: its keyword-only arguments."""
    parameters = inspect.signature(part).parameters.values()
    return frozenset(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


def _has_stages(backbone: Callable) -> bool:
    """Whether `stages=True` fills `Features.stages`; a backbone that cannot says `has_stages = False`."""
    return getattr(backbone, "has_stages", True)


def _check_tasks(tasks: Sequence[Task]) -> None:
    if not tasks:
        raise MultidenseError(
            "a model needs at least one task. Found none; give for example [SemanticSegmentation(classes=13)]."
        )
    for task in tasks:
        if not isinstance(task, Task):
            raise MultidenseError(f"tasks should be objects such as Depth(bins=30). Found {task!r}.")
    names = [task.name for task in tasks]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise MultidenseError(f"every task may be given once. Found {_listed(twice)} more than once; leave the others out.")


def _check_image(image: Tensor, minimum_size: int) -> None:
    expected = f"image should be a float tensor [b 3 h w], height and width at least {minimum_size}."
    if image.ndim != 4 or image.shape[1] != 3:
        raise MultidenseError(f"{expected} Found shape {tuple(image.shape)}; stack RGB images [3 h w] along a first axis.")
    if not image.is_floating_point():
        raise MultidenseError(f"{expected} Found {image.dtype}; convert it, for 8-bit images with image.float() / 255.")
    if min(image.shape[-2:]) < minimum_size:
        raise MultidenseError(f"{expected} Found {image.shape[-2]}×{image.shape[-1]}; resize it.")


def _check_fit(folder: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    shared = expected.keys() & found.keys()
    wrong = {
        "missing": sorted(expected.keys() - shared),
        "not expected": sorted(found.keys() - shared),
        "of another shape": sorted(name for name in shared if expected[name].shape != found[name].shape),
    }
    if any(wrong.values()):
        what = "; ".join(f"{kind}: {_listed(names)}" for kind, names in wrong.items() if names)
        raise MultidenseError(
            f"{folder / WEIGHTS} does not fit the model that {CONFIG} beside it describes. {what}. "
            "The two files must come from the same save."
        )


def _listed(names: Collection[str], most: int = 8) -> str:
    names = [f"'{name}'" for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) or "none"
