"""Environments that test or measure: counting, memory, slow steps."""
