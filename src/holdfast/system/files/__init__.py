"""Files, their locks and the file systems they are on."""
