"""Bad inputs by the hundred: one file a kind; each is a correct result, or one message that names what is wrong."""
