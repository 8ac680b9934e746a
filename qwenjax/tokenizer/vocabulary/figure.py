"""Compression as bars, as the report's Figure 3 draws it."""

from collections.abc import Iterable
from pathlib import Path

from qwenjax.tokenizer.vocabulary.compression import Comparison

NATIVE = {
    "th": "ไทย", "he": "עברית", "ar": "العربية", "ko": "한국어", "vi": "Tiếng Việt", "zh": "中文", "ja": "日本語",
    "tr": "Türkçe", "id": "Indonesia", "pl": "polski", "ru": "русский", "nl": "Nederlands", "pt": "português",
    "it": "italiano", "de": "Deutsch", "es": "español", "fr": "français", "en": "English",
}  # fmt: skip
SHAPED = ("th", "he", "ar")  # marks above letters, joined letters, right to left: for a text layout engine


def draw(compared: Comparison, path: str | Path) -> None:
    """Writes a PNG: a group of bars per language, a bar per vocabulary but the base, which is the line at 1.

    Languages carry their own names where a font of this machine has the letters, else their codes alone.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [vocabulary.name for vocabulary in compared.vocabularies][1:]
    rows = compared.languages
    figure = Figure(figsize=(max(8.0, 0.8 * len(rows)), 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.84 / max(len(names), 1)
    for v, name in enumerate(names):
        xs = [i + (v - (len(names) - 1) / 2) * width for i in range(len(rows))]
        bars = axes.bar(xs, [row.relative(v + 1) for row in rows], width, label=name)
        axes.bar_label(bars, fmt="%.2f", fontsize=6, rotation=90, padding=2)
    axes.axhline(1, color="black", linewidth=0.8, zorder=0)
    axes.margins(x=0.01, y=0.08)
    _spell(axes.set_ylabel(f"tokens relative to {compared.vocabularies[0].name} (lower is better)"))
    families = [fonts(row.code) for row in rows]
    labels = [f"{row.code}\n{NATIVE[row.code]}" if font else row.code for row, font in zip(rows, families)]
    axes.set_xticks(range(len(rows)), labels)
    for label, font in zip(axes.get_xticklabels(), families):
        label.set_fontfamily(font or None)
    axes.tick_params(axis="x", length=0, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    if names:
        for text in axes.legend(frameon=False, ncols=min(len(names), 6)).get_texts():
            _spell(text)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _spell(text) -> None:
    """Gives a text of the figure a font that has its letters, or spells it in ASCII."""
    text.set_parse_math(False)
    if families := _covering(text.get_text()):
        text.set_fontfamily(families)
    else:
        text.set_text(text.get_text().encode("ascii", "backslashreplace").decode())


def fonts(code: str) -> list[str]:
    """Font families that draw a language's own name; empty if there are none, or they could not lay it out."""
    from matplotlib import ft2font

    if code not in NATIVE or (code in SHAPED and not hasattr(ft2font, "__libraqm_version__")):
        return []
    return _covering(NATIVE[code])


def _covering(text: str) -> list[str]:
    """The default font, and one more if it lacks a character of the text."""
    from matplotlib import font_manager

    first = font_manager.FontProperties().get_name()
    entries = sorted(font_manager.fontManager.ttflist, key=lambda entry: (entry.name != first, entry.name))
    for entry in entries:
        upright = entry.style == "normal" and entry.weight in (400, "normal", "regular")
        # the font of last resort has a box with a number for every character there is
        if upright and "Last Resort" not in entry.name and _has(entry.fname, text):
            return list(dict.fromkeys((first, entry.name)))
    return []


def _has(file: str, text: Iterable[str]) -> bool:
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
        return all(font.get_char_index(ord(character)) for character in text if character != " ")
    except (OSError, RuntimeError):  # a listed font that is gone or damaged
        return False
