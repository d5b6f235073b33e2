"""Tables of the report on each collection of joined data: the scores on it alone, and what was discovered on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from multidense import tables
from multidense.tables import Cell, Column, Entry, Table, number, signed


def score_tables(entries: Sequence[Entry]) -> list[tuple[str, Table]]:
    """For each collection the scores of the trainings that have any on it, with differences to the baseline."""
    told = []
    for name in dict.fromkeys(name for entry in entries for name in entry.results.collections):
        having = [entry for entry in entries if entry.results.collections.get(name)]
        if having:
            told.append((name, tables.score_table(having, lambda results, name=name: results.collections.get(name, {}))))
    return told


def discovered_table(manifest: Mapping) -> Table | None:
    """For each collection and task that a manifest lists: images, share kept and mean confidence; None without any."""
    tasks = manifest.get("tasks") or {}
    found = [(name, task, each) for task, entry in tasks.items() for name, each in (entry.get("collections") or {}).items()]
    if not found:
        return None
    columns = [Column("images"), Column("kept", unit="%"), Column("mean confidence")]
    rows = []
    for name, task, each in sorted(found, key=lambda row: row[0]):
        shares = (100 * number(each.get("kept_share")), 1), (number(each.get("confidence")), 3)
        texts = ["–" if math.isnan(value) else signed(value, digits, False) for value, digits in shares]
        texts.insert(0, str(each.get("images", "–")))
        rows.append((f"{name} · {task}", None, [Cell(text) for text in texts]))
    return Table("Collection and task", columns, rows)
