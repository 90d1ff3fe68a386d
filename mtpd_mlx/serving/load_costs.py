"""`LoadCosts`: what rounds of several texts cost on this machine, kept from one run of the server to the next.
The scheduler asks it when it chooses drafts for the first time, and tells it what it has learned when it is idle."""

from mtpd_mlx.files.measured import StoredCosts, store_costs, stored_costs
from mtpd_mlx.speculative.load_choice import LoadChoice
from mtpd_mlx.speculative.round_costs import Kind, by_kind

ROUNDS = 24  # of one class of sizes that were timed since it was stored last, before it is stored again


class LoadCosts:
    """key: all that the costs depend on, but for the number of texts; None: nothing is kept."""

    def __init__(self, key: str | None):
        self._key = key
        self._stored: dict[int, int] = {}  # rounds that had been timed then, by class

    def known(self, size: int) -> dict[Kind, float] | None:
        """What was stored of rounds of `size` texts."""
        stored = None if self._key is None else stored_costs(self._name(size))
        return None if stored is None else by_kind(stored.costs) or None

    def keep(self, choice: LoadChoice) -> None:
        """Stores what was learned of every class of sizes that has had enough rounds."""
        if self._key is None:
            return
        for size, (rounds, table) in choice.learned().items():
            if rounds - self._stored.get(size, 0) >= ROUNDS:
                self._stored[size] = rounds
                store_costs(self._name(size), StoredCosts({str(kind): cost for kind, cost in table.items()}))

    def _name(self, size: int) -> str:
        return f"{self._key}; {size} texts"
