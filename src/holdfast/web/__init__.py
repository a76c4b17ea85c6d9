"""`holdfast-web`: one page and `/metrics` about this host, by an unprivileged process that can only read (ADR 0215)."""
