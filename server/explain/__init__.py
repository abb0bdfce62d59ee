"""What a run's model rests an answer on: attributions of one question, in figures and as a picture."""
