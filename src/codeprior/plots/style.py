"""What all pictures have in common: colours, letters, axes, and how they are written.

Colours are those of Okabe and Ito, which people with any colour vision tell apart. Matplotlib is used without pyplot:
no window, no state that two pictures share, and the same bytes for the same data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codeprior.artifact import write_atomically
from codeprior.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, SKY, RED, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#222222",
)

PALETTE = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, BLACK)

GREY, PALE = "#666666", "#D9D9D9"

FORMATS = (".png", ".svg", ".pdf")

DPI = 150

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same letters everywhere
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelcolor": BLACK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "text.color": BLACK,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "codeprior",  # else the ids of an SVG differ from run to run
    "svg.fonttype": "path",
}


def check_names(things: Mapping[str, Any]) -> None:
    """Refuse more lines than there are colours, and none."""
    if not 1 <= len(things) <= len(PALETTE):
        raise InputError(f"a picture shows 1 to {len(PALETTE)} lines, each in its colour, got {len(things)}")


def styled() -> Any:
    """In this style, and no longer than the context lasts."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, sharex: bool = False
) -> tuple[Figure, Any]:
    """A figure of so many inches, and its panels."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    fig.get_layout_engine().set(w_pad=0.1, h_pad=0.1, wspace=0.04, hspace=0.04)  # type: ignore[union-attr, call-arg]
    return fig, fig.subplots(rows, columns, sharex=sharex)


def add_grid(axes: Axes) -> None:
    """Add a grid, when the limits are known: short logarithmic axes get ticks between the powers of ten."""
    from matplotlib.ticker import LogLocator

    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        if axis.get_scale() == "log" and high / low < 400:
            axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5), numticks=12))
    axes.grid(color=PALE, linewidth=0.6)
    axes.tick_params(length=3)


def add_legend(axes: Axes, loc: Any) -> None:
    """Add the names of the lines."""
    axes.legend(loc=loc, handlelength=1.4, labelcolor=BLACK, fontsize=9.5)


def make_logarithmic(axis: Any, which: str, axes: Axes) -> None:
    """Make an axis logarithmic with plain numbers: 1, 10, 100, 1,000."""
    from matplotlib.ticker import LogLocator, NullFormatter

    getattr(axes, f"set_{which}scale")("log")
    axis.set_major_locator(LogLocator(base=10, numticks=12))
    axis.set_minor_formatter(NullFormatter())
    write_thousands(axis)


def write_thousands(axis: Any) -> None:
    """Write numbers of an axis as 1,000."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def text_width(text: str, points: float, weight: str = "normal") -> float:
    """Width of a line of text in pixels at `DPI`."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    if not text.strip():
        return 0.0
    return float(TextPath((0, 0), text, size=points, prop=FontProperties(weight=weight)).get_extents().width) * DPI / 72


def finished(fig: Figure, path: Path | str | None) -> Figure:
    """Write the picture, if asked to, without anything that differs from run to run."""
    if path is None:
        return fig
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"a picture is one of {', '.join(FORMATS)}, got {path}")
    metadata: dict[str, Any] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower(), {})
    with styled(), write_atomically(path) as temporary:
        fig.savefig(temporary, format=path.suffix.lower()[1:], dpi=DPI, facecolor="white", metadata=metadata)
    return fig
