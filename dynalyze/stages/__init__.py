"""What the theory predicts: eqs. (8)–(11), Algorithm 1, finite-α timing."""
