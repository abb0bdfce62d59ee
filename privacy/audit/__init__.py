"""What an adversary can really learn: audits that bound, or estimate, the epsilon of an implementation from below."""
