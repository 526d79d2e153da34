"""Draws KL divergence against size, a point for each recipe; the one file that imports matplotlib."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from llmcompile.errors import ToolchainError
from llmcompile.packaging.recipe_report import Outcome, RecipeReport, change_text, divergence, size_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INSTALL = "pip install 'llmcompile[plot]'"
FILES = ("quantize.svg", "quantize.png")
_FLOOR = 1e-8
"""Least KL divergence that is told from zero: what float32 arithmetic leaves of it."""
_INK, _MUTED, _LINE = "#1f2933", "#5f6b7a", "#c9d2dc"
_POINT, _UNBEATEN = "#8a97a6", "#0b6bcb"
_UNITS = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1))
_PLACES = tuple(
    (dx * reach, dy * reach)
    for reach in (1.0, 1.8, 2.8, 4.0, 5.5, 7.0, 9.0)
    for dx, dy in (
        (1, 0),
        (-1, 0),
        (0, 1),
        (0, -1),
        (1, 1),
        (-1, 1),
        (1, -1),
        (-1, -1),
        (2, 1),
        (-2, 1),
        (2, -1),
        (-2, -1),
    )
)
"""Where a label may be, in order of preference, around its point."""


def check_installed() -> None:
    """Refuse to plan a plot without matplotlib.

    Raises:
        ToolchainError: It is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ToolchainError("matplotlib", "not installed", "matplotlib, for the plot", f"{INSTALL}, or add --no-plot")


def draw(report: RecipeReport) -> Mapping[str, bytes]:
    """The plot as SVG and PNG, by file; empty where nothing was scored."""
    figure = figure_of(report)
    if figure is None:
        return {}
    import matplotlib

    drawn = {}
    with matplotlib.rc_context({"svg.hashsalt": "llmcompile", "svg.fonttype": "none"}):
        for file, metadata in zip(FILES, ({"Date": None}, {}), strict=True):
            target = io.BytesIO()
            figure.savefig(target, format=file.rpartition(".")[2], metadata=metadata, dpi=144)
            drawn[file] = target.getvalue()
    return drawn


def figure_of(report: RecipeReport) -> Figure | None:
    """The plot; None where nothing was scored."""
    from matplotlib.figure import Figure

    points = list(_points(report))
    if len(points) == 0:
        return None
    whole = next((outcome for outcome in report.outcomes if outcome.recipe is None), None)
    sizes = [outcome.weights_bytes for outcome, _ in points]
    sizes += [] if whole is None else [whole.weights_bytes]
    unit, divisor = next((unit, divisor) for unit, divisor in _UNITS if max(sizes) >= divisor or divisor == 1)
    figure = Figure(figsize=(9, 5.4), facecolor="white")
    axes = figure.add_axes((0.1, 0.12, 0.875, 0.72))
    axes.set_yscale("log")
    for outcome, kl in points:
        better = outcome.recipe in report.standing.unbeaten
        axes.plot(
            outcome.weights_bytes / divisor,
            kl,
            "o" if better else "s",
            markersize=9 if better else 7,
            color=_UNBEATEN if better else _POINT,
            markeredgecolor="white",
            zorder=3,
        )
    front = sorted((o.weights_bytes / divisor, kl) for o, kl in points if o.recipe in report.standing.unbeaten)
    axes.plot([x for x, _ in front], [y for _, y in front], color=_UNBEATEN, linewidth=1, alpha=0.4, zorder=2)
    _limits(axes, [size / divisor for size in sizes], [kl for _, kl in points])
    if whole is not None:
        axes.axvline(whole.weights_bytes / divisor, color=_MUTED, linewidth=1, linestyle=(0, (4, 4)), zorder=1)
    _dress(figure, axes, report, unit)
    taken = []
    if whole is not None:
        text = f"{report.dtype}, unquantized\n{size_text(whole.weights_bytes)}"
        at = (whole.weights_bytes / divisor, axes.get_ylim()[1])
        taken.append(
            axes.annotate(
                text, at, (-6, -6), textcoords="offset points", ha="right", va="top", fontsize=9, color=_MUTED
            )
        )
    _label(figure, axes, [(outcome, outcome.weights_bytes / divisor, kl) for outcome, kl in points], report, taken)
    return figure


