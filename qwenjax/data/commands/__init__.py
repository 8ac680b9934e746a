"""The subcommands of `python -m qwenjax.data`, a module each; see `qwenjax.common.command_line` for their form."""
