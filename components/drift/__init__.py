"""The training set beside the champion's: suite *release*, judged apart from curation so that curation knows none."""
