"""One job of a run, in the process made for it: `python -m multidense.child RUN NETWORK [TEACHER]`."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from multidense.jobs import Job, end_with_parent
from multidense.progress import ToFile
from multidense.run import do
from multidense.types import MultidenseError


def main(words: Sequence[str]) -> None:
    """Do the job and tell in `progress.json` of its network how far it is; the last line it says is why it failed."""
    end_with_parent()
    folder, network, *teacher = words
    job = Job(Path(folder), network, *teacher)
    try:
        do(job, ToFile(job.folder / network / "progress.json"))
    except MultidenseError as error:
        sys.exit(" ".join(str(error).split()))
    except Exception as error:
        traceback.print_exc()
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    main(sys.argv[1:])
