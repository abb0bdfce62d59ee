"""What a client's time, lengths, words and figures tell besides the update that it releases."""
