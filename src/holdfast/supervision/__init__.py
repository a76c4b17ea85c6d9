"""What keeps leases honest: renewing them, measuring their age, feeding or starving the watchdog."""
