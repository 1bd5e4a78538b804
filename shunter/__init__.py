"""shunter assembles, plans, schedules and runs hybrid training pipelines."""

__version__ = "0.1.0"
