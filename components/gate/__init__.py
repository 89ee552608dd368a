"""The gate lets a release pass: no leakage, few rejects, better than random, above floors."""
