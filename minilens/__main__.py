"""python -m minilens, and the `minilens` command."""

import gc
import os
import signal
import sys


def main() -> int:
    """Run the command. Ctrl-C ends it without a word, even while torch is still being imported."""
    try:
        from .command.main import main

        gc.freeze()  # what is imported stays until the end: no need to look through it again
        gc.enable()
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as minilens/__init__.py leaves it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return main()
    except KeyboardInterrupt:
        return 130
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):  # None where its caller has closed it
            try:
                stream.flush()
            except OSError:  # what a full disk has not taken goes nowhere: Python would try again, and end with 120
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
