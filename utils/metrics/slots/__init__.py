"""Which slot values of an E2E meaning representation a text mentions."""
