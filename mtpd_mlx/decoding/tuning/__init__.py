"""Which plan and how many drafts are fastest on this machine: measured, predicted, stored."""
