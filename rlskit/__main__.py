"""`python -m rlskit`."""

from rlskit.cli import main

if __name__ == "__main__":
    main()
