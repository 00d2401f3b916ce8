"""Files broken on purpose, seeds fixed: each is read, or refused by the error that its reader promises."""
