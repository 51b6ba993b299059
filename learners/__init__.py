"""Networks, unrolls, batches and the algorithms that learn from them."""
