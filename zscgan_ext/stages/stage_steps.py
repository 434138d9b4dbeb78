"""What is done around the steps of a stage: profiling, watching, checkpoints."""

from collections.abc import Callable, Sequence

from zscgan_ext.run_folder.checkpoints import Checkpoints
from zscgan_ext.training.finite_numbers import FiniteNumbers, NonFiniteError
from zscgan_ext.training.steps import Training


class StageSteps:
    """Holds the training of a stage, and looks after it.

    Args:
        stage: its name.
        checkpoints: of the run.
        log_interval: steps between two looks at whether all numbers are finite.
        profiled_step: is called after each step.
        feeding: trainings, held already, that take a step within each of the stage's.
    """

    def __init__(
        self,
        stage: str,
        checkpoints: Checkpoints,
        log_interval: int,
        profiled_step: Callable[[], None],
        feeding: Sequence[Training] = (),
    ) -> None:
        self.stage = stage
        self.checkpoints = checkpoints
        self.log_interval = log_interval
        self.profiled_step = profiled_step
        self.feeding = feeding
        self.finite_numbers: FiniteNumbers | None = None
        self.taken = 0

    def before_steps(self, training: Training) -> None:
        """Hold a training, and go on from the state that a checkpoint has of it."""
        checkpoints = self.checkpoints
        checkpoints.hold(f"{self.stage}/training", training)
        self.finite_numbers = FiniteNumbers(
            training, checkpoints.snapshot, checkpoints.restore, self.feeding
        )
        checkpoints.before_write = self.check

    def after_step(self) -> None:
        """Do what is due after a step.

        Raises:
            NonFiniteError: if a number was not finite; a checkpoint from before was written.
            StoppedError: if a signal stopped the run; a checkpoint was written.
        """
        self.profiled_step()
        self.checkpoints.count_step()
        self.taken += 1
        if self.taken % self.log_interval == 0:
            self.check()
        self.checkpoints.write_or_stop()

    def check(self) -> None:
        """Look whether all numbers are finite."""
        if self.finite_numbers is None:
            return
        try:
            self.finite_numbers.check()
        except NonFiniteError as error:
            self.checkpoints.write()
            raise NonFiniteError(f"{self.stage}: {error}") from None
