"""The command line: one file per subcommand, each parses, calls one library function, and prints.

How a command ends, and with which exit code, is in `rlskit.cli.ending`.
"""

from rlskit.cli.app import main, run

__all__ = ["main", "run"]
