"""What everything stands on: errors for people, whole files, strict JSON, version pins."""
