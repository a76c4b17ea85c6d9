"""Log lines: made safe, limited, and never waited for."""
