"""Optional steps by a language model: other words for a query, and a review by several models."""
