"""matplotlib keeps the files of its fonts open from the first drawing on: that is no test's to give back."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

_first = Figure()
_first.subplots().set_title("µ ⁹ é")
_first.savefig(io.StringIO(), format="svg")
