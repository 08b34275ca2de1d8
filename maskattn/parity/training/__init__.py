"""The same training run in both frameworks, step for step: tasks, runs, what is compared, and what must be caught."""
