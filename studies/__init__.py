"""Questions asked of the methods: a folder for each study. They may import everything below; nothing imports them."""
