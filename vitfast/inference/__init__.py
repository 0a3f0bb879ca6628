"""What runs models rather than trains them."""
