"""What Extra-P or AdaptDL predict for the sweeps on standard input; runs in an environment of the peer's alone."""

from __future__ import annotations

import json
import sys


def extrap(counts: list[int], speedups: list[float], at: float) -> float:
    """The step time's model in performance model normal form, evaluated."""
    from extrap.entities.callpath import Callpath
    from extrap.entities.coordinate import Coordinate
    from extrap.entities.experiment import Experiment
    from extrap.entities.measurement import Measurement
    from extrap.entities.metric import Metric
    from extrap.entities.parameter import Parameter
    from extrap.modelers.model_generator import ModelGenerator

    experiment, callpath, metric = Experiment(), Callpath("step"), Metric("time")
    experiment.add_parameter(Parameter("w"))
    experiment.add_callpath(callpath)
    experiment.add_metric(metric)
    for count, speedup in zip(counts, speedups, strict=True):
        coordinate = Coordinate(float(count))
        experiment.add_coordinate(coordinate)
        experiment.add_measurement(Measurement(coordinate, callpath, metric, [count / speedup]))
    generator = ModelGenerator(experiment)
    generator.model_all()
    (model,) = generator.models.values()
    return at / float(model.hypothesis.function.evaluate(at))


def adaptdl(counts: list[int], speedups: list[float], at: float) -> float:
    """The throughput model of its goodput, fitted to the step times."""
    import numpy as np
    from adaptdl.goodput import GoodputFunction, fit_perf_params

    steps = np.array([count / speedup for count, speedup in zip(counts, speedups, strict=True)])
    batches = np.full(len(counts), 64)
    parameters = fit_perf_params(np.ones(len(counts)), np.array(counts), batches, np.full(len(counts), steps[0]), steps)
    function = GoodputFunction(parameters, (1.0, 1.0), 64)  # of its noise scale, not used here
    ends = [float(function.throughput(1, replicas, 64, 0)) for replicas in (at, 1)]
    return ends[0] / ends[1]


def main() -> None:
    """Print the predictions by law as JSON."""
    predict, told = {"extrap": extrap, "adaptdl": adaptdl}[sys.argv[1]], json.load(sys.stdin)
    found = {
        name: [predict(told["counts"], [1.0, *speedups], told["at"]) for speedups in sweeps]
        for name, sweeps in told["sweeps"].items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
