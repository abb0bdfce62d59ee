"""What a mode of privacy is worth on real data: many runs side by side, as tables that say how they were made."""
