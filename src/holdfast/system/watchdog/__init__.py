"""The watchdog device, our own or wdmd's."""
