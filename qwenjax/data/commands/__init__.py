"""The subcommands of `python -m qwenjax.data`, a module each; see `qwenjax.cli` for their form."""
