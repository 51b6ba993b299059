"""What authors get wrong, found and said in their terms."""
