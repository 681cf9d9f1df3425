"""Preparations that end half way, as if the process was killed."""


class Stopped(BaseException):
    """Nothing catches it."""


def stopping(function, number):
    """The same function of an iterable, which ends the process instead of its item `number`."""

    def stopped(*args, **kwargs):
        for index, item in enumerate(function(*args, **kwargs)):
            if index == number:
                raise Stopped
            yield item

    return stopped


def times(out, pattern):
    """When each of the files was written, by path."""
    return {path: path.stat().st_mtime_ns for path in out.rglob(pattern)}
