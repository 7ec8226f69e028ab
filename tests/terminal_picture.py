"""A command and what it says, as a picture: `python tests/terminal_picture.py OUT.svg COMMAND...`.

It made docs/terminal.svg of the README, in the folder where `make demo` had run:

    python tests/terminal_picture.py docs/terminal.svg rlskit attack demo/rls.safetensors \\
        --method fgsm,pgd --eps 0.1 --limit 100 -o demo/picture
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

WIDTH = 100
NO_FONT_FROM_ELSEWHERE = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def picture(command: list[str]) -> str:
    """Run a command and return its two streams, as a terminal shows them, as SVG."""
    setting = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": str(WIDTH)}
    done = subprocess.run(
        [*command, "--progress", "none"], env=setting, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere)
        console.print(f"[bold]$ {' '.join(command)}[/bold]", highlight=False)
        console.print(Text.from_ansi(done.stdout.rstrip()), highlight=False)
        return console.export_svg(title="rlskit", code_format=NO_FONT_FROM_ELSEWHERE)


if __name__ == "__main__":
    out, *command = sys.argv[1:]
    Path(out).write_text(picture(command), encoding="utf-8")
