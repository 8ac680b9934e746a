"""The subcommands of `python -m qwenjax.bench`, a module each; see `qwenjax.cli` for their form."""
