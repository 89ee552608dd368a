"""``python -m components.champion --line wholebody``."""

from components.champion.stage import run
from components.command import run_stage

if __name__ == "__main__":
    run_stage("champion", "Hold the figures beside the champion's; exits with 3 where they are worse.", run)
