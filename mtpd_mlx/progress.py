"""What a person sees while training: one bar with loss per head and simulated tau, one line per validation."""

from typing import Any


class ProgressBar:
    def __init__(self, iters: int, command: str = "train"):
        from tqdm import tqdm

        self.command = command
        self._bar = tqdm(total=iters, unit="step", dynamic_ncols=True)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._bar.close()

    def show(self, record: dict[str, Any]) -> None:
        self._bar.update(record["iter"] - self._bar.n)
        if "valid" in record:
            valid = record["valid"]
            car = " ".join(f"{c:.3f}" for c in valid["car"])
            kept = "  (best so far, saved)" if record.get("saved") else ""
            self._bar.write(
                f"step {record['iter']}: valid main loss {valid['main_loss']:.4f}  tau {valid['tau']:.3f}  CAR {car}{kept}"
            )
            return
        heads = "/".join(f"{x:.2f}" for x in record["head_loss"])
        self._bar.set_postfix_str(
            f"main {record['main_loss']:.3f} heads {heads} tau {record['tau']:.2f} {record['tokens_per_second']:.0f} tok/s"
        )
