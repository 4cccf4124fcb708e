"""The processes of one training: started here, and what they say to each other."""
