"""From finished runs to small files, and what runs them."""
