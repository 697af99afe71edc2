"""Check task files of any origin: does gold run, is it grounded, does it keep the policy."""
