"""The Qwen decoder (report §2.3) as pure functions and thin modules.

Letters of the axes, in every docstring and einsum of this package:
`b` batch, `t` query position, `s` key position, `d` embed, `n` heads, `k` key/value heads, `g` query heads per KV head,
`h` head width, `f` ffn, `v` vocab.
"""
