"""A detailed evaluation of a finished model: by class, by group of people, by client, and how far it may be trusted."""
