"""The subcommands of `python -m qwenjax.cluster`, a module each; qwenjax.common.command_line says their form."""
