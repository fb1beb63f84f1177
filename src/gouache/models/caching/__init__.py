"""Steps that cost less inside the network: what one evaluation made, and later ones of the same walk take."""
