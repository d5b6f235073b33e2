"""What the parts of the command share: parsers, and names that have to be known."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def parser_of(name: str, command: Callable, epilog: str = "", add_help: bool = True) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"multidense {name}", description=command.__doc__, epilog=epilog, add_help=add_help, allow_abbrev=False
    )


def one_of(chosen: str | None, known: list[str], what: str) -> str:
    from multidense.suggest import nearest
    from multidense.types import MultidenseError

    if chosen is None and len(known) == 1:
        return known[0]
    if chosen not in known:
        asked = f"there is no {what} {chosen!r}{nearest(chosen, known)}" if chosen else f"say which {what} with --{what}"
        raise MultidenseError(f"{asked}; there are {', '.join(known)}")
    return chosen
