"""The mathematics and the books: mechanisms, accounting, calibration, noise, the private step. No Flower."""
