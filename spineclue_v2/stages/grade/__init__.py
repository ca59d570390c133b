"""Stage `grade`: vertebral body heights measured in the mask, and the network that gives the Genant grade."""
