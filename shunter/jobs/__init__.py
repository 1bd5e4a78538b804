"""The verbs of a recipe: each joins rooms below, one file a verb. Imports without torch."""
