"""``python -m components.evaluate --line wholebody``."""

from components.command import run_stage
from components.evaluate.stage import run

if __name__ == "__main__":
    run_stage("evaluate", "judge the frozen encoder on held-out patients, beside baselines", run)
