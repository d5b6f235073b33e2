"""Fabric for several processes: each in a new one, and what goes wrong in them told in one line.

Imports lightning, so it is imported late.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from multidense.compat import mend_torchvision
from multidense.types import MultidenseError

mend_torchvision()

from lightning.fabric import Fabric  # noqa: E402 (a torchvision that does not load is mended first)
from lightning.fabric.strategies import DDPStrategy  # noqa: E402
from lightning.fabric.strategies.launchers.multiprocessing import _MultiProcessingLauncher  # noqa: E402


class Launcher(_MultiProcessingLauncher):
    """Lightning's, by a name of this module: a new process imports it first, and so mends torchvision before lightning."""


class Together(DDPStrategy):
    """New processes that know each other; the network is not wrapped, because the loop sums gradients itself."""

    def setup_module(self, module: nn.Module) -> nn.Module:
        return module

    def _configure_launcher(self) -> None:
        self._launcher = Launcher(self, start_method=self._start_method)


def fabric_for(accelerator: str, devices: int, precision: str) -> Fabric:
    """Fabric on these devices; more than one are as many processes."""
    try:
        strategy = Together(start_method="spawn") if devices > 1 else "auto"
        return Fabric(accelerator=accelerator, devices=devices, precision=precision, strategy=strategy)
    except Exception as error:  # Fabric refuses what the machine has not in several ways
        raise MultidenseError(
            f"cannot train on {devices} × {accelerator} at {precision}: {str(error).splitlines()[0]}"
        ) from error


def launched(fabric: Fabric, job: Callable[..., Any], place: Path) -> Any:
    """What `job(fabric)` returns in the first process. A MultidenseError of any process is raised here as it was, passed on in
    the folder `place`.
    """
    try:
        return fabric.launch(partial(_noted, job=job, place=place))
    except (ProcessRaisedException, ProcessExitedException) as error:
        notes = sorted(place.glob("error-*.txt"))
        if notes:
            raise MultidenseError(notes[0].read_text(encoding="utf-8")) from None
        if isinstance(error, ProcessExitedException):
            how = error.signal_name or f"exit code {error.exit_code}"
            raise MultidenseError(
                f"training process {error.error_index + 1} of {fabric.world_size} ended by {how}: often memory ran out; "
                "lower batch_size or devices, then run the same command again"
            ) from None
        raise


def _noted(fabric: Fabric, job: Callable[..., Any], place: Path) -> Any:
    try:
        return job(fabric)
    except MultidenseError as error:
        if fabric.world_size > 1:
            (place / f"error-{fabric.global_rank}.txt").write_text(str(error), encoding="utf-8")
        raise
