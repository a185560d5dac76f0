"""What a call is: data only."""
