"""Certifying environments: check_env, check_vector_env, and the checked mode."""
