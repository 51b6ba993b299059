"""Classic control, equal to Gymnasium's, transition by transition."""
