"""The command's groups, one module each. A folder of its own, so that `veil.simulate` stays the function."""
