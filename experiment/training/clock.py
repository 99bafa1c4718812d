"""The speed of training, in images per second."""

import time


class Clock:
    """A clock for images per second of training.

    It leaves out the first call of each length, which compiles, and the time that the caller spends on saving and
    logging.
    """

    def __init__(self, batch_size: int):
        self.batch_size, self.warm = batch_size, set[int]()
        self.restart()

    def restart(self) -> None:
        self.images, self.start = 0, time.perf_counter()

    def cold(self, steps: int) -> bool:
        """Tell whether no call of this many steps was made yet."""
        return steps not in self.warm

    def tick(self, steps: int) -> None:
        """Count a call of this many steps, just given to the device."""
        if self.cold(steps):
            self.warm.add(steps)
            self.first = steps * self.batch_size / (time.perf_counter() - self.start)
            self.restart()
        else:
            self.images += steps * self.batch_size

    def skip(self, seconds: float) -> None:
        """Leave out these seconds, which were not spent on training."""
        self.start += seconds

    def rate(self) -> float:
        """The images per second since the last restart; where every call since then compiled, those of the last one."""
        return self.images / (time.perf_counter() - self.start) if self.images else self.first
