"""What runs where the data lives: the ClientApp, its guard, the local trainer and the data sets."""