def _points(report: RecipeReport) -> Iterator[tuple[Outcome, float]]:
    for outcome in report.outcomes:
        kl = divergence(outcome)
        if outcome.recipe is not None and outcome.passed and kl is not None:
            yield outcome, max(kl, _FLOOR)


def _limits(axes: Any, sizes: Sequence[float], kls: Sequence[float]) -> None:
    """Sizes from nothing on, so that lengths can be compared; room around the points for their labels."""
    axes.set_xlim(0, 1.08 * max(sizes))
    axes.set_ylim(min(kls) / 4, max(kls) * 5)


def _dress(figure: Any, axes: Any, report: RecipeReport, unit: str) -> None:
    from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter

    axes.set_facecolor("white")
    axes.grid(True, which="major", color=_LINE, linewidth=0.6, zorder=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_MUTED)
    axes.tick_params(colors=_MUTED, labelsize=9, which="both")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if _decades(axes) > 2 else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(9, 9)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"weights on the GPU, {unit}", color=_INK, fontsize=10)
    axes.set_ylabel("KL divergence from the float32 model, nats per token", color=_INK, fontsize=10)
    figure.text(0.012, 0.955, f"Quantization recipes of {report.model}", fontsize=13, color=_INK, weight="bold")
    # perplexity and tokens are known wherever there is a point
    figure.text(
        0.012,
        0.905,
        f"Below each name: change of perplexity from {report.perplexity:.4g}, on {report.tokens} tokens of "
        f"{report.text}. Left and down is better; blue: unbeaten.",
        fontsize=9,
        color=_MUTED,
    )


def _decades(axes: Any) -> float:
    from math import log10

    least, most = axes.get_ylim()
    return log10(most) - log10(least)


def _label(
    figure: Any, axes: Any, points: Sequence[tuple[Outcome, float, float]], report: RecipeReport, taken: list[Any]
) -> None:
    """Write each name beside its point, where it covers neither a point nor another name, as far as there is room."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    canvas: Any = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    centres = [axes.transData.transform((x, y)) for _, x, y in points]
    occupied = [Bbox.from_extents(x - 8, y - 8, x + 8, y + 8) for x, y in centres]
    occupied += [text.get_window_extent(renderer) for text in taken]
    for outcome, x, y in points:
        text = axes.annotate(
            f"{outcome.recipe}\n{change_text(outcome)}",
            (x, y),
            textcoords="offset points",
            xytext=(0, 0),
            fontsize=9,
            color=_INK,
            linespacing=1.15,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
            zorder=2.5,
        )
        best = None
        for dx, dy in _PLACES:
            _place(text, dx, dy)
            box = text.get_window_extent(renderer)
            covered = sum(_shared(box, other) for other in occupied)
            outside = box.width * box.height - _shared(box, frame)
            cost = covered + outside
            if best is None or cost < best[0]:
                best = (cost, dx, dy)
            if cost == 0:
                break
        assert best is not None
        _place(text, best[1], best[2])
        if max(abs(best[1]), abs(best[2])) > 1:
            axes.annotate(
                "",
                (x, y),
                text.get_position(),
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": _POINT, "linewidth": 0.7},
                zorder=2.6,
            )
        occupied.append(text.get_window_extent(renderer))


def _place(text: Any, dx: float, dy: float) -> None:
    """Put a label at an offset of its point; its side that faces the point is aligned with it."""
    text.set_position((9 * dx, 9 * dy))
    text.set_ha("left" if dx > 0 else "right" if dx < 0 else "center")
    text.set_va("bottom" if dy > 0 else "top" if dy < 0 else "center")


def _shared(first: Any, second: Any) -> float:
    """Pixels that two boxes share."""
    width = min(first.x1, second.x1) - max(first.x0, second.x0)
    height = min(first.y1, second.y1) - max(first.y0, second.y0)
    return float(max(0.0, width) * max(0.0, height))
