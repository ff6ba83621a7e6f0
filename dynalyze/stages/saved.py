"""What the file of a `StagePrediction` holds."""

from dynalyze._core.saved_schema import Array, ListOf, Schema

SCHEMA = Schema(
    "stage prediction",
    arrays={
        "times": Array("K", finite=True),
        "coordinates": Array("K", dtype="int", least=0, below="p"),
        "signs": Array("K", dtype="int", least=-1, below=2),
        "theta": Array("K+1", "p", finite=True),
        "b": Array("K+1", "p", finite=True),
        "fields": Array("K+1", "p", finite=True),
        "losses": Array("K+1", finite=True),
        "support_sizes": Array("K+1", dtype="int", least=0),
        "runner_ups": Array("K", dtype="int", least=-1, below="p"),
        "gaps": Array("K"),
        "known_durations": Array("K", optional=True),
        "zero_fields": Array("p", finite=True),
        # The stages from a given initialization
        "at_alpha.coordinates": Array("M", dtype="int", least=0, below="p", optional=True),
        "at_alpha.signs": Array("M", dtype="int", least=-1, below=2, optional=True),
        "at_alpha.onsets": Array("M", finite=True, optional=True),
        "at_alpha.overlaps": Array("M", optional=True),
        "at_alpha.orbit_starts": Array("M+1", dtype="int", least=0, optional=True),
        "at_alpha.orbit_times": Array("v", finite=True, optional=True),
        "at_alpha.orbit_log_sizes": Array("v", finite=True, optional=True),
        "at_alpha.u0": Array("p", finite=True, optional=True),
        "at_alpha.v0": Array("p", finite=True, optional=True),
    },
    metadata={
        "departed": ListOf(ListOf(int), "K"),
        "caveats": ListOf(str, "K"),
        "product_names": ListOf(str, "p"),
        "status": str,
        "message": str,
        "tie_rtol": float,
        "stats": {"nfev": int, "nhev": int, "nhcol": int, "seconds": float},
        "log10_alpha": float | None,
        "configuration": dict,
    },
)
