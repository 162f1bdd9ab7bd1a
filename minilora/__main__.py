"""`python -m minilora` runs the command line."""

import signal
import sys


def main() -> int:
    """Run the command line; return its exit code, also where a second Ctrl-C comes at the end."""
    try:
        from .cli import main  # loads for half a second

        code = main()
    except KeyboardInterrupt:
        code = 130
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the process's end is left
    return code


if __name__ == "__main__":
    sys.exit(main())
