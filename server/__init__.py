"""What runs where the shared model lives: the ServerApp, the federation loop, reduction, checkpoints."""
