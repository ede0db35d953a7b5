"""What a sweep is made of: its arms, where they run, what they come to, and how that is shown."""
