"""`python -m qwenjax.eval`: what the room `evals` measures, from the command line."""
