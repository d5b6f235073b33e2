"""The command `multidense score`: its options, its table."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from multidense.progress import Reporter, reporter
from multidense.scorers import ClassScorer, DepthScorer, NormalScorer, Scorer
from multidense.scoring import Scored, score_files
from multidense.share_scorers import FRACTION, EdgeScorer, SaliencyScorer
from multidense.tasks import Depth, Edges, HumanParts, Normals, Saliency, SemanticSegmentation
from multidense.types import MultidenseError

KINDS = {kind.name: kind for kind in (SemanticSegmentation, HumanParts, Depth, Normals, Edges, Saliency)}
UNITS = {"m": 1.0, "cm": 100.0, "mm": 1000.0}
"""How many of a unit make a metre."""

BELONGING = {
    "classes": (SemanticSegmentation, HumanParts),
    "void": (SemanticSegmentation, HumanParts),
    "unit": (Depth,),
    "scale": (Depth,),
    "max_dist": (Edges,),
    "thresholds": (Edges,),
    "nms": (Edges,),
}
"""The tasks that each special option belongs to."""

SHOWN = 20
"""So many files without a partner are printed; the JSON file has all."""

ABOUT = """\
A prediction and its truth are the files with the same path below the two folders, but for the suffix (.png, .tif, .bmp, .npy;
truth of edges also .mat). Files without a partner are listed and not scored. Nothing but the truth says which pixels are valid.

what files hold
  semseg     class ids: a grey or palette picture, or whole numbers in .npy [h w]
  parts      the same; images whose truth has no part (nothing but class 0) are skipped
  depth      .npy [h w] or a float picture in metres; a picture of whole numbers needs --unit or --scale.
             Truth that is 0, negative or not finite is not valid
  normals    an RGB picture, (n + 1) · 127.5, or .npy [h w 3]; truth of (0, 0, 0) is not valid
  edges      predictions: a grey picture, value / 255, or .npy in 0 … 1. Truth: BSDS .mat (`groundTruth`: a cell of structs, one
             an annotator, with `Boundaries`), or a picture in which above 127 is an edge (1, where nothing is above 1)
  saliency   predictions as of edges; truth: above 127 is salient (1, where nothing is above 1)

what is printed and written to --json
  semseg, parts        mIoU, pixAcc in per cent; IoU of each class; the confusion matrix
  depth                absErr, rmse in metres; absRel, logErr; within_1.25^n in per cent
  normals              mErr, rmse in degrees; within_11.25, within_22.5, within_30 in per cent
  edges, as fractions 0 … 1      odsF with odsThreshold, odsPrecision, odsRecall; oisF; AP
  saliency, as fractions 0 … 1   MAE; maxF (map stretched to 0 … 1, F averaged over images); maxF_pooled (pixels counted
                                 over all images); max_mIoU (the one of multi-task tables)

