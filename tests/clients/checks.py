"""Runs the checks of a client, each whatever becomes of the others."""

import json


def run(name, checks, subject):
    """Prints a JSON summary; whether all held."""
    failures = {}
    for check in checks:
        try:
            check(subject)
        except Exception as error:  # Each check is reported, whatever breaks it.
            failures[check.__name__] = f"{type(error).__name__}: {error}"[:500]
    summary = {
        "client": name,
        "checks": len(checks),
        "passed": len(checks) - len(failures),
        "failures": failures,
    }
    print(json.dumps(summary, indent=2), flush=True)
    return not failures
