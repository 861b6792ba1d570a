"""The study of a pretrained model: ``measure`` collects its runs."""
