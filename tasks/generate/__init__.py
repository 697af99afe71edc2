"""Draw tasks from a store: a blueprint first, then its checks, then its words."""
