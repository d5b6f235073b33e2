"""The plot of a comparison: what each method gains against what it costs."""

from __future__ import annotations

import io
from collections.abc import Mapping
from statistics import mean

from multidense.comparison_table import GAIN, order_of, standard_error

MARKS = "osD^v"
"""Shapes of marks; after ten colours the next begins."""


def plot(told: Mapping) -> str:
    """`delta_mtl` against parameters and against training time, as SVG: a mark a method, a bar for the standard error."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib.figure import Figure

    sides = [("parameters", 1e6, "parameters, millions")]
    teachers = any("with_teachers" in cost for cost in told["cost"].values())
    sides.append(
        ("with_teachers" if teachers else "train_seconds", 60, f"training{', with teachers' if teachers else ''}, minutes")
    )
    order = [name for name in order_of(told) if name in told[GAIN]]
    with matplotlib.rc_context({"svg.hashsalt": f"compare {told['name']}", "font.size": 9, "svg.fonttype": "none"}):
        figure = Figure(figsize=(9.5, max(3.2, 0.7 + 0.2 * len(order))), layout="constrained")
        for axes, (key, unit, label) in zip(figure.subplots(1, 2, sharey=True), sides, strict=True):
            across = []
            for place, name in enumerate(order):
                cost = told["cost"][name].get(key)
                if not cost:
                    continue
                gains = list(told[GAIN][name].values())
                across.append(mean(cost.values()) / unit)
                axes.errorbar(
                    across[-1],
                    mean(gains),
                    yerr=standard_error(gains) or 0,
                    fmt=MARKS[place // 10 % len(MARKS)],
                    color=f"C{place % 10}",
                    markersize=7,
                    capsize=3,
                    label=told["titles"][name],
                )
            if across and min(across) > 0 and max(across) > 10 * min(across):
                axes.set_xscale("log")
            axes.axhline(0, color="0.5", linewidth=0.8)
            axes.set_xlabel(label)
            axes.grid(alpha=0.3)
        figure.axes[0].set_ylabel(f"{GAIN} over {told['titles'][told['reference']]}, %")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside right upper", frameon=False)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()
