"""What projections, training steps and packed weights cost in time and memory."""
