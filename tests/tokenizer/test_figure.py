"""The figure: bars of the right heights."""

import pytest
from matplotlib.axes import Axes

from qwenjax.tokenizer.__main__ import draw
from qwenjax.tokenizer.vocabulary.compression import Comparison, Language, Vocabulary


@pytest.fixture
def compared():
    names = [r"base $\bad$", "ours", "百川 $a$"]  # dollar signs begin no mathematics
    rows = (Language("th", 1, 30, (10, 20, 40)), Language("zh", 1, 30, (10, 9, 10)), Language("code", 1, 9, (4, 3, 5)))
    return Comparison(tuple(Vocabulary(name, "", 9, len) for name in names), rows, ())


def test_a_bar_is_as_high_as_its_ratio(compared, tmp_path, monkeypatch):
    drawn = {}
    bar = Axes.bar
    monkeypatch.setattr(
        Axes, "bar", lambda *a, label, **k: drawn.update({label: list(a[2])}) or bar(*a, label=label, **k)
    )
    draw(compared, tmp_path / "new" / "figure.png")
    assert drawn == {"ours": [2.0, 0.9, 0.75], r"百川 \$a\$": [4.0, 1.0, 1.25]}  # the base is the line, not a bar
    assert (tmp_path / "new" / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_only_the_base_makes_an_empty_figure(compared, tmp_path):
    alone = Comparison(compared.vocabularies[:1], compared.languages, ())
    draw(alone, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").exists()
