"""Long runs: each test takes seconds, and with SOAK_SECONDS as long as that says (`make soak`).

Every random decision comes from a seed, which is printed and can be given again as SOAK_SEED. (What threads and the
kernel do meanwhile is theirs, so that the same seed makes the same load and not the same interleaving.)
"""
