"""Privacy loss distributions (PLD; Koskela et al. 2020, arXiv 1906.03049).

The privacy loss of an outcome is the logarithm of how much likelier one of two neighbouring data sets makes it. Its
distribution is kept on a grid, separately for removing and for adding a unit: `grid` says how it is read, `steps` how
it is made for one step of a mechanism, `history` how the steps of a whole history compose.
"""

from privacy.losses.grid import INTERVAL, Losses, Pmf
from privacy.losses.history import of
from privacy.losses.steps import LARGEST, gaussian_shift, mixture_of, of_part, unrolled

__all__ = ["INTERVAL", "LARGEST", "Losses", "Pmf", "gaussian_shift", "mixture_of", "of", "of_part", "unrolled"]
