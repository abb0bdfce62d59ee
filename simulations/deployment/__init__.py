"""The real server and real clients as processes of one machine: a demonstration, proofs by faults, and measurements."""
