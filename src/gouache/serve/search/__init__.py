"""Search by meaning in the studio's gallery."""
