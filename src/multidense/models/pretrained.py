"""Weights from a file into a network: what fits is loaded, and what does not is said.

A file may hold more than the network (a classifier's head) or call it otherwise (`module.`, `backbone.`, a publisher's own
names). What is loaded is decided by names and shapes, and told in a `Fit`, so that nobody trains from scratch without knowing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from torch import Tensor, nn

from multidense.files import fingerprint, plain
from multidense.types import MultidenseError

Translation = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
"""From a publisher's names and shapes to the network's; it may fail on files that are not meant for it."""

INSIDE = ("state_dict", "model_state_dict", "model", "teacher")
"""Where training scripts keep the weights in a file that holds more."""
HEADS = ("fc", "head", "heads", "head_dist", "classifier", "last_linear", "aux_classifier", "decode_head", "decoder", "centres")
"""First parts of the names of what stands behind a backbone."""
ENOUGH = 0.5
"""Share of the network's parameters that a file must give."""


@dataclass(frozen=True)
class Fit:
    """How a file's weights fitted a network: names of tensors, and how many parameters were loaded.

    `missing` are the network's that the file has not, `reshaped` those of another shape; `unused` the file's that belong to a
    head, and `unexpected` all others that the network has not. A count of batches that BatchNorm keeps is not missed.
    """

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    parameters_loaded: int = 0
    parameters: int = 0
    sha256: str | None = None

    def told(self) -> str:
        """One line: how many tensors of how many, from where, and what was left over."""
        total = len(self.loaded) + len(self.missing) + len(self.reshaped)
        said = [f"{len(self.loaded)} of {total} tensors from {self.source}"]
        for names, what in (
            (self.unused, "not used"),
            (self.unexpected, "unknown to the network"),
            (self.missing, "missing"),
            (self.reshaped, "of another shape"),
        ):
            if names:
                said.append(f"{len(names)} {what}: {_some(names)}")
        return ", ".join(said)

    def provenance(self) -> dict:
        """The same as plain data; of the loaded tensors only the number."""
        return plain(asdict(self)) | {"loaded": len(self.loaded)}


def load_weights(
    module: nn.Module, path: str | Path, translations: Sequence[Translation] = (), unused: Collection[str] = ()
) -> Fit:
    """Put the weights of a .safetensors, .pth, .pt or .bin file into `module`; the `Fit` is returned and kept as `module.fit`.

    Prefixes such as "module." are taken off where more fits without, and `translations` are tried. Names of `unused` tensors
    are known to belong to a part that the module has lost. At least half of the module's parameters must fit, else nothing is
    loaded and the error names what does not.
    """
    path = Path(path)
    found = _read(path)
    expected = module.state_dict()
    learned = {name: parameter.numel() for name, parameter in module.named_parameters()}

    def fits(weights: Mapping[str, Tensor]) -> list[str]:
        return [name for name, tensor in weights.items() if name in expected and tensor.shape == expected[name].shape]

    def numbers(weights: Mapping[str, Tensor]) -> int:
        return sum(expected[name].numel() for name in fits(weights))

    named = max(_readings(found, translations), key=numbers)  # of equals the first, the names as they are
    loaded, left = fits(named), [name for name in named if name not in expected]
    heads = {name for name in left if name in unused or name.partition(".")[0] in HEADS}
    fit = Fit(
        source=str(path),
        loaded=tuple(loaded),
        missing=tuple(name for name in expected if name not in named and not name.endswith("num_batches_tracked")),
        unused=tuple(name for name in left if name in heads),
        unexpected=tuple(name for name in left if name not in heads),
        reshaped=tuple(name for name in named if name in expected and named[name].shape != expected[name].shape),
        parameters_loaded=sum(learned.get(name, 0) for name in loaded),
        parameters=sum(learned.values()),
        sha256=fingerprint(path),
    )
    if fit.parameters_loaded < ENOUGH * fit.parameters:
        raise MultidenseError(_misfit(fit, named, expected))
    with torch.no_grad():
        for name in loaded:
            expected[name].copy_(named[name])
    module.fit = fit
    return fit


