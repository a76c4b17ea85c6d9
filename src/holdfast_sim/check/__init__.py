"""What must never happen, checked from outside."""
