"""Floor 1: the machine and its surroundings as they are now.

- `idle`: staying off the busy cores
"""

from puhui.sense.idle import step_back

__all__ = ["step_back"]
