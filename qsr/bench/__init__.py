"""How fast it is: the engine that measures, its peers, its report, training steps."""
