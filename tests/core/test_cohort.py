"""Like work of several requests in one go: to each its own result, and to nobody another's failure."""

from __future__ import annotations

import asyncio

import pytest

from puhui.core.cohort import Cohort


def test_work_is_done_one_after_another_and_each_gets_its_own() -> None:
    told: list[str] = []

    def double(number: int) -> int:
        told.append("work")
        return 2 * number

    cohort = Cohort(double)

    async def request(number: int) -> int:
        told.append("before")
        found = await cohort(number)
        told.append("after")
        return found

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*map(request, range(5)))

    assert asyncio.run(all_of_them()) == [0, 2, 4, 6, 8]
    assert told == ["before"] * 5 + ["work"] * 5 + ["after"] * 5
    assert asyncio.run(all_of_them()) == [0, 2, 4, 6, 8]


def test_a_failure_is_for_who_gave_the_item() -> None:
    async def two() -> None:
        cohort = Cohort(lambda number: 1 / number)
        good, bad = await asyncio.gather(cohort(2), cohort(0), return_exceptions=True)
        assert good == 0.5
        with pytest.raises(ZeroDivisionError):
            raise bad  # type: ignore[misc]  # gather's type does not tell that it is an exception

    asyncio.run(two())


def test_one_that_goes_away_leaves_the_others_in_peace() -> None:
    seen: list[int] = []

    async def one_leaves() -> None:
        cohort = Cohort(lambda number: seen.append(number) or number)
        leaving, staying = (asyncio.ensure_future(cohort(number)) for number in (1, 2))
        await asyncio.sleep(0)
        leaving.cancel()
        assert await staying == 2
        assert await cohort(3) == 3

    asyncio.run(one_leaves())
    assert seen[-2:] == [2, 3]
