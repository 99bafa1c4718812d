"""How fast training is, in images per second."""

import time


class Clock:
    """Images per second of training, without the first call of each length, which compiles, and the caller's saving and
    logging.
    """

    def __init__(self, batch_size: int):
        self.batch_size, self.warm = batch_size, set[int]()
        self.restart()

    def restart(self) -> None:
        self.images, self.start = 0, time.perf_counter()

    def cold(self, steps: int) -> bool:
        """Whether no call of so many steps was made yet."""
        return steps not in self.warm

    def tick(self, steps: int) -> None:
        """A call of so many steps has been given to the device."""
        if self.cold(steps):
            self.warm.add(steps)
            self.first = steps * self.batch_size / (time.perf_counter() - self.start)
            self.restart()
        else:
            self.images += steps * self.batch_size

    def skip(self, seconds: float) -> None:
        """Leave out time that was not training's."""
        self.start += seconds

    def rate(self) -> float:
        """Images per second since the last restart; of the last call that compiled when there was no other."""
        return self.images / (time.perf_counter() - self.start) if self.images else self.first
