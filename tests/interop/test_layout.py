"""The tables of names: complete for every model, and the same read in either direction."""

from dataclasses import replace

import jax
import models
import numpy as np
import pytest

from qwenjax.interop.huggingface.layout import Table, _groups
from qwenjax.model import transformer


@pytest.mark.parametrize("name", models.SHAPES)
def test_every_parameter_is_in_the_table_with_its_shape(name):
    config = models.SHAPES[name]
    boxed = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
    leaves = jax.tree_util.tree_flatten_with_path(boxed, is_leaf=lambda x: hasattr(x, "names"))[0]
    wanted = {"/".join(k.key for k in path): (x.value.shape, x.names[0] == "layers") for path, x in leaves}
    for layout in ("qwen", "qwen2") if name in ("qwen", "qwen2") else ("qwen2",):
        table = Table(config, layout)
        got = {}
        for row in table.entries:
            got[row.ours] = (((config.layers,) if row.stacked else ()) + table.ours_shape(row), row.stacked)
        assert got == wanted
        assert sum(int(np.prod(table.shape(tensor))) for tensor in table.parts) == config.params


def test_axes_of_a_matrix():
    assert _groups("(n h) d") == [["n", "h"], ["d"]]
    assert _groups("d") == [["d"]]
    assert _groups("d (n h)") == [["d"], ["n", "h"]]


def test_projections_are_transposed_and_split_by_head():
    """By hand: what feeds channel j of head i from input d is row i * h + j of the stored matrix, column d."""
    config = models.SHAPES["qwen2 grouped"]
    table = Table(config, "qwen2")
    name = "model.layers.1.self_attn.k_proj.weight"
    stored = np.arange(2 * 8 * 32).reshape(16, 32)
    (part,) = table.parts[name]
    assert (part.entry.ours, part.layer) == ("blocks/attn/k", 1)
    ours = table.to_ours(part, stored)
    assert ours.shape == (32, 2, 8)
    assert ours[5, 1, 3] == stored[1 * 8 + 3, 5]
    assert (table.to_theirs(name, [ours]) == stored).all()
    out = "model.layers.0.self_attn.o_proj.weight"
    stored = np.arange(32 * 32).reshape(32, 32)
    ours = table.to_ours(table.parts[out][0], stored)
    assert ours[2, 3, 7] == stored[7, 2 * 8 + 3]


def test_c_attn_holds_queries_keys_and_values_as_blocks_of_rows():
    table = Table(models.PLAIN, "qwen")
    name = "transformer.h.2.attn.c_attn.weight"
    stored = np.arange(96 * 32).reshape(96, 32)
    parts = table.parts[name]
    assert [(p.entry.ours[-1], p.start, p.stop) for p in parts] == [("q", 0, 32), ("k", 32, 64), ("v", 64, 96)]
    layers = [table.to_ours(part, stored) for part in parts]
    assert layers[2][9, 3, 1] == stored[64 + 3 * 8 + 1, 9]
    assert (table.to_theirs(name, layers) == stored).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kv_heads": 2}, "grouped key/value heads"),
        ({"qk_norm": True}, "qk_norm"),
        ({"qkv_bias": False}, "qkv_bias"),
        ({"head_dim": 16}, "head_dim"),
    ],
)
def test_the_first_layout_refuses_what_it_has_no_place_for(change, said):
    with pytest.raises(ValueError, match=said) as error:
        Table(replace(models.PLAIN, **change), "qwen")
    assert "use --to=qwen2" in str(error.value)


def test_unknown_layout():
    with pytest.raises(ValueError, match="layout='gpt2' is unknown; known: qwen, qwen2"):
        Table(models.PLAIN, "gpt2")
