"""The threat: what the attacker sees, which attacks are made on it, and what that costs.

`view` and `meter` are what an attack is computed on, `single` one attack, `adaptive` the protocol
of several, made of `parts`; `preflight` looks at a few images before any of it.
"""
