"""What a curious server can see of clients' data in what they really sent."""
