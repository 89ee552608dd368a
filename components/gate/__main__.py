"""``python -m components.gate --line wholebody``."""

from components.command import run_stage
from components.gate.stage import run

if __name__ == "__main__":
    run_stage("gate", "hold the figures against their bounds; exits with 3 where a gate fails", run)
