"""Environments that are no definitions of the kit: any `gymnasium.Env`, stepped as it is."""
