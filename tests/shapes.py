"""What pytest checks every signature of the package with: beartype, to which ints and numpy's numbers are floats too."""

import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype

checked = beartype(conf=BeartypeConf(hint_overrides=FrozenDict({float: float | int | np.floating, int: int | np.integer})))
