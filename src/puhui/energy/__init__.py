"""Floor 1: what an answer cost in joules, grams of CO₂ and money.

- `power`: joules from CPU time or tokens, always with bounds
- `tariff`: joules and tokens into CO₂ and money
- `token_estimate`: tokens of a request, where nobody says how many
"""

from puhui.energy.power import CorePower, TokenEnergy, estimate_joules, estimate_remote_joules
from puhui.energy.tariff import GRID_G_PER_KWH, JOULES_PER_KWH, grid_intensity, price_usage, token_prices

__all__ = [
    "GRID_G_PER_KWH",
    "JOULES_PER_KWH",
    "CorePower",
    "TokenEnergy",
    "estimate_joules",
    "estimate_remote_joules",
    "grid_intensity",
    "price_usage",
    "token_prices",
]
