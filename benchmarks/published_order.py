"""Whether our comparisons order the methods as the HiTTs paper does, from what `multidense compare` left.

    python benchmarks/published_order.py one-label=RESULT.json[,RESULT.json] full-labels=RESULT.json[,...] [--out FOLDER]

Each result is set beside the published `delta_mtl` of its label setting: Table 1 (one-label) or Table 2 (full-labels), NYUv2.
For every pair of methods that both have, the order agrees or does not, by the mean difference over the seeds that both methods
were trained with; pairs that lie closer together than `--noise` points in ours are no evidence either way and counted apart.
Kendall's tau-b is over all methods that both have, by the seeds that all of them have.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

from scipy.stats import kendalltau

from multidense.comparison import catalogue
from multidense.files import read_json, write_json, write_text
from multidense.published import tables
from multidense.results import environment
from multidense.types import MultidenseError

TABLE = {"one-label": 1, "full-labels": 2}


def published(setting: str) -> dict[str, float]:
    """The published `delta_mtl` of the methods that are in our catalogue, by their names in it; STL's is 0 by definition."""
    rows = tables()[TABLE[setting]].rows[setting]
    found = {name: rows[method.row] for name, method in catalogue().items() if method.row in rows}
    return {name: row.get("delta_mtl", 0.0) for name, row in found.items() if "delta_mtl" in row or name == "stl"}


def ordered(ours: Mapping[str, Mapping[str, float]], theirs: Mapping[str, float], noise: float) -> dict[str, Any]:
    """How the order of `ours` (gains by seed) agrees with that of `theirs`: pairs that agree, that do not, and those too close
    to tell.
    """
    both = [name for name in theirs if ours.get(name)]
    told: dict[str, Any] = {"methods": both, "agree": [], "disagree": [], "close": []}
    for one, other in combinations(both, 2):
        better, worse = (one, other) if theirs[one] > theirs[other] else (other, one)
        seeds = [seed for seed in ours[better] if seed in ours[worse]]
        if not seeds:
            continue
        by = mean(ours[better][seed] - ours[worse][seed] for seed in seeds)
        told["close" if abs(by) < noise else "agree" if by > 0 else "disagree"].append([better, worse, by])
    common = set.intersection(*(set(ours[name]) for name in both)) if both else set()
    values = [mean(ours[name][seed] for seed in sorted(common)) for name in both] if common else []
    told["kendall_tau"] = float(kendalltau(values, [theirs[name] for name in both]).statistic) if len(values) > 2 else None
    return told


def gather(setting: str, files: Sequence[Path], noise: float) -> list[dict[str, Any]]:
    """What each result says, beside what was published for the setting."""
    theirs, found = published(setting), []
    for file in files:
        result = read_json(file)
        gains = {name: seeds for name, seeds in result["delta_mtl"].items() if seeds}
        ours = {name: mean(seeds.values()) for name, seeds in gains.items()}
        counts = {name: len(seeds) for name, seeds in gains.items()}
        about = {"name": file.stem, "setting": setting, "reference": result["reference"], "ours": ours, "seeds": counts}
        found.append(about | {"titles": result["titles"], "published": theirs} | ordered(gains, theirs, noise))
    return found


def markdown(told: Mapping[str, Any]) -> str:
    """A table for each setting, and under it what agrees."""
    pieces = [
        "# The order of methods, ours and the published one",
        "`delta_mtl` over STL in per cent; (n): mean of n seeds. Pairs are compared by the seeds that both have; those less "
        f"than {told['noise']:g} points apart are told as close. Published: NYUv2 at 288×384, HiTTs (arXiv 2411.18823), "
        "Table 1 from nine scores, Table 2 from three; ours from nine, of small images and networks.",
    ]
    for setting in dict.fromkeys(one["setting"] for one in told["comparisons"]):
        those = [one for one in told["comparisons"] if one["setting"] == setting]
        theirs = those[0]["published"]
        titles = {name: title for one in those for name, title in one["titles"].items()}
        names = sorted(titles, key=lambda name: -theirs.get(name, -1e9))
        lines = [["method", "published", *(one["name"] for one in those)], ["---", *["---:"] * (len(those) + 1)]]
        for name in names:
            cells = [f"{one['ours'][name]:+.1f} ({one['seeds'][name]})" if name in one["ours"] else "–" for one in those]
            lines.append([titles[name], f"{theirs[name]:+.1f}" if name in theirs else "–", *cells])
        pieces += [f"## {setting}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
        for one in those:
            tau = f"Kendall's tau {one['kendall_tau']:+.2f}" if one["kendall_tau"] is not None else "too few methods for a tau"
            wrong = [f"{titles[a]} > {titles[b]} (ours {by:+.1f})" for a, b, by in one["disagree"]]
            pieces.append(
                f"**{one['name']}**: of {len(one['methods'])} methods that both have, {len(one['agree'])} pairs agree, "
                f"{len(one['disagree'])} do not, {len(one['close'])} are close; {tau}."
                + (f" Published, not here: {'; '.join(wrong)}." if wrong else "")
            )
    return "\n\n".join(pieces) + "\n"


def main(words: Sequence[str] | None = None) -> None:
    """All comparisons, to `published-order.json` and `published-order.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", metavar="SETTING=FILE,…", help=f"setting: {' or '.join(TABLE)}")
    parser.add_argument("--noise", type=float, default=3.0, help="points of delta_mtl that say nothing (default: 3)")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"), help="a folder")
    options = parser.parse_args(words)
    found = []
    for word in options.results:
        setting, _, files = word.partition("=")
        if setting not in TABLE or not files:
            parser.error(f"expected one-label=FILE or full-labels=FILE, found {word!r}")
        try:
            found += gather(setting, [Path(file) for file in files.split(",")], options.noise)
        except MultidenseError as error:
            sys.exit(str(error))
    told = {"noise": options.noise, "comparisons": found, **environment()}
    write_json(options.out / "published-order.json", told)
    write_text(options.out / "published-order.md", markdown(told))
    print(markdown(told), end="")


if __name__ == "__main__":
    main()
