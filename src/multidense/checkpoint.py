"""What a training leaves on disk: its checkpoint, its curves, and the folder that holds both against strangers."""

from __future__ import annotations

import fcntl
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from multidense.files import plain, read_json, write_text, written_aside
from multidense.models.multitask import MultiTask
from multidense.objective import Losses
from multidense.types import MultidenseError


class State:
    """Where a training is: counters, running sums, history; kept with weights and optimiser in one file."""

    file = "checkpoint.pt"

    def __init__(self):
        self.step, self.seconds = 0, 0.0
        self.sums: dict[str, float] = {}
        self.count = 0
        self.seen: dict[str, list[float]] = {}
        self.history: list[dict[str, float]] = []

    @classmethod
    def restore(cls, folder: Path | None, model: MultiTask, optimizer, beside: nn.Module) -> State:
        """The state of the folder's checkpoint, put into model, optimiser, generator and what is there `beside` for the
        training only (balancer, regularisers); a new one where there is none.
        """
        state = cls()
        if folder is None or not (folder / cls.file).exists():
            return state
        try:
            saved = torch.load(folder / cls.file, weights_only=True, map_location="cpu")
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            if "beside" in saved:
                beside.load_state_dict(saved["beside"])
        except Exception as error:  # torch names a damaged file in a dozen ways
            raise MultidenseError(
                f"{folder / cls.file} cannot be read ({str(error).splitlines()[0]}): delete it to begin this training anew"
            ) from error
        torch.set_rng_state(saved["rng"])
        if saved["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(saved["cuda_rng"])
        state.step, state.seconds, state.count = saved["step"], saved["seconds"], saved["count"]
        state.sums, state.history = saved["sums"], saved["history"]
        state.seen = saved.get("seen", {})
        return state

    def save(self, folder: Path, model: MultiTask, optimizer, beside: nn.Module) -> None:
        """Write everything beside the last checkpoint, then take its place."""
        saved = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "beside": beside.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "step": self.step,
            "seconds": self.seconds,
            "count": self.count,
            "sums": self.sums,
            "seen": self.seen,
            "history": self.history,
        }
        with written_aside(folder / self.file) as beside:
            try:
                torch.save(saved, beside)
            except RuntimeError as error:  # torch's writer reports a full disk as a RuntimeError
                raise OSError(
                    f"the checkpoint could not be written ({str(error).splitlines()[0]}); is the disk full?"
                ) from error

    def add(self, losses: Losses, loss: Tensor, seconds: float) -> None:
        """One step was made."""
        self.step, self.count, self.seconds = self.step + 1, self.count + 1, self.seconds + seconds
        for name, value in ({"loss": float(loss)} | dict(losses.means)).items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        for name, level in losses.levels.items():
            total, images = self.seen.get(name, [0.0, 0.0])
            self.seen[name] = [total + level * losses.images[name], images + losses.images[name]]

    def levels(self) -> dict[str, float]:
        """The loss of each task that was present in this epoch, as a mean over the images that supervised it."""
        return {name: total / images for name, (total, images) in self.seen.items()}

    @property
    def mean_loss(self) -> float:
        return self.sums["loss"] / self.count if self.count else self.history[-1]["loss"]

    def end_epoch(self, epoch: int, rate: float, scores: dict[str, float]) -> None:
        """Means of the epoch and its scores go into the history, and the sums begin anew."""
        means = {name: total / self.count for name, total in self.sums.items()}
        self.history.append({"epoch": epoch + 1, "step": self.step, "lr": rate, **means, **scores})
        self.sums, self.count, self.seen = {}, 0, {}

    def cost(self, device: torch.device) -> dict[str, float]:
        """What the training took: seconds in all and a step, and the process's peak memory (the GPU's where there is one)."""
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device)
        else:  # kilobytes on Linux, bytes on macOS
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {
            "train_seconds": round(self.seconds, 2),
            "step_seconds": round(self.seconds / max(self.step, 1), 4),
            "peak_memory_mb": round(peak / 2**20, 1),
        }


class Curves:
    """The history as `history.csv` and as TensorBoard events."""

    def __init__(self, folder: Path | None, epochs_done: int):
        self.folder, self.board, self.told = folder, None, epochs_done
        if folder:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=epochs_done + 1)

    def write(self, history: list[dict[str, float]]) -> None:
        if not self.folder:
            return
        columns = list(dict.fromkeys(name for row in history for name in row))
        rows = [",".join(f"{row[name]:.6g}" if name in row else "" for name in columns) for row in history]
        write_text(self.folder / "history.csv", "\n".join([",".join(columns), *rows]) + "\n")
        for row in history[self.told :]:
            for name, value in row.items():
                if name not in ("epoch", "step"):
                    self.board.add_scalar(name.replace(".", "/"), value, row["epoch"])
        self.told = len(history)

    def close(self) -> None:
        if self.board:
            self.board.close()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder, made if need be, and held against another process that would train into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115 (held until the training ends)
    except OSError as error:
        raise MultidenseError(f"cannot write to the folder {folder}: {error.strerror}; choose another with out=") from error
    for patience in range(11):  # the loading processes of a killed training hold on for some seconds
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if patience == 10:
                lock.close()
                raise MultidenseError(
                    f"another process is training in {folder}; wait for it, or choose another folder"
                ) from error
            time.sleep(0.6)
    try:
        for torn in folder.glob(".*.tmp*"):  # what a kill left half written
            torn.unlink()
        shutil.rmtree(folder / "model.new", ignore_errors=True)
        if (folder / "model").exists():
            (folder / State.file).unlink(missing_ok=True)
        yield
    finally:
        lock.close()


def finished(folder: Path, request: dict, resume: bool, defaults: Mapping[str, Mapping] = MappingProxyType({})) -> bool:
    """Whether this training is done already; an error where the folder holds another one, or one that was not to be resumed.

    `defaults` are those of sections that grow: what an older version did not know had its default.
    """
    begun = (folder / "model").exists() or (folder / State.file).exists()
    if not begun or not (folder / "training.json").exists():
        return False
    before = read_json(folder / "training.json")
    before |= {key: _grown(before[key], plain(dict(defaults[key]))) for key in defaults if isinstance(before.get(key), dict)}
    different = list(differences(before, plain(request)))
    if different:
        raise MultidenseError(
            f"{folder} holds a training with other settings: {'; '.join(different[:4])}"
            f"{f' and {len(different) - 4} more' if len(different) > 4 else ''}. Choose another folder, or delete this one"
        )
    if not resume:
        raise MultidenseError(f"{folder} holds this training already: resume it, choose another folder, or delete this one")
    return (folder / "model").exists()


def _grown(before: dict, defaults: Mapping) -> dict:
    """Settings with the defaults of those that were not known yet, at any depth."""
    both = {key for key in before if isinstance(before[key], dict) and isinstance(defaults.get(key), dict)}
    return {**defaults, **before, **{key: _grown(before[key], defaults[key]) for key in both}}


def differences(before, now, path: str = "") -> Iterator[str]:
    """What two nested settings differ in, a phrase for each."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before | now:
            yield from differences(before.get(key), now.get(key), f"{path}.{key}" if path else str(key))
    elif before != now:
        yield f"{path} was {before!r}, is now {now!r}"
