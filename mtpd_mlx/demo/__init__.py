"""`mtpd demo`: train, extend, export and decode the bundled small model, and a report of it."""
