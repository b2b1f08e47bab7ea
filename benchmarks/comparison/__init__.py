"""How compare.py measures its peers, and what it says about them."""
