"""Equal work for devices that share the rows: causal attention with positions split over the `context` axis.

Late positions see more keys than early ones: in row order, the last of c devices would do 2 - 1/c of the mean work, and
the others wait. So a row is 2c chunks, and for attention alone device i answers the queries of chunks i and 2c-1-i. The
rest of the model keeps positions in order: queries travel there, and results back, in halves.
"""

import jax
import jax.numpy as jnp
import numpy as np

AXIS = "context"  # the mesh axis that splits "length" (sharding.RULES)


def _routes(parts: int) -> list[list[tuple[int, int]]]:
    """(from, to) of every device's first and second chunk; each is a permutation of the devices."""
    return [[(i, min(2 * i + half, 2 * parts - 1 - 2 * i - half)) for i in range(parts)] for half in (0, 1)]


def order(length: int, parts: int) -> np.ndarray:
    """[length] int32: the position in the row of every query, device after device, once they are spread."""
    chunks = np.arange(length, dtype=np.int32).reshape(parts, 2, -1)
    spread_out = np.empty_like(chunks)
    for half, route in enumerate(_routes(parts)):
        for source, target in route:
            spread_out[target, half] = chunks[source, half]
    return spread_out.reshape(-1)


def spread(x: jax.Array, parts: int) -> jax.Array:
    """This device's queries [b t/c …] in row order -> those it is to answer; runs inside `per_device`."""
    return _exchange(x, _routes(parts))


def collect(x: jax.Array, parts: int) -> jax.Array:
    """The inverse of `spread`."""
    return _exchange(x, [[(target, source) for source, target in route] for route in _routes(parts)])


def gather(x: jax.Array) -> jax.Array:
    """[b t/c …] in row order -> [b t …]: whole rows on each of their devices.

    Pieces arrive along a new first axis, because then its transpose is a reduce-scatter on TPUs. Along `t`, as of an
    argument that `per_device` makes whole, the gradient is all-reduced, at twice the bytes, and cut afterwards.
    """
    pieces = jnp.moveaxis(jax.lax.all_gather(x, AXIS), 0, 1)  # [b c t/c …]
    return pieces.reshape(x.shape[0], -1, *x.shape[2:])


def _exchange(x: jax.Array, routes: list[list[tuple[int, int]]]) -> jax.Array:
    halves = [jax.lax.ppermute(half, AXIS, route) for half, route in zip(jnp.split(x, 2, axis=1), routes)]
    return jnp.concatenate(halves, axis=1)
