"""Pictures of `Statistics`: root verbs and their objects, words of the answers, lengths of messages (Figures 4 and 9).

Each has a column for each data set, so that two can be compared. PNG and SVG are drawn by matplotlib; the page has
the numbers too, and its sunbursts can be zoomed (plotly). Both work without a network.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import PIL.Image
from jinja2 import Environment, PackageLoader, StrictUndefined

from sparkles.gen.extras import needs
from sparkles.gen.statistics import Group, Statistics, group_name, top_pairs
from sparkles.gen.verb_rules import Pair

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["png", "svg"]
Color = tuple[float, float, float]
"""Red, green and blue, 0 to 1."""
_COLORS = ("#3b6fd4", "#b4541a")
"""Of users and of assistants."""
_PALETTE = "tab20"
_DPI = 100
_NARROWEST = 0.007
"""Share of a full ring of radius 1 that a label needs."""
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "svg.fonttype": "none",  # texts stay texts
    "svg.hashsalt": "sparkles",  # the same data give the same file
    "text.parse_math": False,  # a dollar sign is one
}


def draw(
    statistics: Sequence[Statistics], folder: Path, formats: Sequence[Format] = ("png", "svg")
) -> list[Path]:
    """Draw all figures into a folder; the files are named after what they show.

    Raises:
        InputError: matplotlib or wordcloud is missing.
    """
    with needs("figures"):
        import matplotlib
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context(_STYLE):
        for name, draw_one in FIGURES.items():
            figure = draw_one(statistics)
            for suffix in formats:
                written.append(folder / f"{name}.{suffix}")
                if suffix == "svg":
                    written[-1].write_text(_as_svg(figure), encoding="utf-8")
                else:
                    _write_png(figure, written[-1])
    return written


def root_verbs(statistics: Sequence[Statistics]) -> "Figure":
    """Root verbs of all questions within, their objects without."""
    figure, (row,) = _panels(1, len(statistics), width=5.6, height=6.1)
    colors = _verb_colors(statistics)
    for axes, one in zip(row, statistics, strict=True):
        _sunburst(axes, one.all_pairs, colors)
        num = f"{one.all_pairs.total():,} of {sum(one.num_questions.values()):,}"
        axes.set_title(f"{one.name}\n{num} questions have a verb with an object")
    return figure


def root_verbs_by_images(statistics: Sequence[Statistics]) -> "Figure":
    """As `root_verbs`, a column for each turn and number of images, a row for each data set (Figure 9)."""
    groups = _groups(statistics)
    figure, rows = _panels(len(statistics), len(groups), width=4.2, height=4.6)
    colors = _verb_colors(statistics)
    for row, one in zip(rows, statistics, strict=True):
        for axes, group in zip(row, groups, strict=True):
            pairs, num = one.pairs.get(group, Counter()), one.num_questions.get(group, 0)
            _sunburst(axes, pairs, colors)
            axes.set_title(f"{one.name}: {group_name(group)}\n{pairs.total():,} of {num:,} questions")
    return figure


def answer_words(statistics: Sequence[Statistics]) -> "Figure":
    """Word cloud of the answers, without the most common words of English."""
    with needs("figures"):
        from wordcloud import STOPWORDS, WordCloud
    figure, (row,) = _panels(1, len(statistics), width=6.0, height=4.4)
    for axes, one in zip(row, statistics, strict=True):
        words = {
            word: count for word, count in one.answer_words.items() if word not in STOPWORDS and len(word) > 1
        }
        if words:
            cloud = WordCloud(
                width=1000,
                height=700,
                background_color="white",
                colormap="Dark2",
                random_state=0,
                max_words=150,
            )
            axes.imshow(cloud.generate_from_frequencies(words), interpolation="bilinear")
        axes.set_axis_off()
        axes.set_title(f"{one.name}: words of the answers")
    return figure


def lengths(statistics: Sequence[Statistics]) -> "Figure":
    """Words of a message, of users above and of assistants below, on the same scales for all data sets."""
    figure, rows = _panels(2, len(statistics), width=6.0, height=2.6, share="row")
    for row, color, side in zip(rows, _COLORS, ("user", "assistant"), strict=True):
        of_sets = [one.user_words if side == "user" else one.assistant_words for one in statistics]
        bins = _bins([number for words in of_sets for number in words])
        for axes, one, words in zip(row, statistics, of_sets, strict=True):
            axes.hist(words, bins=bins, color=color, weights=[100 / len(words)] * len(words))
            mean = sum(words) / (len(words) or 1)
            axes.axvline(mean, color="black", linewidth=1, linestyle="--")
            axes.set_title(f"{one.name}: {side}s, {mean:.1f} words on average")
            axes.set_xlabel(f"words of a message of the {side}")
            axes.set_ylabel("% of messages")
            axes.tick_params(labelleft=True)
            axes.spines[["top", "right"]].set_visible(False)
    return figure


FIGURES: Mapping[str, Callable[[Sequence[Statistics]], "Figure"]] = {
    figure.__name__: figure for figure in (root_verbs, root_verbs_by_images, answer_words, lengths)
}


def write_page(statistics: Sequence[Statistics], path: Path) -> None:
    """One HTML file with the numbers and all pictures, of which the sunbursts can be zoomed; needs no network.

    Raises:
        InputError: plotly is missing.
    """
    with needs("figures"):
        import matplotlib
        import plotly.graph_objects as plotly
        from matplotlib.colors import to_hex
        from plotly.offline import get_plotlyjs

    colors = _verb_colors(statistics)

    def sunburst(pairs: Counter[Pair]) -> str:
        verbs = top_pairs(pairs)
        rows = [("", verb, sum(count for _, count in nouns), colors[verb]) for verb, nouns in verbs]
        rows += [(verb, noun, count, colors[verb]) for verb, nouns in verbs for noun, count in nouns]
        trace = plotly.Sunburst(
            ids=[f"{parent}/{label}" for parent, label, _, _ in rows],
            parents=[f"/{parent}" if parent else "" for parent, _, _, _ in rows],
            labels=[label for _, label, _, _ in rows],
            values=[count for _, _, count, _ in rows],
            branchvalues="total",
            marker={"colors": [to_hex(color) for *_, color in rows]},
        )
        figure = plotly.Figure(trace, layout={"margin": {"t": 8, "b": 8, "l": 8, "r": 8}, "height": 460})
        return str(
            figure.to_html(
                full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True}
            )
        )

    environment = Environment(
        loader=PackageLoader("sparkles.gen"), autoescape=True, undefined=StrictUndefined
    )
    with matplotlib.rc_context(_STYLE):
        pictures = {draw_one.__name__: _as_svg(draw_one(statistics)) for draw_one in (lengths, answer_words)}
    page = environment.get_template("statistics.html.j2").render(
        statistics=statistics,
        tables=[one.table() for one in statistics],
        script=get_plotlyjs(),
        sunbursts=[sunburst(one.all_pairs) for one in statistics],
        groups={
            group_name(group): [
                sunburst(one.pairs[group]) if one.pairs.get(group) else "" for one in statistics
            ]
            for group in _groups(statistics)
        },
        pictures=pictures,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _panels(
    rows: int, columns: int, *, width: float, height: float, share: Literal["row", "none"] = "none"
) -> "tuple[Figure, Sequence[Sequence[Axes]]]":
    """A figure with room for so many pictures, each of a size in inches."""
    from matplotlib.figure import Figure  # not pyplot's, which would be kept

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes: Any = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share)
    return figure, axes


def _groups(statistics: Sequence[Statistics]) -> list[Group]:
    return sorted({group for one in statistics for group in one.num_questions})


def _verb_colors(statistics: Sequence[Statistics]) -> dict[str, Color]:
    """A color for each verb that is drawn, the same in all pictures; the most common ones differ most."""
    from matplotlib import colormaps

    together: Counter[Pair] = sum((one.all_pairs for one in statistics), Counter())
    listed: Any = colormaps[_PALETTE]  # a ListedColormap
    palette = [color for start in (0, 1) for color in listed.colors[start::2]]
    return {
        verb: palette[place % len(palette)]
        for place, (verb, _) in enumerate(top_pairs(together, num_verbs=len(together)))
    }


def _sunburst(axes: "Axes", pairs: Counter[Pair], verb_colors: Mapping[str, Color]) -> None:
    """A ring of verbs around which lie their nouns, each as wide as it is frequent among those shown."""
    axes.set_axis_off()
    verbs = top_pairs(pairs)
    if not verbs:
        axes.set(xlim=(-1, 1), ylim=(-1, 1))
        axes.text(0, 0, "no question with a verb and an object", horizontalalignment="center")
        return
    colors = [_lighter(verb_colors[verb], 0.2) for verb, _ in verbs]
    lighter = [
        _lighter(color, 0.25 + 0.13 * rank)
        for color, (_, nouns) in zip(colors, verbs, strict=True)
        for rank in range(len(nouns))
    ]
    totals = [(verb, sum(count for _, count in nouns)) for verb, nouns in verbs]
    _ring(axes, totals, colors, radius=0.64, labels_at=0.47)
    _ring(axes, [noun for _, nouns in verbs for noun in nouns], lighter, radius=1.0, labels_at=0.82)
    axes.set(xlim=(-1.02, 1.02), ylim=(-1.02, 1.02))  # a pie leaves more room


def _ring(
    axes: "Axes",
    parts: Sequence[tuple[str, int]],
    colors: Sequence[Color],
    *,
    radius: float,
    labels_at: float,
) -> None:
    """One ring, clockwise from the top; parts too narrow for a label have none."""
    total = sum(count for _, count in parts)
    axes.pie(
        [count for _, count in parts],
        labels=[label if count / total > _NARROWEST / labels_at else "" for label, count in parts],
        colors=colors,
        radius=radius,
        startangle=90,
        counterclock=False,
        labeldistance=labels_at / radius,
        rotatelabels=True,
        wedgeprops={"width": 0.36, "edgecolor": "white", "linewidth": 0.8},
        textprops={"fontsize": 8, "horizontalalignment": "center", "verticalalignment": "center"},
    )


def _lighter(color: Color, share: float) -> Color:
    """The color mixed with white."""
    red, green, blue = (part + (1 - part) * share for part in color)
    return red, green, blue


def _bins(numbers: Sequence[int], most: int = 40) -> list[float]:
    """Borders of bins of the same whole width that hold all numbers, between which whole numbers lie."""
    low, high = min(numbers, default=0), max(numbers, default=1)
    width = max(1, -(-(high - low + 1) // most))
    return [border - 0.5 for border in range(low, high + width + 1, width)]


def _as_svg(figure: "Figure") -> str:
    file = StringIO()
    figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
    return file.getvalue()[file.getvalue().index("<svg") :]  # a page has no place for its XML declaration


def _write_png(figure: "Figure", path: Path) -> None:
    """With 256 colors, which is a third of the bytes and looks the same."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=_DPI, bbox_inches="tight")
    with PIL.Image.open(file) as picture:
        picture.convert("RGB").quantize(256).save(path, optimize=True)
