"""Compression by language as JSON, as tables, and as bars in the style of the report's Figure 3."""

import json
import math
from collections.abc import Iterable
from pathlib import Path

from qwenjax.common.figures import aligned
from qwenjax.tokenizer.vocabulary.compression import Comparison

NATIVE = {
    "th": "ไทย", "he": "עברית", "ar": "العربية", "ko": "한국어", "vi": "Tiếng Việt", "zh": "中文", "ja": "日本語",
    "tr": "Türkçe", "id": "Indonesia", "pl": "polski", "ru": "русский", "nl": "Nederlands", "pt": "português",
    "it": "italiano", "de": "Deutsch", "es": "español", "fr": "français", "en": "English",
}  # fmt: skip
SHAPED = ("th", "he", "ar")  # marks above letters, joined letters, right to left: need a text layout engine


def as_json(compared: Comparison) -> str:
    """All numbers as JSON."""
    names = [vocabulary.name for vocabulary in compared.vocabularies]
    return json.dumps(
        {
            "base": names[0],
            "vocabularies": [{"name": v.name, "read_as": v.kind, "size": v.size} for v in compared.vocabularies],
            "languages": [
                {
                    "language": row.code,
                    "documents": row.documents,
                    "bytes": row.bytes,
                    "tokens": dict(zip(names, row.tokens)),
                    "relative": {name: round(row.relative(v), 4) for v, name in enumerate(names)},
                    "bytes_per_token": {name: round(row.bytes / n, 4) for name, n in zip(names, row.tokens)},
                }
                for row in compared.languages
            ],
            "notes": compared.notes,
        },
        ensure_ascii=False,
        indent=1,
    )


def as_text(compared: Comparison) -> str:
    """The vocabularies, then two tables in Markdown."""
    base, *others = compared.vocabularies
    names = [vocabulary.name for vocabulary in compared.vocabularies]
    relative = [
        (row.code, f"{row.bytes:,}", *(f"{row.relative(v):.2f}" for v in range(1, len(names))))
        for row in compared.languages
    ]
    means = [
        math.exp(sum(math.log(row.relative(v)) for row in compared.languages) / len(compared.languages))
        for v in range(1, len(names))
    ]
    relative.append(("geometric mean", "", *(f"{mean:.2f}" for mean in means)))
    density = [(row.code, *(f"{row.bytes / n:.2f}" for n in row.tokens)) for row in compared.languages]
    return "\n".join(
        [
            *(f"{v.name}: {v.size:,} ids, {v.kind}" for v in compared.vocabularies),
            *compared.notes,
            "",
            f"Tokens relative to {base.name} (lower is better):",
            "",
            *_table(("language", "bytes", *(v.name for v in others)), relative),
            "",
            "Bytes per token (higher is better):",
            "",
            *_table(("language", *names), density),
        ]
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """A Markdown table whose columns are also aligned as plain text."""
    rule = ("---", *["--:"] * (len(head) - 1))
    return [f"| {line} |" for line in aligned([head, rule, *rows], gap=" | ")]


def draw(compared: Comparison, path: str | Path) -> None:
    """Writes a PNG: a group of bars per language, a bar per vocabulary; the base is the line at 1.

    Languages have their own names if a font of this machine has the letters, else only their codes.
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
    """Gives a text of the figure a font that has its letters, or escapes it in ASCII."""
    text.set_parse_math(False)
    if families := _covering(text.get_text()):
        text.set_fontfamily(families)
    else:
        text.set_text(text.get_text().encode("ascii", "backslashreplace").decode())


def fonts(code: str) -> list[str]:
    """Font families for a language's own name; empty if there are none, or this matplotlib cannot lay it out."""
    from matplotlib import ft2font

    if code not in NATIVE or (code in SHAPED and not hasattr(ft2font, "__libraqm_version__")):
        return []
    return _covering(NATIVE[code])


def _covering(text: str) -> list[str]:
    """Font families that have all characters of the text, the default one first; empty if there are none."""
    from matplotlib import font_manager

    first = font_manager.FontProperties().get_name()
    entries = sorted(font_manager.fontManager.ttflist, key=lambda entry: (entry.name != first, entry.name))
    for entry in entries:
        upright = entry.style == "normal" and entry.weight in (400, "normal", "regular")
        # The font of last resort draws every character as a box with its number
        if upright and "Last Resort" not in entry.name and _has(entry.fname, text):
            return list(dict.fromkeys((first, entry.name)))
    return []


def _has(file: str, text: Iterable[str]) -> bool:
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
        return all(font.get_char_index(ord(character)) for character in text if character != " ")
    except (OSError, RuntimeError):  # a listed font file that is missing or damaged
        return False
