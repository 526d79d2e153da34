"""The artifact's own record, and what serving systems need around it."""
