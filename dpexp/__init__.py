"""dpexp: how well does data-parallel training scale for my model, my data and my machine, and why?"""

__version__ = "0.1.0"
