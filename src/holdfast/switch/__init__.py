"""The live switch: the locks and connections of a running virtlockd become holdfastd's (ADR 0211, ADR 0212)."""