def from_hub(repository: str, file: str = "model.safetensors") -> Path:
    """A file of a repository of the Hugging Face Hub, out of the cache where it is there."""
    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # no network, no such repository, a full disk: each has a type of its own
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MultidenseError(
            f"pretrained: {file} of {repository} cannot be had from the Hugging Face Hub ({said}). Download it elsewhere and "
            "give the file as weights, or set pretrained to false."
        ) from error


def _readings(found: dict[str, Tensor], translations: Sequence[Translation]) -> Iterator[Mapping[str, Tensor]]:
    """The file's weights by the names they may have: as they are, translated, each without the prefixes they begin with."""
    yield from _without_prefixes(found)
    for translate in translations:
        for weights in _without_prefixes(found):
            try:
                translated = translate(dict(weights))
            except Exception:  # a translation knows one publisher's files, and fails on others in its own way
                continue
            yield {name: tensor for name, tensor in translated.items() if isinstance(tensor, Tensor)}


def _without_prefixes(found: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The weights under their names, and for every beginning of up to three parts that many names share, without it."""
    yield found
    counts: dict[str, int] = {}
    for name in found:
        parts = name.split(".")
        for depth in range(1, min(4, len(parts))):
            prefix = ".".join(parts[:depth]) + "."
            counts[prefix] = counts.get(prefix, 0) + 1
    for prefix, count in counts.items():
        if 2 * count >= len(found):
            cut = {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}
            yield {name: tensor for name, tensor in found.items() if not name.startswith(prefix)} | cut


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU."""
    if not path.is_file():
        raise MultidenseError(f"weights: there is no file {path}. Give the path of a .safetensors, .pth, .pt or .bin file.")
    try:
        if path.suffix == ".safetensors":
            held = safetensors.torch.load_file(path)
        else:
            held = torch.load(path, weights_only=True, map_location="cpu")
    except SafetensorError as error:
        raise MultidenseError(f"{path} cannot be read as safetensors: {error}. Download or copy it again.") from error
    except Exception as error:  # torch names a damaged file in a dozen ways
        raise MultidenseError(
            f"{path} cannot be read as weights ({str(error).splitlines()[0]}). Expected tensors by name, as torch.save writes "
            "a state_dict; a file that holds Python objects has to be saved anew as .safetensors."
        ) from error
    inner = held
    while isinstance(inner, Mapping):
        further = next((inner[key] for key in INSIDE if isinstance(inner.get(key), Mapping)), None)
        if further is None:
            break
        inner = further
    tensors = {str(k): v for k, v in inner.items() if isinstance(v, Tensor)} if isinstance(inner, Mapping) else {}
    if not tensors:
        what = f"the keys {_some(list(map(str, held)))}" if isinstance(held, Mapping) else type(held).__name__
        raise MultidenseError(f"{path} holds no weights: expected tensors by name, found {what}.")
    return tensors


def _misfit(fit: Fit, named: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    share = 100 * fit.parameters_loaded / max(fit.parameters, 1)
    said = []
    if fit.reshaped:
        shapes = [f"{name} is {tuple(named[name].shape)}, expected {tuple(expected[name].shape)}" for name in fit.reshaped[:3]]
        said.append(f"of another shape: {'; '.join(shapes)}" + _more(fit.reshaped))
    if fit.missing:
        said.append(f"missing: {_some(fit.missing)}")
    if fit.unexpected:
        said.append(f"unknown to the network: {_some(fit.unexpected)}")
    return (
        f"{fit.source} does not fit this backbone: it gives {fit.parameters_loaded:,} of {fit.parameters:,} parameters "
        f"({share:.0f} %), and at least {100 * ENOUGH:.0f} % are expected. "
        f"{'. '.join(said)}. Give weights of the same architecture, or leave them out."
    )


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + _more(names, most)


def _more(names: Sequence[str], most: int = 3) -> str:
    return f" and {len(names) - most} more" if len(names) > most else ""
