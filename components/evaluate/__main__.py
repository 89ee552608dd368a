"""``python -m components.evaluate --line wholebody``."""

from components.command import run_stage
from components.evaluate.stage import run

if __name__ == "__main__":
    run_stage("evaluate", "Collect what the tasks found, in one table, one file of metrics and one report.", run)
