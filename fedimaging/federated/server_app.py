"""The one ServerApp: enrol, run the rounds that are left, evaluate the final model in full."""

from collections.abc import Callable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedimaging.federated.enrolment import Join, enrol_once
from fedimaging.federated.rounds import (
    Federation,
    ServerState,
    calibrate_everywhere,
    evaluate_everywhere,
    final_weights,
    run_round,
)
from fedimaging.results import RoundResult, SiteCalibration, SiteEvaluation

OnCalibrated = Callable[[list[SiteCalibration], dict[str, str]], None]


def build_server_app(
    federation: Federation,
    start: ServerState,
    on_round: Callable[[ServerState, RoundResult], None],
    on_end: Callable[[ServerState, list[SiteEvaluation]], None],
    join: Join = enrol_once,
    on_calibrated: OnCalibrated | None = None,
    on_personal: Callable[[list[SiteEvaluation]], None] | None = None,
) -> ServerApp:
    """A ServerApp that starts after `start.round`. `join` finds the hospitals, before every round.

    `on_round` is called after every round, before the next one begins: what it makes durable is what a resumed run
    starts from. `on_end` gets the last state and the full evaluation of the final model; before it, where the study asks for
    a calibration, `on_calibrated` gets what hospitals released for it, and the codes of those that did not; and `on_personal`,
    where it has `personalisation`, the evaluations of the training hospitals' own models.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        nodes = join(grid, federation, {})
        state, evaluations = start, None
        while state.round < federation.study.federation.rounds:
            nodes = join(grid, federation, nodes)
            state, result, evaluations = run_round(grid, federation, nodes, state)
            on_round(state, result)
        if evaluations is None:  # killed after the last round: its checkpoint is there, its evaluation is not
            evaluations = evaluate_everywhere(grid, federation, nodes, state.round, final_weights(state), final=True)
        if on_calibrated is not None and federation.study.evaluation.calibration != "none":
            on_calibrated(*calibrate_everywhere(grid, federation, nodes, state.round, final_weights(state)))
        if on_personal is not None and federation.study.personalisation.kind != "none":
            trained = tuple(sorted(set(federation.train_sites) & set(federation.evaluate_sites)))
            on_personal(evaluate_everywhere(
                grid, federation, nodes, state.round, final_weights(state), final=True, sites=trained, personal=True))
        on_end(state, evaluations)

    return app
