"""Linear models between parties that trust nobody: ridge, LASSO, elastic net and logistic models on joined rows.

Status: not usable yet. The layers underneath exist and are tested: arithmetic in a prime field and modulo the primes of
ring-LWE ciphertexts, their transforms and random streams. The protocol between parties is not built.
"""

__all__: list[str] = []
