"""Below everything: errors for people, whole files, strict JSON, version pins."""