docs/scores.md has every formula, and the variants that give other numbers."""


def score(arguments: Sequence[str], telling: Reporter | None = None) -> None:
    """score files made by anyone: predictions against truth"""
    options = _parser().parse_args(arguments)
    scorer = scorer_of(options)
    if options.json is not None and options.json.is_dir():
        raise MultidenseError(f"--json should name a file to write, found the folder {options.json}")
    scored = score_files(
        scorer, options.predictions, options.truth, processes=options.processes, reporter=telling or reporter()
    )
    if options.json is not None:
        scored.save(options.json)
    print("\n".join(table(scored)))
    if options.json is not None:
        print(options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="multidense score",
        description="Score files made by anyone: predictions against truth.",
        epilog=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("task", metavar="TASK", choices=list(KINDS), help=", ".join(KINDS))
    parser.add_argument("--predictions", metavar="DIR", required=True, type=Path, help="folder of predicted files")
    parser.add_argument("--truth", metavar="DIR", required=True, type=Path, help="folder of true files")
    parser.add_argument("--json", metavar="OUT", type=Path, help="write the scores, and how they were taken, to this file")
    parser.add_argument(
        "--resize",
        action="store_true",
        help="bring predictions to the truth's size: class ids to the nearest pixel, all else bilinearly (default: an error)",
    )
    parser.add_argument(
        "--processes",
        metavar="N",
        type=int,
        help="how many score side by side (default: as many as are worth it); the scores stay the same",
    )
    group = parser.add_argument_group("of semseg and parts")
    group.add_argument(
        "--classes", metavar="N", type=int, help="how many classes there are (semseg: needed; parts: 7 by default)"
    )
    group.add_argument("--void", metavar="ID", type=int, nargs="+", help="ids of the truth that mean nothing (default: 255 -1)")
    group = parser.add_argument_group("of depth")
    group.add_argument("--unit", choices=list(UNITS), help="what one step of a picture of whole numbers is")
    group.add_argument(
        "--scale", metavar="S", type=float, help="the same as a number: what a picture stores for one metre (mm: 1000)"
    )
    group = parser.add_argument_group("of edges")
    group.add_argument(
        "--max-dist",
        metavar="D",
        type=float,
        help="how far a matched pixel may lie, as a share of the image's diagonal (default: 0.0075; NYUD: 0.011)",
    )
    group.add_argument(
        "--thresholds",
        metavar="N",
        type=int,
        help="how many, at k / (N + 1), k = 1 … N; an edge is where the value is at least the threshold, thinned to one pixel "
        "(default: 99)",
    )
    group.add_argument(
        "--nms",
        action="store_true",
        default=None,
        help="first keep only ridges (oriented non-maximum suppression); 101 thresholds of its own. Other numbers: do not mix",
    )
    return parser


def scorer_of(options: argparse.Namespace) -> Scorer:
    """The scorer that a command line asks for."""
    kind = KINDS[options.task]
    for name, kinds in BELONGING.items():
        if getattr(options, name) is not None and kind not in kinds:
            theirs = " and ".join(each.name for each in kinds)
            raise MultidenseError(f"--{name.replace('_', '-')} belongs to {theirs}, found it with {options.task}: leave it out")
    try:
        return _built(kind, options)
    except ValueError as error:  # what a task says of its settings
        raise MultidenseError(f"{options.task}: {error}") from error


def _built(kind: type, options: argparse.Namespace) -> Scorer:
    if kind in (SemanticSegmentation, HumanParts):
        if options.classes is None and kind is SemanticSegmentation:
            raise MultidenseError(f"{options.task} needs --classes N: how many classes there are, without void ones")
        task = kind() if options.classes is None else kind(options.classes)
        return ClassScorer(task, **({} if options.void is None else {"void": tuple(options.void)}), resize=options.resize)
    if kind is Depth:
        if options.unit is not None and options.scale is not None:
            raise MultidenseError("--unit and --scale say the same: give one of them")
        if options.scale is not None and not 0 < options.scale < math.inf:
            raise MultidenseError(f"--scale should be above 0, found {options.scale:g}")
        return DepthScorer(UNITS.get(options.unit, options.scale), resize=options.resize)
    if kind is Edges:
        if options.nms and options.thresholds is not None:
            raise MultidenseError("--nms has 101 thresholds of its own: leave out --thresholds, or --nms")
        told = {name: getattr(options, name) for name in ("max_dist", "thresholds", "nms")}
        return EdgeScorer(Edges(**{name: value for name, value in told.items() if value is not None}), resize=options.resize)
    return {Normals: NormalScorer, Saliency: SaliencyScorer}[kind](resize=options.resize)


def table(scored: Scored) -> list[str]:
    """The scores as lines of text, and what was not scored."""
    lines = [f"{scored.task}: {scored.images} images"]
    for name, value in scored.scores.items():
        unit = scored.units[name]
        shown = f"{value:>12.6g} {unit}".rstrip() if unit != FRACTION else f"{value:>12.6f}"
        lines.append(f"  {name:<16}{shown:<18}{scored.pooling[name]}".rstrip())
    if FRACTION in scored.units.values():
        lines.append(f"  (fractions, {FRACTION}; times 100 they are the per cent of published tables)")
    skipped = scored.further.get("images_without_parts")
    if skipped:
        lines.append(f"images without any part, skipped: {skipped}")
    for what, names in (("no prediction", scored.without_prediction), ("no truth", scored.without_truth)):
        if names:
            lines.append(f"not scored, for there is {what}: {len(names)}")
            lines += [f"  {name}" for name in names[:SHOWN]]
            lines += [f"  … and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return lines
