"""python -m minilens, and the `minilens` command."""

import sys


def main() -> int:
    """Run the command. Ctrl-C ends it without a word, even while torch is still being imported."""
    try:
        from .command.main import main

        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
