"""`python -m minilora` runs the command line."""

import signal
import sys


def main() -> int:
    """Run the command line; return its exit code, as `cli.main` lists them.

    After Ctrl-C it is 130, also if more of them come, while the package loads or at the end.
    """
    try:
        from .cli import main

        code = main()
    except KeyboardInterrupt:
        code = 130
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the process's end is left
    return code


if __name__ == "__main__":
    sys.exit(main())
