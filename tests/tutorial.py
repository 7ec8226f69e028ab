"""Run docs/tutorial.md in the working folder: `python tests/tutorial.py docs/tutorial.md`.

Blocks with a title are files, `sh` blocks are run, and each line of a `text` block is looked for in
what the commands before it said, with other digits allowed. `console` blocks are only for people.
"""

import re
import subprocess
import sys
from pathlib import Path


def shape(text: str) -> str:
    """Return a text with its numbers and spaces made alike."""
    return re.sub(r"[-\d.,]*\d", "0", re.sub(r"\s+", " ", text)).strip()


def play(page: str) -> None:
    """Do all that the page says.

    Raises:
        CalledProcessError: A command failed.
        SystemExit: It did not answer as the page says.
    """
    said = ""
    for kind, title, text in re.findall(r'```(\w+)(?: title="(.*?)")?\n(.*?)```', page, re.DOTALL):
        if title:
            Path(title).write_text(text, encoding="utf-8")
        elif kind == "sh":
            print(text, flush=True)
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", text], text=True, stderr=subprocess.STDOUT,
                stdout=subprocess.PIPE,
            )  # fmt: skip
            said = done.stdout
            print(said, flush=True)
            done.check_returncode()
        elif kind == "text":
            answers = {shape(line) for line in said.splitlines()}
            missing = [line for line in text.splitlines() if shape(line) not in answers]
            if missing:
                sys.exit("not said, but on the page:\n" + "\n".join(missing))


if __name__ == "__main__":
    play(Path(sys.argv[1]).read_text(encoding="utf-8"))
