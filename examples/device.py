"""An expert on a device, without a network: reads texts from standard input, one a line.

    echo "Deletes the specified queue." | python examples/device.py path/to/expert

Where the expert is not sure its answer is not proven: ask the big model.
"""

from __future__ import annotations

import sys

import puhui


def main() -> None:
    """Answers every line."""
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/device.py FOLDER_OF_AN_EXPERT")
    expert = puhui.open_expert(sys.argv[1])
    for line in sys.stdin:
        said = expert.ask(line.strip())
        print(f"{said.label}\t{said.confidence:.3f}\t{'sure' if said.sure else 'ask the big model'}", flush=True)


if __name__ == "__main__":
    main()
