"""The subcommands of `python -m qwenjax.bench`, a module each; see `qwenjax.common.command_line` for their form."""
