"""What the file of a `StagePrediction` holds."""

from typing import Any

from dynalyze._core.saved_schema import Array, ListOf, Schema
from dynalyze._core.status import Status
from dynalyze.models.counted import Stats
from dynalyze.stages.finite import FiniteScaleStages

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
        "known_sharpness": Array("K+1", optional=True),
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


def to_parts(prediction: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays and metadata of a `StagePrediction`, as the schema names them."""
    known = {"known_durations", "known_sharpness"}
    own = {name for name in SCHEMA.arrays if "." not in name} - known
    arrays = {name: getattr(prediction, name) for name in own}
    if prediction.follows_transitions:
        arrays["known_durations"] = prediction.durations
    if prediction.known_sharpness is not None or "sharpness" in vars(prediction):
        arrays["known_sharpness"] = prediction.sharpness
    at_alpha = prediction.at_alpha
    if at_alpha is not None:
        arrays |= {f"at_alpha.{name}": a for name, a in at_alpha.to_arrays().items()}
    metadata = {
        "departed": prediction.departed,
        "caveats": prediction.caveats,
        "product_names": prediction.product_names,
        "status": prediction.status,
        "message": prediction.message,
        "tie_rtol": prediction.tie_rtol,
        "stats": vars(prediction.stats),
        "log10_alpha": None if at_alpha is None else at_alpha.log10_alpha,
        "configuration": prediction.configuration,
    }
    return arrays, metadata


def from_parts(arrays: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the `StagePrediction` that was saved."""
    own = {name: array for name, array in arrays.items() if "." not in name}
    at_alpha = {k.removeprefix("at_alpha."): a for k, a in arrays.items() if "." in k}
    log10_alpha = metadata.pop("log10_alpha")
    if (log10_alpha is None) != (not at_alpha):
        raise ValueError("the stages from a given initialization are there in part")
    converted = {
        "departed": tuple(tuple(products) for products in metadata["departed"]),
        "caveats": tuple(metadata["caveats"]),
        "product_names": tuple(metadata["product_names"]),
        "status": Status(metadata["status"]),
        "stats": Stats(**metadata["stats"]),
        "at_alpha": FiniteScaleStages.from_arrays(at_alpha, log10_alpha) if at_alpha else None,
    }
    return own | metadata | converted
