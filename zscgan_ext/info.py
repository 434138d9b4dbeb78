"""What is installed, built and in use: `python -m zscgan_ext.info`."""

import sys
from collections.abc import Sequence

from zscgan_ext.errors import one_line
from zscgan_ext.program import OneLineParser, importing_libraries, program


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Print one fact on a line; return the exit code."""
    description = "Tell what is installed, built and in use."
    OneLineParser(prog="python -m zscgan_ext.info", description=description).parse_args(arguments)
    with importing_libraries():
        from zscgan_ext.installation import installation  # imports torch, which takes seconds

    facts = installation()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(one_line(f"{name:<{width}}  {value}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
