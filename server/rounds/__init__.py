"""How a round turns a stream of replies into steps of the shared model: one file a kind of round."""
