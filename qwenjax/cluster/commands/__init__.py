"""The subcommands of `python -m qwenjax.cluster`, a module each; qwenjax.cli says their form."""
